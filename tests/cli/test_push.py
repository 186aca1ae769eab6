"""`push`: the folder that a hub takes, read back, and its upload through a stand-in of huggingface_hub."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from colours import picture

from maskrcnn_coco import load
from maskrcnn_coco.cli.command_line import main
from maskrcnn_coco.cli.push import check_repo, hub_card
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.model.build import build_model
from maskrcnn_coco.report.model_card import CARD, model_card
from maskrcnn_coco.report.run_files import RunFiles

FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    model = build_model("maskrcnn_resnet18_fpn", 3, small=True, min_size=64, max_size=96)
    path = tmp_path_factory.mktemp("model") / "best.pth"
    config = {"min_size": 64, "max_size": 96, "box_detections_per_image": 6, "lr": 0.005}
    state = {"model": model.state_dict(), "classes": ["background", "disc", "bär"], "category_ids": [4, 8]}
    torch.save({**state, "config": config, "image_size": [64, 80], "bit_range": [10.0, 900.0]}, path)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, pushed into a folder."""
    out = tmp_path_factory.mktemp("pushed") / "nuclei"
    assert main(["push", str(checkpoint), "me/nuclei", "--to-folder", str(out), "--license", "cc-by-4.0"]) == 0
    return out


def header(folder: Path) -> dict[str, Any]:
    _, head, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head)


def test_the_folder_holds_what_a_hub_shows(folder: Path):
    assert sorted(p.name for p in folder.iterdir()) == FILES
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architecture"] == "maskrcnn_resnet18_fpn"
    assert config["id2label"] == {"1": "disc", "2": "bär"}
    assert (config["category_ids"], config["num_classes"]) == ([4, 8], 3)
    assert (config["min_size"], config["max_size"], config["box_detections_per_image"]) == (64, 96, 6)
    assert header(folder) == {
        "library_name": "maskrcnn-coco",
        "pipeline_tag": "image-segmentation",
        "license": "cc-by-4.0",
        "tags": ["mask-rcnn", "instance-segmentation", "coco"],
    }
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert 'snapshot_download("me/nuclei")' in text
    assert "- of the weights: cc-by-4.0" in text
    assert "bär" in text


def test_it_is_read_back_and_finds_the_same(folder: Path, checkpoint: Path, tmp_path: Path):
    moved = shutil.copytree(folder, tmp_path / "snapshot.v1")
    first, second = load(checkpoint, "cpu"), load(moved, "cpu")
    assert tuple(second.classes) == tuple(first.classes) == ("disc", "bär")
    assert list(second.category_ids) == [4, 8]
    assert second.card.bit_range == first.card.bit_range
    assert second.card.bit_range is not None
    image = picture(64, 80, 3, 1)
    (a,), (b,) = list(first.predict(image, 0.0)), list(second.predict(image, 0.0))
    assert len(a.boxes)
    assert np.array_equal(a.boxes, b.boxes)
    assert np.array_equal(a.scores, b.scores)


@pytest.mark.parametrize("verb", ["evaluate", "--weights"])
def test_other_verbs_take_the_folder_too(verb: str, folder: Path):
    from maskrcnn_coco.model.weights import read_weights

    if verb == "--weights":
        model = build_model("maskrcnn_resnet18_fpn", 3, weights=str(folder), small=True)
        assert any(str(folder) in note for note in model.notes)
    else:
        assert read_weights(folder)["category_ids"] == [4, 8]


def test_a_folder_without_a_model_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="no model file"):
        load(tmp_path)


class Hub(types.ModuleType):
    """huggingface_hub, as far as `push` uses it: keeps what was sent."""

    def __init__(self, refuses: str = "") -> None:
        super().__init__("huggingface_hub")
        self.made: dict[str, Any] = {}
        self.sent: dict[str, bytes] = {}
        self.refuses = refuses

    def HfApi(self) -> Hub:  # noqa: N802
        return self

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> Any:
        if self.refuses:
            raise RuntimeError(self.refuses)
        self.made = {"repo": repo_id, "type": repo_type, "private": private, "again": exist_ok}
        return types.SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"someone/{repo_id}")

    def upload_folder(self, *, repo_id: str, folder_path: str, repo_type: str, commit_message: str) -> Any:
        self.sent = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}
        self.where = repo_id, repo_type, commit_message
        return types.SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")


@pytest.fixture
def no_proof(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The proof, seconds long and made once above, not again."""

    def copied(_: Path, out: Path, __: str) -> Any:
        out.mkdir(parents=True, exist_ok=True)
        return types.SimpleNamespace(files=[Path(shutil.copy(folder / "model.safetensors", out))])

    monkeypatch.setattr("maskrcnn_coco.cli.push.export", copied)


def test_all_files_go_to_the_hub_in_one_commit(
    checkpoint: Path, folder: Path, no_proof, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    hub = Hub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert main(["push", str(checkpoint), "nuclei", "--private", "--message", "epoch 9", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "repo": "nuclei",
        "where": "hub/someone/nuclei/commit/1",
        "files": ["model.safetensors", "config.json", "README.md"],
        "uploaded": True,
    }
    assert hub.made == {"repo": "nuclei", "type": "model", "private": True, "again": True}
    assert hub.where == ("someone/nuclei", "model", "epoch 9")
    assert sorted(hub.sent) == FILES
    assert hub.sent["config.json"] == (folder / "config.json").read_bytes()


def test_what_the_hub_refuses_is_said(
    checkpoint: Path, no_proof, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub("\n401 Client Error\nInvalid username or password."))
    assert main(["push", str(checkpoint), "me/nuclei"]) == 2
    said = capsys.readouterr().err
    assert "the hub did not take me/nuclei" in said
    assert "401 Client Error" in said
    assert "hf auth login" in said


def test_the_package_that_is_missing_is_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr("maskrcnn_coco.cli.missing._installed", lambda name: False)
    assert main(["push", str(checkpoint), "me/nuclei"]) == 2
    assert "pip install 'maskrcnn-coco[hub]'" in capsys.readouterr().err


@pytest.mark.parametrize("repo", ["", "a/b/c", "../x", "me/", "/x", "me/a b", "me/..", "-x", "me/a--b"])
def test_what_is_no_repository_is_refused_first(repo: str):
    with pytest.raises(ConfigError, match="no repository"):
        check_repo(repo)


@pytest.mark.parametrize("words", [["x.pth"], [], ["x.pth", "me/a", "b"]])
def test_two_words_are_needed(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["push", *words]) == 2
    assert "name a checkpoint and a repository" in capsys.readouterr().err


def test_the_card_of_the_run_is_taken_and_others_get_a_header(checkpoint: Path, no_proof, tmp_path: Path):
    run = shutil.copytree(checkpoint.parent, tmp_path / "checkpoints")
    (run / CARD).write_text(model_card(RunFiles(Path())) + "\nMINE\n", encoding="utf-8")
    out = tmp_path / "out"
    assert main(["push", str(run / "best.pth"), "me/a", "--to-folder", str(out)]) == 0
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "MINE" in text
    assert 'snapshot_download("me/a")' in text
    assert header(out)["license"] == "other"
    bare = hub_card("# My model\n", "me/a", "mit")
    assert bare.startswith("---\nlibrary_name: maskrcnn-coco\n")
    assert "license: mit\n" in bare
    assert bare.endswith("# My model\n")
