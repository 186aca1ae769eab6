"""Prediction on files, and the pictures of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from maskrcnn_coco.data.coco.table import CocoTable, load_coco
from maskrcnn_coco.data.masks import decode_mask
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.evaluation.evaluate import evaluate_model
from maskrcnn_coco.evaluation.pictures import Grade, choose, grade_images, save_gallery, save_incident_images
from maskrcnn_coco.evaluation.predict import image_paths, predict_images
from maskrcnn_coco.records import Action, Culprit, Incident


class Corner(nn.Module):
    """Finds one object in the upper left corner of each image, and doubts another."""

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        out = []
        for image in images:
            masks = torch.zeros(2, 1, *image.shape[-2:])
            masks[:, :, 2:12, 3:23] = 1
            boxes = torch.tensor([[3.0, 2, 23, 12]]).repeat(2, 1)
            out.append(
                {"boxes": boxes, "labels": torch.tensor([1, 1]), "scores": torch.tensor([0.9, 0.2]), "masks": masks}
            )
        return out


@pytest.fixture
def table(tmp_path: Path) -> CocoTable:
    """Four images: found, missed, without objects, found in a crowd."""
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 9, "name": "<b>thing</b>"}]}
    boxes = {0: ([3, 2, 20, 10], 0), 1: ([40, 30, 20, 10], 0), 3: ([0, 0, 60, 40], 1)}
    for n in range(4):
        Image.fromarray(np.full((50, 70, 3), 60 * n, np.uint8)).save(tmp_path / f"{n}.png")
        truth["images"].append({"id": 100 + n, "height": 50, "width": 70, "file_name": f"{n}.png"})
        if n in boxes:
            (x, y, w, h), crowd = boxes[n]
            mask = np.zeros((50, 70), np.uint8)
            mask[y : y + h, x : x + w] = 1
            flat = mask.ravel(order="F")
            runs = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]])).tolist()
            seg = {"size": [50, 70], "counts": [0, *runs] if flat[0] else runs}
            truth["annotations"].append({
                "id": 500 + n, "image_id": 100 + n, "category_id": 9, "bbox": [x, y, w, h], "area": w * h,
                "iscrowd": crowd, "segmentation": seg,
            })  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(truth))
    return load_coco(tmp_path / "a.json", tmp_path)


def test_writes_pictures_and_coco_results(table: CocoTable, tmp_path: Path) -> None:
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    out = tmp_path / "out"
    result = predict_images(Corner(), paths, out, ("background", "thing"), category_ids={1: 9})
    assert [p.name for p in result.drawn] == ["0.png", "1.png"]
    results = json.loads((out / "results.json").read_text())
    assert len(results) == 4
    assert [r["image_id"] for r in results] == [1, 1, 2, 2]
    first = results[0]
    assert first["category_id"] == 9
    assert first["category_name"] == "thing"
    assert first["file_name"] == "0.png"
    assert first["bbox"] == [3.0, 2.0, 20.0, 10.0]
    assert decode_mask(first["segmentation"], 50, 70).sum() == 200
    drawn = np.asarray(Image.open(out / "0.png"))
    assert (drawn != 0).any()


def test_same_names_do_not_overwrite_each_other(table: CocoTable, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.png").write_bytes((tmp_path / "0.png").read_bytes())
    result = predict_images(Corner(), [tmp_path / "0.png", tmp_path / "b/0.png"], tmp_path / "out", ("background", "x"))
    assert [p.name for p in result.drawn] == ["0.png", "0_2.png"]


def test_the_images_themselves_are_never_overwritten(table: CocoTable, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="overwrite"):
        predict_images(Corner(), [tmp_path / "0.png"], tmp_path, ("background", "x"))


def test_unreadable_images_are_named_and_the_others_done(table: CocoTable, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"no")
    result = predict_images(Corner(), [tmp_path / "1.png", tmp_path / "0.png"], tmp_path / "o", ("background", "x"))
    assert len(result.drawn) == 1
    assert "1.png" in result.failed[0]
    with pytest.raises(DataError, match=r"1\.png"):
        predict_images(Corner(), [tmp_path / "1.png"], tmp_path / "o", ("background", "x"))


def test_folders_are_opened(table: CocoTable, tmp_path: Path) -> None:
    assert [p.name for p in image_paths([tmp_path])] == ["0.png", "1.png", "2.png", "3.png"]
    with pytest.raises(DataError, match="does not exist"):
        image_paths([tmp_path / "nowhere.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        image_paths([tmp_path / "empty"])


def test_grades(table: CocoTable) -> None:
    result = evaluate_model(Corner(), table, device="cpu")
    grades = {g.row: g for g in grade_images(result, 0.5)}
    assert grades[0] == Grade(0, 1.0, 1, 0, 0)
    assert grades[1] == Grade(1, 0.0, 0, 1, 1)
    assert grades[2] == Grade(2, 0.0, 0, 0, 1)
    assert grades[3] == Grade(3, 1.0, 0, 0, 0)  # inside a crowd region nothing is wrong


def test_choice_has_no_image_twice() -> None:
    grades = [Grade(n, n / 40, 0, 0, 0) for n in range(40)]
    low, middle = choose(grades, 12, 12)
    assert [g.row for g in low] == list(range(12))
    assert [g.row for g in middle] == list(range(14, 26))
    low, middle = choose(grades[:3], 12, 12)
    assert len(low) + len(middle) == 3
    assert choose([], 12, 12) == ([], [])


def test_gallery_files(table: CocoTable, tmp_path: Path) -> None:
    result = evaluate_model(Corner(), table, device="cpu")
    folder = save_gallery(tmp_path / "run", table, result)
    index = json.loads((folder / "predictions.json").read_text())
    entries = index["worst"] + index["typical"]
    assert len(entries) == 4
    assert index["worst"][0]["file_name"] == "1.png"
    for entry in entries:
        for side in ("truth", "prediction"):
            with Image.open(folder / entry[side]) as picture:
                assert picture.format == "JPEG"


def test_images_of_an_incident(table: CocoTable, tmp_path: Path) -> None:
    incident = Incident(
        "0003", 1, 0, 1, "loss_nonfinite", "DATA_BOX", 0.99, Culprit(image_ids=[100, 12345], annotation_ids=[500]), [],
        Action("quarantine"), "recovered", 0, "", "",
    )  # fmt: skip
    (path,) = save_incident_images(tmp_path / "run", incident, table)
    assert path.name == "0003_image100.jpg"
    reds = np.asarray(Image.open(path)).astype(int)
    assert ((reds[..., 0] > 180) & (reds[..., 1] < 110) & (reds[..., 2] < 110)).any()
