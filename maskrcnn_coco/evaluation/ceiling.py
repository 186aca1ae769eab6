"""What the truth itself scores: the annotations, handed in as predictions, through a run's own evaluation."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from maskrcnn_coco.errors import DataError
from maskrcnn_coco.evaluation.evaluate import MaxDets, counted
from maskrcnn_coco.evaluation.ground_truth import TableSet, as_eval_set
from maskrcnn_coco.evaluation.metrics import (
    COCO_DETECTIONS,
    GroundTruth,
    IouType,
    coco_metrics,
    ground_truth,
    most_objects,
    rle_of,
)
from maskrcnn_coco.findings.facts import Ceiling, Cost

ROWS, OWN_ROWS = 5000, 50
"""Most images that are looked at; of a data set of the caller's own, whose every image has to be made, fewer."""


def ceiling_of(
    source: Any, class_names: Sequence[str] | None = None, *, max_dets: MaxDets = "auto", detections: int | None = None
) -> Ceiling | None:
    """AP of the truth as predictions, as this run counts and as COCO does; None where there is nothing to score.

    Args:
        source, class_names, max_dets: as in `evaluate.evaluate_model`.
        detections: most that the model gives for an image.
    """
    truth = truth_of(source, class_names)
    if truth is None:
        return None
    cap, most = counted(max_dets, truth), most_objects(truth)
    results = as_predictions(truth)
    kinds: tuple[IouType, ...] = ("bbox", "segm") if any("segmentation" in r for r in results) else ("bbox",)
    found = Ceiling({}, {}, cap=cap, detections=detections, images=len(truth.images))
    for kind in kinds:
        here = _ap(truth, results, kind, cap)
        found.scores[f"{kind}/AP"] = here
        found.coco[f"{kind}/AP"] = here if cap == COCO_DETECTIONS else _ap(truth, results, kind, COCO_DETECTIONS)
        if cap < most:
            cost = _ap(truth, results, kind, most) - here
            found.costs.append(Cost(f"counting {cap} detections an image ({kind})", cost))
    totals = Counter(a["image_id"] for a in truth.annotations if not a["iscrowd"])
    found.most = max(totals.values(), default=0)
    found.over = sum(n > detections for n in totals.values()) if detections is not None else 0
    return found


def truth_of(source: Any, class_names: Sequence[str] | None = None) -> GroundTruth | None:
    """The checked truth of a data set, by row; None where it has no object or cannot be read."""
    data = as_eval_set(source, class_names)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    if isinstance(data, TableSet):
        table = data.table
        for row in itertools.islice(range(len(data)), ROWS):
            if table.heights[row] > 0 and table.widths[row] > 0:
                images.append({"id": row, "height": int(table.heights[row]), "width": int(table.widths[row])})
                annotations += data.annotations(row)
    else:
        step = max(1, len(data) // OWN_ROWS)
        for row in itertools.islice(range(0, len(data), step), OWN_ROWS):
            try:
                example = data.load(row)
            except Exception:  # a stranger's data set may raise anything: the evaluation itself will say it
                continue
            images.append({"id": row, "height": example.height, "width": example.width})
            annotations += example.annotations
    labels = sorted({int(a["category_id"]) for a in annotations if a["category_id"] > 0})
    try:
        truth = ground_truth(images, [{"id": n, "name": str(n)} for n in labels], annotations)
    except (DataError, ValueError, TypeError):
        return None
    return truth if any(not a["iscrowd"] for a in truth.annotations) else None


def as_predictions(truth: GroundTruth) -> list[dict[str, Any]]:
    """The annotations, crowds left aside, as COCO results of score 1."""
    sizes = {i["id"]: (i["height"], i["width"]) for i in truth.images}
    results = []
    for a in truth.annotations:
        if not a["iscrowd"]:
            found = {k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 1.0}
            if "segmentation" in a:
                found["segmentation"] = rle_of(a["segmentation"], *sizes[a["image_id"]])
            results.append(found)
    return results


def _ap(truth: GroundTruth, results: list[dict[str, Any]], kind: IouType, max_dets: int) -> float:
    if kind == "segm":
        results = [{k: v for k, v in r.items() if k != "bbox"} for r in results if "segmentation" in r]
    return coco_metrics(truth, results, kind, max_dets).metrics["AP"]
