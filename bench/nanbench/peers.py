"""The peers that are a loop of a few lines: torchvision's reference loop, skipping, GradScaler with clipping.

Each takes the scene's own optimizer settings and schedule, and the bench's order of images. None names a cause.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanbench.scenario import NotApplicable, Outcome
from nanbench.scene import STEPS, Live, Scene, groups_of, make_optimizer
from nanbench.tiny import collated

RESUME_AT = 12
CLIP = 10.0
"""Where a peer's own stability option is clipping, it clips at this even if the scenario's settings turned it off."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Parts:
    """Optimizer, schedule and loss scaler of a scene, as a script would make them."""

    def __init__(self, scene: Scene, *, scaler: bool | None = None) -> None:
        self.scene = scene
        peak = {c: scene.lr * m for c, m in scene.multipliers.items()}
        groups = [{"params": p, "lr": peak[c]} for c, p in groups_of(scene.model).items()]
        groups = [{**g, "weight_decay": scene.weight_decay} for g in groups]
        self.optimizer = make_optimizer(scene, groups)
        unit = scene.lr or 1.0
        share = lambda step: scene.rates(step)["backbone"] / (unit * scene.multipliers["backbone"])  # noqa: E731
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, share)
        wanted = scene.setup.precision == "fp16" if scaler is None else scaler
        self.scaler = torch.amp.GradScaler("cpu", enabled=wanted)
        self.parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.data = scene.data()
        self.first_bad: int | None = None

    def before(self, step: int) -> None:
        """What the scenario does between two steps; at step 12 a resume from its changed checkpoint."""
        scene = self.scene
        if step == RESUME_AT and scene.on_resume is not None:
            state = {"model": scene.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            state = copy.deepcopy(state)
            scene.on_resume(state)
            scene.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        scene.fire(Live(scene.model, self.optimizer, self.scaler if self.scaler.is_enabled() else None, step))

    def batch(self, positions: list[int], step: int) -> tuple[Any, Any]:
        """Images and targets of one micro-batch, as the model takes them."""
        if self.scene.culprit in positions and self.first_bad is None:
            self.first_bad = step
        pairs = [self.data[i] for i in positions]
        return collated(self.scene.model, pairs)

    def losses(self, positions: list[int], step: int) -> Tensor:
        """The sum of the model's losses under the scene's autocast."""
        dtype = DTYPES.get(self.scene.setup.precision)
        images, targets = self.batch(positions, step)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            terms = self.scene.model(images, targets)
        return torch.stack([t.float() for t in terms.values()]).sum()

    def divisor(self, step: int) -> int:
        """By what a micro-batch's loss is divided: the scenario may make the loop forget it."""
        forgot = self.scene.undivided is not None and self.scene.undivided(step)
        return 1 if forgot else self.scene.setup.accumulate


def single(scene: Scene) -> None:
    """The adapters of the peers are for one process."""
    if scene.setup.ranks > 1:
        raise NotApplicable("this adapter runs one process")


def loop(parts: Parts, take_step: Callable[[int], str | None]) -> Outcome:
    """All planned steps; ``take_step`` returns what it did about a bad one, or None."""
    scene = parts.scene
    scene.model.train()
    incidents: list[dict[str, Any]] = []
    seconds: list[float] = []
    began, step, stopped = time.perf_counter(), 0, None
    for step in range(STEPS):
        start = time.perf_counter()
        parts.before(step)
        did = take_step(step)
        seconds.append(time.perf_counter() - start)
        if did is not None:
            incidents.append({"step": step, "cause": None, "action": did.split(":")[0], "lost_steps": 1})
        if did is not None and did.startswith("stop"):
            stopped = did
            break
        parts.schedule.step()
    return Outcome(
        finished=stopped is None,
        finite=all_finite(parts),
        steps=step + (stopped is None),
        incidents=incidents,
        stopped=stopped,
        seconds=time.perf_counter() - began,
        step_seconds=statistics.median(seconds),
        first_bad=parts.first_bad,
    )


def all_finite(parts: Parts) -> bool:
    """Weights, buffers and optimizer state at the end."""
    tensors = list(parts.scene.model.state_dict().values())
    tensors += [v for state in parts.optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    return all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())


def reference(scene: Scene, folder: Path) -> Outcome:
    """torchvision's references/detection/engine.py, restated: it stops at the first non-finite loss. No clipping."""
    single(scene)
    if scene.setup.accumulate > 1:
        raise NotApplicable("the reference loop has no accumulation")
    parts = Parts(scene)

    def take(step: int) -> str | None:
        loss = parts.losses(scene.order(step)[0], step)
        if not math.isfinite(loss.item()):
            return f"stop: Loss is {loss.item()}, stopping training"
        parts.optimizer.zero_grad()
        parts.scaler.scale(loss).backward()
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()
        return None

    return loop(parts, take)


def skip(scene: Scene, folder: Path) -> Outcome:
    """A step whose loss or gradient norm is not finite is left out; clipping as the scene's settings say."""
    single(scene)
    parts = Parts(scene)

    def take(step: int) -> str | None:
        parts.optimizer.zero_grad()
        for positions in scene.order(step):
            loss = parts.losses(positions, step)
            if not math.isfinite(loss.item()):
                parts.optimizer.zero_grad()
                return "skip"
            parts.scaler.scale(loss / parts.divisor(step)).backward()
        parts.scaler.unscale_(parts.optimizer)
        limit = scene.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(parts.parameters, limit)
        if parts.scaler.is_enabled() or math.isfinite(norm.item()):
            parts.scaler.step(parts.optimizer)
            parts.scaler.update()
            return None
        return "skip"

    return loop(parts, take)


def scaler(scene: Scene, folder: Path) -> Outcome:
    """GradScaler and ``clip_grad_norm_``, as the torch AMP examples combine them, in any precision."""
    single(scene)
    parts = Parts(scene, scaler=True)

    def take(step: int) -> str | None:
        parts.optimizer.zero_grad()
        bad = False
        for positions in scene.order(step):
            loss = parts.losses(positions, step)
            bad |= not math.isfinite(loss.item())
            parts.scaler.scale(loss / parts.divisor(step)).backward()
        parts.scaler.unscale_(parts.optimizer)
        torch.nn.utils.clip_grad_norm_(parts.parameters, scene.max_grad_norm or CLIP)
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()
        return "skip" if bad else None

    return loop(parts, take)
