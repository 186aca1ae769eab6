"""What holds without the other trainers' packages; with them `real_trainers.py` trains in each."""

from __future__ import annotations

import ast
import importlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.integrations.ultralytics import guard_callback

FOLDER = Path(__file__).resolve().parents[2] / "maskrcnn_coco" / "integrations"


@pytest.mark.parametrize(("name", "package"), [("lightning", "lightning"), ("transformers", "transformers")])
def test_a_package_that_is_missing_is_said_in_a_sentence(name: str, package: str, monkeypatch):
    for blocked in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, blocked, None)
    monkeypatch.delitem(sys.modules, f"maskrcnn_coco.integrations.{name}", raising=False)
    with pytest.raises(ConfigError, match="not installed") as error:
        importlib.import_module(f"maskrcnn_coco.integrations.{name}")
    assert f"pip install {package}" in error.value.fix


def test_nothing_of_ultralytics_is_imported_anywhere():
    for path in FOLDER.parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] == "ultralytics" for n in names), path.name


def test_the_callback_guards_whatever_trainer_hands_it_model_optimizer_and_scaler():
    model = nn.Linear(3, 1)
    trainer = SimpleNamespace(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), scaler=None)
    guard_callback(say=False)(trainer)
    before = model.weight.detach().clone()
    for value, refused in ((1.0, False), (math.nan, True), (1.0, False)):
        trainer.optimizer.zero_grad()
        trainer.guard.see(model(torch.full((2, 3), value)).square().mean()).backward()
        trainer.optimizer.step()
        assert trainer.guard.refused is refused and bool(torch.isfinite(model.weight).all())
    assert trainer.guard.refused_steps == 1 and not torch.equal(model.weight, before)
    with pytest.raises(ConfigError, match="on_train_start"):
        guard_callback()(SimpleNamespace(model=None, optimizer=None))
