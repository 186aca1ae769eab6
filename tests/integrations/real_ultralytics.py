"""The adapter in the real Ultralytics trainer, in an environment of its own that has it.

    python tests/integrations/real_ultralytics.py

The package is under the AGPL: nothing here installs it, and neither the project nor its tests import it. A small
detector is trained on sixteen pictures of squares, one batch of them with a NaN in it: with and without the guard, and
with causes.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
BAD = 4
"""The batch whose second picture has one NaN."""


def pictures(folder: Path) -> Path:
    """Bright squares on dark ground, in the layout that the trainer reads."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True)
        for i in range(16):
            x, y = generator.integers(4, 30, 2)
            picture = np.full((64, 64, 3), 40, np.uint8)
            picture[y : y + 24, x : x + 24] = 220
            Image.fromarray(picture).save(folder / "images" / part / f"{i}.png")
            label = f"0 {(x + 12) / 64} {(y + 12) / 64} {24 / 64} {24 / 64}\n"
            (folder / "labels" / part / f"{i}.txt").write_text(label)
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: [square]\n")
    return folder / "data.yaml"


def train(data: Path, *, guarded: bool, poison: bool, **options: Any) -> tuple[Any, list[float]]:
    """The trainer after three epochs, and the loss of each batch that it made."""
    from ultralytics import YOLO  # pyright: ignore[reportMissingImports]
    from ultralytics.models.yolo.detect import DetectionTrainer  # pyright: ignore[reportMissingImports]

    from maskrcnn_coco.integrations.ultralytics import guard_callback

    losses: list[float] = []
    held: list[Any] = []

    class Poisoned(DetectionTrainer):
        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            batch = super().preprocess_batch(batch)
            if poison and len(losses) == BAD:
                batch["img"][1, 0, 3, 3] = math.nan
            return batch

    yolo = YOLO("yolov8n.yaml", verbose=False)
    if guarded:
        yolo.add_callback("on_train_start", guard_callback(**options))
    yolo.add_callback("on_train_batch_end", lambda trainer: losses.append(float(trainer.loss)))
    yolo.add_callback("on_train_end", held.append)
    settings = {"epochs": 3, "imgsz": 64, "batch": 4, "nbs": 4, "warmup_epochs": 0, "optimizer": "SGD", "lr0": 0.01}
    quiet = {"plots": False, "verbose": False, "val": False, "workers": 0, "device": "cpu", "amp": False}
    yolo.train(trainer=Poisoned, data=str(data), project=str(data.parent / "runs"), seed=0, **settings, **quiet)
    return held[0], losses


def main() -> None:
    """Four runs: bare and guarded with the bad batch, bare and guarded without; and one with causes."""
    import torch

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["YOLO_CONFIG_DIR"] = folder
        data = pictures(Path(folder) / "squares")
        _, bare = train(data, guarded=False, poison=True)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer, losses = train(data, guarded=True, poison=True)
        plain, _ = train(data, guarded=False, poison=False)
        clean, _ = train(data, guarded=True, poison=False, say=False)
        found, _ = train(data, guarded=True, poison=True, say=False, diagnose=True, logdir=None)
    same = all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), clean.model.parameters(), strict=True))
    told = [str(w.message) for w in said if "refused" in str(w.message)]
    lost = [sum(map(math.isnan, run)) for run in (bare, losses)]
    causes = [(i.cause, i.culprit.image_ids) for i in found.guard.incidents]
    print(f"batches with a loss of NaN: {lost[0]} bare, {lost[1]} guarded; refused {trainer.guard.refused_steps}")
    print(f"a clean run has the same bits: {same}, refused {clean.guard.refused_steps}; causes {causes}")
    print("\n".join(told))
    assert lost[0] > 1 == lost[1] == trainer.guard.refused_steps
    assert same and clean.guard.refused_steps == 0
    assert causes == [("DATA_PIXEL", [4 * BAD + 1])]
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())


if __name__ == "__main__":
    main()
