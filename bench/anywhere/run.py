"""AnyBench: `attach` behind ten trainings that are no detectors, eight optimizers, ten faults and eight decoys.

    python bench/anywhere/run.py [--seeds 0 1] [--clean 20000] [--only NAME] [--anew] [--out bench/results/anywhere.md]

What a setting (training, optimizer, seed) gave is kept at once in ``anywhere.jsonl`` beside the page; settings that are
there are not run again, so it can be stopped and gone on with. ``--anew`` forgets them.

For each: is every bad step refused bit for bit (weights, buffers and optimizer state before and after it), is anything
refused that should not be, is the run finite at its end, and is its loss that of the clean twin? Beside it the plain
loop, and what others do: the usual advice (skip a loss that is not finite, clip the gradient), a GradScaler's rule
(skip a step whose gradients are not finite), torch's anomaly mode, and Lightning's ``terminate_on_nan`` (stop at a loss
or a weight that is not finite), each restated in the plain loop. The same faults under bfloat16 autocast and through
``Guard.step``, and with ``diagnose=True``: is the cause right, and the sample, where one is to blame? ``--clean``: so
many steps with nothing wrong, shared out among the optimizers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from anywhere.faults import AT, FAULTS, Fault, Live  # noqa: E402
from anywhere.loops.recipes import Orthogonal, SignDescent  # noqa: E402
from anywhere.models import TRAININGS, Batch, Training, batches  # noqa: E402

from maskrcnn_coco import Guard, attach  # noqa: E402

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
WAYS = ("attach", "attach, bfloat16", "Guard.step")
"""What is ours; the first alone is tried with every fault beside the others."""
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
    guard: Any = attach(model, optimizer, say=False) if system.startswith("attach") else None
    if system == "Guard.step":
        guard = Guard(model, optimizer, max_grad_norm=None, say=False)
    half = torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in system)
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
            with half:
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

        if system == "Guard.step":
            assert isinstance(guard, Guard)
            hook = next(model.parameters()).register_hook(_spoilt) if now and fault.after else None
            record = guard.step(
                lambda b, now=now: (
                    fault.loss(training.loss(model, b), live) if now and fault.loss else training.loss(model, b)
                ),
                batch,
            )
            shown = record.loss
            if hook is not None:
                hook.remove()
        elif optimizer_name in CLOSURE:
            optimizer.step(closure)
        elif not stepped(system, closure(), model, optimizer):
            continue
        if system == "stop at NaN" and not finite_weights(model):
            raise FloatingPointError("a weight is not finite: stopped")
        if guard is not None and (guard.alarm is not None if system == "Guard.step" else guard.refused):
            refused.append(step)
            touched += bool(before) and not same(before, state_of(model, optimizer))
        losses.append(shown)
    tail = [v for v in losses[-15:] if math.isfinite(v)]
    finite = all(bool(torch.isfinite(p).all()) for p in model.parameters())
    return Ended(finite, sum(tail) / len(tail) if tail else math.inf, refused, touched)


def _spoilt(gradient: torch.Tensor) -> torch.Tensor:
    """A gradient that is not finite, where the guard makes the backward pass itself."""
    return gradient * math.nan


CAUSES = {
    **dict.fromkeys(("nan_input", "inf_input", "huge_input"), "DATA_PIXEL"),
    # Written into gradients after the backward pass: the loop's own doing, which no replay has. It says so.
    **dict.fromkeys(("nan_gradient", "inf_gradient"), "UNKNOWN"),
    **dict.fromkeys(("log_of_zero", "root_of_zero"), "LOSS_MATH"),
    "nan_state": "POISONED_STATE",
}
"""What is to be found. A rate of NaN and a loss times 1e30 have no cause of their own in the list."""


def diagnosed(training: Training, optimizer_name: str, fault: Fault, seed: int) -> tuple[str, bool]:
    """The cause that is named first, and whether the sample is right; "" where nothing was refused.

    A fault of the loss is in the loss for the batch that carries it, in a replay too, as a bug in a loss is.
    """
    torch.manual_seed(seed)
    model = training.model().train()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters(), training.lr)

    def loss_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        rest = {k: v for k, v in batch.items() if k != "fault"}
        loss = training.loss(model, rest)
        return fault.loss(loss, live) if fault.loss and bool(batch["fault"].any()) else loss

    guard: Any = attach(model, optimizer, diagnose=True, forward=loss_of, logdir=None, say=False)
    live = Live(model, optimizer, guard)
    for step, batch in enumerate(batches(training, seed, AT + 3)):
        now = AT <= step < AT + fault.steps
        batch = fault.batch(batch) if now and fault.batch else batch
        size = len(batch["x"])
        batch = {**batch, "fault": torch.full((size,), float(now))}
        if now and fault.before:
            fault.before(live)
        guard.batch(batch, range(1000 * step, 1000 * step + size))
        optimizer.zero_grad()
        guard.see(loss_of(model, batch)).backward()
        if now and fault.after:
            fault.after(live)
        optimizer.step()
        if guard.incidents:
            found = guard.incidents[0]
            return found.cause, not fault.batch or found.culprit.image_ids == [1000 * AT + 5]
    return "", False


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
    """Runs of ``steps`` in all with nothing wrong, with each optimizer: what was refused."""
    share, refused = steps // len(OPTIMIZERS), 0
    for i, name in enumerate(OPTIMIZERS):
        refused += clean_run(TRAININGS[i % 3 * 4], name, share, i)  # an MLP, an LSTM, a policy with rewards
        print("clean", name, refused, flush=True)
    return (
        f"Clean runs of {share:,} steps with each of {len(OPTIMIZERS)} optimizers: **{refused}** of "
        f"{share * len(OPTIMIZERS):,} steps refused or alarmed."
    )


def clean_run(training: Training, name: str, steps: int, seed: int) -> int:
    """Steps refused or alarmed of a run with nothing wrong."""
    torch.manual_seed(seed)
    model = training.model().train()
    optimizer = OPTIMIZERS[name](model.parameters(), training.lr)
    guard, refused = attach(model, optimizer, say=False), 0
    for batch in batches(training, seed, steps):

        def closure(batch: Batch = batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss = training.loss(model, batch)
            if name not in CLOSURE:
                guard.see(loss)
            loss.backward()
            return loss

        if name in CLOSURE:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        refused += guard.refused or guard.alarm is not None
    return refused


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
    if fault.name == "weighed_30" and optimizer in (*CLOSURE, "sgd"):
        return False  # thirty times the rate, for them
    # A policy's loss is as large as its rewards; gates that saturate make a huge value a harmless one.
    if optimizer in CLOSURE and fault.after:
        return False  # gradients are the optimizer's own there
    return not (fault.name == "huge_input" and training.name in ("reinforce", "lstm"))


def main() -> None:
    """Run every setting that is not kept yet, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", default="", help="settings whose name (training, optimizer, fault) holds this")
    parser.add_argument("--trainings", nargs="+", default=[t.name for t in TRAININGS])
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    parser.add_argument("--clean", type=int, default=20_000)
    parser.add_argument("--anew", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "results" / "anywhere.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kept = args.out.with_suffix(".jsonl")
    if args.anew:
        kept.unlink(missing_ok=True)
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() and not args.only else []
    known = {tuple(row["setting"]) for row in rows}
    wanted = [(t, o, s) for s in args.seeds for t in TRAININGS if t.name in args.trainings for o in args.optimizers]
    for training, optimizer, seed in wanted:
        if (training.name, optimizer, seed) in known:
            continue
        began = time.thread_time()
        row = one_setting(training, optimizer, seed, args.only)
        rows.append(row)
        print(training.name, optimizer, seed, f"{time.thread_time() - began:.0f} s", row["misses"], flush=True)
        if not args.only:
            with kept.open("a") as file:
                file.write(json.dumps(row) + "\n")
    if not args.only and not any("clean" in row for row in rows):
        rows.append({"setting": ["", "", 0], "counts": {}, "misses": [], "clean": long_run(args.clean)})
        with kept.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    page = report(rows)
    print(page)
    if not args.only:
        args.out.write_text(page + measured_elsewhere(args.out), encoding="utf-8")


def measured_elsewhere(page: Path) -> str:
    """What the page held of other benches (cost, real packages), which this one does not measure."""
    before, title, rest = (page.read_text(encoding="utf-8") if page.exists() else "").partition("\n## What it costs")
    return title + rest if before else ""


def one_setting(training: Training, optimizer: str, seed: int, only: str) -> dict[str, Any]:
    """All faults of one training with one optimizer: counts by system, and what was missed."""
    counts: dict[str, Counter[str]] = {s: Counter() for s in (*SYSTEMS, *WAYS, "diagnose")}
    misses: list[str] = []
    twin = attempt(training, optimizer, FAULTS[10], seed, "plain")
    spread = 0.25 * abs(twin.loss) + 0.15
    for fault in FAULTS:
        if only not in f"{training.name} {optimizer} {fault.name}" or not applies(training, fault, optimizer):
            continue
        place = f"{training.name}, {optimizer}, seed {seed}: {fault.name}"
        ways = WAYS if optimizer in ("sgd", "adamw") else WAYS[:1]
        for system in (*ways, *(() if fault.decoy else SYSTEMS[1:])):
            done = attempt(training, optimizer, fault, seed, system)
            said = place if system == WAYS[0] else f"{place} ({system})"
            counted(counts[system], misses, said, fault, done, system in WAYS)
            counts[system]["kept"] += not fault.decoy and done.finite and abs(done.loss - twin.loss) <= spread
        if not fault.decoy and fault.name in CAUSES and optimizer not in CLOSURE:
            score(counts["diagnose"], misses, place, training, optimizer, fault, seed)
    return {"setting": [training.name, optimizer, seed], "counts": counts, "misses": misses}


def counted(count: Counter[str], misses: list[str], place: str, fault: Fault, done: Ended, ours: bool) -> None:
    """Count what became of one run, and say what was missed."""
    count["decoy" if fault.decoy else "fault"] += 1
    if done.error:
        count["error"] += 1
    if done.error and ours:
        misses.append(f"{place}: {done.error}")
    if ours and fault.decoy:
        count["steps"] += STEPS
        count["false"] += len(done.refused)
        if done.refused:
            misses.append(f"{place}: refused {done.refused[:5]} of a run with nothing wrong")
        return
    count["finite"] += done.finite
    if ours:
        right = AT in done.refused
        count["refused"] += right and not done.touched
        lasting = fault.name in ("nan_state", "nan_lr")
        count["false"] += 0 if lasting else len([s for s in done.refused if s != AT])
        if not right or done.touched or not done.finite:
            misses.append(f"{place}: refused {done.refused[:4]}, touched {done.touched}, finite {done.finite}")


def score(
    count: Counter[str], misses: list[str], place: str, training: Training, optimizer: str, fault: Fault, seed: int
) -> None:
    """Cause and culprit of one fault; a fault at which nothing was refused has neither."""
    try:
        cause, right = diagnosed(training, optimizer, fault, seed)
    except Exception as e:  # counted as a wrong answer
        cause, right = f"{type(e).__name__}: {e}"[:120], False
    if not cause:
        return
    count["cause of"] += 1
    count["cause"] += cause == CAUSES[fault.name]
    if fault.batch:
        count["culprit of"] += 1
        count["culprit"] += right
    if cause != CAUSES[fault.name] or not right:
        misses.append(f"{place} (diagnose): {cause}, culprit {'right' if right else 'wrong'}")


def share(count: Counter[str], name: str, of: str = "fault") -> str:
    """Per cent of the faults."""
    return f"{100 * count[name] / max(count[of], 1):.1f} %" if count[of] else "-"


LINES = {
    "attach": "2 (`attach`, `guard.see`)",
    "attach, bfloat16": "2",
    "Guard.step": "2, in place of five of the loop",
}


def report(rows: list[dict[str, Any]]) -> str:
    """The page."""
    counts: dict[str, Counter[str]] = {s: Counter() for s in (*SYSTEMS, *WAYS, "diagnose")}
    for row in rows:
        for system, count in row["counts"].items():
            counts[system].update(count)
    settings = [row["setting"] for row in rows if row["setting"][0]]
    misses, causes = [m for row in rows for m in row["misses"]], counts["diagnose"]
    ours = [
        f"| {w} | {LINES[w]} | {c['refused']} of {c['fault']} | {share(c, 'finite')} | {share(c, 'kept')} "
        f"| {c['false']} of {c['steps']:,} |"
        for w, c in ((w, counts[w]) for w in WAYS)
    ]
    others = [
        f"| {s} | {c['fault']} | {share(c, 'finite')} | {share(c, 'kept')} |"
        for s, c in ((s, counts[s]) for s in SYSTEMS)
    ]
    tried = ", ".join(f"{o} {n}" for o, n in Counter(s[1] for s in settings).most_common())
    trainings, optimizers, seeds = (sorted({str(s[i]) for s in settings}) for i in range(3))
    return "\n".join(
        [
            "# AnyBench: the guard in trainings that are no detectors",
            "",
            f"{len(settings)} settings of {len(trainings)} trainings, {len(optimizers)} optimizers and seeds "
            f"{', '.join(seeds)} ({tried}); {STEPS} steps, a fault at {AT};",
            f"one CPU thread, torch {torch.__version__}. Run: `make anybench`.",
            "",
            "| where | lines to write | bad steps refused, all bits as before | weights finite at the end "
            "| loss as the clean twin's | steps of decoys refused |",
            "|---|---|---|---|---|---|",
            *ours,
            "",
            f"With `diagnose=True`: cause right **{causes['cause']} of {causes['cause of']}** "
            f"({share(causes, 'cause', 'cause of')}), the sample named "
            f"**{causes['culprit']} of {causes['culprit of']}** ({share(causes, 'culprit', 'culprit of')}).",
            "",
            "| system | faults | weights finite at the end | loss as the clean twin's (within 25 % + 0.15) |",
            "|---|---|---|---|",
            *others,
            "",
            "A NaN in the optimizer's state or rates stays: `attach` alone then refuses every later",
            "step and says so; weights are safe, and the run stands still until it is put right: `diagnose=True` does.",
            "`Guard.step` does not even run the model then, so that no loss is left to compare.",
            "",
            "A contrastive loss normalises its features: one huge input gives a finite loss and finite gradients, and",
            "nothing is wrong with the step.",
            "",
            *(row["clean"] for row in rows if "clean" in row),
            "",
            "## What was missed",
            "",
            *([f"- {m}" for m in misses[:80]] or ["- nothing"]),
            "",
        ]
    )


if __name__ == "__main__":
    main()
