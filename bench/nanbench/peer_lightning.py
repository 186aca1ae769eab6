"""Lightning's Trainer with its own stability options: clipping, and EarlyStopping(check_finite=True).

Imported only by an interpreter that has Lightning.
"""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L  # pyright: ignore[reportMissingImports]
from lightning.pytorch.callbacks import EarlyStopping  # pyright: ignore[reportMissingImports]
from torch.utils.data import DataLoader

from nanbench.peers import CLIP, Parts, all_finite, single
from nanbench.scenario import NotApplicable, Outcome
from nanbench.scene import IMAGES, STEPS, Scene

PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}
PER_EPOCH = STEPS // 4


class Module(L.LightningModule):
    """The scene's detector as a LightningModule, with automatic optimization."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts, self.net = parts, parts.scene.model

    def training_step(self, positions: list[int], _: int) -> Any:
        images, targets = self.parts.batch(positions, self.global_step)
        loss = sum(self.net(images, targets).values())
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def on_train_batch_start(self, *_: Any) -> None:
        if self.parts.scene.step != self.global_step or self.global_step == 0:
            self.parts.before(self.global_step)

    def configure_optimizers(self) -> Any:
        schedule = {"scheduler": self.parts.schedule, "interval": "step"}
        return {"optimizer": self.parts.optimizer, "lr_scheduler": schedule}

    def train_dataloader(self) -> Any:
        first = self.current_epoch * PER_EPOCH
        micros = [micro for step in range(first, first + PER_EPOCH) for micro in self.parts.scene.order(step)]
        return DataLoader(micros, batch_size=None, collate_fn=lambda positions: positions)  # pyright: ignore


def run(scene: Scene, folder: Path) -> Outcome:
    """Fit for the scene's four epochs."""
    single(scene)
    if scene.setup.precision not in PRECISION:
        raise NotApplicable("Lightning has no fp16 on the CPU")
    if scene.undivided is not None:
        raise NotApplicable("Lightning divides by itself")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    parts = Parts(scene)
    stopping = EarlyStopping("loss", check_finite=True, patience=1000, check_on_train_epoch_end=True)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=4,
        precision=PRECISION[scene.setup.precision],  # pyright: ignore[reportArgumentType]
        gradient_clip_val=scene.max_grad_norm or CLIP,
        accumulate_grad_batches=scene.setup.accumulate,
        callbacks=[stopping],
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    began = time.perf_counter()
    trainer.fit(Module(parts))
    seconds = time.perf_counter() - began
    steps = trainer.global_step
    early = steps < IMAGES // 4 * 4
    stop = {"step": max(0, steps - 1), "cause": None, "action": "stop", "lost_steps": 0}
    return Outcome(
        finished=not early,
        finite=all_finite(parts),
        steps=steps,
        incidents=[stop] if early else [],
        stopped=f"stop: {stopping.stopping_reason_message}" if early else None,
        seconds=seconds,
        step_seconds=seconds / max(1, steps),
        first_bad=parts.first_bad,
    )
