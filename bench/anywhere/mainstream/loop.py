"""The loop of the tutorials, with or without a guard: what it took, what was said, how good it ended."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from anywhere.mainstream.task import Items, Run, total
from torch import Tensor, nn
from torch.optim import lr_scheduler as plans
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, default_collate

from maskrcnn_coco import Guard, attach

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
RESUME_AT = 3
"""The epoch before which a run is stopped and begun again from its checkpoint."""


@dataclass
class Ended:
    """What became of a run; plain data."""

    finite: bool
    score: float
    stopped: str | None
    steps: int
    refused: int
    incidents: list[dict[str, Any]] = field(default_factory=list)
    weights: float = 0.0
    """A sum over all weights: equal where two runs ended in the same bits, as far as a number tells."""
    first_bad: int | None = None
    ids: list[int] = field(default_factory=list)
    """What the bad sample is called in verdicts."""


class Loop:
    """A script: model, optimizer, schedule, scaler, average, guard."""

    def __init__(self, run: Run) -> None:
        self.run, self.steps = run, 0
        self.guards: list[Any] = []
        self.records: list[Any] = []
        """Of steps that a guard took itself; an attached one keeps its own."""
        self.build()

    def build(self) -> None:
        """All that a script makes before its first epoch."""
        run = self.run
        self.model = run.model.train()
        self.scaler = torch.amp.GradScaler("cpu", enabled=run.precision == "fp16")
        parts = [run.model.get_submodule(n) for n in run.rivals] or [run.model]
        if run.task.several is not None:
            self.optimizers = run.task.several(run.model, run.options)
        else:
            self.optimizers = [run.task.optimizer(p.parameters(), **run.options) for p in parts]
        run.optimizer = self.optimizers[0]
        self.plan = self.schedule(self.optimizers[0])
        self.average = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.9)) if run.task.ema else None
        owned: list[Any] = [self.optimizers] if run.task.several is not None else self.optimizers
        guards = [self.guard(n, p, o) for n, p, o in zip(run.rivals or [""], parts, owned, strict=True)]
        self.guards += [g for g in guards if g is not None]
        self.now: list[Any] = guards

    def guard(self, name: str, part: nn.Module, optimizer: Any) -> Any:
        """The guard of one optimizer, as the task's way says."""
        run = self.run
        if run.system != "diagnose":
            return None
        more: dict[str, Any] = {"diagnose": True, "logdir": None}
        more["scaler"] = self.scaler if run.precision == "fp16" else None
        if run.task.way == "step":
            return Guard(run.model, optimizer, forward=self.losses, max_grad_norm=run.clip or None, **more)
        if name:
            others = {n: run.model.get_submodule(n) for n in run.rivals}
            more["forward"] = lambda part, batch: total(
                run.rivals[name](SimpleNamespace(**{**others, name: part}), batch)
            )
        elif run.task.way == "see":
            more["forward"] = lambda model, batch: total(self.losses(model, batch))
        return attach(part, optimizer, **more)

    def losses(self, model: nn.Module, batch: Any) -> Any:
        """The loss under the run's autocast."""
        dtype = DTYPES.get(self.run.precision)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            return self.run.loss(model, batch)

    def schedule(self, optimizer: torch.optim.Optimizer) -> Any:
        """One of torch's own; stepped after each step."""
        steps, kind = self.run.task.steps, self.run.schedule
        if kind == "cosine":
            return plans.CosineAnnealingLR(optimizer, steps)
        if kind == "restarts":
            return plans.CosineAnnealingWarmRestarts(optimizer, 20)
        if kind == "onecycle":
            most = [g["lr"] for g in optimizer.param_groups]
            return plans.OneCycleLR(optimizer, most, total_steps=steps + 2)
        if kind == "warmup":
            share = lambda s: min((s + 1) / 6, 0.55 + 0.45 * math.cos(math.pi * s / steps))  # noqa: E731
            return plans.LambdaLR(optimizer, share)
        if kind == "exponential":
            return plans.ExponentialLR(optimizer, 0.97)
        return plans.StepLR(optimizer, 20, 0.5) if kind == "step" else None

    def batches(self) -> Iterator[tuple[int, list[tuple[Any, list[int]]]]]:
        """(step, micro-batches with the numbers of their samples)."""
        run, step = self.run, 0
        for epoch in range(run.task.epochs):
            if epoch == RESUME_AT and run.resumes is not None:
                self.resume()
            order = torch.Generator().manual_seed(run.shuffled_by + epoch)
            loader = DataLoader(
                Items(run),
                run.batch,
                shuffle=run.task.shuffle,
                generator=order,
                drop_last=run.drop_last,
                num_workers=run.workers,
                collate_fn=run.collate or default_collate,
            )
            parts: list[tuple[Any, list[int]]] = []
            for ids, *rest in loader:
                parts.append((tuple(rest), ids.tolist()))
                if len(parts) == run.accumulate:
                    yield step, parts
                    step, parts = step + 1, []
            if parts and run.odd_end:
                yield step, parts
                step += 1

    def resume(self) -> None:
        """The script was stopped and started again: everything anew, and what the checkpoint holds."""
        run = self.run
        saved = {
            "model": copy.deepcopy(run.model.state_dict()),
            "optimizer": copy.deepcopy(self.optimizers[0].state_dict()),
            "plan": copy.deepcopy(self.plan.state_dict()) if self.plan is not None else None,
        }
        assert run.resumes is not None
        run.resumes(saved)
        for guard in self.now:
            with contextlib.suppress(AttributeError):
                guard.detach()
        run.model = run.task.model()
        run.model.load_state_dict(saved["model"])
        self.build()
        if saved["optimizer"] is not None:
            self.optimizers[0].load_state_dict(saved["optimizer"])
        if self.plan is not None:
            self.plan.load_state_dict(saved["plan"])

    def train(self) -> None:
        """All epochs."""
        run = self.run
        for step, parts in self.batches():
            run.begin(step, self.optimizers[0])
            planned = self.raise_rates(step)
            if step in run.regimes:
                for guard in filter(None, self.now):
                    guard.new_regime()
            if run.rivals:
                self.take_turns(*parts[0])
            elif self.now[0] is not None and run.task.way == "step":
                self.hand_over(parts)
            elif run.task.closure:
                self.take_closure(*parts[0])
            else:
                self.take(parts)
            self.steps = step + 1
            if run.after_step is not None:
                run.after_step(run)
            if self.average is not None:
                self.average.update_parameters(run.model)
            for group, rate in planned:
                group["lr"] = rate
            if self.plan is not None:
                self.plan.step()

    def raise_rates(self, step: int) -> list[tuple[dict[str, Any], float]]:
        """Rates that are not the schedule's; what they were."""
        due = [f for s, f in self.run.factors.items() if s <= step]
        groups = [g for o in self.optimizers for g in o.param_groups] if due else []
        planned = [(g, g["lr"]) for g in groups]
        for group, rate in planned:
            group["lr"] = rate * due[-1]
        return planned

    def made(self, batch: Any, ids: list[int]) -> Any:
        """The batch that the loss takes."""
        self.run.shown(ids)
        return self.run.prepare(self.run, batch) if self.run.prepare is not None else batch

    def take(self, parts: list[tuple[Any, list[int]]]) -> None:
        """A step as it stands in tutorials."""
        run, optimizer, guard = self.run, self.optimizers[0], self.now[0]
        if "keeps gradients" not in run.wrong:
            for each in self.optimizers:
                each.zero_grad()
        for data, ids in parts:
            batch = self.made(data, ids)
            if guard is not None and run.task.way == "see":
                batch = guard.batch(batch, ids)
            loss = total(self.losses(run.model, batch)).float()
            if guard is not None and run.task.way == "see":
                loss = guard.see(loss)
            self.scaler.scale(loss / (1 if "undivided" in run.wrong else len(parts))).backward()
        if run.after_backward is not None:
            run.after_backward(run)
        if "steps scaled" in run.wrong:
            optimizer.step()
            self.scaler.update(self.scaler.get_scale())
            return
        if "clips scaled" not in run.wrong:
            self.scaler.unscale_(optimizer)
        if run.clip:
            nn.utils.clip_grad_norm_(run.model.parameters(), run.clip)
        if self.left_out():
            return
        for each in self.optimizers:
            self.scaler.step(each)
        self.scaler.update()

    def left_out(self) -> bool:
        """Whether who mends the run by hand leaves this step out: its gradients are not finite."""
        made = (p.grad for p in self.run.model.parameters() if p.grad is not None)
        return self.run.system == "by hand" and not all(bool(g.isfinite().all()) for g in made)

    def take_closure(self, data: Any, ids: list[int]) -> None:
        """A step of an optimizer that asks for the loss itself, once or often."""
        run, optimizer, guard = self.run, self.optimizers[0], self.now[0]
        batch = self.made(data, ids)
        if guard is not None and run.task.way == "see":
            batch = guard.batch(batch, ids)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = total(self.losses(run.model, batch)).float()
            if guard is not None and run.task.way == "see":
                loss = guard.see(loss)
            loss.backward()
            if run.after_backward is not None:
                run.after_backward(run)
            return loss

        optimizer.step(closure)

    def hand_over(self, parts: list[tuple[Any, list[int]]]) -> None:
        """A step through `Guard.step`."""
        made = [(self.made(data, ids), ids) for data, ids in parts]
        if len(made) == 1:
            record = self.now[0].step(*made[0])
        else:
            record = self.now[0].step([b for b, _ in made], [i for _, ids in made for i in ids], micro_batches=True)
        self.records.append(record)

    def take_turns(self, data: Any, ids: list[int]) -> None:
        """Each of two networks steps once."""
        run, batch = self.run, self.made(data, ids)
        for (name, loss_of), optimizer, guard in zip(run.rivals.items(), self.optimizers, self.now, strict=True):
            optimizer.zero_grad()
            given = guard.batch(batch, ids) if guard is not None else batch
            loss = total(loss_of(run.model, given))
            (guard.see(loss) if guard is not None else loss).backward()
            if run.after_backward is not None and name == next(iter(run.rivals)):
                run.after_backward(run)
            optimizer.step()

    @property
    def finite(self) -> bool:
        """Whether weights, buffers, moments and the average are."""
        held = [*self.run.model.state_dict().values()]
        held += [*self.average.module.state_dict().values()] if self.average is not None else []
        held += [v for o in self.optimizers for s in o.state.values() for v in s.values() if isinstance(v, Tensor)]
        return all(bool(v.isfinite().all()) for v in held)


@torch.no_grad()
def score(run: Run) -> float:
    """Of the held-out samples; infinite where it is no number."""
    run.active = False
    run.model.eval()
    torch.manual_seed(7)
    collate = run.task.collate or default_collate
    _, *batch = collate([(i, *row) for i, row in enumerate(run.held_out)])
    try:
        found = float(total((run.task.score or run.task.loss)(run.model, tuple(batch))).detach())
    except Exception:  # weights that no forward pass stands
        return math.inf
    return found if math.isfinite(found) else math.inf


def told(guard: Any) -> list[dict[str, Any]]:
    """A guard's incidents as plain data."""
    return [
        {
            "step": i.step,
            "cause": i.cause,
            "confidence": round(i.confidence, 3),
            "symptom": i.symptom,
            "component": i.culprit.component,
            "module": i.culprit.module,
            "ids": list(i.culprit.image_ids),
            "action": i.action.kind,
            "why": str(i.action.detail.get("why", ""))[:120],
            "fix": i.fix[:160],
            "evidence": [f"{e.test}: {e.outcome}"[:200] for e in i.evidence[:8]],
        }
        for i in guard.incidents
    ]


def names_of(run: Run) -> list[int]:
    """What the bad sample is called: its number, or its places where the guard numbers samples through."""
    if run.task.way != "inside":
        return [run.bad]
    return [place for place, index in enumerate(run.order) if index == run.bad]


def taken(run: Run) -> Ended:
    """A whole run, to its end or to what ended it."""
    warnings.simplefilter("ignore")
    torch.manual_seed(run.seed + 5)
    loop, stopped = None, None
    try:
        loop = Loop(run)
        loop.train()
    except Exception as e:  # what a loop raises ends it; Python asks the guards before it shows the traceback
        stopped = f"{type(e).__name__}: {str(e)[:200]}"
        for guard in loop.now if loop is not None else []:
            with contextlib.suppress(Exception):
                guard.ended_by(e)
    if loop is None:
        return Ended(False, math.inf, stopped, 0, 0)
    incidents = sorted((i for g in loop.guards for i in told(g)), key=lambda i: i["step"])
    records = [*loop.records, *(r for g in loop.guards for r in getattr(g, "records", ()))]
    refused = sum(not r.applied and r.symptom is not None for r in records)
    for guard in loop.guards:
        with contextlib.suppress(AttributeError):
            guard.detach()
    weights = float(sum(p.detach().double().sum() for p in run.model.parameters()))
    finite = loop.finite
    return Ended(
        finite,
        score(run) if run.task.scored else 0.0,
        stopped,
        loop.steps,
        refused,
        incidents,
        weights,
        run.first_bad,
        names_of(run),
    )
