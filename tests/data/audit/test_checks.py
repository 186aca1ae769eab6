"""Each fault is found under its code, at its place; sound data has no errors; a repaired copy is sound."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_sets import OddSet
from PIL import Image

from maskrcnn_coco.data.audit.cache import audit_cached, fingerprint
from maskrcnn_coco.data.audit.catalogue import CATALOGUE
from maskrcnn_coco.data.audit.checks import audit, summary
from maskrcnn_coco.data.audit.clip import clip_polygon
from maskrcnn_coco.data.audit.geometry import Rings, boxes_of_runs
from maskrcnn_coco.data.audit.quarantine import require_usable, to_quarantine
from maskrcnn_coco.data.audit.repair import repair
from maskrcnn_coco.data.audit.show import print_findings
from maskrcnn_coco.data.coco.table import CocoTable, load_coco
from maskrcnn_coco.data.masks import checked_runs, decode_mask, encode_rle
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.records import DataFinding

SQUARE = [10, 10, 60, 10, 60, 60, 10, 60]


class Set:
    """Four images of 100 × 80 with one square each, to be damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = [{"id": i, "file_name": f"{i}.png", "height": 80, "width": 100} for i in (1, 2, 3, 4)]
        self.annotations: list[dict[str, Any]] = [self.square(i, i) for i in (1, 2, 3, 4)]
        self.categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        for i in (1, 2, 3, 4):
            pixels = np.random.default_rng(i).integers(0, 255, (80, 100, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")

    @staticmethod
    def square(ann: int, image: int) -> dict[str, Any]:
        box = {"id": ann, "image_id": image, "category_id": 1 + image % 2, "bbox": [10, 10, 50, 50], "iscrowd": 0}
        return box | {"area": 2500, "segmentation": [SQUARE]}

    def table(self, name: str = "a.json") -> CocoTable:
        document = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        (self.folder / name).write_text(json.dumps(document), encoding="utf-8")
        return load_coco(self.folder / name, self.folder)

    def found(self, **options: Any) -> list[DataFinding]:
        return audit(self.table(), **options)


@pytest.fixture
def data(tmp_path: Path) -> Set:
    return Set(tmp_path)


def codes(findings: list[DataFinding]) -> set[str]:
    return {f.code for f in findings}


def test_sound_data_has_no_findings(data):
    assert data.found() == []


def test_every_code_has_a_title_and_a_fix():
    for code, kind in CATALOGUE.items():
        assert code == code.upper() and kind.title and kind.fix, code


@pytest.mark.parametrize(
    ("box", "code", "severity"),
    [
        ([float("nan"), 10, 50, 50], "BOX_NONFINITE", "error"),
        ([10, 10, float("inf"), 50], "BOX_NONFINITE", "error"),
        (["10", 10, 50, 50], "BOX_STRING", "warning"),
        ([-9, 10, 69, 50], "BOX_PARTLY_OUTSIDE", "warning"),
        ([60, 60, -50, -50], "BOX_INVERTED", "error"),
        ([10, 10, 0, 50], "BOX_EMPTY", "error"),
        ([10, 10, 50, 0.5], "BOX_TINY", "warning"),
        ([200, 10, 50, 50], "BOX_OUTSIDE", "error"),
        ([10, 10, 65535, 50], "BOX_FAR", "error"),
        ([70, 10, 25, 50], "MASK_BOX_DISAGREE", "warning"),
    ],
)
def test_a_bad_box_is_found_where_it_is(data, box, code, severity):
    data.annotations[2]["bbox"] = box
    (found,) = [f for f in data.found() if f.code == code]
    assert (found.severity, found.image_id, found.annotation_id, found.file_name) == (severity, 3, 3, "3.png")
    assert found.message.startswith("3.png, image 3, annotation 3: ") and found.fix


@pytest.mark.parametrize(
    ("segmentation", "code"),
    [
        (None, "SEGMENTATION_MISSING"),
        ("x", "SEGMENTATION_BAD"),
        ([[1, 2, 3, 4]], "POLYGON_SHORT"),
        ([[*SQUARE, 1]], "POLYGON_ODD"),
        ([[*SQUARE[:-1], float("nan")]], "POLYGON_NONFINITE"),
        ([[*SQUARE, 1e9, 1e9]], "POLYGON_FAR"),
        ([[10, 10, 130, 10, 130, 60, 10, 60]], "POLYGON_OUTSIDE"),
        ([[10, 10, 60, 60, 60, 10, 10, 60]], "POLYGON_CROSSING"),
        ([SQUARE, [70, 70, 80, 70, 80, 75]], "POLYGON_MULTIPART"),
        ([SQUARE, [70, 70]], "POLYGON_PART_SHORT"),
        ([[300, 10, 350, 10, 350, 60]], "MASK_EMPTY"),
        ({"size": [100, 80], "counts": [8000]}, "RLE_SIZE"),
        ({"size": [80, 100], "counts": [10, 10]}, "RLE_SUM"),
        ({"size": [80, 100], "counts": [8000]}, "MASK_EMPTY"),
        ({"size": [80, 100], "counts": "~"}, "RLE_BAD"),
    ],
)
def test_a_bad_segmentation_is_found(data, segmentation, code):
    data.annotations[1]["segmentation"] = segmentation
    found = data.found(images=False)
    assert code in codes(found)
    if CATALOGUE[code].severity == "error":
        assert to_quarantine(found) == (set(), {2})


def test_a_polygon_outside_but_around_a_corner_is_empty(data):
    # Its extent meets the image in 20 × 20 pixels, it does not.
    data.annotations[0]["segmentation"] = [[80, 101, 121, 60, 121, 101]]
    assert "MASK_EMPTY" in codes(data.found(images=False))


def test_labels_and_ids(data):
    data.categories += [{"id": 9, "name": "emu"}, {"id": 0, "name": "cat"}]
    data.annotations[0]["category_id"] = 5
    data.annotations[1]["image_id"] = 77
    data.annotations += [data.square(4, 4), data.square(9, 3)]
    found = data.found(images=False)
    wanted = {"CATEGORY_GAP", "CATEGORY_ZERO", "CATEGORY_UNUSED", "CATEGORY_NAME_DUPLICATE", "LABEL_UNKNOWN"}
    assert wanted | {"ANN_IMAGE_UNKNOWN", "ANN_ID_DUPLICATE", "ANN_DUPLICATE", "IMAGES_EMPTY"} <= codes(found)
    assert to_quarantine(found) == (set(), {1, 2})


def test_class_imbalance_and_small_objects(data):
    data.annotations += [data.square(100 + i, 1) | {"bbox": [10 + i / 1000, 10, 1.5, 1.5]} for i in range(300)]
    found = data.found(images=False)
    assert {"CLASS_IMBALANCE", "OBJECT_SMALL"} <= codes(found)
    assert "OBJECT_SMALL" not in codes(audit(data.table(), images=False, min_size=8000, max_size=16000))


@pytest.mark.parametrize("start", [10, 35])
def test_boxes_that_are_corners_are_suspected_and_repaired(data, start):
    data.annotations = [
        data.square(i, i % 4 + 1) | {"bbox": [start + i, start, start + 40 + i, start + 40]} for i in range(12)
    ]
    for i, ann in enumerate(data.annotations):
        low, high = start + i, start + 40 + i
        ann["segmentation"] = [[low, start, high, start, high, start + 40, low, start + 40]]
    found = data.found(images=False)
    assert "BOX_XYXY" in codes(found)
    repair(data.table(), found, data.folder / "out.json")
    fixed = load_coco(data.folder / "out.json", data.folder)
    assert fixed.boxes[3].tolist() == [start + 3, start, 40, 40]
    assert "BOX_XYXY" not in codes(audit(fixed, images=False))


@pytest.mark.parametrize(("every", "said"), [(1, True), (2, False)])
def test_boxes_that_were_written_as_polygons(tmp_path, every, said):
    made = OddSet(tmp_path, images=20, objects=5, sizes=((300, 200),))
    for ann in made.annotations[::every]:
        x, y, w, h = ann["bbox"]
        ann |= {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], "area": w * h}
    found = [f for f in audit(made.table(), images=False) if f.code == "MASK_IS_BOX"]
    assert [(f.severity, f.count) for f in found] == [("info", 100)] * said


def test_areas(data):
    triangle = [[10, 10, 60, 10, 60, 60]]
    data.annotations[0] |= {"segmentation": triangle, "area": 2500}
    data.annotations[1] |= {"area": 7}
    del data.annotations[2]["area"]
    found = data.found(images=False)
    assert {"AREA_IS_BOX", "MASK_AREA_DISAGREE", "AREA_MISSING"} <= codes(found)
    repair(data.table(), found, data.folder / "out.json")
    areas = load_coco(data.folder / "out.json", data.folder).area
    pixels = [decode_mask(s, 80, 100).sum() for s in (triangle, [SQUARE])]
    assert areas[:3].tolist() == [pixels[0], pixels[1], pixels[1]]


def test_a_set_without_masks_is_refused_with_what_to_do(data):
    for ann in data.annotations:
        ann["segmentation"] = []
    found = data.found(images=False)
    assert [f.code for f in found if f.severity == "error"] == ["NO_MASKS"]
    with pytest.raises(DataError, match="needs masks") as caught:
        require_usable(data.table(), found)
    assert "Faster R-CNN" in (caught.value.fix or "")


def test_nothing_left_is_refused(data):
    for ann in data.annotations:
        ann["bbox"] = [1, 1, -1, -1]
    with pytest.raises(DataError, match="no annotation"):
        require_usable(data.table(), data.found(images=False))
    require_usable(data.table(), [])


def test_image_files(data):
    folder = data.folder
    (folder / "1.png").unlink()
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:3000])
    Image.fromarray(np.zeros((81, 100, 3), np.uint8)).save(folder / "3.png")
    data.images[3]["file_name"] = "../4.png"
    found = data.found()
    by_image = {i: {f.code for f in found if f.image_id == i} for i in (1, 2, 3, 4)}
    assert by_image == {
        1: {"IMAGE_MISSING"},
        2: {"IMAGE_UNREADABLE"},
        3: {"IMAGE_SIZE_WRONG", "IMAGE_CONSTANT"},
        4: {"IMAGE_PATH"},
    }
    assert to_quarantine(found) == ({1, 2, 3, 4}, set())


def test_exif_rotation_is_a_warning_only_where_the_entry_disagrees(data):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (80, 100, 3), np.uint8)
    Image.fromarray(pixels).save(data.folder / "1.png", exif=exif)
    Image.fromarray(pixels.transpose(1, 0, 2).copy()).save(data.folder / "2.png", exif=exif)
    found = {f.image_id: (f.code, f.severity) for f in data.found()}
    assert found == {1: ("IMAGE_EXIF_MISMATCH", "warning"), 2: ("IMAGE_EXIF_ROTATED", "info")}


def test_the_same_bytes_twice_and_in_validation(data, tmp_path):
    shutil.copy(data.folder / "1.png", data.folder / "2.png")
    (tmp_path / "val").mkdir()
    val = Set(tmp_path / "val")
    val.images, val.annotations = val.images[2:3], val.annotations[2:3]
    found = data.found(other=val.table())
    assert {(f.code, f.image_id) for f in found} == {("IMAGE_DUPLICATE", 2), ("IMAGE_LEAK", 3)}


def test_real_sets(shared_data):
    root = shared_data / "car_damage"
    found = audit(load_coco(root / "annotations/parts_train.json", root))
    assert not [f for f in found if f.severity == "error"]
    assert [f.file_name for f in found if f.code == "IMAGE_DUPLICATE"] == ["train/48.jpg"]
    assert [f.file_name for f in found if f.code == "POLYGON_OUTSIDE"] == ["train/5.jpg", "train/33.jpg"]
    nuclei = load_coco(shared_data / "dsb2018/valid/_annotations.coco.json", shared_data / "dsb2018/valid")
    assert not [f for f in audit(nuclei) if f.severity == "error"]


def test_repair_leaves_the_source_and_unknown_fields_alone(data):
    data.annotations[0]["bbox"] = [float("nan")] * 4
    data.annotations[1] |= {"bbox": ["10", 10, 50, 50], "note": {"by": "me", "x": [1, 2]}}
    data.annotations[2]["segmentation"] = [[1, 2, 3]]
    (data.folder / "4.png").unlink()
    table = data.table()
    before = (data.folder / "a.json").read_bytes()
    changes = repair(table, audit(table), data.folder / "out.json")
    assert (data.folder / "a.json").read_bytes() == before
    fixed = json.loads((data.folder / "out.json").read_text(encoding="utf-8"))
    assert [a["id"] for a in fixed["annotations"]] == [1, 2]
    assert fixed["annotations"][0]["bbox"] == [10, 10, 50, 50]
    assert fixed["annotations"][1]["bbox"] == [10, 10, 50, 50] and fixed["annotations"][1]["note"] == {
        "by": "me",
        "x": [1, 2],
    }
    assert [i["id"] for i in fixed["images"]] == [1, 2, 3]
    assert {(c.annotation_id, c.what) for c in changes} == {
        (1, "bbox"),
        (2, "bbox"),
        (3, "removed"),
        (4, "removed"),
        (None, "removed"),
    }
    written = json.loads((data.folder / "out.changes.json").read_text(encoding="utf-8"))
    assert len(written) == len(changes)
    again = audit(load_coco(data.folder / "out.json", data.folder))
    assert not [f for f in again if f.severity == "error"]


def test_repair_keeps_apart_what_shares_an_id(data):
    data.annotations[0]["segmentation"] = [[10, 10, 130, 10, 130, 60, 10, 60]]
    data.annotations[1] |= {"id": 1, "segmentation": {"size": [80, 100], "counts": [1000, 500, 6500]}}
    table = data.table()
    repair(table, audit(table, images=False), data.folder / "out.json")
    fixed = load_coco(data.folder / "out.json", data.folder)
    assert len(set(fixed.ann_ids.tolist())) == 4
    assert fixed.segmentation_raw(1) == table.segmentation_raw(1)
    assert decode_mask(fixed.segmentation_raw(0), 80, 100).sum() == 90 * 50


@pytest.mark.parametrize("out", ["a.json", "link.json", "1.png"])
def test_repair_overwrites_nothing(data, out):
    table = data.table()
    (data.folder / "link.json").symlink_to(data.folder / "a.json")
    before = (data.folder / out).read_bytes()
    with pytest.raises(DataError, match="exists already"):
        repair(table, [], data.folder / out)
    assert (data.folder / out).read_bytes() == before


def test_findings_are_kept_until_something_changes(data, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    table = data.table()
    first = audit_cached(table, folder=cache)
    monkeypatch.setattr("maskrcnn_coco.data.audit.cache.audit", lambda *_, **__: pytest.fail("checked again"))
    assert audit_cached(data.table(), folder=cache) == first
    monkeypatch.undo()
    mark = fingerprint(table)
    data.annotations[0]["bbox"] = [1, 1, -5, 5]
    assert fingerprint(data.table()) != mark
    assert "BOX_INVERTED" in codes(audit_cached(data.table(), folder=cache))
    mark = fingerprint(data.table())
    (data.folder / "1.png").write_bytes(b"other")
    assert fingerprint(data.table()) != mark
    for kept in cache.glob("*.json"):
        kept.write_text('[{"code": 3}]', encoding="utf-8")
    assert codes(audit_cached(data.table(), folder=cache)) >= {"BOX_INVERTED", "IMAGE_UNREADABLE"}


def test_summary_counts_and_orders(data):
    data.annotations[0]["bbox"] = data.annotations[1]["bbox"] = [1, 1, -5, 5]
    data.annotations[2]["bbox"] = [10, 10, 50, 0.5]
    rows = summary(data.found(images=False))
    assert rows[0][:3] == ("error", "BOX_INVERTED", 2)
    assert [r[0] for r in rows] == sorted((r[0] for r in rows), key=["error", "warning", "info"].index)


@pytest.mark.parametrize("seed", range(20))
def test_measuring_without_drawing_equals_drawing(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((40, 50), np.uint8)
    y, x = rng.integers(0, 30, 2)
    mask[y : y + rng.integers(1, 12), x : x + rng.integers(1, 25)] = 1
    pixels, extent = boxes_of_runs(checked_runs(encode_rle(mask), 40, 50), 40)
    ys, xs = np.nonzero(mask)
    assert pixels == mask.sum()
    assert extent.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_crossing_is_found_and_only_there():
    star = [v for k in range(5) for v in (np.cos(4 * np.pi * k / 5), np.sin(4 * np.pi * k / 5))]
    ring = [v for k in range(9) for v in (np.cos(2 * np.pi * k / 9), np.sin(2 * np.pi * k / 9))]
    comb = [0, 0, 9, 0, 9, 5, 7, 5, 7, 1, 5, 1, 5, 5, 3, 5, 3, 1, 0, 1]
    rings = Rings.of([star, ring, comb, SQUARE, [10, 10, 60, 60, 60, 10, 10, 60]])
    assert rings.crossing().tolist() == [True, False, False, False, True]
    assert rings.areas()[3] == 2500 and rings.outlines()[3] == 200


def test_clipping_keeps_what_is_inside():
    assert clip_polygon(SQUARE, 100, 80) == SQUARE
    cut = clip_polygon([-20, 10, 60, 10, 60, 60, -20, 60], 100, 80)
    assert np.array_equal(decode_mask([cut], 80, 100), decode_mask([[0, 10, 60, 10, 60, 60, 0, 60]], 80, 100))
    assert clip_polygon([200, 10, 260, 10, 260, 60], 100, 80) == []


def test_the_terminal_shows_counts_first_and_nothing_that_a_terminal_obeys(data, capsys):
    data.categories.append({"id": 5, "name": "\x1b[2J[bold]x[/bold]"})
    for ann in data.annotations:
        ann["bbox"] = [1, 1, -5, 5]
    data.images[0]["file_name"] = "\x1b]0;title\x07.png"
    table = data.table()
    print_findings(table, audit(table, images=False))
    text = capsys.readouterr().out
    assert text.index("BOX_INVERTED") < text.index("annotation 2")
    assert "\x1b" not in text and "\x07" not in text and "[bold]x[/bold]" in text
    print_findings(table, [], fixed="out.json")
    assert "Nothing to report" in (text := capsys.readouterr().out) and "out.json" in text


def test_two_parts_of_one_file_share_no_image_and_are_no_leak(data):
    table = data.table()
    half = len(table) // 2
    parts = table.subset(np.arange(half)), table.subset(np.arange(half, len(table)))
    assert "IMAGE_LEAK" not in {f.code for f in audit(parts[0], other=parts[1])}
    (leak,) = [f for f in audit(table, other=parts[1]) if f.code == "IMAGE_LEAK"]
    assert leak.count == len(parts[1])
