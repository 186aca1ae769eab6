"""The truth as predictions, and AP beyond COCO's hundred detections."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.data.layouts import find_data
from maskrcnn_coco.evaluation.ceiling import as_predictions, ceiling_of, truth_of
from maskrcnn_coco.evaluation.metrics import METRICS, coco_metrics
from maskrcnn_coco.findings.facts import Facts
from maskrcnn_coco.findings.judge import judge


def crowded(folder, count: int, per_row: int = 20):
    """One image of ``count`` squares of 6 pixels."""
    annotations = []
    for i in range(count):
        x, y = 8 * (i % per_row) + 1, 8 * (i // per_row) + 1
        polygon = [[x, y, x + 6, y, x + 6, y + 6, x, y + 6]]
        annotations.append(
            {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": [x, y, 6, 6], "area": 36, "iscrowd": 0}
            | {"segmentation": polygon}
        )
    Image.fromarray(np.zeros((170, 170, 3), np.uint8)).save(folder / "a.png")
    data = {"images": [{"id": 1, "file_name": "a.png", "width": 170, "height": 170}], "annotations": annotations}
    (folder / "a.json").write_text(json.dumps(data | {"categories": [{"id": 1, "name": "cell"}]}))
    return load_coco(folder / "a.json", folder)


def test_the_truth_scores_1_where_nothing_caps_it(tiny_table):
    found = ceiling_of(tiny_table, detections=100)
    assert found is not None
    assert found.scores == pytest.approx({"bbox/AP": 1.0, "segm/AP": 1.0}) == found.coco
    assert judge(Facts(ceiling=found)) == []


def test_a_cap_costs_what_taking_it_away_gives_back(tmp_path):
    table = crowded(tmp_path, 150)
    capped = ceiling_of(table, max_dets=100, detections=100)
    assert capped is not None and capped.most == 150
    assert capped.scores["segm/AP"] < 0.7
    assert capped.scores["segm/AP"] + capped.costs[1].cost == pytest.approx(1.0)
    said = {f.detail["what"]: f for f in judge(Facts(ceiling=capped))}
    assert said["capped"].fix == "--eval-max-dets 150"
    assert said["detections"].fix == "--box-detections-per-image 150"
    free = ceiling_of(table, detections=150)
    assert free is not None and free.cap == 150 and free.scores["segm/AP"] == pytest.approx(1.0)
    assert free.coco["segm/AP"] == pytest.approx(capped.scores["segm/AP"])
    assert [f.severity for f in judge(Facts(ceiling=free))] == ["info"]


def test_more_detections_change_nothing_where_a_hundred_are_enough(tiny_table):
    truth = truth_of(tiny_table)
    assert truth is not None
    results = as_predictions(truth)[::2]
    for kind in ("bbox", "segm"):
        given = results if kind == "bbox" else [{k: v for k, v in r.items() if k != "bbox"} for r in results]
        plain, wide = coco_metrics(truth, given, kind), coco_metrics(truth, given, kind, 300)
        assert wide.metrics == pytest.approx(plain.metrics)
        assert list(wide.metrics) == list(METRICS)
        assert wide.coco["AP"] == pytest.approx(plain.metrics["AP"])
        for label, values in plain.per_class.items():
            assert wide.per_class[label] == pytest.approx(values)


def test_the_nuclei_cannot_reach_1_at_a_hundred_detections(shared_data):
    table = find_data(str(shared_data / "dsb2018")).val
    found = ceiling_of(table)
    assert found is not None
    assert found.coco == pytest.approx({"bbox/AP": 0.8416, "segm/AP": 0.8416}, abs=1e-4)
    assert found.scores == pytest.approx({"bbox/AP": 1.0, "segm/AP": 1.0})
