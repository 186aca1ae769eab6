"""What training sees is counted; crowds that are none are found, real ones are not accused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.audit.quarantine import require_usable, to_quarantine
from maskrcnn_coco.data.audit.repair import repair
from maskrcnn_coco.data.audit.targets import count_targets
from maskrcnn_coco.data.augment import NONE
from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.masks import encode_rle
from maskrcnn_coco.data.prepare import check_data, open_data
from maskrcnn_coco.errors import DataError
from tests.helpers.odd_sets import OddSet


def crowds(data: OddSet, rows: slice) -> None:
    for ann in data.annotations[rows]:
        ann |= {"iscrowd": 1, "segmentation": encode_rle(data.mask(ann))}


@pytest.mark.parametrize("rows", [slice(None), slice(None, 12), slice(None, None, 2), slice(0, None, 3)])
def test_brush_masks_that_are_called_crowds(tmp_path: Path, rows: slice):
    data = OddSet(tmp_path)
    crowds(data, rows)
    every = rows == slice(None)
    count = len(data.annotations[rows])
    table = data.table()
    found = audit(table)
    (said,) = [f for f in found if f.severity != "info"]
    assert (said.code, said.severity) == (("CROWD_ALL", "error") if every else ("CROWD_SINGLE", "warning"))
    assert f"{count}" in said.message and said.annotation_id is None
    assert count_targets(table).crowds == count and count_targets(table).left == 24 - count
    repair(table, found, tmp_path / "out.json")
    fixed = load_coco(tmp_path / "out.json", tmp_path)
    assert len(fixed.ann_ids) == 24 and not fixed.iscrowd.any()
    assert [f.code for f in audit(fixed)] == ["RLE_NOT_CROWD"]


def test_nothing_but_crowds_is_refused_before_a_run(tmp_path: Path):
    data = OddSet(tmp_path)
    crowds(data, slice(None))
    config = Config(data=str(data.write()), images=str(tmp_path))
    with pytest.raises(DataError, match="iscrowd 1") as caught:
        check_data(open_data(config), config)
    assert caught.value.exit_code == 3 and "iscrowd" in str(caught.value.fix)


def test_crowds_and_errors_together_leave_nothing(tmp_path: Path):
    data = OddSet(tmp_path)
    crowds(data, slice(0, 20))
    for ann in data.annotations[20:]:
        ann["bbox"] = [5, 5, -1, 4]
    with pytest.raises(DataError, match="no annotation") as caught:
        require_usable(data.table(), audit(data.table()))
    assert "20 have iscrowd 1" in str(caught.value.got)


def test_objects_under_a_pixel_leave_nothing(tmp_path: Path):
    data = OddSet(tmp_path)
    for ann in data.annotations:
        x, y = ann["bbox"][:2]
        ann |= {"bbox": [x, y, 0.001, 0.001]}
    with pytest.raises(DataError, match="no annotation") as caught:
        require_usable(data.table(), [])
    assert "24 are under a pixel" in str(caught.value.got)


@pytest.mark.parametrize("seed", range(4))
def test_crowds_as_coco_has_them_are_not_accused(tmp_path: Path, seed: int):
    """One region an image and class, around several objects that were not told apart; in up to a half of the images."""
    data = OddSet(tmp_path, images=20, objects=5, seed=seed)
    for image in range(1, 20, (2, 3, 5, 10)[seed]):
        here = [a for a in data.annotations if a["image_id"] == image]
        mask = np.maximum.reduce([data.mask(a) for a in here[:4]])
        ys, xs = np.nonzero(mask)
        box = [float(v) for v in (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)]
        known = {"segmentation": encode_rle(mask), "bbox": box, "area": float(mask.sum()), "iscrowd": 1}
        data.annotations = [a for a in data.annotations if a not in here[1:4]]
        here[0] |= known
    assert not [f for f in audit(data.table()) if f.code.startswith("CROWD")]


def test_the_count_is_what_training_sees(tmp_path: Path):
    data = OddSet(tmp_path, images=10)
    crowds(data, slice(0, 2))
    data.annotations[5]["segmentation"] = [[1, 2, 3, 4]]
    data.annotations[7]["bbox"] = [1, 1, 0.2, 30]
    data.annotations[9]["category_id"] = 77
    data.annotations[11]["image_id"] = 99
    (tmp_path / "9.png").write_bytes(b"no picture")
    table = data.table()
    images, annotations = to_quarantine(audit(table))
    found = count_targets(table, images, annotations, min_size=80, max_size=120)
    assert (found.annotated, found.strays, found.left_out, found.crowds, found.thin) == (30, 2, 4, 2, 1)
    source = CocoDataset(table, train=True, min_size=80, max_size=120, policy=NONE)
    source.quarantine(annotations)
    seen = sum(len(source[i][1]["labels"]) for i in range(10) if int(table.image_ids[i]) not in images)
    assert found.left == seen == 21


def test_real_sets_have_no_suspect_crowds(shared_data: Path):
    folder = shared_data / "dsb2018/train"
    document = json.loads((folder / "_annotations.coco.json").read_text(encoding="utf-8"))
    table = load_coco(folder / "_annotations.coco.json", folder)
    assert count_targets(table).annotated == len(document["annotations"])
    assert not [f for f in audit(table, images=False) if f.code.startswith("CROWD")]
