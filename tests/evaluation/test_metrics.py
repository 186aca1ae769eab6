"""hotcoco behind the adapter gives pycocotools' numbers; nothing unchecked reaches it."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_sets import ORACLE_WARNING, H, W, oracle, random_set

from maskrcnn_coco.errors import ConfigError, DataError
from maskrcnn_coco.evaluation.metrics import METRICS, coco_metrics, ground_truth

pytestmark = pytest.mark.filterwarnings(ORACLE_WARNING)
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def scores(truth: dict, results: list[dict], iou_type: Any):
    return coco_metrics(ground_truth(truth["images"], truth["categories"], truth["annotations"]), results, iou_type)


def assert_equal_to_oracle(truth: dict, results: list[dict], iou_type: Any) -> None:
    got = scores(truth, results, iou_type)
    stats, per_class = oracle(truth, results, iou_type)
    for name, mine, theirs in zip(METRICS, got.metrics.values(), stats, strict=True):
        assert abs(mine - theirs) < 1e-6, (name, mine, theirs)
    assert got.per_class.keys() == per_class.keys()
    for category, value in per_class.items():
        assert abs(got.per_class[category]["AP"] - value) < 1e-6, category


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(12))
def test_random_sets(seed: int, iou_type: str) -> None:
    truth, results = random_set(seed)
    assert_equal_to_oracle(truth, results, iou_type)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_more_than_100_detections_an_image(iou_type: str) -> None:
    truth, results = random_set(5, images=2, detections=400)
    assert max(sum(r["image_id"] == i["id"] for r in results) for i in truth["images"]) > 100
    assert_equal_to_oracle(truth, results, iou_type)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_masks_alone_take_their_own_area(iou_type: str) -> None:
    truth, results = random_set(3, detections=30)
    if iou_type == "segm":
        results = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
    assert_equal_to_oracle(truth, results, iou_type)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_detections_is_zero_and_no_truth_is_undefined(iou_type: str) -> None:
    truth, results = random_set(1)
    got = scores(truth, [], iou_type)
    assert got.metrics["AP"] == 0.0
    assert got.metrics["AP50"] == 0.0
    assert got.per_class[90] == {"AP": -1.0, "AP50": -1.0}
    nothing = truth | {"annotations": []}
    assert set(scores(nothing, results, iou_type).metrics.values()) == {-1.0}
    assert set(scores(nothing, [], iou_type).metrics.values()) == {-1.0}


@pytest.mark.parametrize(
    ("name", "json_name", "folder"),
    [("dsb2018", "valid/_annotations.coco.json", "valid"), ("car_damage", "annotations/parts_val.json", "val")],
)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_real_sets(name: str, json_name: str, folder: str, iou_type: Any) -> None:
    path = DATA / name / json_name
    if not path.exists():
        pytest.skip("the real data sets are not here")
    truth = json.loads(path.read_text())
    keep = {i["id"] for i in truth["images"][:8]}
    truth["images"] = [i for i in truth["images"] if i["id"] in keep]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in keep]
    from maskrcnn_coco.data.masks import decode_mask, encode_rle

    sizes = {i["id"]: (i["height"], i["width"]) for i in truth["images"]}
    results = []
    for n, a in enumerate(truth["annotations"]):  # every third object found, somewhat shifted
        if n % 3 == 0:
            mask = decode_mask(a["segmentation"], *sizes[a["image_id"]])
            mask = mask if n % 2 else np.roll(mask, 2, 1)
            box = [v + (n % 4) for v in a["bbox"]]
            results.append({"image_id": a["image_id"], "category_id": a["category_id"], "score": 1 / (1 + n % 7),
                            "bbox": box, "segmentation": encode_rle(mask)})  # fmt: skip
    assert_equal_to_oracle(truth, results, iou_type)


def test_unusable_annotations_are_left_out_and_named() -> None:
    truth, _ = random_set(2)
    good = truth["annotations"][0]
    bad = [
        good | {"id": 901, "bbox": [0, 0, math.nan, 4]},
        good | {"id": 902, "image_id": 12345},
        good | {"id": 903, "category_id": 55},
        good | {"id": 904, "segmentation": [[0.0, math.inf, 1.0, 1.0, 2.0, 2.0]]},
        good | {"id": 905, "segmentation": {"size": [H, W], "counts": [5]}},
        good | {"id": 906, "segmentation": {"size": [H + 1, W], "counts": [5]}},
    ]
    got = ground_truth(truth["images"], truth["categories"], [*truth["annotations"], *bad])
    assert [any(str(i) in note for note in got.left_out) for i in range(901, 907)] == [True] * 6
    assert len(got.annotations) == len(truth["annotations"]) + 3  # 904 to 906 still have a box
    assert sum("segmentation" in a for a in got.annotations) == len(truth["annotations"])


def test_an_annotation_with_id_0_counts() -> None:
    truth, _ = random_set(4)
    one = truth | {"annotations": [truth["annotations"][0] | {"id": 0, "iscrowd": 0}]}
    a = one["annotations"][0]
    result = {"image_id": a["image_id"], "category_id": a["category_id"], "score": 0.9, "bbox": a["bbox"]}
    assert scores(one, [result], "bbox").metrics["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"score": math.nan},
        {"bbox": [0, 0, math.inf, 1]},
        {"bbox": [0, 0, 1]},
        {"image_id": 999},
        {"segmentation": {"size": [4, 4], "counts": "04L"}},
    ],
)
def test_bad_results_are_refused_before_native_code(change: dict) -> None:
    truth, results = random_set(0)
    with pytest.raises(DataError):
        scores(truth, [results[0] | change], "segm")


def test_a_missing_area_is_measured() -> None:
    truth, _ = random_set(6)
    without = [{k: v for k, v in a.items() if k != "area"} for a in truth["annotations"]]
    got = ground_truth(truth["images"], truth["categories"], without)
    assert [a["area"] for a in got.annotations] == [a["area"] for a in truth["annotations"]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_is_told_instead_of_waiting_for_threads_that_are_not_there() -> None:
    """hotcoco starts its threads once; in a fork of such a process an evaluation would never end."""
    truth, results = random_set(1)
    scores(truth, results, "bbox")
    reader, writer = os.pipe()
    if os.fork() == 0:
        signal.alarm(20)
        try:
            scores(truth, results, "bbox")
            os.write(writer, b"computed")
        except ConfigError as e:
            os.write(writer, e.render().encode())
        finally:
            os._exit(0)
    os.close(writer)
    said = b"".join(iter(lambda: os.read(reader, 1000), b"")).decode()
    os.close(reader)
    os.wait()
    assert "forked" in said and "spawn" in said
    scores(truth, results, "bbox")
