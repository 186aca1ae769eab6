"""The scenarios: a public report each, re-created in small, with the way in varied, and the change that cures it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from silent.changes import FAULTS, Drawing, Paired, edit
from silent.scene import HEIGHT, WIDTH, Scene, rle, small_model
from silent.ways import Oracle, Way, coco, evaluated, guarded, loop, own, tiny_net


@dataclass(frozen=True)
class Scenario:
    """``cured``: the same with what the finding says to do, done. ``word``: what the fix has to name.

    ``data``, where torchvision's own loop can be run on it too.
    """

    name: str
    report: str
    code: str
    way: Way
    cured: Way | None = None
    word: str = ""
    data: Any = None
    classes: int = 3


GOOD = Scene()
REPORTS = {
    "labels from 0": ("microsoft/computervision-recipes#315", "+ 1"),
    "one label too many": ("pytorch/vision#1360", "num_classes=4"),
    "boxes as sizes": ("facebookresearch/Detectron#68", "boxes[:, 2:] += boxes[:, :2]"),
    "corners taken for sizes": ("cvat-ai/cvat#8307", "boxes[:, 2:] -= boxes[:, :2]"),
    "centre and size": ("AlexeyAB/Yolo_mark#48", "cxcywh"),
    "x and y of boxes": ("cocodataset/cocoapi#478", "[1, 0, 3, 2]"),
    "rows and columns": ("ryouchinsa/Rectlabel-support#79", "column order"),
    "masks not flipped": ("albumentations#444", "flip(-1)"),
    "masks not turned": ("tensorflow/models#10975", "flip(-2)"),
    "masks upside down": ("pytorch/vision#3811", "flip(-2)"),
    "shares of the image": ("FasterRCNN-PyTorch#1", "width, height"),
    "boxes not resized": ("py-faster-rcnn#535", "scale boxes"),
    "masks moved": ("tensorflow/models#10975", "alike"),
    "masks of other objects": ("airctic/icevision#633", "draw"),
    "masks empty": ("pytorch/vision#3811", "masks"),
    "every second mask empty": ("mmdetection#3557", "masks"),
    "normalised": ("alankbi/detecto#16", "Normalize"),
    "not scaled": ("pytorch/vision#1103", "/ 255"),
    "bytes": ("pytorch/vision#2397", "/ 255"),
    "scaled twice": ("alankbi/detecto#16", "255 once"),
    "two scales": ("matterport/Mask_RCNN#1920", "255"),
    "picture mirrored alone": ("albumentations#444", "one branch"),
    "picture upside down alone": ("albumentations#444", "one branch"),
    "half of the pictures mirrored alone": ("tensorflow/models#10975", "one branch"),
    "targets of the picture at half size": ("py-faster-rcnn#535", "with the image"),
    "black": ("keras-retinanet#483", "lost on the way"),
}
LOOPS = (
    *("labels from 0", "boxes as sizes", "masks not flipped", "rows and columns", "masks empty", "normalised"),
    *("scaled twice", "boxes not resized"),
)
SEEDED = ("own", "seeded", "numpy seeded", "torch seeded")


def own_data() -> list[Scenario]:
    found = []
    for name, (change, code, _) in FAULTS.items():
        report, word = REPORTS[name]
        faulty = Scene(change=change)
        cured = own(faulty, num_classes=4) if name == "one label too many" else own(GOOD)
        found.append(Scenario(f"own data: {name}", report, code, own(faulty), cured, word, faulty))
    one = Scene(classes=1, change=edit(labels=lambda v: v - 1))
    found.append(Scenario("own data: single class labelled 0", "pytorch/vision#1952", "CLASSES",
                          own(one, num_classes=2), own(Scene(classes=1), num_classes=2), "+ 1", one, 2))  # fmt: skip
    found.append(Scenario("own data: head of another size", "matterport/Mask_RCNN#1920", "CLASSES",
                          own(GOOD, model=lambda: small_model(5)), own(GOOD), "num_classes=3"))  # fmt: skip
    nothing = Scene(objects=0)
    found.append(Scenario("own data: a filter keeps no object", "mmdetection#9211", "NO_TARGETS", own(nothing),
                          own(GOOD), "boxes", nothing))  # fmt: skip
    for name, step in (("of the next picture", 1), ("sorted otherwise", 0)):
        paired = Paired(step)
        found.append(Scenario(f"own data: targets {name}", "pytorch/vision#2397", "GEOMETRY", own(paired), own(GOOD),
                              "sort both lists", paired))  # fmt: skip
    same = Scene(change=lambda i, t: (GOOD.plain(0)[0], t))
    found.append(Scenario("own data: one picture for every index", "keras-retinanet#483", "PIXELS", own(same),
                          own(GOOD), "__getitem__", same))  # fmt: skip
    square = Scene(size=(80, 80), change=edit(masks=lambda v: v.transpose(1, 2)))
    found.append(Scenario("own data: masks transposed", "dbolya/yolact#264", "GEOMETRY", own(square),
                          own(Scene(size=(80, 80))), "transpose", square))  # fmt: skip
    for how in SEEDED:
        workers = 2 if how == "own" else 0
        found.append(Scenario(f"own data: draws repeat, {how}", "CenterNet#233, Lightning#20412", "SAME_DRAWS",
                              own(Drawing(how), workers=workers), own(Drawing("global"), workers=workers),
                              "global" if how == "own" else "do not seed", Drawing(how)))  # fmt: skip
    return found


def frozen(net: nn.Module) -> nn.Module:
    net.backbone.requires_grad_(False)
    return net


def with_norm(net: nn.Module) -> nn.Module:
    norm = nn.BatchNorm2d(64)
    net.roi_heads.mask_head.append(norm)
    norm.eval()
    return net


class Stuck(Oracle):
    """Losses that no weight lowers, and no detection."""

    def forward(self, images: Any, targets: Any = None) -> Any:
        if self.training:
            return {"loss": 2.0 + 0 * self.weight.sum() + (self.weight - self.weight.detach()).sum()}
        return super().forward(images)


def models() -> list[Scenario]:
    train, other = Scene(12), Scene(12, seed=9)
    return [
        Scenario("own model: backbone frozen and random", "pytorch/vision#2164", "NOT_TRAINED",
                 own(GOOD, model=lambda: frozen(small_model())), own(GOOD), "requires_grad_(True)"),
        Scenario("own model: norms frozen by eval()", "indexnet_matting#35, virtex#16", "NOT_TRAINED",
                 own(GOOD, model=lambda: with_norm(small_model())), own(GOOD), "model.train()"),
        Scenario("own data: lr 1e-7", "mmdetection#3839", "LR_TOO_LOW",
                 own(GOOD, steps=-1, lr=1e-7, head_lr_multiplier=1.0), own(GOOD, steps=-1), "lr=0.000"),
        Scenario("validation: training images only", "mmyolo#827", "MEMORISED",
                 own(train, other, model=lambda: Oracle(train), steps=-1, epochs=3, lr=5e-2), 
                 own(train, Scene(12), model=lambda: Oracle(train), steps=-1, epochs=3, lr=5e-2), "validation"),
        Scenario("nothing is learned, no known cause", "mmdetection#2916", "NOT_LEARNING",
                 own(train, other, model=lambda: Stuck(Scene(1)), steps=-1, epochs=3), None, "losses"),
    ]  # fmt: skip


def evaluations() -> list[Scenario]:
    three = Scene(12, 4, classes=3)
    three.class_names = ("background", "plate", "cell", "ring")
    turned = Scene(12, 4, classes=3, change=edit(labels=lambda v: v % 3 + 1))
    crowded = Scene(4, 130, sides=(3, 6), classes=1)
    square = Scene(12, 4, size=(80, 80))
    reads = {
        "masks mirrored": Scene(12, 4, change=edit(masks=lambda v: v.flip(-1))),
        "masks upside down": Scene(12, 4, change=edit(masks=lambda v: v.flip(-2))),
        "masks moved": Scene(12, 4, change=edit(masks=lambda v: torch.nn.functional.pad(v, (14, -14, 9, -9)))),
    }
    plain = Scene(12, 4)
    found = [
        Scenario("validation: classes in another order", "maskrcnn-benchmark#970, mmdetection#1732", "CLASSES",
                 evaluated(three, turned), evaluated(three, three), "map from class name"),
        Scenario("validation: masks transposed", "cocoapi#478, yolact#264", "MASKS_ELSEWHERE",
                 evaluated(square, Scene(12, 4, size=(80, 80), change=edit(masks=lambda v: v.transpose(1, 2)))),
                 evaluated(square, square), "transposed"),
        Scenario("validation: more objects than COCO counts", "cocoapi#584, detectron2#3359", "CEILING",
                 evaluated(crowded, crowded, 100, 200), evaluated(crowded, crowded, "auto", 200), "--eval-max-dets"),
        Scenario("validation: more objects than the model gives", "detectron2#3359", "CEILING",
                 evaluated(crowded, crowded, "auto", 100), evaluated(crowded, crowded, "auto", 200),
                 "--box-detections-per-image"),
    ]  # fmt: skip
    found += [
        Scenario(f"validation: {name}", "pytorch/vision#3811", "MASKS_ELSEWHERE", evaluated(plain, seen),
                 evaluated(plain, plain), "masks of the validation data")
        for name, seen in reads.items()
    ]  # fmt: skip
    return found


def each(change: Any) -> Any:
    """A change of every annotation of a COCO dict, given its image."""

    def whole(data: dict[str, Any]) -> None:
        images = {i["id"]: i for i in data["images"]}
        for n, annotation in enumerate(data["annotations"]):
            change(annotation, images[annotation["image_id"]], n)

    return whole


def _xyxy(a: Any, image: Any, n: int) -> None:
    x, y, w, h = a["bbox"]
    a["bbox"] = [x, y, x + w, y + h]


def _centre(a: Any, image: Any, n: int) -> None:
    x, y, w, h = a["bbox"]
    a["bbox"] = [x + w / 2, y + h / 2, w, h]


def _shares(a: Any, image: Any, n: int) -> None:
    x, y, w, h = a["bbox"]
    a["bbox"] = [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]


def _half_size(a: Any, image: Any, n: int) -> None:
    a["bbox"] = [v / 2 for v in a["bbox"]]


def _solid(a: Any) -> np.ndarray:
    counts = a["segmentation"]["counts"]
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(HEIGHT, WIDTH, order="F")


def _percent(a: Any, image: Any, n: int) -> None:
    ys, xs = np.nonzero(_solid(a))
    x0, x1 = (float(v) / WIDTH * 100 for v in (xs.min(), xs.max() + 1))
    y0, y1 = (float(v) / HEIGHT * 100 for v in (ys.min(), ys.max() + 1))
    a["bbox"] = [x0, y0, x1 - x0, y1 - y0]
    a["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]


def _ids_from_zero(data: dict[str, Any]) -> None:
    for a in data["annotations"]:
        a["image_id"] -= 1


def _classes_from_zero(data: dict[str, Any]) -> None:
    for a in data["annotations"]:
        a["category_id"] -= 1


def _rows(a: Any, image: Any, n: int) -> None:
    a["segmentation"] = rle(_solid(a), "C")


def _swapped(a: Any, image: Any, n: int) -> None:
    ys, xs = np.nonzero(_solid(a))
    x0, y0, x1, y1 = (float(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    a["segmentation"] = [[y0, x0, y0, x1, y1, x1, y1, x0]]


def _crowd(share: int) -> Any:
    def change(a: Any, image: Any, n: int) -> None:
        a["iscrowd"] = int(n % share == 0)

    return each(change)


def _empty(a: Any, image: Any, n: int) -> None:
    if n % 2:
        a["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}


def _one_name(data: dict[str, Any]) -> None:
    for category in data["categories"]:
        category["name"] = "object"


def coco_files() -> list[Scenario]:
    rows = [
        ("boxes are x1, y1, x2, y2", "cvat#8307, Detectron#68", "GEOMETRY", each(_xyxy), "--fix"),
        ("boxes are centre and size", "AlexeyAB/Yolo_mark#48", "GEOMETRY", each(_centre), "--fix"),
        ("boxes 0..1", "FasterRCNN-PyTorch#1", "GEOMETRY", each(_shares), "--fix"),
        ("boxes of images of half the size", "py-faster-rcnn#535", "GEOMETRY", each(_half_size), "--fix"),
        ("RLE along rows", "RectLabel#79", "GEOMETRY", each(_rows), "--fix"),
        ("x and y of masks exchanged", "cocoapi#478, #600", "GEOMETRY", each(_swapped), "--fix"),
        ("boxes and masks in percent", "label-studio-converter#139", "GEOMETRY", each(_percent), "pixels"),
        ("image ids of annotations from 0", "maskrcnn-benchmark#539", "GEOMETRY", _ids_from_zero, "counts from 0"),
        ("category ids of annotations from 0", "maskrcnn-benchmark#970", "CLASSES", _classes_from_zero, "+1"),
        ("all crowd", "detectron2#5027, #2415", "NO_TARGETS", _crowd(1), "--fix"),
        ("half crowd", "cvat#7030, BlenderProc#34", "NO_TARGETS", _crowd(2), "--fix"),
        ("every second mask empty", "mmdetection#3557", "NO_TARGETS", each(_empty), "--fix"),
        ("two categories of one name", "detectron2#2543", "CLASSES", _one_name, "merge"),
    ]
    found = [
        Scenario(f"COCO: {name}", report, code, coco(GOOD, change), coco(GOOD), word)
        for name, report, code, change, word in rows
    ]
    crowded = Scene(8, 130, sides=(3, 6), classes=1)
    found.append(Scenario("COCO: capped by --eval-max-dets 100", "LIVECell, cocoapi#584", "CEILING",
                          coco(crowded, eval_max_dets=100), coco(crowded), "--eval-max-dets"))  # fmt: skip
    found.append(Scenario("COCO: capped by --box-detections-per-image 100", "detectron2#3359", "CEILING",
                          coco(crowded, box_detections_per_image=100), coco(crowded),
                          "--box-detections-per-image"))  # fmt: skip
    val = Scene(8, seed=5)
    found.append(Scenario("COCO: masks of the validation set alone", "yolact#264", "GEOMETRY",
                          coco(GOOD, val=(val, each(_swapped))), coco(GOOD, val=(val, None)), "--fix"))  # fmt: skip
    return found


class Parted(nn.Module):
    """Two parts and layers that behave otherwise in evaluation; ``used`` False: one part is in no loss."""

    def __init__(self, used: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.side, self.used = nn.Linear(4, 4), used

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, side = self.body(x), self.side(x)
        return (out + side if self.used else out + 0 * side).square().mean()


def numbers(step: int) -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))


def pictures(step: int) -> Any:
    pairs = [GOOD[(2 * step + i) % len(GOOD)] for i in range(2)]
    return [p[0] for p in pairs], [p[1] for p in pairs]


def new_head(net: nn.Module) -> None:
    net.roi_heads.box_predictor.cls_score = nn.Linear(net.roi_heads.box_predictor.cls_score.in_features, 3)


def own_loops() -> list[Scenario]:
    found = []
    for name in LOOPS:
        change, code, _ = FAULTS[name]
        report, word = REPORTS[name]
        found.append(Scenario(f"train_one_epoch: {name}", report, code, loop(Scene(change=change)), loop(GOOD), word,
                              Scene(change=change)))  # fmt: skip
    found += [
        Scenario("train_one_epoch: head replaced after the optimizer", "microsoft/nni#4521", "NOT_TRAINED",
                 loop(Scene(8), new_head), loop(Scene(8)), "after the model is complete"),
        Scenario("train_one_epoch: optimizer of another model", "facebookresearch/mmf#620", "NOT_TRAINED",
                 loop(Scene(8), lambda n: tiny_net(), other=True), loop(Scene(8)), "after the model is complete"),
        Scenario("train_one_epoch: frozen and random", "pytorch/vision#3394", "NOT_TRAINED",
                 loop(Scene(8), before=lambda n: n.backbone.requires_grad_(False)), loop(Scene(8)), "load weights"),
        Scenario("Guard: scheduler.step() in every iteration", "leftthomas/SRGAN#94", "LR_TOO_LOW",
                 guarded(tiny_net, pictures, 36, lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.1).step),
                 guarded(tiny_net, pictures, 36), "once an epoch"),
        Scenario("Guard: model left in eval()", "Grid-Anchor-based-Image-Cropping#2", "NOT_TRAINED",
                 guarded(lambda: Parted().eval(), numbers, 8), guarded(Parted, numbers, 8), "model.train()"),
        Scenario("Guard: a part without loss", "roboflow/rf-detr#1093", "NOT_TRAINED",
                 guarded(lambda: Parted(used=False), numbers, 25), guarded(Parted, numbers, 25), "side"),
        Scenario("Guard: learning rate 0", "mmyolo#827", "LR_TOO_LOW",
                 guarded(Parted, numbers, 25, lr=0.0), guarded(Parted, numbers, 25), "rate"),
    ]  # fmt: skip
    return found


def scenarios() -> list[Scenario]:
    """All of them."""
    return [*own_data(), *models(), *evaluations(), *coco_files(), *own_loops()]
