"""Decoys: hard but honest fine-tunings, real sets and the built-in one among them. None may be accused of anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from silent.changes import HONEST, Drawing
from silent.scenarios import Parted, each, numbers
from silent.scene import Scene
from silent.ways import Oracle, Way, _train, coco, evaluated, guarded, loop, own, settings

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


@dataclass(frozen=True)
class Decoy:
    """``fact``: what acquits it."""

    name: str
    fact: str
    way: Way


def built_in(folder: Path) -> Any:
    unset = {"num_classes": None, "min_size": None, "max_size": None, "batch_size": None, "lr": None}
    return _train(settings(folder, demo=True, head_lr_multiplier=None, warmup_steps=None, **unset), 0, model=None)


def real(part: str, **names: str) -> Way:
    def way(folder: Path) -> Any:
        root = SHARED / "data" / part
        paths = {k: str(root / v) for k, v in names.items()}
        return _train(settings(folder, num_classes=None, min_size=512, max_size=800, **paths), 0, model=None)

    return way


def _crowd_of_many(data: dict[str, Any]) -> None:
    """One region an image, of half its area, for what was not told apart."""
    for image in data["images"][::2]:
        w, h = image["width"], image["height"]
        box = [2, 2, w - 4, h // 2]
        polygon = [[2, 2, w - 2, 2, w - 2, 2 + h // 2, 2, 2 + h // 2]]
        data["annotations"].append({
            "id": len(data["annotations"]) + 1, "image_id": image["id"], "category_id": 1, "iscrowd": 1,
            "bbox": box, "area": box[2] * box[3], "segmentation": polygon,
        })  # fmt: skip


def _gaps(data: dict[str, Any]) -> None:
    for c in data["categories"]:
        c["id"] = 7 * c["id"] + 3
    for a in data["annotations"]:
        a["category_id"] = 7 * a["category_id"] + 3


def _many_classes(data: dict[str, Any]) -> None:
    data["categories"] += [{"id": n, "name": f"class {n}"} for n in range(3, 2001)]


def _amodal(a: Any, image: Any, n: int) -> None:
    if n % 3 == 0:
        x, y, w, h = a["bbox"]
        a["bbox"] = [max(0, x - 8), max(0, y - 8), min(w + 16, image["width"] - max(0, x - 8)),
                     min(h + 16, image["height"] - max(0, y - 8))]  # fmt: skip


def decoys() -> list[Decoy]:
    """All of them; real sets only where they are."""
    found = [Decoy(f"own data: {name}", "agreement, ranges and counts as they should be", own(s, num_classes=3))
             for name, s in HONEST.items()]  # fmt: skip
    train, hard = Scene(12), Scene(12, seed=9)
    late = Scene(12, 4, classes=2)
    found += [
        Decoy("own data: global generators", "other draws in each epoch", own(Drawing("global"), workers=2)),
        Decoy("own data: a generator of its own, no workers", "it goes on in the process", own(Drawing("own"))),
        Decoy("own data: an epoch of training", "the loss falls", own(Scene(24), Scene(6, seed=1), steps=-1)),
        Decoy("own data: a low rate in a long schedule", "its many steps reach far",
              own(Scene(24), steps=13, lr=1e-5, head_lr_multiplier=1.0, epochs=2000)),
        Decoy("validation: harder, not hopeless", "a third of the objects is found",
              own(train, _Part(train, hard), model=lambda: Oracle(train), steps=-1, epochs=3, lr=5e-2)),
        Decoy("validation: one class learned so far", "no renaming restores it",
              evaluated(Scene(12, 4, classes=1), late)),
        Decoy("validation: 130 objects an image, caps follow", "the truth scores 1",
              evaluated(Scene(4, 130, sides=(3, 6), classes=1), Scene(4, 130, sides=(3, 6), classes=1), "auto", 200)),
        Decoy("COCO: as it is", "agreement of boxes and masks", coco(Scene())),
        Decoy("COCO: real crowds beside objects", "one region an image, far larger than objects",
              coco(Scene(), _crowd_of_many)),
        Decoy("COCO: gaps in the ids", "labels are numbered without gaps", coco(Scene(), _gaps)),
        Decoy("COCO: 2000 classes", "unused ones cost nothing", coco(Scene(8), _many_classes)),
        Decoy("COCO: amodal boxes", "the box contains the mask", coco(Scene(), each(_amodal))),
        Decoy("COCO: validation of 4 images", "few, and sound", coco(Scene(), val=(Scene(4, seed=3), None))),
        Decoy("COCO: square images", "a transposition changes nothing", coco(Scene(size=(80, 80)))),
        Decoy("train_one_epoch: two honest epochs", "everything moves", loop(Scene(24), epochs=2)),
        Decoy("train_one_epoch: backbone frozen on purpose", "its weights have another spread than at their start",
              loop(Scene(12), before=_trained_and_frozen)),
        Decoy("Guard: cosine to 0", "it is low in the last steps only",
              guarded(Parted, numbers, 60, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 60).step)),
        Decoy("Guard: warm-up from 0", "the rate rises",
              guarded(Parted, numbers, 60, lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: s / 50).step)),
        Decoy("built-in shapes", "learned daily", built_in),
    ]  # fmt: skip
    if (SHARED / "data").is_dir():
        car = {"images": "train", "val_images": "val"}
        found += [
            Decoy("real: dsb2018 nuclei", "trained daily", real("dsb2018", data="")),
            *(Decoy(f"real: car_damage {n}", "trained daily",
                    real("car_damage", data=f"annotations/{n}_train.json", val=f"annotations/{n}_val.json", **car))
              for n in ("parts", "damage")),
        ]  # fmt: skip
    return found


class _Part(torch.utils.data.Dataset):
    """A third of the pictures of one set, the rest of another."""

    def __init__(self, known: Scene, new: Scene) -> None:
        self.known, self.new = known, new

    def __len__(self) -> int:
        return len(self.new)

    def __getitem__(self, i: int) -> Any:
        return (self.known if i % 3 == 0 else self.new)[i]


def _trained_and_frozen(net: torch.nn.Module) -> None:
    for parameter in net.backbone.parameters():
        parameter.data = parameter.data.sign() * parameter.data.abs().sqrt()
    net.backbone.requires_grad_(False)
