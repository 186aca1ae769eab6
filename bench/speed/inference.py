"""Evaluating a detector, images to COCO metrics, against torchvision's reference. Writes bench/results/inference.md.

    python bench/speed/inference.py [--threads 2] [--rounds 5]

The reference restates torchvision's detection evaluation: one image at a time, each mask pasted into a picture of the
image's size, thresholded, encoded with pycocotools, scored with pycocotools. Weights are random and the same; the score
threshold is 0, so that every image has its 100 detections. Pixels are read beforehand on neither side.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from loader import draw_set
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torchvision.transforms.v2.functional import pil_to_tensor

from maskrcnn_coco.data.builtin_shapes import write_shapes
from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.evaluation.evaluate import EvalResult, evaluate_model
from maskrcnn_coco.model.build import build_model
from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.system.precision import bf16_is_native

KINDS = ("built-in", "photographs")
Scores = dict[str, float]


def network(kind: str) -> nn.Module:
    """In torchvision's own modules: the small network, or resnet50 at 256 px."""
    torch.manual_seed(0)
    if kind == "built-in":
        net = build_model("maskrcnn_resnet18_fpn", 4, small=True, min_size=128, max_size=128, fast=False)
    else:
        net = build_model("maskrcnn_resnet50_fpn", 2, min_size=256, max_size=427, fast=False)
    net.get_submodule("roi_heads").score_thresh = 0.0  # pyright: ignore[reportArgumentType]
    return net.eval()


def data(kind: str, folder: Path, images: int) -> Path:
    """The built-in validation part (40 images of 128 px), or ``images`` JPEGs of 480 × 640."""
    return write_shapes(folder / kind)[1] if kind == "built-in" else draw_set(_made(folder / kind), images, 7)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def reference(net: nn.Module, path: Path) -> Scores:
    """torchvision's references/detection: engine.evaluate, coco_eval.prepare_for_coco_segmentation."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        found: list[dict[str, Any]] = []
        for image_id in truth.getImgIds():
            with Image.open(path.parent / truth.loadImgs(image_id)[0]["file_name"]) as picture:
                image = pil_to_tensor(picture.convert("RGB")).float() / 255
            with torch.no_grad():
                output = net([image])[0]
            found += _as_results(image_id, output)
        scores: Scores = {}
        for kind in ("bbox", "segm"):
            without = "bbox" if kind == "segm" else "segmentation"
            given: Any = [{k: v for k, v in r.items() if k != without} for r in found]
            run = COCOeval(truth, truth.loadRes(copy.deepcopy(given)), kind)
            run.evaluate()
            run.accumulate()
            run.summarize()
            scores[f"{kind}/AP"] = float(run.stats[0])
    return scores


def _as_results(image_id: int, output: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    results = []
    masks = (output["masks"] > 0.5).numpy()
    for n, (x0, y0, x1, y1) in enumerate(output["boxes"].tolist()):
        rles: Any = coco_mask.encode(np.array(masks[n, 0, :, :, np.newaxis], dtype=np.uint8, order="F"))
        rle = rles[0]
        rle["counts"] = rle["counts"].decode()
        label, score = int(output["labels"][n]), float(output["scores"][n])
        box = [x0, y0, x1 - x0, y1 - y0]
        results.append({"image_id": image_id, "category_id": label, "bbox": box, "segmentation": rle, "score": score})
    return results


def row(kind: str, folder: Path, images: int, rounds: int) -> list[str]:
    """The table's rows of one data set: seconds, images a second, ratio, and where the time of our own goes."""
    path = data(kind, folder, images)
    table, plain = load_coco(path, path.parent), network(kind)
    fast = accelerate(copy.deepcopy(plain))
    last: dict[str, EvalResult] = {}

    def own(precision: str, batch: int) -> Callable[[int], object]:
        def run(_: int) -> None:
            last[precision] = evaluate_model(fast, table, device="cpu", precision=precision, batch_size=batch)

        return run

    sides: dict[str, Callable[[int], object]] = {
        "torchvision's reference": lambda _: reference(plain, path),
        "this project, float32": own("fp32", 4),
    }
    if bf16_is_native("cpu"):
        sides["this project, bf16"] = own("bf16", 4)
    theirs = reference(plain, path)
    times = common.take_turns(sides, rounds, warm=1)
    worst = max(abs(theirs[k] - last["fp32"].metrics[k]) for k in theirs)
    base = times["torchvision's reference"].wall
    lines = []
    for name, t in times.items():
        took = statistics.median(t.wall)
        result = last.get("bf16" if "bf16" in name else "fp32") if name.startswith("this") else None
        share = "" if result is None else f"{100 * result.seconds_metrics / result.seconds:.1f} %"
        speed = common.ratio(base, t.wall)
        lines.append(f"| {kind} | {name} | {took:.2f} | {len(table) / took:.1f} | {speed} | {share} |")
        print(lines[-1], flush=True)
    print(f"largest difference of AP: {worst:.1e}")
    return lines


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        rows = [line for kind in KINDS for line in row(kind, Path(name), args.images, args.rounds)]
    head = "| data | | seconds | images/s | speed ÷ reference (quartiles) | metrics' share |\n|---|---|---|---|---|---|"
    parts = [
        f"`python bench/speed/inference.py`, {args.threads} threads, {args.rounds} rounds, variants in turn: files to "
        "COCO metrics of boxes and masks, 100 detections an image. Built-in: the validation part, 40 images of 128 px, "
        f"small network. Photographs: {args.images} JPEGs of 480 × 640, resnet50 at 256 px.",
        "\n".join([head, *rows]),
    ]
    print(common.write("inference", "Evaluating a detector against torchvision's reference", parts))


if __name__ == "__main__":
    main()
