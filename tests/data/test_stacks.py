"""Files of several pictures: which one is read is said; entries that share one are left out, and how to split it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskrcnn_coco.cli.evaluate import evaluation_table
from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.audit.quarantine import to_quarantine
from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.data.layouts import find_data
from maskrcnn_coco.errors import DataError
from tests.helpers.odd_sets import OddSet
from tests.helpers.tiff_files import tiff_bytes

CAT = {"id": 1, "name": "cat"}


def page(n: int, height: int = 80, width: int = 120) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 255, (height, width), np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> OddSet:
    return OddSet(tmp_path / "set", images=4)


def named(data: OddSet, names: list[str]) -> OddSet:
    for entry, name in zip(data.images, names, strict=True):
        entry["file_name"] = name
    (data.folder / "stack.tif").write_bytes(tiff_bytes(*(page(n) for n in range(4))))
    return data


def test_entries_that_share_a_stack_are_left_out_and_are_not_to_be_merged(data: OddSet):
    table = named(data, ["1.png", "stack.tif", "stack.tif", "stack.tif"]).table()
    found = audit(table)
    stacks = [f for f in found if f.code == "IMAGE_STACK"]
    assert {f.image_id for f in stacks} == {2, 3, 4} == to_quarantine(found)[0]
    assert "3 entries" in stacks[0].message and "4 pages" in stacks[0].message
    assert not [f for f in found if f.code in ("IMAGE_NAME_DUPLICATE", "IMAGE_PAGES")]


def test_a_stack_of_one_entry_is_used_and_said(data: OddSet):
    table = named(data, ["1.png", "2.png", "3.png", "stack.tif"]).table()
    found = [f for f in audit(table) if f.code in ("IMAGE_PAGES", "IMAGE_STACK")]
    assert [(f.code, f.severity, f.image_id) for f in found] == [("IMAGE_PAGES", "warning", 4)]


@pytest.mark.parametrize("pattern", ["stack.tif#{}", "stack_{:03}.tif", "stack.tif:{}", "stack_p{}.tif"])
def test_pages_named_as_files_get_the_command_that_makes_them(data: OddSet, pattern: str):
    named(data, [pattern.format(n) for n in range(4)])
    with pytest.raises(DataError, match="none of the images") as caught:
        find_data(data.write(), images=data.folder)
    fix = str(caught.value.fix)
    words = shlex.split(fix.split("in `file_name`: ")[1])
    assert "4 pages" in str(caught.value.got) and words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], check=True)
    for n in range(4):
        assert np.array_equal(np.asarray(Image.open(data.folder / f"stack.tif_{n:03}.tif")), page(n))


def test_the_command_of_the_finding_keeps_deep_pages(data: OddSet):
    pages = [(page(n).astype(np.uint16) + 1) * 100 for n in range(2)]
    (data.folder / "my stack.tif").write_bytes(tiff_bytes(*pages))
    data.images[0]["file_name"] = data.images[1]["file_name"] = "my stack.tif"
    fix = next(f.fix for f in audit(data.table()) if f.code == "IMAGE_STACK")
    command = re.sub(r"STACK\.tif$", "'my stack.tif'", fix[fix.index("python") :])
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True, cwd=data.folder)
    for n, each in enumerate(pages):
        assert np.array_equal(np.asarray(Image.open(data.folder / f"my stack.tif_{n:03}.tif")), each)


def test_smaller_copies_of_a_picture_are_no_pages(tmp_path: Path):
    pyramid = [page(0), page(0, 40, 60), page(0, 20, 30)]
    (tmp_path / "a.tif").write_bytes(tiff_bytes(*pyramid))
    entry = {"id": 1, "file_name": "a.tif", "height": 80, "width": 120}
    (tmp_path / "l.json").write_text(json.dumps({"images": [entry], "annotations": [], "categories": [CAT]}))
    assert not [f for f in audit(load_coco(tmp_path / "l.json", tmp_path)) if f.code == "IMAGE_PAGES"]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_the_first_picture_of_an_animation_is_said_to_be_read(data: OddSet, suffix: str):
    pictures = [Image.fromarray(page(n)).convert("RGB") for n in range(3)]
    pictures[0].save(data.folder / f"moves{suffix}", save_all=True, append_images=pictures[1:])
    pictures[0].save(data.folder / f"still{suffix}")
    data.images[0]["file_name"], data.images[1]["file_name"] = f"moves{suffix}", f"still{suffix}"
    found = [f for f in audit(data.table()) if f.code == "IMAGE_PAGES"]
    assert [f.image_id for f in found] == [1] and "animation" in found[0].message


def test_an_evaluation_leaves_them_out_and_says_so(data: OddSet):
    path = named(data, ["1.png", "2.png", "stack.tif", "stack.tif"]).write()
    table, notes = evaluation_table(str(path), str(data.folder))
    assert table.image_ids.tolist() == [1, 2] and "2 images left out, stack.tif: 2 entries" in notes[0]
    path = named(data, ["stack.tif"] * 4).write("b.json")
    with pytest.raises(DataError, match="told from the others"):
        evaluation_table(str(path), str(data.folder))


def test_an_evaluation_says_ids_that_are_one_off(data: OddSet):
    for ann in data.annotations:
        ann["category_id"] -= 1
    assert "classes are named wrongly" in evaluation_table(str(data.write()), str(data.folder))[1][0]
    for ann in data.annotations:
        ann["category_id"], ann["image_id"] = ann["category_id"] + 1, ann["image_id"] - 1
    assert "neighbour of its image" in evaluation_table(str(data.write()), str(data.folder))[1][0]
