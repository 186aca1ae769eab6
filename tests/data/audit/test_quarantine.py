"""A fault costs the annotation that has it, and no other, whatever the ids of the file are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.audit.quarantine import to_quarantine
from maskrcnn_coco.data.audit.repair import repair
from maskrcnn_coco.data.augment import NONE
from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.prepare import check_data, complaints, open_data
from tests.helpers.odd_sets import OddSet

IDS = {
    "unique": lambda n: 1000 + n,
    "in each image anew": lambda n: n % 3 + 1,
    "in each image from 0": lambda n: n % 3,
    "all 0": lambda n: 0,
    "all -1": lambda n: -1,
    "none": lambda n: None,
    "text": lambda n: str(n % 3),
    "one twice": lambda n: 4 if n == 5 else n,
    "counting down": lambda n: -n - 1,
}
BAD = 5


@pytest.fixture(params=IDS)
def data(tmp_path: Path, request: pytest.FixtureRequest) -> OddSet:
    """24 annotations under odd ids; the sixth has a polygon of two points."""
    found = OddSet(tmp_path / "set")
    for n, ann in enumerate(found.annotations):
        ann["id"] = IDS[request.param](n)
        if ann["id"] is None:
            del ann["id"]
    found.annotations[BAD]["segmentation"] = [[1, 2, 3, 4]]
    return found


def targets(table, left_out) -> int:
    source = CocoDataset(table, train=True, min_size=80, max_size=120, policy=NONE)
    source.quarantine(left_out)
    return sum(len(source[i][1]["labels"]) for i in range(len(source)))


def test_one_bad_annotation_of_24_costs_one(data: OddSet):
    table = data.table()
    assert len(set(table.ann_ids.tolist())) == 24
    found = audit(table)
    images, annotations = to_quarantine(found)
    assert not images and len(annotations) == 1
    (bad,) = annotations
    assert table.row_of_annotation(bad) == BAD and targets(table, annotations) == 23
    assert len(table.without([], annotations).ann_ids) == 23
    (error,) = [f for f in found if f.severity == "error"]
    assert error.row in (None, BAD) and error.image_id == 2 and (error.row is None or "annotations[5]" in error.message)


def test_a_part_of_the_file_names_its_annotations_as_the_whole_does(data: OddSet):
    table = data.table()
    part = table.subset(np.array([3, 1]))
    assert set(part.ann_ids.tolist()) == set(table.ann_ids[3:6].tolist() + table.ann_ids[9:12].tolist())
    assert to_quarantine(audit(part, images=False)) == to_quarantine(audit(table, images=False))


def test_the_run_counts_and_leaves_out_one(data: OddSet):
    config = Config(data=str(data.write()), images=str(data.folder))
    opened = open_data(config)
    check_data(opened, config)
    said = [s for s in complaints(opened) if "left out" in s]
    assert len(said) == 1, said
    assert opened.train is not None and opened.val is not None
    left = len(opened.train.ann_ids) - len(opened.bad_annotations) + len(opened.val.ann_ids)
    assert left == 23
    if "validation data" not in said[0]:
        assert "0 images and 1 annotation are left out" in said[0]


def test_the_repaired_copy_keeps_23_under_ids_of_their_own(data: OddSet):
    table = data.table()
    repair(table, audit(table), data.folder / "out.json")
    kept = json.loads((data.folder / "out.json").read_text(encoding="utf-8"))["annotations"]
    assert len(kept) == 23 and len({a["id"] for a in kept}) == 23 and all(a["id"] >= 0 for a in kept)
    assert [a["bbox"] for a in kept] == [a["bbox"] for n, a in enumerate(data.annotations) if n != BAD]
    assert audit(load_coco(data.folder / "out.json", data.folder)) == []


def test_ids_that_start_again_are_one_sentence(tmp_path: Path):
    data = OddSet(tmp_path)
    for n, ann in enumerate(data.annotations):
        ann["id"] = n % 3
    (found,) = audit(data.table())
    assert found.code == "ANN_ID_DUPLICATE" and "24 of 24 annotations share 3 ids" in found.message
