"""This project's run of two networks that step in turn, each with an optimizer and an attached guard of its own."""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco import attach
from nanbench.ours import all_finite
from nanbench.ours_loop import taken, told
from nanbench.scenario import Outcome
from nanbench.scene import Live, Scene, make_optimizer
from nanbench.tiny import collated

PARTS = ("critic", "generator")


class Pair:
    """Critic and generator of a `tiny_more.Rivals`; the critic steps first."""

    def __init__(self, scene: Scene, folder: Path | None) -> None:
        self.scene, self.model, self.data = scene, scene.model, scene.data()
        self.first_bad: int | None = None
        self.optimizers, self.guards = [], []
        for name in PARTS:
            part = self.model.get_submodule(name)
            group = {"params": list(part.parameters()), "lr": scene.lr, "weight_decay": scene.weight_decay}
            optimizer = make_optimizer(scene, [{**group, "component": name}])
            self.optimizers.append(optimizer)
            if folder is not None:
                loss = lambda part, batch, name=name: self.loss(name, part, batch)  # noqa: E731
                more: Any = {"diagnose": True, "logdir": folder / name, "forward": loss}
                self.guards.append(attach(part, optimizer, **more))
        self.live = Live(self.model, self.optimizers[0], None, 0)

    def loss(self, name: str, part: nn.Module, batch: Any) -> Tensor:
        """One network's loss of a batch."""
        return getattr(self.model, f"{name}_loss")(part, batch[0])

    def take(self, step: int) -> None:
        """One planned step of both."""
        scene = self.scene
        rates = scene.rates(step)
        self.live.step = step
        scene.fire(self.live)
        positions = scene.order(step)[0]
        if scene.culprit in positions and self.first_bad is None:
            self.first_bad = step
        batch = collated(self.model, [self.data[i] for i in positions])
        for k, (name, optimizer) in enumerate(zip(PARTS, self.optimizers, strict=True)):
            for group in optimizer.param_groups:
                group["lr"] = rates["backbone"] * scene.multipliers.get(name, 1.0)
            optimizer.zero_grad()
            part = self.model.get_submodule(name)
            if self.guards:
                given = self.guards[k].batch(batch, [scene.ids[p] for p in positions])
                loss = self.guards[k].see(self.loss(name, part, given))
            else:
                loss = self.loss(name, part, batch)
            loss.backward()
            if scene.max_grad_norm:
                nn.utils.clip_grad_norm_(part.parameters(), scene.max_grad_norm)
            optimizer.step()


def run(scene: Scene, folder: Path | None) -> Outcome:
    """All planned steps, or until a guard (or the loop) stops; without a folder nothing guards them."""
    warnings.simplefilter("ignore")
    scene.model.train()
    pair = Pair(scene, folder)
    began = time.perf_counter()
    seconds, stopped, steps = taken(pair.take)
    for guard in pair.guards:
        with contextlib.suppress(AttributeError):
            guard.detach()
    incidents = sorted([i for g in pair.guards for i in told(g)], key=lambda i: i["step"])
    states = [v for o in pair.optimizers for s in o.state.values() for v in s.values() if torch.is_tensor(v)]
    return Outcome(
        finished=stopped is None,
        finite=all_finite(pair.live, scene) and all(bool(v.isfinite().all()) for v in states),
        steps=steps,
        incidents=incidents,
        stopped=stopped,
        seconds=time.perf_counter() - began,
        step_seconds=statistics.median(seconds) if seconds else 0.0,
        first_bad=pair.first_bad,
    )
