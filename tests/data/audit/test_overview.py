"""What a set is, counted: against counts made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from maskrcnn_coco.data.audit.overview import overview, overview_lines
from tests.helpers.odd_sets import OddSet


def test_counts_sizes_and_depths(tmp_path: Path):
    data = OddSet(tmp_path, images=6, sizes=((120, 80), (90, 100)))
    data.annotations = data.annotations[:-3]
    data.annotations[0]["iscrowd"] = 1
    Image.fromarray(np.full((80, 120), 4000, np.uint16)).save(tmp_path / "2.png")
    Image.fromarray(np.zeros((100, 90), np.uint8)).save(tmp_path / "3.png")
    (tmp_path / "4.png").unlink()
    found = overview(data.table())
    assert (found.images, found.empty_images, found.objects, found.crowds) == (6, 1, 15, 1)
    assert found.classes == {"cat": 6, "dog": 9}
    assert (
        found.sizes == {"90×100": 3, "120×80": 3} and found.widths == (90, 105, 120) and found.heights == (80, 90, 100)
    )
    assert found.objects_per_image == (3, 3, 3) and found.small + found.medium + found.large == 15
    assert found.object_sides is not None and found.object_sides[1] == np.median(
        [np.sqrt(a["bbox"][2] * a["bbox"][3]) for a in data.annotations]
    )
    assert found.depths == {"8 bit RGB": 3, "16 bit grey": 1, "8 bit grey": 1}
    assert overview(data.table(), files=False).depths == {}
    text = "\n".join(overview_lines(found))
    for words in ("6 images, 15 objects, 2 classes", "1 images have no object", "dog 9, cat 6", "16 bit grey in 1"):
        assert words in text


def test_a_set_of_nothing_can_be_told(tmp_path: Path):
    data = OddSet(tmp_path, images=1, objects=0)
    data.images[0] |= {"width": 0, "height": 0, "file_name": "none.png"}
    data.categories = data.categories[:1]
    assert overview_lines(overview(data.table()))[0] == "1 image, 0 objects, 1 class; 1 images have no object"
