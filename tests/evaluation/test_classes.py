"""A test set means the same whatever its ids are; one that means something else is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_sets import ORACLE_WARNING, oracle, random_set
from PIL import Image
from torch import nn

from maskrcnn_coco.cli.command_line import main
from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.data.masks import decode_mask
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.evaluation.classes import in_labels_of
from maskrcnn_coco.evaluation.evaluate import EvalResult, evaluate_model
from maskrcnn_coco.model.build import build_model

pytestmark = pytest.mark.filterwarnings(ORACLE_WARNING)


class Trained(nn.Module):
    """Answers in the labels of its own training: name → label of ``names``."""

    def __init__(self, answers: dict[int, list[tuple[str, dict]]], names: list[str]) -> None:
        super().__init__()
        self.answers, self.names = answers, names

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        out = []
        for image in images:
            rs = self.answers.get(round(float(image[0, 0, 0]) * 255), [])
            h, w = image.shape[-2:]
            xywh = torch.tensor([r["bbox"] for _, r in rs]).reshape(-1, 4)
            masks = np.array([decode_mask(r["segmentation"], h, w) for _, r in rs], np.float32)
            out.append({
                "boxes": torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1),
                "scores": torch.tensor([r["score"] for _, r in rs]),
                "labels": torch.tensor([self.names.index(name) for name, _ in rs]),
                "masks": torch.from_numpy(masks.reshape(-1, 1, h, w)),
            })  # fmt: skip
        return out


class Setting:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.truth, self.results = random_set(8, images=6, detections=15)
        for n, image in enumerate(self.truth["images"]):
            pixels = np.zeros((image["height"], image["width"], 3), np.uint8)
            pixels[0, 0] = n
            Image.fromarray(pixels).save(folder / image["file_name"])
        for r in self.results:  # scores are float32 in a model
            r["score"] = float(np.float32(r["score"]))
        names = {c["id"]: c["name"] for c in self.truth["categories"]}
        answers = {
            n: [(names[r["category_id"]], r) for r in self.results if r["image_id"] == image["id"]]
            for n, image in enumerate(self.truth["images"])
        }
        self.contents: dict[str, Any] = {
            "classes": ["background", *names.values()],
            "category_ids": list(names),
        }
        self.model = Trained(answers, self.contents["classes"])

    def evaluate(self, truth: dict, contents: dict | None = None) -> tuple[EvalResult, list[str]]:
        (self.folder / "test.json").write_text(json.dumps(truth))
        table = load_coco(self.folder / "test.json", self.folder)
        source, notes = in_labels_of(table, contents or self.contents, len(self.contents["classes"]), "c.pth")
        return evaluate_model(self.model, source, device="cpu"), notes


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("classes"))


def renumbered(truth: dict, new_id: dict[int, int]) -> dict:
    truth = copy.deepcopy(truth)
    for c in truth["categories"]:
        c["id"] = new_id[c["id"]]
    for a in truth["annotations"]:
        a["category_id"] = new_id[a["category_id"]]
    truth["categories"].sort(key=lambda c: c["id"])
    return truth


def test_other_ids_for_the_same_names_change_nothing(setting: Setting) -> None:
    want, notes = setting.evaluate(setting.truth)
    assert notes == [] and want.metrics["segm/AP"] > 0.05
    ids = [c["id"] for c in setting.truth["categories"]]
    new_id = dict(zip(ids, [40, 7, 1000, 3], strict=True))
    truth = renumbered(setting.truth, new_id)
    got, notes = setting.evaluate(truth)
    assert got.metrics == want.metrics and got.per_class == want.per_class
    assert any("matched by name" in n for n in notes)
    # What is written has this file's ids: pycocotools finds the same AP with them.
    stats, _ = oracle(truth, got.detections, "bbox")
    assert stats[0] == pytest.approx(want.metrics["bbox/AP"], abs=1e-6)


def test_unused_classes_more_or_fewer_change_nothing(setting: Setting) -> None:
    want, _ = setting.evaluate(setting.truth)
    more = copy.deepcopy(setting.truth)
    more["categories"].insert(0, {"id": 0, "name": "never seen"})
    got, notes = setting.evaluate(more)
    assert got.metrics == want.metrics and "never seen" in notes[0]
    used = {a["category_id"] for a in setting.truth["annotations"]}
    fewer = copy.deepcopy(setting.truth)
    fewer["categories"] = [c for c in fewer["categories"] if c["id"] in used]
    assert len(fewer["categories"]) == 3
    got, notes = setting.evaluate(fewer)
    assert got.metrics == want.metrics and "does not list 1 of the checkpoint's 4 classes" in notes[0]
    assert {r["category_id"] for r in got.detections} <= used
    oracle(fewer, got.detections, "bbox")  # nothing in it that the file does not know


def test_a_part_of_the_classes_scores_those(setting: Setting) -> None:
    want, _ = setting.evaluate(setting.truth)
    kept = setting.truth["categories"][:2]
    part = {
        **setting.truth,
        "categories": kept,
        "annotations": [a for a in setting.truth["annotations"] if a["category_id"] in {c["id"] for c in kept}],
    }
    got, _ = setting.evaluate(renumbered(part, {kept[0]["id"]: 2, kept[1]["id"]: 1}))
    for c in kept:
        assert got.per_class[c["name"]] == want.per_class[c["name"]]
    values = [want.per_class[c["name"]]["segm/AP"] for c in kept]
    assert got.metrics["segm/AP"] == pytest.approx(np.mean([v for v in values if v >= 0]), abs=1e-6)


def test_annotated_classes_that_the_checkpoint_does_not_know_are_refused(setting: Setting) -> None:
    other = copy.deepcopy(setting.truth)
    for c, name in zip(other["categories"], ["apple", "pear", "plum", "quince"], strict=True):
        c["name"] = name
    with pytest.raises(ConfigError) as caught:
        setting.evaluate(other)
    text = str(caught.value)
    assert all(name in text for name in ("apple", "pear", "plum", "quince", *setting.contents["classes"][1:]))


def test_two_classes_of_one_name_go_by_id_or_not_at_all(setting: Setting) -> None:
    want, _ = setting.evaluate(setting.truth)
    twins = copy.deepcopy(setting.truth)
    for c in twins["categories"][:2]:
        c["name"] = "twin"
    contents = {
        "classes": ["background", *(c["name"] for c in twins["categories"])],
        "category_ids": [c["id"] for c in twins["categories"]],
    }
    got, _ = setting.evaluate(twins, contents)
    assert got.metrics == want.metrics
    moved = renumbered(twins, {c["id"]: c["id"] + 50 for c in twins["categories"]})
    with pytest.raises(ConfigError, match="several classes"):
        setting.evaluate(moved, contents)


def test_without_names_in_the_checkpoint_labels_go_by_position_and_that_is_said(setting: Setting) -> None:
    want, _ = setting.evaluate(setting.truth)
    for contents in ({"x": 1}, {"classes": ["background", *(f"class {n}" for n in range(1, 5))]}):
        if "x" not in contents and [c["name"] for c in setting.truth["categories"]] == contents["classes"][1:]:
            continue
        got, notes = setting.evaluate(setting.truth, contents)
        assert got.metrics == want.metrics and "no class names" in notes[0]
    fewer = {**setting.truth, "categories": setting.truth["categories"][:3]}
    with pytest.raises(ConfigError, match="no class names"):
        setting.evaluate(fewer, {"x": 1})


@pytest.fixture(scope="module")
def checkpoint(setting: Setting) -> Path:
    torch.manual_seed(0)
    net = build_model("maskrcnn_resnet18_fpn", 5, small=True, min_size=64, max_size=64)
    for name, p in net.named_parameters():
        if name == "roi_heads.box_predictor.cls_score.bias":
            p.data[3] += 3.0  # it finds the third class everywhere
    path = setting.folder / "c.pth"
    config = {"min_size": 64, "max_size": 64, "box_detections_per_image": 4}
    torch.save({"model": net.state_dict(), "config": config, **setting.contents}, path)
    return path


def test_predictions_carry_the_ids_of_the_data(setting: Setting, checkpoint: Path, tmp_path: Path) -> None:
    images = [str(setting.folder / i["file_name"]) for i in setting.truth["images"][3:5]]
    assert main(["predict", str(checkpoint), *images, "--out", str(tmp_path / "o"), "--json"]) == 0
    results = json.loads((tmp_path / "o/results.json").read_text())
    category = {c["name"]: c["id"] for c in setting.truth["categories"]}
    assert results and all(r["category_id"] == category[r["category_name"]] for r in results)
    assert {r["image_id"] for r in results} == {1, 2}


def test_predictions_carry_the_ids_of_another_json(
    setting: Setting, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [c["id"] for c in setting.truth["categories"]]
    truth = renumbered(setting.truth, dict(zip(ids, [40, 7, 1000, 3], strict=True)))
    for i in truth["images"]:
        i["file_name"] = "some\\where\\" + i["file_name"]
    (tmp_path / "data.json").write_text(json.dumps(truth))
    Image.new("RGB", (60, 60)).save(tmp_path / "stranger.png")
    images = [str(setting.folder / i["file_name"].split("\\")[-1]) for i in truth["images"][3:5]]
    command = ["predict", str(checkpoint), *images, str(tmp_path / "stranger.png"), "--out", str(tmp_path / "o")]
    assert main([*command, "--coco", str(tmp_path / "data.json")]) == 0
    results = json.loads((tmp_path / "o/results.json").read_text())
    category = {c["name"]: c["id"] for c in truth["categories"]}
    assert results and all(r["category_id"] == category[r["category_name"]] for r in results)
    largest = max(i["id"] for i in truth["images"])
    assert {r["image_id"] for r in results} == {truth["images"][3]["id"], truth["images"][4]["id"], largest + 1}
    out = capsys.readouterr()
    assert "stranger.png" in out.out + out.err


def test_evaluate_refuses_and_matches_on_the_command_line(
    setting: Setting, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [c["id"] for c in setting.truth["categories"]]
    truth = renumbered(setting.truth, dict(zip(ids, [40, 7, 1000, 3], strict=True)))
    (tmp_path / "d.json").write_text(json.dumps(truth))
    data = ["--data", str(tmp_path / "d.json"), "--images", str(setting.folder)]
    assert main(["evaluate", str(checkpoint), *data, "--json", "--out", str(tmp_path / "r.json")]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["per_class"] and "matched by name" in captured.err
    assert {r["category_id"] for r in json.loads((tmp_path / "r.json").read_text())} <= {40, 7, 1000, 3}
    for c in truth["categories"]:
        c["name"] += " x"
    (tmp_path / "d.json").write_text(json.dumps(truth))
    assert main(["evaluate", str(checkpoint), *data]) == 2
    err = capsys.readouterr().err
    assert "does not know" in err and truth["categories"][0]["name"] in err and setting.contents["classes"][1] in err
