"""AnyBench: `attach` behind ten trainings that are no detectors, eight optimizers, ten faults and six decoys.

    python bench/anywhere/run.py [--seeds 0 1] [--clean 20000] [--only NAME] [--out bench/results/anywhere.md]

For each: is every bad step refused bit for bit (weights, buffers and optimizer state before and after it), is anything
refused that should not be, is the run finite at its end, and is its loss that of the clean twin? Beside it the plain
loop, and what others do: the usual advice (skip a loss that is not finite, clip the gradient), a GradScaler's rule
(skip a step whose gradients are not finite), torch's anomaly mode, and Lightning's ``terminate_on_nan`` (stop at a loss
or a weight that is not finite), each restated in the plain loop. ``--clean``: a long run with nothing wrong.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from anywhere.faults import AT, FAULTS, Fault, Live  # noqa: E402
from anywhere.loops.recipes import Orthogonal, SignDescent  # noqa: E402
from anywhere.models import TRAININGS, Batch, Training, batches  # noqa: E402

from maskrcnn_coco import attach  # noqa: E402

STEPS = 60
OPTIMIZERS = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=10 * lr, momentum=0.9),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr=lr / 3),
    "adagrad": lambda p, lr: torch.optim.Adagrad(p, lr=3 * lr),
    "adafactor": lambda p, lr: torch.optim.Adafactor(p, lr=3 * lr),
    "lion": lambda p, lr: SignDescent(p, lr=lr / 5, weight_decay=0.01),
    "muon": lambda p, lr: Orthogonal(p, lr=lr),
    "lbfgs": lambda p, lr: torch.optim.LBFGS(p, lr=0.1, max_iter=2, history_size=4),
}
SYSTEMS = ("attach", "plain", "skip and clip", "scaler's rule", "anomaly mode", "stop at NaN")
CLOSURE = ("lbfgs",)
"""Optimizers that take the backward pass themselves."""


@dataclass
class Ended:
    """What became of one run; ``touched`` counts refused steps that changed something all the same."""

    finite: bool
    loss: float
    refused: list[int]
    touched: int
    error: str = ""


def state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Every tensor that a step may change."""
    held = [*model.parameters(), *model.buffers()]
    for p in model.parameters():
        held += [v for v in optimizer.state.get(p, {}).values() if isinstance(v, torch.Tensor)]
    return [t.detach().clone() for t in held]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Bit for bit, NaN where NaN was."""
    return len(one) == len(other) and all(
        torch.equal(a.nan_to_num(1.5), b.nan_to_num(1.5)) and torch.equal(a.isnan(), b.isnan())
        for a, b in zip(one, other, strict=True)
    )


def train(training: Training, optimizer_name: str, fault: Fault, seed: int, system: str) -> Ended:
    """One run of `STEPS` steps."""
    torch.manual_seed(seed)
    model = training.model().train()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters(), training.lr)
    guard = attach(model, optimizer, say=False) if system == "attach" else None
    live = Live(model, optimizer, guard)
    losses, refused, touched = [], [], 0
    torch.autograd.set_detect_anomaly(system == "anomaly mode")
    for step, batch in enumerate(batches(training, seed, STEPS)):
        now = AT <= step < AT + fault.steps
        if now and fault.batch:
            batch = fault.batch(batch)
        if now and fault.before and (guard is not None or not fault.decoy):
            fault.before(live)
        before = state_of(model, optimizer) if guard is not None and now else []
        shown = math.nan

        def closure(batch: Batch = batch, now: bool = now) -> torch.Tensor:
            nonlocal shown
            optimizer.zero_grad()
            loss = training.loss(model, batch)
            shown = float(loss.detach())
            loss = fault.loss(loss, live) if now and fault.loss else loss
            if guard is not None and optimizer_name not in CLOSURE:
                guard.see(loss)
            if math.isfinite(float(loss.detach())) or system not in ("skip and clip", "stop at NaN"):
                loss.backward()
            if now and fault.after:
                fault.after(live)
            return loss

        if optimizer_name in CLOSURE:
            optimizer.step(closure)
        elif not stepped(system, closure(), model, optimizer):
            continue
        if system == "stop at NaN" and not finite_weights(model):
            raise FloatingPointError("a weight is not finite: stopped")
        if guard is not None and guard.refused:
            refused.append(step)
            touched += bool(before) and not same(before, state_of(model, optimizer))
        losses.append(shown)
    tail = [v for v in losses[-15:] if math.isfinite(v)]
    finite = all(bool(torch.isfinite(p).all()) for p in model.parameters())
    return Ended(finite, sum(tail) / len(tail) if tail else math.inf, refused, touched)


def finite_weights(model: torch.nn.Module) -> bool:
    """Whether every weight is."""
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())


def stepped(system: str, loss: torch.Tensor, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Take the step as ``system`` does after a backward pass; whether it was taken."""
    if not math.isfinite(float(loss.detach())):
        if system == "stop at NaN":
            raise FloatingPointError("the loss is not finite: stopped")
        if system == "skip and clip":
            return False
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if system == "scaler's rule" and not all(bool(g.isfinite().all()) for g in gradients):
        return False
    if system == "skip and clip":
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()
    return True


def long_run(steps: int) -> str:
    """A run of ``steps`` with nothing wrong: what was refused, and what it cost."""
    took = {}
    refused = 0
    for system in ("plain", "attach"):
        torch.manual_seed(0)
        training = TRAININGS[0]
        model = training.model().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=training.lr)
        guard = attach(model, optimizer, say=False) if system == "attach" else None
        began = time.thread_time()
        for batch in batches(training, 0, steps):
            optimizer.zero_grad()
            loss = training.loss(model, batch)
            if guard is not None:
                guard.see(loss)
            loss.backward()
            optimizer.step()
        took[system] = time.thread_time() - began
        refused += 0 if guard is None else guard.refused_steps + len(guard.alarms)
    ratio = took["attach"] / took["plain"]
    return (
        f"A clean run of {steps:,} steps ({TRAININGS[0].name}, AdamW): **{refused}** steps refused or alarmed; "
        f"{1e6 * took['plain'] / steps:.0f} µs a step plain, {ratio:.2f} times that with the guard (CPU time)."
    )


def attempt(training: Training, optimizer: str, fault: Fault, seed: int, system: str) -> Ended:
    """`train`; an error that ends it is told, not raised."""
    try:
        return train(training, optimizer, fault, seed, system)
    except (
        FloatingPointError
    ):  # stopped by rule, the bad step not taken: the weights are what they were, or already NaN
        return Ended(False, math.inf, [], 0)
    except Exception as e:  # a loop that raises has ended: that is the outcome
        return Ended(False, math.inf, [], 0, f"{type(e).__name__}: {e}"[:120])
    finally:
        torch.autograd.set_detect_anomaly(False)


def applies(training: Training, fault: Fault, optimizer: str) -> bool:
    """Whether the fault can be put into this training at all."""
    if fault.batch and training.name == "gpt_block":
        return False  # whole numbers hold no NaN
    # A policy's loss is as large as its rewards; gates that saturate make a huge value a harmless one.
    if optimizer in CLOSURE and fault.after:
        return False  # gradients are the optimizer's own there
    return not (fault.name == "huge_input" and training.name in ("reinforce", "lstm"))


def main() -> None:
    """Run everything, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", default="")
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    parser.add_argument("--clean", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "results" / "anywhere.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    counts: dict[str, Counter[str]] = {s: Counter() for s in SYSTEMS}
    misses: list[str] = []
    for training in TRAININGS:
        for optimizer in args.optimizers:
            for seed in args.seeds:
                one_setting(training, optimizer, seed, args.only, counts, misses)
        print(training.name, dict(counts["attach"]), flush=True)
    page = report(counts, misses, args.seeds, long_run(args.clean))
    print(page)
    if not args.only:
        args.out.write_text(page, encoding="utf-8")


def one_setting(
    training: Training, optimizer: str, seed: int, only: str, counts: dict[str, Counter[str]], misses: list[str]
) -> None:
    """All faults of one training with one optimizer."""
    twin = attempt(training, optimizer, FAULTS[10], seed, "plain")
    spread = 0.25 * abs(twin.loss) + 0.15
    for fault in FAULTS:
        if only not in f"{training.name} {optimizer} {fault.name}" or not applies(training, fault, optimizer):
            continue
        place = f"{training.name}, {optimizer}, seed {seed}: {fault.name}"
        for system in SYSTEMS if not fault.decoy else SYSTEMS[:1]:
            done = attempt(training, optimizer, fault, seed, system)
            count = counts[system]
            kind = "decoy" if fault.decoy else "fault"
            count[kind] += 1
            if done.error:
                count["error"] += 1
                if system == "attach":
                    misses.append(f"{place}: {done.error}")
            if system == "attach" and fault.decoy:
                count["steps"] += STEPS
                count["false"] += len(done.refused)
                if done.refused:
                    misses.append(f"{place}: refused {done.refused[:5]} of a run with nothing wrong")
                continue
            count["finite"] += done.finite
            count["kept"] += done.finite and abs(done.loss - twin.loss) <= spread
            if system == "attach":
                right = AT in done.refused
                count["refused"] += right and not done.touched
                lasting = fault.name in ("nan_state", "nan_lr")
                count["false"] += 0 if lasting else len([s for s in done.refused if s != AT])
                if not right or done.touched or not done.finite:
                    misses.append(f"{place}: refused {done.refused[:4]}, touched {done.touched}, finite {done.finite}")


def share(count: Counter[str], name: str) -> str:
    """Of the faults, per cent."""
    return f"{100 * count[name] / max(count['fault'], 1):.1f} %"


def report(counts: dict[str, Counter[str]], misses: list[str], seeds: list[int], clean: str) -> str:
    """The page."""
    ours = counts["attach"]
    rows = [f"| {s} | {c['fault']} | {share(c, 'finite')} | {share(c, 'kept')} |" for s, c in counts.items()]
    return "\n".join(
        [
            "# AnyBench: the guard in trainings that are no detectors",
            "",
            f"Ten trainings, eight optimizers, seeds {', '.join(map(str, seeds))}, {STEPS} steps, a fault at {AT};",
            f"one CPU thread, torch {torch.__version__}. Run: `make anybench`.",
            "",
            f"Bad steps refused with weights, buffers and optimizer state bit for bit as before: "
            f"**{ours['refused']} of {ours['fault']}**. Steps refused that should not be: **{ours['false']}** "
            f"(of {ours['steps']} steps of decoys, and of those around the faults).",
            "",
            "| system | faults | weights finite at the end | loss as the clean twin's (within 25 % + 0.15) |",
            "|---|---|---|---|",
            *rows,
            "",
            "A NaN in the optimizer's state or rates stays: `attach` alone then refuses every later",
            "step and says so; weights are safe, and the run stands still until it is put right: `diagnose=True` does.",
            "",
            clean,
            "",
            "## What was missed",
            "",
            *([f"- {m}" for m in misses[:80]] or ["- nothing"]),
            "",
        ]
    )


if __name__ == "__main__":
    main()
