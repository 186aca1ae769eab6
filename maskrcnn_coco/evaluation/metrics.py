"""COCO metrics: the one door to hotcoco's evaluator. pycocotools' numbers, many times faster; only checked values pass.

Where hotcoco is absent, `second_engine` answers in its place.

Undefined metrics (no ground truth of that class or size) are -1, as in pycocotools; people are shown a dash.
Unlike pycocotools, an empty list of results is a score of 0, not an IndexError, and an annotation whose id is 0 counts.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import Any, Literal

import numpy as np

from maskrcnn_coco.data import native_masks
from maskrcnn_coco.data.masks import checked_polygons, checked_runs
from maskrcnn_coco.errors import ConfigError, DataError

IouType = Literal["bbox", "segm"]
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""What COCO calls them, in COCO's order. Sizes by area in pixels: small < 32², medium < 96², large above."""

COCO_DETECTIONS = 100
"""Detections of one class in one image that COCO counts, best first."""


@dataclass
class Scores:
    """``metrics``: `METRICS` → value in 0..1 or -1. ``per_class``: category id → {"AP", "AP50"}, likewise.

    ``coco``: AP, AP50 and AP75 as COCO counts them, at 100 detections, where ``metrics`` count otherwise.
    """

    metrics: dict[str, float]
    per_class: dict[int, dict[str, float]]
    coco: dict[str, float] = field(default_factory=dict)


@dataclass
class GroundTruth:
    """A checked COCO ground truth.

    Attributes:
        images: dicts with id, height, width. categories: dicts with id, name.
        annotations: dicts with id, image_id, category_id, bbox (xywh, pixels), area, iscrowd and, where it is usable,
            segmentation (polygons or RLE).
        left_out: what could not be used, one sentence each.
    """

    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    left_out: list[str] = field(default_factory=list)
    _native: dict[str, Any] = field(default_factory=dict, repr=False)

    def native(self, iou_type: IouType) -> Any:
        """The hotcoco object for one kind of IoU, built once. Without a segmentation an annotation has no mask AP."""
        if iou_type not in self._native:
            import hotcoco

            coco = hotcoco.COCO()
            coco.dataset = self.plain(iou_type)
            self._native[iou_type] = coco
        return self._native[iou_type]

    def plain(self, iou_type: IouType) -> dict[str, Any]:
        """The three lists of a COCO file, of what counts in one kind of IoU."""
        kept = [a for a in self.annotations if iou_type == "bbox" or "segmentation" in a]
        return {"images": self.images, "categories": self.categories, "annotations": kept}


def ground_truth(
    images: Sequence[Mapping[str, Any]],
    categories: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
) -> GroundTruth:
    """Check plain COCO dicts and make a ground truth of what is usable; the rest is named in ``left_out``.

    Annotations are numbered anew from 1: evaluators take the id 0 for "no match".
    """
    sizes = {int(i["id"]): (int(i["height"]), int(i["width"])) for i in images}
    known = {int(c["id"]) for c in categories}
    kept: list[dict[str, Any]] = []
    left_out: list[str] = []
    for annotation in annotations:
        try:
            kept.append(_checked_annotation(annotation, sizes, known, len(kept) + 1, left_out))
        except DataError as e:
            left_out.append(f"annotation {annotation.get('id')}: {e.what}")
    plain_images = [{"id": i, "height": h, "width": w} for i, (h, w) in sizes.items()]
    plain_categories = [{"id": int(c["id"]), "name": str(c["name"])} for c in categories]
    return GroundTruth(plain_images, plain_categories, kept, left_out)


def _checked_annotation(
    a: Mapping[str, Any], sizes: dict[int, tuple[int, int]], known: set[int], number: int, notes: list[str]
) -> dict[str, Any]:
    image_id = int(a["image_id"])
    if image_id not in sizes or int(a["category_id"]) not in known:
        raise DataError(f"its image {image_id} or category {a['category_id']} is not in the file")
    box = _finite(a["bbox"], 4, "its box")
    out: dict[str, Any] = {"id": number, "image_id": image_id, "category_id": int(a["category_id"]), "bbox": box}
    out["iscrowd"] = int(bool(a.get("iscrowd", 0)))
    area = a.get("area")
    try:
        segmentation = _checked_segmentation(a.get("segmentation"), *sizes[image_id])
        if segmentation is not None:
            out["segmentation"] = segmentation
    except DataError as e:
        notes.append(f"annotation {a.get('id')} has no mask AP: {e.what}")
    given = float(area) if area is not None else math.nan
    out["area"] = given if math.isfinite(given) else _area(out, *sizes[image_id])
    return out


def _finite(values: Any, count: int, what: str) -> list[float]:
    numbers = [float(v) for v in values]
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise DataError(f"{what} is not {count} finite numbers", got=numbers)
    return numbers


def _checked_segmentation(value: Any, height: int, width: int) -> Any:
    if value is None or value == []:
        return None
    if isinstance(value, dict):
        runs = checked_runs(value, height, width)
        if isinstance(value["counts"], str):  # COCO's own, as has just been seen
            return {"size": [height, width], "counts": value["counts"]}
        rle = native_masks.fr_py_objects({"size": [height, width], "counts": runs.tolist()}, height, width)
        return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
    if not isinstance(value, list):
        raise DataError(f"the segmentation is of type {type(value).__name__}")
    return [part.ravel().tolist() for part in checked_polygons(value, height, width)]


def _area(annotation: dict[str, Any], height: int, width: int) -> float:
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        return annotation["bbox"][2] * annotation["bbox"][3]
    return float(native_masks.area(rle_of(segmentation, height, width)))


def rle_of(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """The RLE of a checked segmentation: polygons are drawn, an RLE stays as it is."""
    if not isinstance(segmentation, list):
        return segmentation
    drawn = native_masks.merge(native_masks.fr_py_objects(segmentation, height, width))
    counts = drawn["counts"]
    return {"size": [height, width], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def most_objects(truth: GroundTruth) -> int:
    """Most objects of one class in one image, crowds left aside: COCO counts detections by image and class."""
    counts = Counter((a["image_id"], a["category_id"]) for a in truth.annotations if not a["iscrowd"])
    return max(counts.values(), default=0)


def coco_metrics(
    truth: GroundTruth, results: Sequence[Mapping[str, Any]], iou_type: IouType, max_dets: int = COCO_DETECTIONS
) -> Scores:
    """COCO's twelve numbers and AP per class, as pycocotools computes them from the same lists.

    Args:
        truth: from `ground_truth`.
        results: COCO results, dicts with image_id, category_id, score, bbox (xywh, pixels) and/or segmentation (RLE).
            Where both are given, COCO takes an unmatched result's area, which decides its size class, from the box.
        iou_type: "bbox" or "segm".
        max_dets: detections of an image and class that count, best first; all numbers but AR1, AR10 and AR100 are at
            this many.

    Raises:
        DataError: a score, box or mask that is not finite or does not fit its image; an image the truth does not have.
    """
    evaluation = unmatched(truth, results, iou_type)
    if max_dets != COCO_DETECTIONS:
        return _scores_at(evaluation, max_dets)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summary_lines()  # computes `stats` without printing them
    metrics: dict[str, float] = {n: float(v) for n, v in zip(METRICS, evaluation.stats, strict=True)}
    return Scores(metrics, _per_class(evaluation))


_COUNTING: list[int] = []
"""The process whose threads count: hotcoco starts them once, and a fork does not take them along."""


def _require_own_threads() -> None:
    if _COUNTING and _COUNTING[0] != os.getpid():
        raise ConfigError(
            "COCO metrics cannot be computed in a process forked from one that has computed some: its threads are not "
            "there, and they would be waited for for ever",
            fix="start the process with multiprocessing's spawn or forkserver instead of fork",
        )
    _COUNTING[:] = [os.getpid()]


def unmatched(truth: GroundTruth, results: Sequence[Mapping[str, Any]], iou_type: IouType) -> Any:
    """hotcoco's evaluation of checked results, before it has matched anything. Raises as `coco_metrics`."""
    if native_masks.ENGINE != "hotcoco":
        from maskrcnn_coco.evaluation.second_engine import SecondEvaluation

        _check_results(truth, results, iou_type)
        return SecondEvaluation(truth.plain(iou_type), results, iou_type)
    import hotcoco

    _require_own_threads()
    coco = truth.native(iou_type)
    _check_results(truth, results, iou_type)
    return hotcoco.COCOeval(coco, coco.load_res(_loadable(results, iou_type)), iou_type)


def _scores_at(evaluation: Any, max_dets: int) -> Scores:
    """The twelve numbers at ``max_dets``, and COCO's beside them, from one matching."""
    counts = sorted({1, 10, COCO_DETECTIONS, max_dets})
    evaluation.params.max_dets = counts
    evaluation.evaluate()
    evaluation.accumulate()
    precision, recall = (np.asarray(evaluation.eval[k]) for k in ("precision", "recall"))
    here, whole = counts.index(max_dets), counts.index(COCO_DETECTIONS)

    def figures(m: int) -> dict[str, float]:
        found = {"AP": _mean(precision[:, :, :, 0, m]), "AP50": _mean(precision[0, :, :, 0, m])}
        found |= {"AP75": _mean(precision[5, :, :, 0, m])}
        return found | {f"AP{s}": _mean(precision[:, :, :, i, m]) for i, s in enumerate("sml", 1)}

    metrics = figures(here) | {f"AR{n}": _mean(recall[:, :, 0, counts.index(n)]) for n in (1, 10, COCO_DETECTIONS)}
    metrics |= {f"AR{s}": _mean(recall[:, :, i, here]) for i, s in enumerate("sml", 1)}
    coco = figures(whole)
    return Scores(metrics, _per_class(evaluation, here), {n: coco[n] for n in ("AP", "AP50", "AP75")})


def _check_results(truth: GroundTruth, results: Sequence[Mapping[str, Any]], iou_type: IouType) -> None:
    # map and itemgetter keep a hundred thousand results out of the interpreter: a third of the whole time otherwise.
    sizes = {i["id"]: [i["height"], i["width"]] for i in truth.images}
    images = list(map(itemgetter("image_id"), results))
    strange = set(images) - sizes.keys()
    if strange:
        raise DataError(f"a result names image {min(strange)}, which the ground truth does not have")
    scores = np.array(list(map(itemgetter("score"), results)), np.float64)
    _raise_at(results, ~np.isfinite(scores), "the score is not finite")
    if iou_type == "bbox" or any("bbox" in r for r in results):
        found = list(map(itemgetter("bbox"), results))
        _raise_at(results, np.fromiter(map(len, found), np.int64, len(found)) != 4, "the box has not 4 numbers")
        boxes = np.fromiter(chain.from_iterable(found), np.float64, 4 * len(found)).reshape(-1, 4)
        _raise_at(results, np.any(~np.isfinite(boxes), axis=1), "the box is not finite")
    if iou_type == "segm":
        given = map(itemgetter("size"), map(itemgetter("segmentation"), results))
        odd = np.array([list(a) != sizes[i] for a, i in zip(given, images, strict=True)], bool)
        _raise_at(results, odd, "the mask has another size than the image")


def _raise_at(results: Sequence[Mapping[str, Any]], bad: np.ndarray, what: str) -> None:
    if bad.any():
        n = int(bad.argmax())
        r = results[n]
        got = {k: r[k] for k in ("score", "bbox") if k in r}
        raise DataError(f"result {n}, of image {r['image_id']}: {what}", got=got)


def _loadable(results: Sequence[Mapping[str, Any]], iou_type: IouType) -> Any:
    """What hotcoco reads fastest: one array for boxes (while ids are exact in float64), dicts for masks."""
    if iou_type == "bbox" and results and max(abs(r["image_id"]) for r in results) < 2**53:
        return np.array([(r["image_id"], *r["bbox"], r["score"], r["category_id"]) for r in results], np.float64)
    keys = {"image_id", "category_id", "score", "bbox", "segmentation"} - (
        {"segmentation"} if iou_type == "bbox" else set()
    )
    if all(keys.issuperset(r) for r in results):
        return list(results)
    return [{k: v for k, v in r.items() if k in keys} for r in results]


def _per_class(evaluation: Any, m: int = -1) -> dict[int, dict[str, float]]:
    precision = np.asarray(evaluation.eval["precision"])  # (IoU, recall, class, size, detections)
    ids = list(evaluation.params.cat_ids)
    return {
        int(ids[k]): {"AP": _mean(precision[:, :, k, 0, m]), "AP50": _mean(precision[0, :, k, 0, m])}
        for k in range(len(ids))
    }


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
