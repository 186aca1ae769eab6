"""The three sets that recipes are compared on, made small enough for a core: data, model, and how long a run is."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.model import weights as files
from maskrcnn_coco.model.architecture import Size, assemble, freeze
from maskrcnn_coco.model.fast.accelerate import accelerate

SHARED = Path(__file__).resolve().parents[3] / "shared"
BACKBONE = "mobilenet_v2_features_imagenet_bnfolded.pth"
LARGEST = 400
"""Longest side of the nuclei's images, pixels: at the sizes trained here, nuclei of larger ones would be specks."""
VALIDATED = 16
"""Images of nuclei to validate on."""
DETECTIONS = 120
"""One image of nuclei that is validated on has 125, all others fewer; each detection costs evaluation time."""
HELD_BACK = 22
"""Car images to validate on: the 8 of the set's own validation part have 24 objects, too few to compare recipes."""

FIFTH = Size(
    anchors=(6, 13, 26, 51, 102),
    canonical_scale=45,
    rpn_batch=128,
    box_batch=32,
    proposals_train=(400, 400),
    proposals_test=(200, 120),
)
"""torchvision's detector, as wide as it is, at a fifth of its image size: anchors and pooling levels fit 160 pixels as
they fit 800, and 32 proposals on a twenty-fifth of the area are as dense as 800. Widths stay: rates depend on them."""


@dataclass(frozen=True)
class BenchSet:
    """A data set, its model, and the budget: what ``steps`` steps of today's default cost, in CPU seconds."""

    name: str
    steps: int
    batch_size: int
    min_size: int
    max_size: int
    data: Callable[[Path], dict[str, Any]]
    """Folder for files of its own → fields of Config."""
    classes: int

    def images(self, folder: Path, most: int | None = None) -> int:
        """Training images, ``most`` of them at most."""
        if most is not None:
            return most
        if self.name == "shapes":
            return 120
        path = Path(self.data(folder)["data"]) / "train" / "_annotations.coco.json"
        return len(json.loads(path.read_text())["images"])

    def data_of(self, folder: Path, most: int | None) -> dict[str, Any]:
        """`data`, with the first ``most`` training images alone."""
        fields = self.data(folder)
        if most is None:
            return fields
        whole, part = Path(fields["data"]), folder / f"{self.name}_{most}"
        shutil.copytree(whole, part, dirs_exist_ok=True)
        path = part / "train" / "_annotations.coco.json"
        data = json.loads(path.read_text())
        data["images"] = random.Random(0).sample(data["images"], most)
        _write(part / "train", data, whole / "train")
        return {"data": str(part)}

    def model(
        self, seed: int, change: Callable[[Any], None] | None = None, start: dict[str, Any] | None = None
    ) -> nn.Module | None:
        """The model at its start, the same for every recipe without a ``change``; None: the built-in shapes' own.

        ``start``: weights of a detector of another set; what follows the number of classes stays random.
        """
        if self.name == "shapes":
            return None
        torch.manual_seed(seed)
        name = "maskrcnn_mobilenet_v2_fpn"
        sizes = {"min_size": self.min_size, "max_size": self.max_size, "detections": DETECTIONS}
        model = assemble(name, self.classes, FIFTH, "frozen", "group", **sizes)
        path = SHARED / "weights" / BACKBONE
        files.load_body(model.get_submodule("backbone.body"), files.read_weights(path), path)
        if change is not None:
            change(model)
        if start is not None:
            own = model.state_dict()
            model.load_state_dict({k: v if v.shape == own[k].shape else own[k] for k, v in start.items()})
        freeze(model, name, None, loaded=True)
        accelerate(model)
        return model


def _nuclei(folder: Path) -> dict[str, Any]:
    """The nuclei's images up to `LARGEST` pixels."""
    for part in ("train", "valid"):
        source = SHARED / "data" / "dsb2018" / part
        data = json.loads((source / "_annotations.coco.json").read_text())
        data["images"] = [i for i in data["images"] if max(i["height"], i["width"]) <= LARGEST]
        if part == "valid":
            data["images"] = data["images"][:VALIDATED]
        _write(folder / "dsb2018" / part, data, source)
    return {"data": str(folder / "dsb2018")}


def _cars(folder: Path) -> dict[str, Any]:
    """The parts of both files together; `HELD_BACK` images, always the same, are validated on."""
    source = SHARED / "data" / "car_damage"
    whole: dict[str, Any] = {"images": [], "annotations": []}
    for n, part in enumerate(("train", "val")):
        data = json.loads((source / "annotations" / f"parts_{part}.json").read_text())
        ids = {i["id"]: 1000 * n + i["id"] for i in data["images"]}
        for image in data["images"]:
            name = f"{part}/{Path(image['file_name']).name}"
            whole["images"].append({**image, "id": ids[image["id"]], "file_name": name})
        for annotation in data["annotations"]:
            new = {"id": 10000 * n + annotation["id"], "image_id": ids[annotation["image_id"]]}
            whole["annotations"].append({**annotation, **new})
        whole["categories"] = data["categories"]
    # 25.jpg and 48.jpg are the same photograph: both stay on one side.
    twins = {i["id"] for i in whole["images"] if i["file_name"] in ("train/25.jpg", "train/48.jpg")}
    ids = [i["id"] for i in sorted(whole["images"], key=lambda i: i["file_name"]) if i["id"] not in twins]
    held = set(random.Random(0).sample(ids, HELD_BACK))
    for part, inside in (("train", lambda i: i not in held), ("valid", lambda i: i in held)):
        images = [i for i in whole["images"] if inside(i["id"])]
        _write(folder / "cars" / part, {**whole, "images": images}, source)
    return {"data": str(folder / "cars")}


def _write(folder: Path, data: dict[str, Any], images: Path) -> None:
    """``data`` with its images, and without the annotations of others."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in data["images"]:
        link = folder / image["file_name"]
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            shutil.copyfile(images / image["file_name"], link)
    ids = {i["id"] for i in data["images"]}
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in ids]
    (folder / "_annotations.coco.json").write_text(json.dumps(data))


SETS = {
    s.name: s
    for s in (
        BenchSet("dsb2018", 100, 2, 160, 267, _nuclei, 2),
        BenchSet("cars", 250, 2, 128, 213, _cars, 6),
        BenchSet("shapes", 120, 4, 128, 128, lambda _: {"demo": True}, 4),
    )
}
