"""Polygons, RLE and faults in one chunk: each annotation is judged as it is alone."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np

from maskrcnn_coco.data.audit import segmentations
from maskrcnn_coco.data.audit.catalogue import Reporter
from maskrcnn_coco.data.masks import checked_runs, encode_rle
from tests.helpers.odd_sets import OddSet


def mixed(folder: Path) -> OddSet:
    data = OddSet(folder, images=12, sizes=((120, 80), (90, 100)))
    for n, ann in enumerate(data.annotations):
        rle = encode_rle(data.mask(ann))
        width, height = data.size_of(ann)
        odd = {
            1: rle,
            2: rle | {"counts": checked_runs(rle, height, width).tolist()},
            3: None,
            4: rle | {"size": [height + 1, width]},
            5: rle | {"counts": [2**70]},
            6: rle | {"counts": rle["counts"][:-2]},
            7: rle | {"counts": ""},
            8: rle | {"counts": []},
            9: rle | {"size": [2**70, 5]},
        }
        if n % 11 in odd:
            ann["segmentation"] = odd[n % 11]
    return data


def test_together_as_alone(tmp_path: Path, monkeypatch):
    table = mixed(tmp_path).table()
    found = {}
    for chunk in (1, 7, 1000):
        monkeypatch.setattr(segmentations, "CHUNK", chunk)
        report = Reporter(table)
        shapes = segmentations.measure(table, report)
        told = sorted((f.code, f.annotation_id, f.message) for f in report.findings)
        found[chunk] = (told, copy.copy(vars(shapes)))
    for chunk in (7, 1000):
        assert found[chunk][0] == found[1][0] and len(found[1][0]) >= 15
        for name, value in found[1][1].items():
            assert np.array_equal(value, found[chunk][1][name], equal_nan=isinstance(value, np.ndarray)), name
