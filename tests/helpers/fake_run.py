"""Run folders that look like real ones, for the report's tests and to look at: `python tests/fake_run.py FOLDER`."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_coco.config import recipes
from maskrcnn_coco.config.settings import Config, dump_config
from maskrcnn_coco.data.masks import encode_rle
from maskrcnn_coco.evaluation.draw import draw, encoded, shapes_of
from maskrcnn_coco.records import (
    COMPONENTS,
    Action,
    Culprit,
    DataFinding,
    EpochRecord,
    EvalRecord,
    Evidence,
    Incident,
    Result,
    StepRecord,
    to_json,
)
from maskrcnn_coco.report.run_files import write_run_info
from maskrcnn_coco.report.tracking import Tracker

CLASSES = ("circle", "square", "triangle")
LOSSES = ("loss_box_reg", "loss_classifier", "loss_mask", "loss_objectness", "loss_rpn_box_reg")
PER_EPOCH = 60


def make_run(folder: Path, *, epochs: int = 8, incidents: bool = True, pictures: int = 6, name: str = "") -> Path:
    """A finished run; with ``incidents``, one divergence that was taken back and one bad image."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    tracker = Tracker(folder)
    total, last = epochs * PER_EPOCH, 0.0
    for step in range(total):
        if incidents and step == PER_EPOCH * 2 + 41:
            tracker = _diverge(tracker, folder, step, total, rng)
        bad = incidents and step == PER_EPOCH * 4 + 7
        record = _step(step, total, rng, boost=math.nan if bad else 1.0)
        last = record.loss if record.applied else last
        tracker.step(record)
        if step % PER_EPOCH == PER_EPOCH - 1:
            _end_epoch(tracker, step, total, record, name)
    found = _incidents(tracker) if incidents else []
    tracker.close()
    (folder / "incidents").mkdir(exist_ok=True)
    for incident in found:
        (folder / "incidents" / f"{incident.id}.json").write_text(to_json(incident))
    _settings(folder, name)
    _pictures(folder, pictures, name)
    result = Result(
        "finished", 0, True, epochs, total, 1 if incidents else 0, [i.id for i in found], _metrics(1.0),
        "checkpoints/best.pth", 3.91, last, 21.4, 1.7, 1_900_000_000,
    )  # fmt: skip
    (folder / "result.json").write_text(to_json(result))
    return folder


def _step(step: int, total: int, rng: random.Random, *, boost: float = 1.0) -> StepRecord:
    shape = 0.35 + 3.4 * math.exp(-6 * step / total)
    weights = (0.2, 0.27, 0.33, 0.1, 0.1)
    losses = {n: shape * w * rng.lognormvariate(0, 0.16) * boost for n, w in zip(LOSSES, weights, strict=True)}
    warm = min(1.0, (step + 1) / 40) * (0.5 + 0.5 * math.cos(math.pi * step / total))
    lr = {"backbone": 0.005 * warm, "rpn": 0.005 * warm, "box_head": 0.025 * warm, "mask_head": 0.025 * warm}
    scale = (1.1, 0.5, 1.9, 1.3)
    norms = {c: k * shape * rng.lognormvariate(0, 0.3) * boost for c, k in zip(COMPONENTS, scale, strict=True)}
    ratio = {c: 1e-3 * warm * rng.lognormvariate(0, 0.2) for c in COMPONENTS} if step % 10 == 0 else {}
    loss, grad = sum(losses.values()), math.sqrt(sum(v * v for v in norms.values()))
    good = math.isfinite(loss)
    return StepRecord(
        step, step // PER_EPOCH, losses, loss, grad, norms, lr, None, [rng.randrange(300) for _ in range(4)], good,
        None if good else "loss_nonfinite", ratio,
    )  # fmt: skip


def _diverge(tracker: Tracker, folder: Path, step: int, total: int, rng: random.Random) -> Tracker:
    """Thirteen steps that explode, and are taken back."""
    for n in range(13):
        record = _step(step + n, total, rng, boost=1.7**n)
        record.group_grad_norm["box_head"] *= 2.2**n
        tracker.step(record)
    tracker.step(_step(step + 13, total, rng, boost=math.inf))
    tracker.close()
    return Tracker(folder, step)


def _end_epoch(tracker: Tracker, step: int, total: int, last: StepRecord, name: str) -> None:
    epoch, done = step // PER_EPOCH, step + 1
    tracker.epoch(EpochRecord(epoch, done, last.losses, last.loss, last.grad_norm, last.lr, 0, 21.0, 12.0))
    share = 1 - math.exp(-3.0 * done / total)
    names = [name or CLASSES[0], *CLASSES[1:], "never seen"]
    per_class = {
        n: {"bbox/AP": share * k, "bbox/AP50": share * min(1.0, k + 0.25), "segm/AP": share * (k - 0.05),
            "segm/AP50": share * min(1.0, k + 0.22), "objects": float(o)}
        for n, k, o in zip(names, (0.72, 0.64, 0.51, 0.0), (212, 187, 166, 0), strict=True)
    }  # fmt: skip
    per_class["never seen"] = dict.fromkeys(per_class["never seen"], -1.0) | {"objects": 0.0}
    tracker.eval(EvalRecord(epoch, done, _metrics(share), per_class, 2.0))


def _metrics(share: float) -> dict[str, float]:
    values = {"bbox/AP": 0.623, "bbox/AP50": 0.871, "bbox/AP75": 0.7, "segm/AP": 0.601, "segm/AP50": 0.862}
    return {k: v * share for k, v in values.items()} | {"bbox/APl": -1.0}


def _incidents(tracker: Tracker) -> list[Incident]:
    diverged = PER_EPOCH * 2 + 54
    found = [
        Incident(
            "0001", diverged, 2, diverged - 11, "diverged", "LR_TOO_HIGH", 0.97, Culprit("box_head"),
            [
                Evidence("replay: same batch, weights of step 160", "finite, loss 1.12", "LR_TOO_HIGH"),
                Evidence("replay: last 13 steps, lr of box_head × 0.5", "finite, gradient norm 4.1", "LR_TOO_HIGH"),
                Evidence("replay: last 13 steps, lr of all others × 0.5", "diverges again at step 171", "LR_TOO_HIGH"),
                Evidence("replay: same batch and weights again", "equal, bit for bit", None),
                Evidence("replay: fp32", "diverges again", None),
            ],
            Action("lower_lr", {"component": "box_head", "factor": 0.5, "to_step": diverged - 13}), "recovered", 13,
            "--head-lr-multiplier 2.5", "maskrcnn-coco explain LR_TOO_HIGH",
        ),
        Incident(
            "0002", PER_EPOCH * 4 + 7, 4, PER_EPOCH * 4 + 7, "loss_nonfinite", "DATA_BOX", 0.99,
            Culprit("box_head", image_ids=[17], annotation_ids=[203]),
            [Evidence("scan: targets", "annotation 203 of image 17 has a box of width nan", "DATA_BOX")],
            Action("quarantine", {"image_ids": [17], "annotation_ids": [203]}), "recovered", 0,
            "maskrcnn-coco check --data shapes --fix fixed.json", "maskrcnn-coco explain DATA_BOX",
        ),
    ]  # fmt: skip
    for incident in found:
        tracker.incident(incident)
    return found


def _settings(folder: Path, name: str) -> None:
    resolved = recipes.resolve(Config(lr=5e-3, head_lr_multiplier=5.0), num_images=240, builtin=True)
    (folder / "config.yaml").write_text(dump_config(resolved.config))
    findings = [
        DataFinding(
            "BOX_OUTSIDE", "warning", 3, 12, name or "0003.png", "the box leaves the image by 4 pixels", "clip it"
        ),
        DataFinding("BOX_OUTSIDE", "warning", 9, 31, "0009.png", "the box leaves the image by 1 pixel", "clip it"),
        DataFinding("BOX_NAN", "error", 17, 203, "0017.png", "the box has a width of nan", "check --fix"),
    ]
    environment = {"torch": "2.15.0", "torchvision": "0.29.2", "device": "cpu", "threads": 4, "cuda": None}
    data = {"train": "built-in shapes", "training images": 240, "validation images": 60, "classes": list(CLASSES)}
    write_run_info(
        folder, reasons=resolved.reasons, environment=environment, data=data, lr=recipes.component_lrs(resolved.config),
        findings=findings, notes=["backbone from random weights"],
    )  # fmt: skip


def _pictures(folder: Path, number: int, name: str) -> None:
    rng = np.random.default_rng(1)
    out = folder / "predictions"
    out.mkdir(exist_ok=True)
    index: dict[str, Any] = {"min_score": 0.5, "images": 60, "worst": [], "typical": []}
    for kind in ("worst", "typical"):
        for n in range(1, number + 1):
            pixels, items = _scene(rng)
            entry = {"file_name": name or f"images/{kind}_{n:04d}.png", "image_id": n, "f1": n / 12, "found": 2,
                     "missed": 1, "false": 1}  # fmt: skip
            for side in ("truth", "prediction"):
                shown = items if side == "truth" else [i | {"score": 0.93} for i in items[:-1]]
                entry[side] = f"{kind}_{n:02d}_{side}.jpg"
                picture = draw(pixels, shapes_of(shown, dict(enumerate(CLASSES, 1)), 128, 128), longest=480)
                (out / entry[side]).write_bytes(encoded(picture, ".jpg"))
            index[kind].append(entry)
    (out / "predictions.json").write_text(json.dumps(index))
    pixels, items = _scene(rng)
    picture = draw(pixels, shapes_of(items, dict(enumerate(CLASSES, 1)), 128, 128))
    (folder / "incidents" / "0002_image17.jpg").write_bytes(encoded(picture, ".jpg"))


def _scene(rng: np.random.Generator) -> tuple[np.ndarray, list[dict[str, Any]]]:
    pixels = rng.normal(70, 12, (128, 128, 3)).clip(0, 255).astype(np.uint8)
    items = []
    for _ in range(int(rng.integers(2, 5))):
        x, y, r = *rng.uniform(20, 108, 2), rng.uniform(8, 26)
        yy, xx = np.ogrid[:128, :128]
        mask = (xx - x) ** 2 + (yy - y) ** 2 < r * r
        pixels[mask] = rng.integers(90, 255, 3)
        ys, xs = np.nonzero(mask)
        box = [float(xs.min()), float(ys.min()), float(np.ptp(xs) + 1), float(np.ptp(ys) + 1)]
        items.append({"category_id": int(rng.integers(1, 4)), "bbox": box, "segmentation": encode_rle(mask)})
    return pixels, items


if __name__ == "__main__":
    from maskrcnn_coco.report.page import write_report

    print(write_report(make_run(Path(sys.argv[1]), pictures=12)))
