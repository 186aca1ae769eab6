"""Random COCO sets with everything that makes evaluators disagree, and pycocotools as the oracle."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from typing import Any

import numpy as np
from pycocotools import mask as oracle_mask

# pycocotools' compiled part was made for numpy 1. `import` runs inside pytest's own filters, so each test sets this.
ORACLE_WARNING = "ignore:__array__ implementation:DeprecationWarning"

H, W = 64, 80


def blob(rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros((H, W), np.uint8)
    y, x = rng.integers(0, H - 4), rng.integers(0, W - 4)
    mask[y : y + rng.integers(2, H // 2), x : x + rng.integers(2, W // 2)] = 1
    mask[rng.random((H, W)) < 0.1] = 0
    mask[y, x] = 1
    return mask


def rle(mask: np.ndarray, *, compressed: bool = True) -> dict[str, Any]:
    if compressed:
        out = oracle_mask.encode(np.asfortranarray(mask))
        return {"size": list(out["size"]), "counts": out["counts"].decode()}
    flat = mask.ravel(order="F")
    change = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], change, [flat.size]])).tolist()
    return {"size": [H, W], "counts": ([0] if flat[0] else []) + runs}


def polygon(rng: np.random.Generator) -> list[list[float]]:
    parts = []
    for _ in range(rng.integers(1, 3)):
        cx, cy, r = rng.uniform(8, W - 8), rng.uniform(8, H - 8), rng.uniform(2, 25)
        angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
        xy = np.stack([cx + r * np.cos(angles), cy + r * np.sin(angles)], 1).clip(0, [W, H])
        parts.append([float(v) for v in xy.ravel()])
    return parts


def box_of(mask: np.ndarray) -> list[float]:
    ys, xs = np.nonzero(mask)
    return [float(xs.min()), float(ys.min()), float(np.ptp(xs) + 1), float(np.ptp(ys) + 1)]


def random_set(seed: int, *, images: int = 5, classes: int = 4, detections: int = 20) -> tuple[dict, list[dict]]:
    """(ground truth, results): crowds, polygons and both RLEs, tied scores, images and classes without objects."""
    rng = np.random.default_rng(seed)
    category_ids = [3, 7, 8, 90][:classes]
    truth: dict[str, Any] = {
        "info": {},
        "images": [{"id": 10 * i + 1, "height": H, "width": W, "file_name": f"{i}.png"} for i in range(images)],
        "categories": [{"id": c, "name": f"class {c}"} for c in category_ids],
        "annotations": [],
    }
    results: list[dict[str, Any]] = []
    for image in truth["images"]:
        count = 0 if rng.random() < 0.2 else int(rng.integers(0, 8))
        for _ in range(count):
            crowd = int(rng.random() < 0.15)
            kind = rng.integers(0, 3)
            seg: Any = polygon(rng) if kind == 0 and not crowd else rle(blob(rng), compressed=kind == 1)
            mask = decode(seg)
            if not mask.any():
                continue
            truth["annotations"].append({
                "id": len(truth["annotations"]) + 1, "image_id": image["id"], "iscrowd": crowd,
                "category_id": int(rng.choice(category_ids[:-1])),  # the last class never occurs
                "bbox": box_of(mask), "area": float(mask.sum()), "segmentation": seg,
            })  # fmt: skip
        results += _results(rng, image["id"], truth["annotations"], category_ids, detections)
    return truth, results


def _results(rng: np.random.Generator, image_id: int, anns: list[dict], category_ids: list[int], n: int) -> list[dict]:
    here = [a for a in anns if a["image_id"] == image_id]
    out = []
    for _ in range(int(rng.integers(0, n + 1))):
        if here and rng.random() < 0.6:
            ann = here[rng.integers(len(here))]
            mask = np.roll(decode(ann["segmentation"]), rng.integers(-3, 4, 2), (0, 1))
            category = ann["category_id"]
        else:
            mask, category = blob(rng), int(rng.choice(category_ids))
        if mask.any():
            score = float(rng.choice([0.1, 0.5, 0.5, 0.9, rng.random()]))
            out.append({"image_id": image_id, "category_id": category, "score": score, "bbox": box_of(mask),
                        "segmentation": rle(mask)})  # fmt: skip
    return out


def decode(segmentation: Any) -> np.ndarray:
    if isinstance(segmentation, list):
        return oracle_mask.decode(oracle_mask.merge(oracle_mask.frPyObjects(segmentation, H, W)))
    return oracle_mask.decode(oracle_mask.frPyObjects(segmentation, *segmentation["size"])
                              if isinstance(segmentation["counts"], list) else segmentation)  # fmt: skip


def oracle(truth: dict, results: list[dict], iou_type: str) -> tuple[list[float], dict[int, float]]:
    """pycocotools' twelve numbers and AP per category id."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"]
    means = {}
    for k, category in enumerate(evaluation.params.catIds):
        values = precision[:, :, k, 0, -1]
        values = values[values > -1]
        means[int(category)] = float(values.mean()) if values.size else -1.0
    return [float(v) for v in evaluation.stats], means
