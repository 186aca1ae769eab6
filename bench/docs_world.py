"""The scratch folder in which the documentation's blocks run: every file and name that they speak of, small."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDERS = ("my_set", "my_data", "data", "nuclei", "slides", "test")
SHORT: dict[str, Any] = {
    "model": "maskrcnn_resnet18_fpn",
    "weights": "none",
    "min_size": 64,
    "max_size": 64,
    "max_steps": 2,
    "batch_size": 2,
    "workers": 0,
    "device": "cpu",
}
"""What a training gets that does not say it itself."""
_MODEL = ("model", "weights", "min_size", "max_size")


def short(verb: str, flags: Sequence[str]) -> list[str]:
    """Flags that make the verb's work small, of those that ``flags`` do not give."""
    if verb not in ("train", "verify", "advise"):
        return []
    given = {f.split("=")[0].removeprefix("--").replace("-", "_") for f in flags if f.startswith("--")}
    left = {k: v for k, v in SHORT.items() if k not in given}
    if "demo" in given:  # has its own small network; enough steps for what the page tells
        left = {k: v for k, v in left.items() if k not in _MODEL} | {"max_steps": 12}
    if "backbone_weights" in given:
        left.pop("weights", None)
    if verb == "verify":  # the run's own settings, but for its length
        left = {}
    words = [[f"--{k.replace('_', '-')}", str(v)] for k, v in left.items()]
    return [w for pair in words for w in pair]


@contextlib.contextmanager
def short_config() -> Iterator[None]:
    """Within, ``from maskrcnn_coco import Config`` gives settings that are short where the caller says nothing."""
    import maskrcnn_coco

    real = maskrcnn_coco.Config
    maskrcnn_coco.Config = lambda **given: real(**{**SHORT, **given})  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        maskrcnn_coco.Config = real  # type: ignore[misc]


@contextlib.contextmanager
def folder(root: Path, page: str) -> Iterator[None]:
    """Make the files that ``page`` needs below ``root``, and be there."""
    root.mkdir(parents=True)
    before = Path.cwd()
    os.chdir(root)
    try:
        _data(root)
        text = (Path(__file__).resolve().parents[1] / page).read_text(encoding="utf-8")
        if "checkpoints/" in text or "runs/maskrcnn" in text:
            _trained(theirs="maskrcnn_resnet50_fpn_v2(" in text, incident="diagnose runs" in text)
        yield
    finally:
        os.chdir(before)
        shutil.rmtree(root)  # checkpoints are large


def _data(root: Path) -> None:
    from maskrcnn_coco.data.builtin_shapes import write_shapes

    write_shapes(root / "drawn_set", train=24, val=8, size=64)
    for part in ("train", "valid"):  # images of twelve patients
        here = root / "drawn_set" / part
        table = json.loads((here / "_annotations.coco.json").read_text())
        for i, image in enumerate(table["images"]):
            name = f"patient{i // 2}_{image['file_name']}"
            (here / image["file_name"]).rename(here / name)
            image["file_name"] = name
        (here / "_annotations.coco.json").write_text(json.dumps(table))
    train, valid = root / "drawn_set" / "train", root / "drawn_set" / "valid"
    for name in FOLDERS[:-1]:
        shutil.copytree(root / "drawn_set", root / name)
        for stamp in (root / name).rglob(".*"):
            stamp.unlink()
    for name in ("photos", "images", "test"):
        shutil.copytree(train, root / name, ignore=shutil.ignore_patterns("*.json", ".*"))
    for image in valid.glob("*.png"):
        shutil.copy(image, root / "photos" / image.name)
    for name in ("labels", "train", "test"):
        shutil.copy(train / "_annotations.coco.json", root / f"{name}.json")
    shutil.copy(valid / "_annotations.coco.json", root / "val.json")
    first = next(iter(sorted(train.glob("*.png"))))
    Image.open(first).convert("RGB").save(root / "a.jpg")
    tile = np.asarray(Image.open(first).convert("RGB"))
    Image.fromarray(np.tile(tile, (3, 4, 1))).save(root / "slide.tif")
    _labelme(root / "my_labels", first)
    _masks(root / "drawn")
    import torch
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), root / "resnet50.pth")


def _labelme(to: Path, image: Path) -> None:
    to.mkdir()
    for i in range(4):
        shutil.copy(image, to / f"{i}.png")
        shape = {"label": "part", "shape_type": "polygon", "points": [[8, 8], [40, 8], [40, 30 + i], [8, 30]]}
        entry = {"version": "5", "imagePath": f"{i}.png", "imageHeight": 64, "imageWidth": 64, "shapes": [shape]}
        (to / f"{i}.json").write_text(json.dumps(entry))


def _masks(to: Path) -> None:
    """Images beside masks in which each value is an object."""
    for part in ("images", "masks"):
        (to / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(4):
        mask = np.zeros((64, 64), np.uint8)
        mask[5:25, 6 + i : 30], mask[35:60, 30:50] = 1, 2
        noise = rng.integers(0, 60, (64, 64, 3), np.uint8)
        Image.fromarray((noise + 120 * (mask[..., None] > 0)).astype(np.uint8)).save(to / "images" / f"{i}.png")
        Image.fromarray(mask).save(to / "masks" / f"{i}.png")


def _trained(*, theirs: bool, incident: bool) -> None:
    """A checkpoint, and a run with an incident where a page speaks of one; what it says goes nowhere."""
    from maskrcnn_coco.cli import main

    flags = ["--data", "my_set", "--model", "maskrcnn_resnet50_fpn_v2"] if theirs else ["--data", "my_set"]
    if incident:
        flags = ["--demo", "--lr", "5e-3", "--head-lr-multiplier", "10", "--max-grad-norm", "0", "--warmup-steps", "0"]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        code = main(["train", *flags, *short("train", flags)])
    if code != 0:
        raise RuntimeError(f"the training before the page ended with {code}")


def names(page: str) -> dict[str, Any]:
    """What a page's Python blocks take as given: somebody's own training, tiny."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    x, y = torch.randn(16, 8), torch.randint(0, 3, (16,))
    data = [(x[i], y[i]) for i in range(16)]
    made: dict[str, Any] = {
        "optimizer": torch.optim.AdamW(model.parameters(), 1e-3),
        "criterion": F.cross_entropy,
        "loader": torch.utils.data.DataLoader(data, batch_size=4),  # type: ignore[arg-type]
        "loss_of": lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        "batch": (x, y),
        "ids": list(range(16)),
        "x": x,
        "y": y,
        "data": data,
    }
    if page == "docs/use_what_you_trained.md":
        return {}  # its blocks follow each other
    if page == "docs/anywhere/processes.md":
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    if page == "docs/anywhere/accelerate.md":
        from accelerate import Accelerator  # type: ignore[import-not-found]

        made["accelerator"] = Accelerator(cpu=True)
    if page == "docs/anywhere/lightning.md":
        from lightning import Trainer  # type: ignore[import-not-found]

        made["Trainer"] = Trainer
    if page == "docs/anywhere/transformers.md":
        from transformers import Trainer, TrainingArguments  # type: ignore[import-not-found]

        made |= {"Trainer": Trainer, "args": TrainingArguments("out", use_cpu=True, report_to=[])}
    if page == "docs/anywhere/ultralytics.md":
        from ultralytics import YOLO  # type: ignore[import-not-found]

        made["yolo"] = YOLO("yolov8n.yaml")
    return made | {"model": model}


def use(page: str, names: dict[str, Any]) -> None:
    """After a block: call what it only defines, take the step that it only prepares."""
    if page == "docs/how_to/bring_your_data.md":
        own = [_own(i) for i in range(4)]
        if not names["run"](own, own[:2]).finite:
            raise AssertionError("the training of one's own data did not stay finite")
    if page.startswith("docs/anywhere/") and "loss" in names:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            names.pop("loss").backward()
            names["optimizer"].step()
        guard = names["guard"]
        if not guard.records or not guard.records[-1].applied:
            raise AssertionError("the step of a sound batch was not applied")


def _own(i: int) -> tuple[Any, dict[str, Any]]:
    import torch

    image = torch.full((3, 64, 64), 0.2)
    x, y = 5 + 3 * i, 10 + 2 * i
    image[:, y : y + 20, x : x + 24] = 0.9
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[0, y : y + 20, x : x + 24] = 1
    box = torch.tensor([[x, y, x + 24, y + 20]], dtype=torch.float32)
    return image, {"boxes": box, "labels": torch.tensor([1 + i % 2]), "masks": mask, "image_id": i}
