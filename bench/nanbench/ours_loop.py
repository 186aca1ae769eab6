"""This project's run of a scene in a loop of the caller's own: a `Guard` that it steps with, or `attach`."""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco import Guard, attach
from maskrcnn_coco.errors import GuardStop
from maskrcnn_coco.records import plain
from nanbench.ours import all_finite
from nanbench.scenario import Outcome
from nanbench.scene import STEPS, Live, Scene, groups_of, make_optimizer
from nanbench.tiny import collated

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Loop:
    """A script of somebody's own: model, optimizer, scaler, schedule, and one guard."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene, self.model = scene, scene.model
        groups = [
            {"params": p, "lr": scene.lr, "weight_decay": scene.weight_decay, "component": c}
            for c, p in groups_of(scene.model).items()
            if p
        ]
        self.optimizer = make_optimizer(scene, groups)
        self.dtype = DTYPES.get(scene.setup.precision)
        fp16 = self.dtype is torch.float16
        self.scaler = torch.amp.GradScaler("cpu", enabled=fp16)
        scaler = self.scaler if fp16 else None
        self.data = scene.data()
        self.first_bad: int | None = None
        self.live = Live(scene.model, self.optimizer, scaler, 0)
        if scene.setup.way == "guard":
            self.guard: Any = Guard(
                scene.model,
                self.optimizer,
                forward=self.losses,
                diagnose=True,
                logdir=folder / "run",
                scaler=scaler,
                max_grad_norm=scene.max_grad_norm or None,
            )
        else:
            more: Any = {"forward": self.criterion} if scene.setup.way == "see" else {}
            logdir = folder / "run"
            self.guard = attach(scene.model, self.optimizer, scaler=scaler, diagnose=True, logdir=logdir, **more)

    def losses(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """The model's losses under the scene's autocast."""
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype is not None):
            return model(*batch)

    def criterion(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a model that gives its output alone."""
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype is not None):
            terms: dict[str, Tensor] = self.model.terms(model(batch[0]), batch[1])  # pyright: ignore
        return torch.stack([v.float() for v in terms.values()]).sum()

    def loss(self, batch: Any, ids: list[int]) -> Tensor:
        """What an attached loop goes backward from, before it is divided."""
        if self.scene.setup.way == "see":
            return self.guard.see(self.criterion(self.model, self.guard.batch(batch, ids)))
        return torch.stack([v.float() for v in self.losses(self.model, batch).values()]).sum()

    def batch(self, positions: list[int], step: int) -> tuple[Any, list[int]]:
        """What the model is called with, and the images' ids."""
        if self.scene.culprit in positions and self.first_bad is None:
            self.first_bad = step
        pairs = [self.data[i] for i in positions]
        return collated(self.model, pairs), [self.scene.ids[p] for p in positions]

    def take(self, step: int) -> None:
        """One planned step."""
        scene = self.scene
        rates = scene.rates(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["component"]]
        self.live.step = step
        scene.fire(self.live)
        parts = [self.batch(positions, step) for positions in scene.order(step)]
        if scene.setup.way == "guard":
            ids = [i for _, own in parts for i in own]
            if len(parts) == 1:
                self.guard.step(parts[0][0], ids)
            else:
                self.guard.step([b for b, _ in parts], ids, micro_batches=True)
            return
        if "keeps gradients" not in scene.loop:
            self.optimizer.zero_grad()
        for batch, ids in parts:
            divisor = 1 if "undivided" in scene.loop else len(parts)
            self.scaler.scale(self.loss(batch, ids) / divisor).backward()
        self.step()

    def step(self) -> None:
        """The end of an attached loop's step: unscale, clip, step; or what the scenario makes of it."""
        scene = self.scene
        if "steps scaled" in scene.loop:
            self.optimizer.step()
            self.scaler.update(self.scaler.get_scale())
            return
        if "clips scaled" in scene.loop:
            nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.scaler.unscale_(self.optimizer)
        if scene.after_backward is not None:
            scene.after_backward(self.live)
        if scene.max_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), scene.max_grad_norm)
        take = lambda: self.scaler.step(self.optimizer)  # noqa: E731
        if scene.around_step is not None:
            scene.around_step(self.live, take)
        else:
            take()
        self.scaler.update()


def told(guard: Any) -> list[dict[str, Any]]:
    """A guard's incidents as plain data."""
    return [
        {
            "step": i.step,
            "cause": i.cause,
            "confidence": i.confidence,
            "symptom": i.symptom,
            "culprit": plain(i.culprit),
            "action": i.action.kind,
            "lost_steps": i.lost_steps,
            "message": str(i.detail.get("message", ""))[:160],
            "evidence": [f"{e.test}: {e.outcome}"[:200] for e in i.evidence[:6]],
        }
        for i in guard.incidents
    ]


def taken(take: Callable[[int], None]) -> tuple[list[float], str | None, int]:
    """Seconds of each planned step, what ended the loop before its end (None: nothing), and how many steps it took."""
    seconds: list[float] = []
    for step in range(STEPS):
        start = time.perf_counter()
        try:
            take(step)
        except GuardStop as e:
            return seconds, f"GuardStop: {e}"[:300], step
        except Exception as e:  # what a model raises in somebody's own loop ends it
            return seconds, f"{type(e).__name__}: {e}"[:300], step
        seconds.append(time.perf_counter() - start)
    return seconds, None, STEPS


def run(scene: Scene, folder: Path) -> Outcome:
    """All planned steps, or until the guard (or the loop) stops."""
    warnings.simplefilter("ignore")
    scene.model.train()
    loop = Loop(scene, folder)
    began = time.perf_counter()
    seconds, stopped, steps = taken(loop.take)
    with contextlib.suppress(AttributeError):
        loop.guard.detach()
    incidents = told(loop.guard)
    return Outcome(
        finished=stopped is None,
        finite=all_finite(loop.live, scene),
        steps=steps,
        incidents=incidents,
        stopped=stopped,
        seconds=time.perf_counter() - began,
        step_seconds=statistics.median(seconds) if seconds else 0.0,
        first_bad=loop.first_bad,
    )
