"""A data set of the caller's own: what is wrong with it is said before the first step, and nothing of an honest one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.silent.scene import HEIGHT, WIDTH, Scene
from maskrcnn_coco.data.dataset import UserData
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.findings.judge import judge
from maskrcnn_coco.findings.samples import Samples
from maskrcnn_coco.records import RunFinding
from maskrcnn_coco.training.look import _draws, look_at_samples


class Model(torch.nn.Module):
    """As much of a detector as a look needs: its classifier, and its normalisation."""

    def __init__(self, classes: int = 3, mean: float = 0.45, std: float = 0.225) -> None:
        super().__init__()
        self.roi_heads = torch.nn.Module()
        self.roi_heads.box_predictor = torch.nn.Module()
        self.roi_heads.box_predictor.cls_score = torch.nn.Linear(2, classes)
        self.transform = torch.nn.Module()
        self.transform.image_mean, self.transform.image_std = [mean] * 3, [std] * 3


def found(scene: Any, model: torch.nn.Module | None = None, classes: int = 3) -> list[RunFinding]:
    return judge(look_at_samples(UserData(scene), model or Model(classes), classes))


def edit(**changes: Any):
    def change(image, target):
        image = changes["image"](image) if "image" in changes else image
        return image, target | {k: f(target[k]) for k, f in changes.items() if k != "image"}

    return change


def flipped(image, target):
    """Half of the images mirrored with their boxes, and not with their masks."""
    if target["image_id"] % 2:
        boxes = target["boxes"].clone()
        boxes[:, [0, 2]] = WIDTH - boxes[:, [2, 0]]
        return image.flip(-1), target | {"boxes": boxes}
    return image, target


def along_rows(masks):
    return masks.transpose(1, 2).reshape(len(masks), HEIGHT, WIDTH)


SIZES = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT], dtype=torch.float32)
FAULTS: dict[str, tuple[Any, str, str]] = {
    "labels from 0": (edit(labels=lambda v: v - 1), "CLASSES", "from zero"),
    "one label too many": (edit(labels=lambda v: v + 1), "CLASSES", "too few"),
    "boxes as sizes": (
        edit(boxes=lambda v: torch.cat([v[:, :2], v[:, 2:] - v[:, :2]], 1)),
        *("GEOMETRY", "boxes as x, y, width, height"),
    ),
    "boxes as corners and corners": (
        edit(boxes=lambda v: torch.cat([v[:, :2], v[:, 2:] + v[:, :2]], 1)),
        *("GEOMETRY", "boxes as corners"),
    ),
    "centre and size": (
        edit(boxes=lambda v: torch.cat([(v[:, :2] + v[:, 2:]) / 2, v[:, 2:] - v[:, :2]], 1)),
        *("GEOMETRY", "boxes as centre and size"),
    ),
    "x and y of boxes": (edit(boxes=lambda v: v[:, [1, 0, 3, 2]]), "GEOMETRY", "x and y of boxes exchanged"),
    "rows and columns": (edit(masks=along_rows), "GEOMETRY", "masks counted along rows"),
    "masks stay behind": (flipped, "GEOMETRY", "masks mirrored left to right"),
    "masks upside down": (edit(masks=lambda v: v.flip(1)), "GEOMETRY", "masks mirrored top to bottom"),
    "shares": (edit(boxes=lambda v: v / SIZES), "GEOMETRY", "boxes 0..1"),
    "boxes not resized": (edit(boxes=lambda v: v * 2.5), "GEOMETRY", "boxes of another image size"),
    "masks moved": (edit(masks=lambda v: torch.nn.functional.pad(v, (10, -10, 6, -6))), "GEOMETRY", "masks moved"),
    "masks empty": (edit(masks=lambda v: v * 0), "NO_TARGETS", "mask not empty"),
    "normalised": (edit(image=lambda v: (v - 0.45) / 0.225), "PIXELS", "normalised twice"),
    "not scaled": (edit(image=lambda v: v * 255), "PIXELS", "not scaled"),
    "bytes": (edit(image=lambda v: (v * 255).to(torch.uint8)), "PIXELS", "not scaled"),
    "scaled twice": (edit(image=lambda v: v / 255), "PIXELS", "scaled twice"),
    "black": (edit(image=lambda v: v * 0), "PIXELS", "constant"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_whole_set_is_named(name: str):
    change, code, what = FAULTS[name]
    said = found(Scene(change=change))
    assert [(f.code, f.detail["what"]) for f in said] == [(code, what)]
    assert said[0].evidence and said[0].explain == f"maskrcnn-coco explain {code}"
    assert "--data" not in said[0].fix  # there is no path to give


def amodal(image, target):
    grown = torch.cat([target["boxes"][:, :2] - 8, target["boxes"][:, 2:] + 8], 1).clamp(min=0)
    some = torch.arange(len(grown))[:, None] % 3 == 0
    return image, target | {"boxes": torch.where(some, torch.minimum(grown, SIZES), target["boxes"])}


def noisy(image, target):
    wrong = torch.rand(len(target["labels"]), generator=torch.Generator().manual_seed(target["image_id"])) < 0.2
    return image, target | {"labels": torch.where(wrong, 3 - target["labels"], target["labels"])}


def thin(image, target):
    """Diagonals one pixel wide in boxes that fit them."""
    masks, boxes = torch.zeros_like(target["masks"]), target["boxes"]
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        n = max(x1 - x0, y1 - y0)
        t = torch.arange(n + 1) / n
        mask[(y0 + t * (y1 - 1 - y0)).long(), (x0 + t * (x1 - 1 - x0)).long()] = 1
    return image, target | {"masks": masks}


HONEST: dict[str, Scene] = {
    "as it is": Scene(),
    "one class": Scene(classes=1),
    "one image": Scene(count=1),
    "most images empty": Scene(objects=lambda i: 3 if i % 10 == 0 else 0, count=60),
    "tiny objects": Scene(sides=(2, 4)),
    "one object fills each image": Scene(objects=1, sides=(62, 94)),
    "crowded": Scene(objects=120, sides=(3, 8), count=8),
    "boxes wider than masks": Scene(change=amodal),
    "rounded boxes": Scene(change=edit(boxes=lambda v: v + torch.tensor([-2.0, -2, 2, 2]))),
    "thin diagonals": Scene(change=thin),
    "grey": Scene(change=edit(image=lambda v: v.mean(0, keepdim=True).expand(3, -1, -1))),
    "dark": Scene(change=edit(image=lambda v: v * 0.03)),
    "two levels": Scene(change=edit(image=lambda v: (v > 0.4).float())),
    "one level an image, now and then": Scene(change=lambda i, t: (i * 0 if t["image_id"] % 7 == 0 else i, t)),
    "label noise": Scene(change=noisy),
    "interpolation beyond 0..1": Scene(change=edit(image=lambda v: v * 1.05 - 0.02)),
    "masks of bool": Scene(change=edit(masks=lambda v: v.bool())),
    "square images of round objects": Scene(size=(80, 80), classes=2),
    "no masks": Scene(change=lambda i, t: (i, {k: v for k, v in t.items() if k != "masks"})),
    "panoramas": Scene(size=(32, 320), sides=(8, 20)),
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_set_is_not_accused(name: str):
    assert found(HONEST[name]) == []


def test_normalised_once_is_no_fault():
    scene = Scene(change=edit(image=lambda v: (v - 0.45) / 0.225))
    assert found(scene, Model(mean=0.0, std=1.0)) == []


def test_a_few_wrong_labels_are_the_guards_business():
    scene = Scene(count=40, change=lambda i, t: (i, t | {"labels": t["labels"] * (t["image_id"] != 103)}))
    assert all(f.severity != "error" for f in found(scene))


def test_no_object_anywhere_ends_the_run():
    said = found(Scene(objects=0, count=90))
    assert [(f.code, f.severity) for f in said] == [("NO_TARGETS", "error")]


def test_a_rare_object_is_looked_for():
    assert found(Scene(objects=lambda i: int(i == 71), count=150)) == []


def test_every_label_out_of_range_is_an_error_with_the_number_to_give():
    said = found(Scene(classes=1, change=edit(labels=lambda v: v - 1)), classes=2)
    assert (said[0].code, said[0].severity) == ("CLASSES", "error")
    assert 'target["labels"] + 1' in said[0].fix and "num_classes=2" in said[0].fix


def test_background_counts():
    said = found(Scene(classes=2), Model(2), classes=2)
    assert said[0].severity == "error" and said[0].fix.startswith("background counts: num_classes=3")


def test_head_and_num_classes_that_differ_are_said():
    said = found(Scene(), Model(4), classes=3)
    assert [f.detail["what"] for f in said] == ["head"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda i, t: (i, {"boxes": t["boxes"], "image_id": 1}), "no 'labels'"),
        (lambda i, t: (i.permute(1, 2, 0), t), "channels come first"),
        (lambda i, t: (i, t | {"labels": t["labels"].float()}), "int64"),
        (lambda i, t: (i, t | {"masks": t["masks"].transpose(1, 2)}), "must be equal"),
        (lambda i, t: (i, t | {"boxes": t["boxes"][:, :2]}), "(N, 4)"),
        (lambda i, t: (i, t | {"boxes": t["boxes"].tolist()}), "as_tensor"),
    ],
)
def test_a_form_that_nothing_can_read_is_named(change, word: str):
    with pytest.raises(DataError, match="no sample") as error:
        look_at_samples(UserData(Scene(change=change)), Model(), 3)
    assert word in error.value.what


class Drawing(Scene):
    """Random brightness, from a generator of its own, a global one, or one that it seeds itself."""

    def __init__(self, how: str) -> None:
        super().__init__()
        import numpy as np

        self.how, self.own = how, np.random.default_rng(0)

    def __getitem__(self, i: int):
        import random

        image, target = self.plain(i)
        if self.how == "own":
            return image * float(self.own.uniform(0.5, 1)), target
        if self.how == "seeded":
            random.seed(i)
        if self.how == "torch seeded":
            torch.manual_seed(7)
            return image * float(torch.rand(1)), target
        return (image * random.uniform(0.5, 1) if self.how != "none" else image), target


@pytest.mark.parametrize(
    ("how", "workers", "what"),
    [
        ("own", 2, ["own generator"]),
        ("own", 0, []),
        ("seeded", 0, ["seeded"]),
        ("torch seeded", 2, ["seeded"]),
        ("global", 2, []),
        ("none", 2, []),
    ],
)
def test_draws_that_repeat_are_named(how: str, workers: int, what: list[str]):
    from maskrcnn_coco.findings.facts import Facts

    data = Drawing(how)
    before = data.own.bit_generator.state
    said = judge(Facts(way="own", draws=_draws(UserData(data), workers)))
    assert [f.detail["what"] for f in said] == what
    assert data.own.bit_generator.state == before


def test_samples_without_forms_are_counted_not_raised():
    samples = Samples()
    samples.add(torch.zeros(3, 8, 8), {}, 1)
    assert samples.form is not None and samples.objects == 0
