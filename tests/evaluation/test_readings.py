"""Classes that are permuted, masks that are elsewhere: named by the change that restores the score, or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from silent.scene import Scene

from maskrcnn_coco.data.masks import decode_mask, encode_rle
from maskrcnn_coco.evaluation.ceiling import as_predictions, truth_of
from maskrcnn_coco.evaluation.evaluate import EvalResult
from maskrcnn_coco.evaluation.metrics import coco_metrics
from maskrcnn_coco.evaluation.readings import mask_readings, matching_of
from maskrcnn_coco.findings.facts import Facts
from maskrcnn_coco.findings.judge import judge

NAMES = {1: "plate", 2: "cell", 3: "ring"}


def evaluation(change: Any, size: tuple[int, int] = (64, 96)) -> EvalResult:
    """The truth of a scene as predictions, each changed by ``change(result, number)``."""
    truth = truth_of(Scene(12, 4, classes=3, size=size), ("background", *NAMES.values()))
    assert truth is not None
    results = [change(dict(r), n) for n, r in enumerate(as_predictions(truth))]
    metrics = {}
    for kind in ("bbox", "segm"):
        given = results if kind == "bbox" else [{k: v for k, v in r.items() if k != "bbox"} for r in results]
        metrics[f"{kind}/AP50"] = coco_metrics(truth, given, kind).metrics["AP50"]
    return EvalResult(metrics, {}, [], truth, results)


def masked(reading: Any) -> Any:
    def change(r: dict[str, Any], n: int) -> dict[str, Any]:
        solid = decode_mask(r["segmentation"], *r["segmentation"]["size"])
        return r | {"segmentation": encode_rle(np.ascontiguousarray(reading(solid, n)))}

    return change


def test_permuted_classes_are_named():
    turn = {1: 2, 2: 3, 3: 1}
    result = evaluation(lambda r, n: r | {"category_id": turn[r["category_id"]]})
    found = matching_of(result, NAMES)
    assert found is not None and (found.agnostic, found.renamed) == pytest.approx((1.0, 1.0))
    assert found.mapping == {"cell": "plate", "ring": "cell", "plate": "ring"}
    assert [f.code for f in judge(Facts(matching=found))] == ["CLASSES"]


@pytest.mark.parametrize(
    "change",
    [
        lambda r, n: r,
        lambda r, n: r | {"category_id": 1},  # a detector that has learned one class so far
        lambda r, n: r | {"category_id": n % 3 + 1},  # that guesses
        lambda r, n: r | {"bbox": [0.0, 0.0, 5.0, 5.0]},  # that finds nothing
    ],
)
def test_a_detector_that_is_not_there_yet_is_not_accused(change: Any):
    result = evaluation(change)
    assert judge(Facts(matching=matching_of(result, NAMES), mask_readings=mask_readings(result))) == []


def moved(mask: np.ndarray, n: int) -> np.ndarray:
    return np.pad(mask, ((9, 0), (14, 0)))[: mask.shape[0], : mask.shape[1]]


@pytest.mark.parametrize(
    ("reading", "size", "name"),
    [
        (lambda m, n: m.T, (80, 80), "transposed"),
        (lambda m, n: m[:, ::-1], (64, 96), "mirrored left to right"),
        (lambda m, n: m[::-1], (64, 96), "mirrored top to bottom"),
        (moved, (64, 96), "moved by"),
        (lambda m, n: np.pad(m[::2, ::2], ((0, 32), (0, 48))), (64, 96), "rescaled by"),
    ],
)
def test_masks_elsewhere_are_named(reading: Any, size: tuple[int, int], name: str):
    found = mask_readings(evaluation(masked(reading), size))
    assert found is not None and found.boxes == pytest.approx(1.0)
    said = judge(Facts(mask_readings=found))
    assert [f.code for f in said] == ["MASKS_ELSEWHERE"]
    assert said[0].detail["reading"].startswith(name)


def test_masks_that_lag_behind_are_not_accused():
    def rough(mask: np.ndarray, n: int) -> np.ndarray:
        rng = np.random.default_rng(n)
        return (mask & (rng.random(mask.shape) < 0.3)).astype(np.uint8)

    found = mask_readings(evaluation(masked(rough)))
    assert found is not None and found.masks < 0.1
    assert judge(Facts(mask_readings=found)) == []


def test_where_a_run_ends_without_a_mask_it_is_said_with_what_true_masks_fill():
    """Outlines that were not filled: boxes are learned, and segm/AP stays 0 to the end."""

    def nothing(mask: np.ndarray, n: int) -> np.ndarray:
        out = np.zeros_like(mask)
        out[tuple(np.argwhere(mask)[0])] = 1
        return out

    found = mask_readings(evaluation(masked(nothing)))
    assert found is not None and found.masks < 0.01 and 0.3 < found.fill <= 1
    assert judge(Facts(mask_readings=found)) == []
    found.ended = True
    (said,) = judge(Facts(mask_readings=found))
    assert said.code == "MASKS_ELSEWHERE" and "when the run ends" in said.message and "--head-lr" in said.fix
    found.fill = 0.15
    (said,) = judge(Facts(mask_readings=found))
    assert "fills 15% of its box" in said.message and "fill outlines" in said.fix
    found.masks = 0.1
    assert judge(Facts(mask_readings=found)) == []
