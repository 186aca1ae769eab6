"""The pictures of the report."""

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
from maskrcnn_coco.evaluation.evaluate import evaluate_model
from maskrcnn_coco.evaluation.pictures import (
    Grade,
    choose,
    grade_images,
    save_analysis,
    save_gallery,
    save_incident_images,
)
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


def test_what_lies_behind_the_figure_is_written_with_the_labels_to_look_at(table: CocoTable, tmp_path: Path) -> None:
    result = evaluate_model(Corner(), table, device="cpu")
    written = json.loads(save_analysis(tmp_path, table, result).read_text())
    assert written["per_class"]["<b>thing</b>"]["score"] == pytest.approx(0.9)
    assert written["errors"]["Miss"]["count"] == 1
    assert len(written["pictures"]) == len(written["suspects"]) > 0
    for entry in written["pictures"]:
        assert (tmp_path / "predictions" / entry["picture"]).read_bytes().startswith(b"\xff\xd8")
