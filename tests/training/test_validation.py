"""Validation losses: measured, shown, and without a trace in the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from runs import OwnData, config, lines, run, small_model, tiny_model, weights
from torch import nn

from maskrcnn_coco import train
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.report.page import write_report
from maskrcnn_coco.training import epoch_end, validation
from maskrcnn_coco.training.validation import without_trace


def test_each_epoch_has_them_beside_the_ap(tiny_shapes: Any, tmp_path: Path) -> None:
    result = run(tiny_shapes.root, tmp_path, epochs=2, model=small_model())
    evals, steps = lines(tmp_path, "eval"), lines(tmp_path)
    assert [set(e["losses"]) == set(steps[0]["losses"]) for e in evals] == [True, True]
    assert evals[1]["losses"] != evals[0]["losses"]
    # Of the same size as what training ends with: one model, alike images.
    total = sum(evals[-1]["losses"].values())
    assert 0.5 * steps[-1]["loss"] < total < 2 * steps[-1]["loss"]
    page = write_report(tmp_path / "run").read_text()
    assert page.count(">validation<") >= 1 + len(evals[0]["losses"])
    told = json.loads((tmp_path / "run" / "result.json").read_text())["per_class"]
    assert set(told) == {"circle", "square", "triangle"} and told == result.per_class
    assert all(v["train_objects"] >= v["train_images"] > 0 and "segm/AP" in v for v in told.values())
    assert f'<td class="num">{told["circle"]["train_objects"]:.0f}</td>' in page


class _Restless(nn.Module):
    """A norm that learns statistics, dropout, and a buffer that counts passes: all that a pass can disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(3), nn.Dropout(0.2)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return x + 0.01 * self.drop(self.norm(x))


def _restless() -> nn.Module:
    model = tiny_model()
    restless, inner = _Restless(), model.backbone.forward

    def forward(x: torch.Tensor) -> Any:
        return inner(restless(x))

    model.backbone.restless = restless
    model.backbone.forward = forward  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(("make", "guard"), [(_restless, "recover"), (small_model, "off")])
def test_a_run_trains_in_the_same_bits_with_and_without_them(tmp_path: Path, make: Any, guard: str) -> None:
    found = []
    for name in ("with", "without"):
        out = tmp_path / name
        with patch.object(
            epoch_end, "validation_losses", validation.validation_losses if name == "with" else lambda _: {}
        ):
            train(
                config(None, out, epochs=2, num_classes=4, guard=guard),
                model=make(),
                train_data=OwnData(4),
                val_data=OwnData(4),
                quiet=True,
            )
        assert bool(lines(out, "eval")[0]["losses"]) == (name == "with")
        assert not list((out / "run" / "incidents").glob("*.json"))
        found.append((weights(out / "checkpoints" / "last.pth"), [s["loss"] for s in lines(out)]))
    (one, losses), (other, same) = found
    assert losses == same and one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_bad_samples_are_left_out_and_nothing_is_said_where_none_is_left(tmp_path: Path) -> None:
    settings = {"train_data": OwnData(4), "quiet": True}
    for name, bad in (("some", (1,)), ("all", (0, 1, 2, 3))):
        train(config(None, tmp_path / name), model=small_model(classes=2), val_data=OwnData(4, bad=bad), **settings)
    (some,) = lines(tmp_path / "some", "eval")
    assert some["losses"] and all(v == v for v in some["losses"].values())
    assert [e["losses"] for e in lines(tmp_path / "all", "eval")] in ([], [{}])


def test_a_model_that_raises_or_runs_out_of_memory_costs_the_curve_alone(tmp_path: Path) -> None:
    inner = Forward.losses

    def broken(self: Forward, model: nn.Module, *args: Any) -> Any:
        if torch.is_grad_enabled():
            return inner(self, model, *args)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with patch.object(Forward, "losses", broken):
        result = train(
            config(None, tmp_path), model=small_model(classes=2), train_data=OwnData(4), val_data=OwnData(4), quiet=True
        )
    assert result.exit_code == 0 and lines(tmp_path, "eval")[0]["losses"] == {}


def test_modes_and_buffers_are_as_they_were() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(), nn.Sequential(nn.BatchNorm2d(3)))
    model.eval()
    model[0].train()
    model[3][0].train()
    before = (
        [m.training for m in model.modules()],
        [b.clone() for b in model.buffers()],
        [b._version for b in model.buffers()],
    )
    with without_trace(model):
        assert model.training and not model[1].training and not model[2].training
        model(torch.rand(2, 3, 4, 4))
    assert before[0] == [m.training for m in model.modules()]
    assert all(torch.equal(a, b) for a, b in zip(before[1], model.buffers(), strict=True))
    assert before[2] == [b._version for b in model.buffers()]
