"""A guard that only observes takes the bad step; what it says of it is of the state before that, as any other's is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nanbench.tiny import sample
from runs import config, incidents, tiny_model

from maskrcnn_coco import train


def observed(folder: Path, spoil: int | None = None, **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A run and its incidents; picture ``spoil`` has a pixel without a number."""
    data: Any = [sample(1000 + i) for i in range(16)]
    if spoil is not None:
        data[spoil][0][0, 3, 4] = torch.nan
    given: dict[str, Any] = {"num_classes": 4, "batch_size": 2, "epochs": 1, "warmup_steps": 0, "augment": "none"}
    settings = {**given, "guard": "observe", **settings}
    result = train(config(None, folder, **settings), model=tiny_model(), train_data=data)
    return result, incidents(folder)


def test_a_rate_is_named_from_before_it_threw_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, found = observed(tmp_path, lr=0.03, head_lr_multiplier=60.0, max_grad_norm=0.0)
    assert result.status == "finished" and len(found) > 1
    first, *rest = found
    assert first["cause"] == "LR_TOO_HIGH" and first["confidence"] >= 0.9
    assert {i["cause"] for i in rest} == {"LR_TOO_HIGH"} and max(i["confidence"] for i in rest) < 0.9
    assert rest[-1]["evidence"][0]["test"] == f"incident {first['id']}", "what follows is put down to the first"
    said = "".join(capsys.readouterr())
    assert "done: nothing, the guard only observes: the step was taken; not repaired" in said
    assert "the step was left out" not in said and said.count("looking for the cause") == 1


def test_a_picture_is_named_though_its_step_was_taken(tmp_path: Path) -> None:
    _, found = observed(tmp_path, spoil=5)
    assert found[0]["cause"] == "DATA_PIXEL" and len(found[0]["culprit"]["image_ids"]) == 1
    assert all(i["cause"] == "DATA_PIXEL" for i in found)
