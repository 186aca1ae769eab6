"""The parity gate over models of every state: does it let sound exports through, and does it catch planted faults?

`python bench/export/gate.py --formats onnx,torchscript,safetensors,openvino --seeds 5 [--trained CHECKPOINT…]`

Models: untrained (random weights), barely trained (four steps on the built-in shapes), and the trained checkpoints that
are named. Faults are planted in a copy of the model that stands in for the exported file: the gate sees a runtime, in
either case. A fault that the gate lets through is invisible where no score, box or mask changes on pictures that the
gate has not seen. Prints both tables as Markdown.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from maskrcnn_coco.data.builtin_shapes import CLASSES, draw_image
from maskrcnn_coco.errors import MaskRCNNError
from maskrcnn_coco.inference.checkpoints import checkpoint_card
from maskrcnn_coco.inference.detections import Found, Window
from maskrcnn_coco.inference.export import export, plain
from maskrcnn_coco.inference.parity import pictures
from maskrcnn_coco.inference.proof import Checkpoint, prove
from maskrcnn_coco.model.build import build_model, load_for_inference

SIDE, SMALLEST = 128, 30
"""Pixels: side of the pictures; area of the smallest shape that is learnt from."""


def shapes_model(seed: int, steps: int) -> dict[str, Any]:
    """The contents of a checkpoint of the small network after ``steps`` on built-in shapes."""
    torch.manual_seed(seed)
    model = build_model("maskrcnn_resnet18_fpn", len(CLASSES) + 1, small=True, min_size=SIDE, max_size=SIDE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        images, targets = zip(*(_sample(rng) for _ in range(2)), strict=True)
        loss = sum(model(list(images), list(targets)).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    config = {"min_size": SIDE, "max_size": SIDE, "box_detections_per_image": 100}
    names = ["background", *CLASSES]
    return {"model": model.state_dict(), "classes": names, "config": config, "image_size": [SIDE, SIDE]}


def _sample(rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    while True:
        image, drawn = draw_image(rng, SIDE)
        kept = [d for d in drawn if not d.crowd and d.mask.sum() > SMALLEST]
        if kept:
            break
    boxes = []
    for d in kept:
        y, x = np.nonzero(d.mask)
        boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
    target = {
        "boxes": torch.tensor(np.array(boxes), dtype=torch.float32),
        "labels": torch.tensor([d.label for d in kept]),
        "masks": torch.from_numpy(np.stack([d.mask for d in kept])).to(torch.uint8),
    }
    return torch.from_numpy(np.asarray(image)).permute(2, 0, 1).float() / 255, target


class Spoiled:
    """A runtime whose answers are changed."""

    def __init__(self, inner: Checkpoint, change: Callable[[Found, np.ndarray], Found]) -> None:
        self.inner, self.change = inner, change

    def run(self, images: Any) -> list[Found]:
        """As the checkpoint, then changed."""
        return [self.change(self.inner.run([i])[0], i) for i in images]


def _bias(name: str, by: float) -> Callable[[Any], None]:
    def plant(model: Any) -> None:
        model.get_parameter(name + ".bias").data += by

    return plant


def _put(name: str, value: Any) -> Callable[[Any], None]:
    """Set an attribute: ``value``, or the old one times a float's factor given as ("x", factor)."""

    def plant(model: Any) -> None:
        part, _, last = name.rpartition(".")
        setattr(model.get_submodule(part), last, value)

    return plant


def _every(kind: type, name: str, value: Any) -> Callable[[Any], None]:
    def plant(model: Any) -> None:
        for module in model.modules():
            if isinstance(module, kind):
                setattr(module, name, value)

    return plant


def _rounded(dtype: torch.dtype) -> Callable[[Any], None]:
    def plant(model: Any) -> None:
        for p in model.parameters():
            p.data = p.data.to(dtype).float()

    return plant


def _swapped_classes(model: Any) -> None:
    weight = model.roi_heads.box_predictor.cls_score.weight.data
    bias = model.roi_heads.box_predictor.cls_score.bias.data
    weight[[1, -1]], bias[[1, -1]] = weight[[-1, 1]].clone(), bias[[-1, 1]].clone()


def _anchors(model: Any) -> None:
    for cell in model.rpn.anchor_generator.cell_anchors:
        cell *= 1.02


IN_MODEL: dict[str, Callable[[Any], None]] = {
    "box deltas + 0.05": _bias("roi_heads.box_predictor.bbox_pred", 0.05),
    "mask logits + 0.3": _bias("roi_heads.mask_predictor.mask_fcn_logits", 0.3),
    "first conv + 0.01": _bias("rpn.head.conv.0.0", 0.01),
    "classes swapped": _swapped_classes,
    "no mean taken off": _put("transform.image_mean", [0.0, 0.0, 0.0]),
    "longest side + 1": _put("transform.max_size", SIDE + 1),
    "NMS at 0.6": _put("roi_heads.nms_thresh", 0.6),
    "RPN's NMS at 0.6": _put("rpn.nms_thresh", 0.6),
    "scores from 0.1": _put("roi_heads.score_thresh", 0.1),
    "20 objects at most": _put("roi_heads.detections_per_img", 20),
    "one sample of RoIAlign": _put("roi_heads.box_roi_pool.sampling_ratio", 1),
    "one of the masks'": _put("roi_heads.mask_roi_pool.sampling_ratio", 1),
    "norms' eps 1e-3": _every(nn.GroupNorm, "eps", 1e-3),
    "weights in bfloat16": _rounded(torch.bfloat16),
    "weights in float16": _rounded(torch.float16),
    "anchors 2 % larger": _anchors,
}


def _blue_first(model: Any) -> None:
    weight = model.backbone.body.conv1.weight
    weight.data = weight.data.flip(1)


def _other_masks(found: Found, _: np.ndarray) -> Found:
    return Found(found.boxes, found.scores, found.labels, found.windows[1:] + found.windows[:1])


def _moved_masks(found: Found, _: np.ndarray) -> Found:
    return Found(found.boxes, found.scores, found.labels, [w.moved(1, 0) for w in found.windows])


def _never_empty(found: Found, _: np.ndarray) -> Found:
    if len(found):
        return found
    one = np.zeros((1, 4), np.float32), np.full(1, 0.06, np.float32), np.ones(1, np.int64)
    return Found(*one, [Window(0, 0, np.zeros((0, 0), bool))])


def _last_is_lost(found: Found, _: np.ndarray) -> Found:
    return found.at(range(max(len(found) - 1, 0))) if len(found) > 1 else found


IN_ANSWERS: dict[str, Callable[[Found, np.ndarray], Found]] = {
    "masks of the next object": _other_masks,
    "masks moved by a pixel": _moved_masks,
    "an object where none is": _never_empty,
    "the last object lost": _last_is_lost,
}


def faults(model: Any) -> Iterable[tuple[str, Callable[[float], Any]]]:
    """(name, threshold → a runtime with that fault)."""
    for name, plant in {**IN_MODEL, "blue first": _blue_first}.items():

        def planted(threshold: float, plant: Callable[[Any], None] = plant, name: str = name) -> Checkpoint:
            other = copy.deepcopy(model)
            other.roi_heads.score_thresh = threshold
            if name != "scores from 0.1" or threshold == 0.05:
                plant(other)
            return Checkpoint(other)

        yield name, planted
    for name, change in IN_ANSWERS.items():

        def changed(threshold: float, change: Callable[[Found, np.ndarray], Found] = change) -> Spoiled:
            other = copy.deepcopy(model)
            other.roi_heads.score_thresh = threshold
            return Spoiled(Checkpoint(other), change)

        yield name, changed


def caught(model: Any, planted: Callable[[float], Any], tried: list[np.ndarray]) -> bool:
    """Whether the gate refuses it."""
    try:
        prove(model, planted(float(model.roi_heads.score_thresh)), planted, tried, CLASSES, "spoiled")
    except MaskRCNNError:
        return True
    return False


def visible(model: Any, planted: Callable[[float], Any], seed: int) -> bool:
    """Whether anything differs on 12 pictures that the gate has not seen."""
    rng = np.random.default_rng(1000 + seed)
    unseen = [np.asarray(draw_image(rng, SIDE)[0]) for _ in range(12)]
    try:
        prove(model, planted(float(model.roi_heads.score_thresh)), None, unseen, CLASSES, "spoiled")
    except MaskRCNNError:
        return True
    return False


def sources(args: argparse.Namespace, folder: Path) -> Iterable[tuple[str, int, Path]]:
    """(state, number, checkpoint)."""
    for state, steps in (("untrained", 0), ("barely trained", 4)):
        for seed in range(args.seeds):
            path = folder / "model.pth"
            torch.save(shapes_model(seed, steps), path)
            yield state, seed, path
    for n, path in enumerate(args.trained):
        yield "trained", n, path


def main() -> None:
    """Sweep, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", default="onnx,torchscript,safetensors")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trained", type=Path, nargs="*", default=[])
    parser.add_argument("--no-faults", action="store_true")
    args = parser.parse_args()
    passed: dict[tuple[str, str], list[bool]] = defaultdict(list)
    seen: dict[tuple[str, str], list[str]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        for state, number, path in sources(args, Path(name)):
            for format in filter(None, args.formats.split(",")):
                began, said = time.process_time(), "passed"
                try:
                    export(path, Path(name) / "out", format)
                except MaskRCNNError as e:
                    said = str(e)
                passed[state, format].append(said == "passed")
                print(state, number, format, said, f"{time.process_time() - began:.0f} CPU s", flush=True)
            if args.no_faults:
                continue
            model, contents = load_for_inference(path, fast=False)
            model = plain(model)
            tried = pictures(checkpoint_card(model, contents).usual_side or 256)
            for fault, planted in faults(model):
                said = "caught" if caught(model, planted, tried) else "let through"
                if said == "let through" and not visible(model, planted, number):
                    said = "invisible"
                seen[state, fault].append(said)
                print(state, number, fault, said, flush=True)
    states = list(dict.fromkeys(s for s, _ in [*passed, *seen]))
    print("\n| sound exports let through | " + " | ".join(states) + " |\n|---|" + "---|" * len(states))
    for format in dict.fromkeys(f for _, f in passed):
        print(
            f"| {format} | " + " | ".join(f"{sum(p)} of {len(p)}" for p in (passed[s, format] for s in states)) + " |"
        )
    print("\n| planted: caught, invisible, let through | " + " | ".join(states) + " |\n|---|" + "---|" * len(states))
    for fault in dict.fromkeys(f for _, f in seen):
        cells = [[seen[s, fault].count(k) for k in ("caught", "invisible", "let through")] for s in states]
        print(f"| {fault} | " + " | ".join(", ".join(map(str, c)) for c in cells) + " |")


if __name__ == "__main__":
    main()
