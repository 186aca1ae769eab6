"""Pictures of findings: boxes and masks as they are, and as they agree."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from runs import OwnData, config, small_model
from silent.scene import Scene
from silent.ways import Oracle

from maskrcnn_coco import train
from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.data.user_data import UserData
from maskrcnn_coco.evaluation import finding_pictures
from maskrcnn_coco.evaluation.evaluate import evaluate_model
from maskrcnn_coco.evaluation.finding_pictures import SHOWN, Evaluated, reread_sight, save_finding_images
from maskrcnn_coco.findings.extents import agree
from maskrcnn_coco.findings.rules.common import finding
from maskrcnn_coco.report.page import render
from maskrcnn_coco.report.run_files import read_run


@pytest.fixture
def corners(tiny_shapes, tmp_path):
    """The small set with boxes written as corners."""
    root = tmp_path / "set"
    shutil.copytree(tiny_shapes.root, root)
    path = root / tiny_shapes.train.relative_to(tiny_shapes.root)
    data = json.loads(path.read_text())
    for a in data["annotations"]:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x, y, x + w, y + h]
    path.write_text(json.dumps(data))
    return root, path


def extents(sight):
    found = []
    for mask in sight.masks:
        ys, xs = np.nonzero(mask)
        found.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    return np.array(found, float)


def test_a_set_is_drawn_as_it_is_and_as_the_audit_reads_it(corners, tmp_path):
    _, path = corners
    said, table = finding("GEOMETRY", "BOX_XYXY training data", "warning", "m", "f", []), load_coco(path, path.parent)
    drawn = save_finding_images(tmp_path / "run", 3, said, table)
    assert [d["file"] for d in drawn] == [f"findings/03_{n}.jpg" for n in (1, 2, 3)]
    assert all("right with [x1, y1, x2, y2]" in d["caption"] for d in drawn)
    for _, as_is, read, _ in finding_pictures._of_table(said, table):
        assert agree(read.boxes, extents(read)).all()
        assert not agree(as_is.boxes, extents(as_is)).all()


class Misread(torch.utils.data.Dataset):
    """Samples of which ``change`` alters boxes or masks."""

    def __init__(self, change):
        self.inner, self.change = OwnData(), change

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        image, target = self.inner[index]
        return image, self.change({k: v.clone() if torch.is_tensor(v) else v for k, v in target.items()})


def mirrored(target):
    return target | {"masks": target["masks"].flip(-1)}


def as_sizes(target):
    boxes = target["boxes"].clone()
    boxes[:, 2:] -= boxes[:, :2]
    return target | {"boxes": boxes}


def shares(target):
    height, width = target["masks"].shape[-2:]
    return target | {"boxes": target["boxes"] / torch.tensor([width, height, width, height])}


@pytest.mark.parametrize(
    ("change", "reading"),
    [(as_sizes, "boxes as x, y, width, height"), (mirrored, "masks mirrored left to right"), (shares, "boxes 0..1")],
)
def test_samples_of_ones_own_are_drawn_under_the_reading_that_was_found(change, reading, tmp_path):
    source = UserData(Misread(change), seed=0)
    ids = [int(source.sample(0, n)[1]["image_id"]) for n in range(4)]
    said = finding("GEOMETRY", reading, "warning", "m", "f", [], images=ids, reading=reading)
    (_, as_is, read, words), *_ = finding_pictures._of_items(said, source)
    assert read is not None and reading in words
    assert agree(read.boxes, extents(read)).all()
    assert not agree(as_is.boxes, extents(as_is)).all()
    drawn = save_finding_images(tmp_path, 1, said, source)
    assert len(drawn) == SHOWN
    with Image.open(tmp_path / drawn[0]["file"]) as picture:
        width, height = picture.size
    assert width > 1.9 * height  # two square panes


def test_a_reading_without_a_picture_of_its_own_shows_the_image_alone(tmp_path):
    source = UserData(OwnData(), seed=0)
    said = finding("PIXELS", "range", "warning", "m", "f", [], images=[int(source.sample(0, 0)[1]["image_id"])])
    (drawn,) = save_finding_images(tmp_path, 1, said, source)
    assert drawn["caption"].endswith("as it is")
    assert save_finding_images(tmp_path, 1, finding("CEILING", "x", "warning", "m", "f", [], images=[0]), source) == []


def test_half_turns_take_boxes_along():
    source = UserData(OwnData(), seed=0)
    sight = finding_pictures._item(*source.sample(0, 0))
    for reading in ("mirrored left to right", "mirrored top to bottom", "turned by half"):
        read = reread_sight(sight, reading)
        assert read is not None
        assert agree(read.boxes, extents(read)).all()


def test_a_run_on_a_misread_set_shows_it_in_its_report(tmp_path):
    settings = config(None, tmp_path, epochs=1, max_steps=1)
    train(settings, model=small_model(classes=2), train_data=Misread(mirrored), quiet=True)
    page = render(read_run(tmp_path / "run"))
    assert page.count("right with masks mirrored left to right</figcaption>") >= 1
    (said,) = [f for f in json.loads((tmp_path / "run" / "findings.json").read_text()) if f["code"] == "GEOMETRY"]
    assert all((tmp_path / "run" / p["file"]).is_file() for p in said["detail"]["pictures"])


def test_a_finding_of_the_validation_data_shows_their_images(tiny_shapes, corners, tmp_path):
    """Of which the sentence need not speak: that of the audit names the file."""
    root, _ = corners
    misread = {"val": str(root / "train" / "_annotations.coco.json"), "val_images": str(root / "train")}
    settings = config(tiny_shapes.train, tmp_path, images=str(tiny_shapes.train.parent), max_steps=1, **misread)
    train(settings, model=small_model(), quiet=True)
    (said,) = [f for f in json.loads((tmp_path / "run" / "findings.json").read_text()) if f["code"] == "GEOMETRY"]
    assert "validation" not in said["message"]
    assert said["detail"]["of"] == "validation data"
    captions = [p["caption"] for p in said["detail"]["pictures"]]
    assert captions and all("right with [x1, y1, x2, y2]" in c for c in captions)


def mask_iou(a, b):
    return (a & b).sum() / (a | b).sum()


class Known(torch.nn.Module):
    """Gives the truth of a scene, and has a weight to train."""

    def __init__(self, scene):
        super().__init__()
        self.oracle = Oracle(scene)

    def forward(self, images, targets=None):
        return self.oracle(images, targets)


def test_predicted_masks_that_lie_elsewhere_are_drawn_there_and_where_they_agree(tmp_path):
    """In a whole run: predictions are right, and the masks of the validation data alone are mirrored."""
    scene = Scene(6, 3)
    spoiled = Scene(6, 3, change=lambda i, t: (i, t | {"masks": t["masks"].flip(-1)}))
    settings = config(None, tmp_path, epochs=1, num_classes=3)
    train(settings, model=Known(scene), train_data=scene, val_data=spoiled, quiet=True)
    said = [f for f in json.loads((tmp_path / "run" / "findings.json").read_text()) if f["code"] == "MASKS_ELSEWHERE"]
    assert len(said) == 1 and said[0]["detail"]["reading"] == "mirrored left to right"
    drawn = said[0]["detail"]["pictures"]
    assert len(drawn) == SHOWN and all((tmp_path / "run" / p["file"]).is_file() for p in drawn)
    assert render(read_run(tmp_path / "run")).count("red: as annotated</figcaption>") == SHOWN


def test_of_predicted_masks_those_are_shown_that_the_reading_brings_to_the_annotated_ones():
    scene = Scene(6, 3)
    spoiled = Scene(6, 3, change=lambda i, t: (i, t | {"masks": t["masks"].flip(-2)}))
    result = evaluate_model(Known(scene).eval(), spoiled, device="cpu", class_names=scene.class_names)
    said = finding("MASKS_ELSEWHERE", "x", "warning", "m", "f", [], reading="mirrored top to bottom")
    sights = list(finding_pictures._of_evaluation(said, Evaluated(spoiled, result)))
    assert len(sights) >= SHOWN
    for _, as_is, read, _ in sights:
        assert all(mask_iou(r, t) > 0.9 for r, t in zip(read.masks, as_is.annotated, strict=True))
        assert any(mask_iou(m, t) < 0.5 for m, t in zip(as_is.masks, as_is.annotated, strict=True))
        assert agree(as_is.boxes, extents(as_is)).all()  # predicted boxes fit the predicted masks
    other = finding("MASKS_ELSEWHERE", "x", "warning", "m", "f", [], reading="transposed")
    assert list(finding_pictures._of_evaluation(other, Evaluated(spoiled, result))) == []


def test_a_picture_that_fails_is_said_and_costs_nothing(tmp_path, monkeypatch, capsys):
    from maskrcnn_coco.training import run_log

    monkeypatch.setattr(run_log, "save_finding_images", lambda *_: 1 / 0)
    settings = config(None, tmp_path, epochs=1, max_steps=1)
    result = train(settings, model=small_model(classes=2), train_data=Misread(mirrored))
    assert result.exit_code == 0
    assert "were not drawn: ZeroDivisionError" in capsys.readouterr().out
