"""ARC's controller around the plain loop, as its own documentation shows it. Imported only by ARC's own interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arc.core.controller import Controller, ControllerConfig  # pyright: ignore[reportMissingImports]

from nanbench.peers import RESUME_AT, Parts, loop, single
from nanbench.scenario import Outcome
from nanbench.scene import Scene


def run(scene: Scene, folder: Path) -> Outcome:
    """``controller.step(loss)`` between backward and the optimizer; a step that it asks to skip is skipped."""
    single(scene)
    parts = Parts(scene)
    scaled = parts.scaler.is_enabled()

    def controller() -> Any:
        config = ControllerConfig(verbose=False, gradient_accumulation_steps=scene.setup.accumulate)
        scaler = parts.scaler if scaled else None
        return Controller(scene.model, parts.optimizer, scheduler=parts.schedule, config=config, scaler=scaler)

    held = [controller()]

    def take(step: int) -> str | None:
        if step == RESUME_AT and scene.on_resume is not None:
            held[0] = controller()  # the run goes on in a new process
        parts.optimizer.zero_grad()
        action = None
        for positions in scene.order(step):
            loss = parts.losses(positions, step) / parts.divisor(step)
            parts.scaler.scale(loss).backward()
            action = held[0].step(loss)
            if action.should_skip:
                return "rollback" if action.rolled_back else "skip"
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()
        return None

    return loop(parts, take)
