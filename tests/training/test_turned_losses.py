"""A loss whose sign is turned around under way: one record raises a doubt, a step taken again proves it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nanbench.tiny import sample, tiny_model
from runs import config, incidents

from maskrcnn_coco import train
from maskrcnn_coco.training.turned_losses import turned_loss


def session(losses: list[float], **changes: Any) -> Any:
    history = [SimpleNamespace(step=i, epoch=0, losses={"a": 1.0, "b": v}, applied=True) for i, v in enumerate(losses)]
    return SimpleNamespace(**{"history": history, "ranks": SimpleNamespace(world=1), **changes})


@pytest.mark.parametrize(
    ("losses", "doubt"),
    [
        ([2.0, 1.9, 1.8, 1.9, 1.7, -1.8], True),
        ([2.0, 1.9, 1.8, 1.9, 1.7, 1.8], False),
        ([2.0, 1.5, 1.0, 0.5, 0.2, -0.05], False),  # a likelihood that crosses zero by itself
        ([2.0, -1.0, 1.8, 1.9, 1.7, -1.8], False),  # it was there before
        ([2.0, 1.9, 1.8, -1.9], False),  # too few steps before
    ],
)
def test_a_loss_of_another_sign_and_about_its_size_is_a_doubt(losses: list[float], doubt: bool):
    assert (turned_loss(session(losses)) is not None) is doubt


class Turned(torch.nn.Module):
    """A detector one of whose losses is another from some training pass on, or for some pictures."""

    def __init__(self, start: int, below: float) -> None:
        super().__init__()
        self.inner, self.calls, self.start, self.below = tiny_model(), 0, start, below

    def forward(self, images: Any, targets: Any = None) -> Any:
        losses = self.inner(images, targets)
        if self.training and torch.is_grad_enabled():
            self.calls += 1
            turned = self.calls >= self.start or any(float(i.mean()) < self.below for i in images)
            losses = {**losses, "loss_classifier": losses["loss_classifier"] * (-1.0 if turned else 1.0)}
        return losses


def trained(model: torch.nn.Module, folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    settings: dict[str, Any] = {
        "num_classes": 4,
        "batch_size": 2,
        "lr": 3e-3,
        "optimizer": "adamw",
        "augment": "none",
        "seed": 8,
    }
    data = [sample(1000 + i) for i in range(16)]
    result = train(config(None, folder, **settings, epochs=2), model=model, train_data=data)  # pyright: ignore
    return result, incidents(folder)


def test_a_sign_that_turned_under_way_stops_the_run_at_once(tmp_path: Path):
    result, found = trained(Turned(9, 0.0), tmp_path)
    assert result.status == "stopped" and [i["cause"] for i in found] == ["LOSS_MATH"]
    assert found[0]["step"] == 8 and "loss_classifier" in found[0]["fix"] and found[0]["confidence"] >= 0.9


def test_a_loss_below_zero_that_is_the_batch_s_own_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Some pictures bring it about, at whatever step: recorded steps give what they gave."""
    darkest = sorted(float(sample(1000 + i)[0].mean()) for i in range(16))
    result, found = trained(Turned(10**6, (darkest[0] + darkest[1]) / 2), tmp_path)
    assert result.status == "finished" and not found
    said = "".join(capsys.readouterr())
    assert "was never below zero before" in said and "the run goes on as it is" in said
