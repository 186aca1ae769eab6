"""Inject thousands of faults into a guarded detector and show by digest that none reaches the applied or saved state.

python bench/guard/faults.py [--every N] [--out bench/results/guard_faults.md]
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from rig import forward_of, tiny_batch, tiny_detector

from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.replay.snapshot import Snapshot, restore, take
from maskrcnn_coco.replay.state import digest

VALUES = (math.nan, math.inf, -math.inf, 1e30)
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, fused=True),
    "sgd_loop": lambda m: torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9, foreach=False),
}
TRANSIENT = ("image", "box", "mask", "label", "activation", "gradient")


@dataclass(frozen=True)
class Fault:
    """One value in one place at one time. ``site`` names the place, ``when`` is first, middle or micro (of three)."""

    kind: str
    site: str
    value: float
    when: str
    optimizer: str


class Rig:
    """A guarded tiny detector with saved states before its first step and in the middle, and their clean next steps."""

    def __init__(self, optimizer: str, warm: int = 6) -> None:
        self.model = tiny_detector()
        self.optimizer = OPTIMIZERS[optimizer](self.model)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=optimizer != "sgd_loop")
        self.guard = Guard(self.model, self.optimizer, scaler=self.scaler, check_every=1)
        skipped = ("transform", "rpn.anchor_generator")  # they return no tensor
        leaves = {n: m for n, m in self.model.named_modules() if n and not list(m.children())}
        self.modules = {n: m for n, m in leaves.items() if n not in skipped}
        self.saved: dict[str, Snapshot] = {}
        self.learned: dict[str, Any] = {}
        self.clean: dict[str, tuple[str, float]] = {}
        forward = forward_of(self.model)
        for step in range(warm + 1):
            if step in (0, warm):
                for when in ("first",) if step == 0 else ("middle", "micro"):
                    self._keep(when, step)
            if step < warm:
                assert self.guard.step(forward, tiny_batch(step)).applied
        for when in ("first", "middle", "micro"):
            self.reset(when)
            record = self.step(when, forward, self.batches(when))
            assert record.applied, (when, self.guard.alarm)
            self.clean[when] = (digest(self.model, self.optimizer, self.scaler), self.moved(when))

    def _keep(self, when: str, step: int) -> None:
        # Scaler tensors are made at the first use; the digest must not see that as a change.
        self.scaler.scale(torch.ones(()))
        self.saved[when] = take(self.model, self.optimizer, self.scaler, step=step, epoch=0)
        self.learned[when] = copy.deepcopy(self.guard.state_dict())

    def reset(self, when: str) -> None:
        """The saved state, and a guard that knows what it knew then."""
        restore(self.saved[when], self.model, self.optimizer, self.scaler)
        self.guard.reset(self.saved[when].step)
        self.guard.load_state_dict(copy.deepcopy(self.learned[when]))
        if when != "first":
            # What the last applied step left behind: the norms that the next one compares with.
            self.guard.health.finished(due=True)
        self.guard.buffers.sizes.clear()
        self.guard.buffers.wrong(whole=True)

    def batches(self, when: str) -> list[Any]:
        """The batch of the step, or its three micro-batches."""
        return [tiny_batch(50 + i, float_masks=True) for i in range(3 if when == "micro" else 1)]

    def step(self, when: str, forward: Any, batches: list[Any]) -> Any:
        return self.guard.step(forward, batches, micro_batches=True)

    def moved(self, when: str) -> float:
        """2-norm of the difference between the weights and the saved ones."""
        old = self.saved[when].model
        return math.sqrt(
            sum(float((p.detach() - old[n]).double().square().sum()) for n, p in self.model.named_parameters())
        )


def faults(rig: Rig, optimizer: str) -> Iterator[Fault]:
    """Every fault of this optimizer."""
    places: dict[str, list[str]] = {
        "image": ["0,0,0,0", "1,2,47,47", "0,1,20,30"],
        "box": [f"{i},{k},{c}" for i in (0, 1) for k in (0, 1) for c in range(4)],
        "mask": ["0,0,10,10", "1,1,40,40"],
        "label": ["0,0", "1,1"],
        "activation": list(rig.modules),
        "gradient": [n for n, _ in rig.model.named_parameters()],
        "weight": [n for n, _ in rig.model.named_parameters()],
        "buffer": [n for n, b in rig.model.named_buffers() if b.is_floating_point()],
        "momentum": [
            f"{n}/{k}"
            for n, p in rig.model.named_parameters()
            for k, v in rig.optimizer.state[p].items()
            if isinstance(v, torch.Tensor) and k != "step"
        ],
        "scaler": ["scale"] if rig.scaler.is_enabled() else [],
        "lr": [f"{g}" for g in range(len(rig.optimizer.param_groups))],
    }
    for kind, sites in places.items():
        for site, value, when in itertools.product(sites, VALUES, ("first", "middle", "micro")):
            if (when == "micro" and kind not in TRANSIENT) or (kind == "momentum" and when == "first"):
                continue
            yield Fault(kind, site, value, when, optimizer)


def inject(rig: Rig, fault: Fault, batches: list[Any]) -> list[Any]:
    """Put the fault in place; returns the hooks to remove afterwards. With micro-batches it is in the second."""
    images, targets = batches[min(1, len(batches) - 1)]
    where = [int(v) for v in fault.site.split(",")] if fault.site[0].isdigit() and fault.kind in TRANSIENT else []
    named = {**dict(rig.model.named_parameters()), **dict(rig.model.named_buffers())}
    with torch.no_grad():
        if fault.kind == "image":
            images[where[0]][tuple(where[1:])] = fault.value
        elif fault.kind == "box":
            targets[where[0]]["boxes"][where[1], where[2]] = fault.value
        elif fault.kind == "mask":
            targets[where[0]]["masks"][tuple(where[1:])] = fault.value
        elif fault.kind == "label":
            wrong = {math.inf: 3, -math.inf: -1, 1e30: 99}.get(fault.value, 0)
            targets[where[0]]["labels"][where[1]] = wrong
        elif fault.kind in ("weight", "buffer"):
            named[fault.site].view(-1)[0] = fault.value
        elif fault.kind == "momentum":
            name, key = fault.site.split("/")
            rig.optimizer.state[named[name]][key].view(-1)[0] = fault.value  # type: ignore[index]
        elif fault.kind == "lr":
            rig.optimizer.param_groups[int(fault.site)]["lr"] = fault.value
        elif fault.kind == "scaler":
            rig.scaler.update(fault.value)
    return _hooks(rig, fault, named)


def _hooks(rig: Rig, fault: Fault, named: dict[str, Any]) -> list[Any]:
    calls = itertools.count()
    turn = 1 if fault.when == "micro" else 0

    def poison(tensor: torch.Tensor) -> torch.Tensor:
        out = tensor.clone()
        out.view(-1)[:1] = fault.value
        return out

    if fault.kind == "gradient":
        return [named[fault.site].register_hook(lambda g: poison(g) if next(calls) == turn else g)]
    if fault.kind == "activation":
        module = rig.modules[fault.site]

        def hook(_m: nn.Module, _i: Any, out: Any) -> Any:
            return poison(out) if isinstance(out, torch.Tensor) and next(calls) == turn else None

        return [module.register_forward_hook(hook)]
    return []


def judge(rig: Rig, fault: Fault) -> str:
    """Run one step with the fault and say what became of it.

    refused: nothing was applied, every bit as before. harmless: the result equals the clean twin's, bit for bit.
    absorbed: the network swallowed the value; the applied update is finite and no larger than clipping allows.
    searched: an overflow of scaled gradients, refused without alarm while the scale is being searched.
    REACHED: anything else.
    """
    rig.reset(fault.when)
    batches = rig.batches(fault.when)
    hooks = inject(rig, fault, batches)
    before = digest(rig.model, rig.optimizer, rig.scaler)
    weights = digest(rig.model, rig.optimizer)
    try:
        record = rig.step(fault.when, forward_of(rig.model), batches)
    finally:
        for h in hooks:
            h.remove()
    alarm = rig.guard.alarm
    after = digest(rig.model, rig.optimizer, rig.scaler)
    if not record.applied and alarm is not None and after == before:
        return "refused"
    if not record.applied and record.loss_scale is not None and digest(rig.model, rig.optimizer) == weights:
        return "searched"
    clean, moved = rig.clean[fault.when]
    if after == clean:
        return "harmless"
    snapshot = take(rig.model, rig.optimizer, rig.scaler, step=record.step + 1, epoch=0, guard=rig.guard)
    if record.applied and fault.kind in TRANSIENT and snapshot.verified:
        limit = 10.0 * moved + 0.01 * 10.0 * 2
        if rig.moved(fault.when) <= limit:
            return "absorbed"
    return "REACHED"


def sweep(every: int = 1, optimizers: tuple[str, ...] = tuple(OPTIMIZERS)) -> dict[Fault, str]:
    """Every ``every``-th fault, for each optimizer."""
    out: dict[Fault, str] = {}
    for name in optimizers:
        rig = Rig(name)
        for fault in itertools.islice(faults(rig, name), 0, None, every):
            out[fault] = judge(rig, fault)
    return out


def table(results: dict[Fault, str]) -> str:
    """Markdown: outcome per kind of fault."""
    outcomes = ("refused", "searched", "absorbed", "harmless", "REACHED")
    lines = ["| fault in | injected | " + " | ".join(outcomes) + " |", "|---|" + "---|" * (len(outcomes) + 1)]
    for kind in [*dict.fromkeys(f.kind for f in results), "all"]:
        counts = Counter(r for f, r in results.items() if kind in ("all", f.kind))
        lines.append(f"| {kind} | {sum(counts.values())} | " + " | ".join(str(counts[o]) for o in outcomes) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    results = sweep(args.every)
    text = table(results)
    print(text, f"\n{time.monotonic() - began:.0f} s")
    for fault, outcome in results.items():
        if outcome == "REACHED":
            print(fault)
    if args.out:
        args.out.write_text(
            "# Faults injected under the guard\n\n"
            "A tiny Mask R-CNN (trainable batch norm, four components), one bad value (NaN, inf, -inf, 1e30) in\n"
            "one place, at the first step, in the middle, or in one of three micro-batches; fused SGD and fused AdamW\n"
            "with GradScaler, for-loop SGD without. Judged by SHA-256 over weights, buffers, optimizer state and\n"
            "loss scale.\n\n"
            f"{text}\n\n{judge.__doc__ and judge.__doc__.strip()}\n\n"
            "Run: `python bench/guard/faults.py --out bench/results/guard_faults.md`\n"
        )
    sys.exit(any(r == "REACHED" for r in results.values()))


if __name__ == "__main__":
    main()
