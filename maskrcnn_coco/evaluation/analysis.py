"""What lies behind an AP: which classes are confused, which threshold is best, which errors cost most, which labels
look wrong. Matching is COCO's, at IoU 0.5, by hotcoco."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskrcnn_coco.evaluation.evaluate import EvalResult
from maskrcnn_coco.evaluation.metrics import IouType, unmatched

IOU = 0.5
SURE = 0.8
"""A detection of less is no reason to doubt a label."""
ERRORS = {
    "Loc": "place: the right class, overlapping by 0.1 to 0.5",
    "Cls": "class: the right place, another class",
    "Both": "class and place",
    "Dupe": "duplicate: the object was found already",
    "Bkg": "background: nothing is there",
    "Miss": "missed: no detection is near",
}
"""Kinds of errors (TIDE; Bolya and others, 2020), in words."""


@dataclass
class Threshold:
    """The score from which on a class does best: ``f1`` of ``precision`` and ``recall`` at IoU 0.5, all 0..1."""

    score: float
    precision: float
    recall: float
    f1: float


@dataclass
class Suspect:
    """A label that may be wrong: a detection of ``score`` and what the annotations say there, None for nothing.

    ``row`` of the image, ``found`` the result, ``annotation`` the ground truth's entry; ``iou`` of the two.
    """

    row: int
    found: Mapping[str, Any]
    annotation: Mapping[str, Any] | None
    iou: float

    @property
    def kind(self) -> str:
        """ "missing_annotation" or "wrong_label"."""
        return "missing_annotation" if self.annotation is None else "wrong_label"


@dataclass
class Analysis:
    """Of one kind of IoU.

    Attributes:
        kind: "segm", or "bbox" for a detector without masks.
        names: of the classes, by label.
        best: class name → its best `Threshold`; only classes with objects and detections. ``overall``: of all together.
        curves: class name → (score, precision, recall, F1), falling scores, thinned to 100.
        confusion: int (K + 1, K + 1): rows are the truth, columns what was found, the last is "nothing", at the overall
            threshold; ``order``: the labels of rows and columns.
        errors: kind → (how many, AP50 that would be gained without them).
        suspects: the surest first.
    """

    kind: IouType
    names: dict[int, str]
    best: dict[str, Threshold] = field(default_factory=dict)
    overall: Threshold | None = None
    curves: dict[str, list[tuple[float, float, float, float]]] = field(default_factory=dict)
    confusion: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    order: list[int] = field(default_factory=list)
    errors: dict[str, tuple[int, float]] = field(default_factory=dict)
    suspects: list[Suspect] = field(default_factory=list)


def analyse(result: EvalResult, *, most_suspects: int = 24) -> Analysis:
    """What explains the metrics of ``result``."""
    kind: IouType = "segm" if "segm/AP" in result.metrics else "bbox"
    results = result.found if kind == "bbox" else [{k: v for k, v in r.items() if k != "bbox"} for r in result.found]
    out = Analysis(kind, {int(c["id"]): str(c["name"]) for c in result.truth.categories})
    objects = [
        a for a in result.truth.annotations if not a["iscrowd"] and (kind == "bbox" or "segmentation" in a)
    ]  # what AP counts
    if not objects or not results:
        return out
    evaluation = unmatched(result.truth, results, kind)
    evaluation.evaluate()
    details = evaluation.image_diagnostics(iou_thr=IOU, score_thr=SURE)
    _thresholds(out, results, details["dt_status"], objects)
    lowest = out.overall.score if out.overall is not None else 0.5
    table = evaluation.confusion_matrix(iou_thr=IOU, min_score=lowest)
    out.confusion, out.order = np.asarray(table["matrix"]).astype(np.int64), [int(i) for i in table["cat_ids"]]
    tide = evaluation.tide_errors(pos_thr=IOU)
    out.errors = {k: (int(tide["counts"][k]), max(float(tide["delta_ap"][k]), 0.0)) for k in ERRORS}
    native = {a["id"]: a for a in result.truth.annotations}
    found = sorted(details["label_errors"], key=lambda e: -e["dt_score"])[:most_suspects]
    out.suspects = [
        Suspect(e["image_id"], result.found[e["dt_id"] - 1], native.get(e["gt_id"]), float(e["iou"])) for e in found
    ]
    return out


def _thresholds(
    out: Analysis, results: Sequence[Mapping[str, Any]], status: Mapping[int, str], objects: Sequence[Mapping[str, Any]]
) -> None:
    """Precision, recall and F1 over the score. hotcoco numbers results from 1; those inside a crowd are neither."""
    scores = np.array([r["score"] for r in results], float)
    labels = np.array([r["category_id"] for r in results])
    hit = np.array([{"tp": 1, "fp": 0}.get(status.get(n, ""), -1) for n in range(1, len(results) + 1)])
    of_class = np.array([a["category_id"] for a in objects])
    for label, name in out.names.items():
        mine = (labels == label) & (hit >= 0)
        count = int((of_class == label).sum())
        if count and mine.any():
            curve = _curve(scores[mine], hit[mine], count)
            out.best[name] = _best(curve)
            out.curves[name] = [tuple(map(float, row)) for row in curve[:: max(1, len(curve) // 100)]]  # type: ignore[misc]
    counted = hit >= 0
    if counted.any():
        out.overall = _best(_curve(scores[counted], hit[counted], len(objects)))


def _curve(scores: np.ndarray, hit: np.ndarray, objects: int) -> np.ndarray:
    """(n, 4): each score, falling, with precision, recall and F1 of the detections of at least that score."""
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], np.cumsum(hit[order])
    last = np.append(scores[1:] != scores[:-1], True)  # equal scores pass together
    precision, recall = right / np.arange(1, len(scores) + 1), right / objects
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return np.stack([scores, precision, recall, f1], 1)[last]


def _best(curve: np.ndarray) -> Threshold:
    return Threshold(*map(float, curve[int(np.argmax(curve[:, 3]))]))


def plain(a: Analysis) -> dict[str, Any]:
    """The analysis as JSON values; suspects without their masks."""
    nothing = "(nothing)"
    return {
        "iou": IOU, "kind": a.kind,
        "best_threshold": None if a.overall is None else vars(a.overall),
        "per_class": {name: vars(t) for name, t in a.best.items()},
        "confusion": {"classes": [*(a.names[n] for n in a.order), nothing], "matrix": a.confusion.tolist()},
        "errors": {k: {"count": n, "ap50_gain": gain} for k, (n, gain) in a.errors.items()},
        "error_words": ERRORS,
        "curves": {name: [[round(v, 4) for v in row] for row in rows] for name, rows in a.curves.items()},
        "suspects": [
            {"kind": s.kind, "row": s.row, "score": s.found["score"], "found": a.names[s.found["category_id"]],
             "annotated": None if s.annotation is None else a.names[s.annotation["category_id"]]}
            for s in a.suspects
        ],
    }  # fmt: skip
