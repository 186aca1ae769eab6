"""What COCO metrics cost, against pycocotools. Writes bench/results/evaluation.md.

    RAYON_NUM_THREADS=1 python bench/speed/evaluation.py

Both get the same generated ground truth, loaded beforehand, and the same results in memory, and are timed over loading
the results, matching, accumulating and summarising; this project's time includes the check of every value. The two
take turns in one process; times are of the processor, so that what else runs on the machine counts little, and what is
reported is the median of the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskrcnn_coco.data.masks import encode_rle
from maskrcnn_coco.evaluation.metrics import METRICS, coco_metrics, ground_truth

RESULTS = Path(__file__).resolve().parents[1] / "results" / "evaluation.md"
HEIGHT, WIDTH = 480, 640


def ellipse(rng: np.random.Generator) -> tuple[np.ndarray, list[float]]:
    """A mask uint8 (480, 640) and its box xywh."""
    ry, rx = rng.uniform(4, 60), rng.uniform(4, 60)
    cy, cx = rng.uniform(ry, HEIGHT - ry), rng.uniform(rx, WIDTH - rx)
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    mask = (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1).astype(np.uint8)
    return mask, [cx - rx, cy - ry, 2 * rx, 2 * ry]


def generate(images: int, classes: int, objects: int, detections: int, seed: int = 0) -> tuple[dict, list[dict]]:
    """Ground truth and results; six in ten results are objects, shifted by some pixels; one object in 30 is a crowd."""
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {"info": {}, "images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": c, "name": str(c)} for c in range(1, classes + 1)]
    results = []
    for image in range(1, images + 1):
        truth["images"].append({"id": image, "height": HEIGHT, "width": WIDTH})
        here = []
        for _ in range(objects):
            mask, box = ellipse(rng)
            annotation = {
                "id": len(truth["annotations"]) + 1,
                "image_id": image, "category_id": int(rng.integers(1, classes + 1)),
                "bbox": box, "area": float(mask.sum()), "iscrowd": int(rng.random() < 1 / 30),
                "segmentation": encode_rle(mask),
            }  # fmt: skip
            truth["annotations"].append(annotation)
            here.append((annotation, mask))
        for _ in range(detections):
            if rng.random() < 0.6:
                annotation, mask = here[rng.integers(len(here))]
                dy, dx = rng.integers(-6, 7, 2)
                mask, category = np.roll(mask, (dy, dx), (0, 1)), annotation["category_id"]
                box = [annotation["bbox"][0] + dx, annotation["bbox"][1] + dy, *annotation["bbox"][2:]]
            else:
                (mask, box), category = ellipse(rng), int(rng.integers(1, classes + 1))
            results.append({"image_id": image, "category_id": category, "score": float(rng.random()),
                            "bbox": [float(v) for v in box], "segmentation": encode_rle(mask)})  # fmt: skip
    return truth, results


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    value = work()
    return time.process_time() - began, value


def pycocotools_metrics(coco: Any, results: list[dict], kind: str) -> list[float]:
    from pycocotools.cocoeval import COCOeval

    evaluation = COCOeval(coco, coco.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return list(evaluation.stats)


def compare(kind: Literal["bbox", "segm"], truth: dict, results: list[dict], rounds: int) -> tuple[float, float, float]:
    """(seconds here, seconds of pycocotools, median of the ratios); fails if a metric differs by more than 1e-6."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    coco.createIndex()
    ours = ground_truth(truth["images"], truth["categories"], truth["annotations"])
    coco_metrics(ours, results, kind)  # builds what is built once for a data set
    mine, theirs = [], []
    for _ in range(rounds):
        seconds, scores = timed(lambda: coco_metrics(ours, results, kind))
        mine.append(seconds)
        given = copy.deepcopy(results)  # pycocotools writes into it
        seconds, stats = timed(lambda given=given: pycocotools_metrics(coco, given, kind))
        theirs.append(seconds)
        worst = max(abs(scores.metrics[n] - v) for n, v in zip(METRICS, stats, strict=True))
        if worst > 1e-6:
            raise SystemExit(f"{kind}: the metrics differ by {worst}")
    return (
        statistics.median(mine),
        statistics.median(theirs),
        statistics.median(b / a for a, b in zip(mine, theirs, strict=True)),
    )


SETS = {
    "200 images, 20 classes, 100 detections each": {"images": 200, "classes": 20, "objects": 8, "detections": 100},
    "400 images, 80 classes, 50 detections each": {"images": 400, "classes": 80, "objects": 8, "detections": 50},
    "30 images, 1 class, 100 detections each": {"images": 30, "classes": 1, "objects": 50, "detections": 100},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    lines = []
    for name, sizes in SETS.items():
        truth, results = generate(**sizes)
        for kind in ("bbox", "segm"):
            with contextlib.redirect_stdout(io.StringIO()):
                mine, theirs, ratio = compare(kind, truth, results, args.rounds)
            lines.append(f"| {name} | {kind} | {theirs:.2f} s | {mine:.3f} s | {ratio:.0f} × |")
            print(lines[-1], flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(document(lines, args.rounds))
    print(RESULTS)


def document(lines: list[str], rounds: int) -> str:
    versions = f"hotcoco {version('hotcoco')}, pycocotools {version('pycocotools')}, numpy {version('numpy')}"
    return "\n".join([
        "# COCO metrics: time against pycocotools",
        "",
        "`RAYON_NUM_THREADS=1 python bench/speed/evaluation.py`: load results, match, accumulate, summarise, on one",
        f"thread each; equal within 1e-6, which every round checks. Medians of {rounds} rounds, both taking turns;",
        "processor time. This project's time includes the check of every value.",
        "",
        "| set (480 × 640) | IoU | pycocotools | this project | ratio |",
        "|---|---|---|---|---|",
        *lines,
        "",
        f"{versions}; Python {platform.python_version()}, {platform.machine()}.",
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
