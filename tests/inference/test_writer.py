"""Files of results: read back by what they are for; a second run never leaves a mix, and nothing of others is lost."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colours import picture, predictor
from PIL import Image

from maskrcnn_coco.data.masks import decode_mask
from maskrcnn_coco.errors import ConfigError, DataError
from maskrcnn_coco.inference.folder import LIST, OutFolder
from maskrcnn_coco.inference.formats import FORMATS, table
from maskrcnn_coco.inference.outlines import signed_area
from maskrcnn_coco.inference.writer import Writer, Written, parse_formats


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    for n, name in enumerate(("a.png", "b.jpg", "more/a.png")):
        Image.fromarray(picture(80, 100, 6, n)).save(root / name, quality=100, subsampling=0)
    return root


def write(images: Any, out: Path, formats: str = ",".join(FORMATS), score: float = 0.5) -> Written:
    predictions = predictor().predict(images, score=0.0)
    writer = Writer(out, parse_formats(formats), score, predictions.paths)
    for result in predictions:
        writer.add(result, 100 + result.number)
    return writer.close()


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != LIST}


def test_every_format_says_the_same(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = write(images / "a.png", out)
    assert files(out) == {
        "a.png", "results.json", "results.csv", "labels/a.png", "polygons/a.json", "polygons/a.geojson"
    }  # fmt: skip
    (r,) = predictor().predict(images / "a.png")
    count = len(r)
    assert done.objects == count > 2
    results = json.loads((out / "results.json").read_text())
    assert [e["image_id"] for e in results] == [101] * count
    assert all((decode_mask(e["segmentation"], 80, 100) == m).all() for e, m in zip(results, r.masks, strict=True))
    assert {e["category_id"] for e in results} <= {7, 3}
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [int(row["area"]) for row in rows] == r.areas().tolist()
    with Image.open(out / "labels/a.png") as labels:
        assert labels.mode == "I;16"
        assert np.array_equal(np.asarray(labels), r.label_image())
    features = json.loads((out / "polygons/a.geojson").read_text())["features"]
    assert len(features) == count
    for feature, area in zip(features, r.areas(), strict=True):
        parts = feature["geometry"]["coordinates"]
        polygons = [parts] if feature["geometry"]["type"] == "Polygon" else parts
        assert all(ring[0] == ring[-1] for p in polygons for ring in p)
        enclosed = sum(signed_area(np.array(ring[:-1])) for p in polygons for ring in p)
        assert enclosed == pytest.approx(area, rel=0.05)
    labelme = json.loads((out / "polygons/a.json").read_text())
    assert (out / "polygons" / labelme["imagePath"]).resolve() == (images / "a.png").resolve()
    assert (labelme["imageHeight"], labelme["imageWidth"]) == (80, 100)
    assert {s["label"] for s in labelme["shapes"]} == set(r.names)


def test_names_keep_their_folders_and_never_meet(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write([images, images / "a.png", images / "more" / "a.png"], out, "png,labels")
    assert files(out) == {
        *("a.png", "b.jpg", "more/a.png", "a_2.png", "a_3.png"),
        *("labels/a.png", "labels/b.png", "labels/more/a.png", "labels/a_2.png", "labels/a_3.png"),
    }


def test_a_folder_called_labels_is_in_nobody_s_way(images: Path, tmp_path: Path) -> None:
    (images / "more").rename(images / "labels")
    write(images, tmp_path / "out", "png,labels")
    # labels/a.png would be both the drawn picture of labels/a.png and the label image of a.png.
    assert files(tmp_path / "out") == {
        "a.png", "labels/a.png", "b.jpg", "labels/b.png", "labels/a_2.png", "labels/labels/a_2.png"
    }  # fmt: skip


def test_a_second_run_leaves_no_mix(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(images, out)
    (out / "mine.txt").write_text("kept")
    write(images / "b.jpg", out, "coco,png")
    assert files(out) == {"b.jpg", "results.json", "mine.txt"}
    assert {e["file_name"] for e in json.loads((out / "results.json").read_text())} == {"b.jpg"}
    assert not (out / "labels").exists()


def test_a_run_that_fails_changes_nothing(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(images, out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    writer = Writer(out, ("coco", "png"), 0.5)
    writer.add(next(iter(predictor().predict(images / "b.jpg"))), 1)
    writer.abandon()
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    Writer(tmp_path / "new", ("coco",), 0.5).abandon()
    assert not (tmp_path / "new").exists()


def test_what_a_person_changed_is_not_overwritten(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(images, out)
    corrected = out / "polygons" / "a.json"
    corrected.write_text(corrected.read_text().replace("disc", "corrected by hand"))
    with pytest.raises(ConfigError, match=r"polygons/a\.json was changed"):
        write(images, out)
    corrected.unlink()
    write(images, out)


def test_what_a_killed_run_gathered_is_swept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".writing-999999999").mkdir(parents=True)
    (out / f".writing-{os.getppid()}").mkdir()
    OutFolder(out).finish()
    assert [p.name for p in out.glob(".writing-*")] == [f".writing-{os.getppid()}"]


@pytest.mark.parametrize("text", ["{", "[]", '{"files": 3}', '{"files": {"../../x": [1, 2]}}', '{"files": {"a": 5}}'])
def test_a_damaged_list_removes_nothing_and_mixes_nothing(tmp_path: Path, text: str) -> None:
    out = tmp_path / "a" / "out"
    out.mkdir(parents=True)
    (out / LIST).write_text(text)
    (tmp_path / "x").write_text("precious")
    (out / "a").write_text("kept")
    if ".." in text:  # whole, but nobody's word is taken for files outside
        OutFolder(out).finish()
    else:
        with pytest.raises(ConfigError, match=r"\.predictions\.json.* cannot be read: its files would stay"):
            OutFolder(out)
        assert {p.name for p in out.iterdir()} == {LIST, "a"}
    assert (tmp_path / "x").exists()
    assert (out / "a").exists()


def test_the_images_themselves_are_never_overwritten(images: Path) -> None:
    before = (images / "a.png").read_bytes()
    with pytest.raises(DataError, match="overwrite"):
        write(images, images, "png")
    assert (images / "a.png").read_bytes() == before


def test_drawn_pictures_below_the_images_are_no_images(images: Path) -> None:
    write(images, images / "drawn", "png")
    assert [r.name for r in predictor().predict(images)] == ["a.png", "b.jpg", "more/a.png"]


def test_out_that_is_a_file_is_named(images: Path) -> None:
    with pytest.raises(ConfigError, match="is a file"):
        OutFolder(images / "a.png")


@pytest.mark.parametrize("text", ["", "coco,tiff", ",", "yolo"])
def test_unknown_formats_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match="--format"):
        parse_formats(text)


def test_scores_decide_what_is_shown_but_not_what_coco_gets(images: Path, tmp_path: Path) -> None:
    done = write(images / "a.png", tmp_path / "out", score=0.95)
    assert done.objects == 0
    assert done.best is not None
    assert done.best.score == pytest.approx(0.9)
    assert len(json.loads((tmp_path / "out/results.json").read_text())) > 2
    assert len((tmp_path / "out/results.csv").read_text().splitlines()) == 1


def test_nothing_found_is_an_empty_list(tmp_path: Path) -> None:
    write(np.zeros((40, 40, 3), np.uint8), tmp_path / "out")
    assert json.loads((tmp_path / "out/results.json").read_text()) == []


def test_a_table_runs_no_formula() -> None:
    text = table([{"file_name": "=cmd|' /C calc'!A0", "class": "-1+1", "score": -1.5}]).decode()
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["file_name"].startswith("'=")
    assert row["class"] == "'-1+1"
    assert row["score"] == "-1.5"


@pytest.mark.parametrize(
    ("name", "format", "start"),
    [("x.png", None, b"\x89PNG"), ("x.jpg", None, b"\xff\xd8"), ("x.csv", None, b"file_name,"), ("x.tif", None, b"II*"),
     ("x.geojson", None, b'{"type"'), ("x.json", None, b"["), ("x.json", "labelme", b"{"),
     ("x.png", "labels", b"\x89PNG")],
)  # fmt: skip
def test_save_one_result(name: str, format: str | None, start: bytes, tmp_path: Path) -> None:
    (r,) = predictor().predict(picture(60, 60, 3, 1))
    assert r.save(tmp_path / name, format).read_bytes().startswith(start)
    with pytest.raises(ConfigError, match="what to write"):
        r.save(tmp_path / "x.docx")


def test_files_of_others_are_never_written_over(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "labels").mkdir(parents=True)
    (out / "a.png").write_bytes(b"mine")
    (out / "labels" / "a.png").write_bytes(b"mine, too")
    write(images / "a.png", out, "png,labels")
    assert (out / "a.png").read_bytes() == b"mine"
    assert (out / "labels" / "a.png").read_bytes() == b"mine, too"
    assert {"a_2.png", "labels/a_2.png"} <= files(out)
    write(images / "a.png", out, "png,labels")
    assert files(out) == {"a.png", "a_2.png", "labels/a.png", "labels/a_2.png"}, (
        "a second run takes its own names again"
    )


@pytest.mark.parametrize(("name", "kind"), [("results.json", "coco"), ("results.csv", "csv")])
def test_a_table_of_others_is_refused_before_the_work(name: str, kind: str, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(ConfigError, match="would be lost"):
        write(images / "a.png", out, kind)
    assert (out / name).read_text() == "mine"
    assert [p.name for p in out.iterdir()] == [name]
