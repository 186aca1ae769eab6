"""`--track` in a whole run, with a module that pretends to be MLflow; and the card beside the best checkpoint."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from runs import narrow

from maskrcnn_coco import Config, train
from maskrcnn_coco.report import tracking_thread


class Client:
    """The calls of MLflow's client, kept; every call raises where ``dead``."""

    dead = False
    calls: list[tuple] = []  # noqa: RUF012 - of all clients

    def __getattr__(self, name: str):
        def call(*args: object, **kwargs: object):
            if Client.dead:
                raise ConnectionError("refused")
            Client.calls.append((name, args, kwargs))
            info = types.SimpleNamespace(run_id="r1", artifact_uri="there")
            return types.SimpleNamespace(info=info, experiment_id="1")

        return call


@pytest.fixture
def fake_mlflow(monkeypatch: pytest.MonkeyPatch):
    mlflow, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    mlflow.__spec__ = types.SimpleNamespace(name="mlflow")  # type: ignore[assignment]
    errors = types.ModuleType("mlflow.exceptions")
    mlflow.MlflowClient = Client  # type: ignore[attr-defined]
    entities.Param = entities.Metric = lambda *a: a  # type: ignore[attr-defined]
    errors.MlflowException = RuntimeError  # type: ignore[attr-defined]
    for module in (mlflow, entities, errors):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    Client.calls, Client.dead = [], False
    return Client


def short_run(folder: Path):
    config = Config(
        demo=True,
        max_steps=2,
        box_detections_per_image=5,
        workers=0,
        device="cpu",
        track=("mlflow",),
        logdir=str(folder / "logs"),
        checkpoint_dir=str(folder / "checkpoints"),
    )
    with narrow():
        return train(config, quiet=True)


def test_a_run_tells_a_tracker_all_and_leaves_a_card(fake_mlflow: type[Client], tmp_path: Path):
    result = short_run(tmp_path)
    names = [name for name, _, _ in fake_mlflow.calls]
    points = [m for name, _, kw in fake_mlflow.calls for m in kw.get("metrics", ()) if name == "log_batch"]
    assert {(m[0], m[3]) for m in points} >= {("loss/total", 0), ("loss/total", 1), ("lr/backbone", 1)}
    params = dict(p for _, _, kw in fake_mlflow.calls for p in kw.get("params", ()))
    assert params["max_steps"] == "2"
    files = {Path(args[1]).name for name, args, _ in fake_mlflow.calls if name == "log_artifact"}
    assert {"report.html", "result.json", "best.pth", "MODEL_CARD.md"} <= files
    assert names[-2:] == ["create_model_version", "set_terminated"]
    assert fake_mlflow.calls[-1][1][1] == "FINISHED"
    card = (tmp_path / "checkpoints" / "MODEL_CARD.md").read_text()
    assert fake_mlflow.calls[-2][2]["description"] == card
    assert result.best_checkpoint is not None
    assert "| segm/AP | " in card
    assert "1.0000 |" in card, "the truth itself scores 1 on the built-in shapes"
    for words in ("circle", "| lr | 0.005 |", "No step was refused", "_to be filled in_", "120 images"):
        assert words in card


def test_a_dead_tracker_changes_nothing_of_a_run(fake_mlflow: type[Client], tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tracking_thread, "FAILED", 0.2)
    fake_mlflow.dead = True
    result = short_run(tmp_path)
    assert (result.status, result.steps, result.exit_code) == ("finished", 2, 0)
