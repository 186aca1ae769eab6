"""A whole run whose guard reads nothing within a step, as on CUDA: here on the CPU, with the same code."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from runs import OwnData, config, incidents, lines, run, small_model, weights

from maskrcnn_coco import train
from maskrcnn_coco.records import StepRecord
from maskrcnn_coco.training import start

FIGURES = ("losses", "grad_norm", "applied", "image_ids", "lr")


@pytest.fixture
def late(monkeypatch):
    monkeypatch.setattr(start, "late_reads", lambda device, optimizer: True)


def same_figures(a: list[dict], b: list[dict]) -> None:
    assert [s["step"] for s in a] == [s["step"] for s in b]
    for x, y in zip(a, b, strict=True):
        for name in FIGURES:
            assert x[name] == y[name], (x["step"], name)


def test_a_clean_run_is_the_run_of_a_guard_that_reads_at_once(tiny_shapes, tmp_path, monkeypatch):
    every = {"checkpoint_every": "5", "epochs": 2}
    run(tiny_shapes.root, tmp_path / "now", **every)
    monkeypatch.setattr(start, "late_reads", lambda device, optimizer: True)
    result = run(tiny_shapes.root, tmp_path / "late", **every)
    assert (result.exit_code, result.steps) == (0, 12)
    assert not incidents(tmp_path / "late")
    same_figures(lines(tmp_path / "late"), lines(tmp_path / "now"))
    ratios = [s["step"] for s in lines(tmp_path / "late") if s["update_ratio"]]
    assert ratios == [0]
    now = weights(tmp_path / "now" / "checkpoints" / "last.pth")
    for name, value in weights(tmp_path / "late" / "checkpoints" / "last.pth").items():
        assert torch.equal(value, now[name]), name


def test_a_bad_image_is_named_although_the_alarm_comes_late(tmp_path, late):
    settings = config(None, tmp_path, epochs=3)
    result = train(settings, model=small_model(classes=2), train_data=OwnData(bad=(5,)))
    assert (result.exit_code, result.finite, result.steps) == (0, True, 9)
    (incident,) = incidents(tmp_path)
    assert (incident["cause"], incident["culprit"]["image_ids"]) == ("DATA_PIXEL", [105])
    assert [s["step"] for s in lines(tmp_path)] == list(range(9))


class Fails(torch.nn.Module):
    """A detector whose losses are NaN at some calls in train mode."""

    def __init__(self, inner: torch.nn.Module, calls: set[int]) -> None:
        super().__init__()
        self.inner, self.calls, self.count = inner, calls, -1
        self.transform, self.roi_heads, self.rpn = inner.transform, inner.roi_heads, inner.rpn

    def forward(self, images, targets=None):
        out = self.inner(images, targets)
        if self.training:
            self.count += 1
            if self.count in self.calls:
                out = {k: v * math.nan for k, v in out.items()}
        return out


def test_what_does_not_come_back_is_a_transient(tmp_path, late):
    model = Fails(small_model(classes=2), {4})
    settings = config(None, tmp_path, epochs=2)
    result = train(settings, model=model, train_data=OwnData())
    assert (result.exit_code, result.finite, result.steps) == (0, True, 6)
    (incident,) = incidents(tmp_path)
    assert (incident["cause"], incident["step"]) == ("TRANSIENT", 4)
    assert all(s["applied"] for s in lines(tmp_path))
    assert [s["step"] for s in lines(tmp_path)] == list(range(6))


def test_what_comes_back_a_few_steps_later_is_no_transient(tmp_path, late):
    """A divergence that rounds differently when it is walked again comes back, but not at the same step."""
    again = 4 + 2 + 5  # two steps are under way when the alarm is read; five more are taken again before it returns
    model = Fails(small_model(classes=2), {4, *range(again, again + 60)})
    settings = config(None, tmp_path, epochs=4, guard="stop")  # one investigation tells; recovery makes five
    train(settings, model=model, train_data=OwnData())
    assert incidents(tmp_path) and "TRANSIENT" not in {i["cause"] for i in incidents(tmp_path)[:1]}


def test_weights_that_die_between_steps_are_seen_before_they_are_kept(tmp_path, late):
    seen: list[StepRecord] = []
    model = small_model(classes=2)

    def poison(record):
        if isinstance(record, StepRecord):
            seen.append(dataclasses.replace(record))
            if record.step == 4 and len(seen) < 8:
                with torch.no_grad():
                    next(model.parameters())[0] = math.nan

    result = train(config(None, tmp_path, epochs=2), model=model, train_data=OwnData(), observers=[poison])
    assert result.finite
    assert all(t.isfinite().all() for t in weights(tmp_path / "checkpoints" / "last.pth").values())
    assert incidents(tmp_path)


class Adds(torch.nn.Module):
    """A detector with one more loss: what ``more`` makes of images and losses."""

    def __init__(self, inner: torch.nn.Module, more) -> None:
        super().__init__()
        self.inner, self.more = inner, more
        self.transform, self.roi_heads, self.rpn = inner.transform, inner.roi_heads, inner.rpn

    def forward(self, images, targets=None):
        out = self.inner(images, targets)
        return out | self.more(images, out) if self.training else out


@pytest.mark.parametrize(
    "more",
    [
        lambda images, out: {"accuracy": torch.tensor(math.nan)},
        lambda images, out: {"of_nothing": out["loss_mask"].reshape(1)[:0].mean()},
    ],
)
def test_a_nan_that_no_gradient_knows_of_costs_no_step(tmp_path, late, more):
    settings = config(None, tmp_path, epochs=2)
    result = train(settings, model=Adds(small_model(classes=2), more), train_data=OwnData())
    assert (result.exit_code, result.skipped_steps, result.incidents) == (0, 0, [])
    assert [s["applied"] for s in lines(tmp_path)] == [True] * 6


def test_a_nan_that_one_image_adds_to_its_loss_is_found_although_its_gradient_is_finite(tmp_path, late):
    def more(images, out):
        marked = any(float(image[0, 0, 0]) == 0.5 for image in images)
        return {"extra": out["loss_mask"] * 0.1 + (math.nan if marked else 0.0)}

    class Marked(OwnData):
        def __getitem__(self, i):
            image, target = super().__getitem__(i)
            image[0, 0, 0] = 0.5 if i == 5 else 0.2
            return image, target

    result = train(config(None, tmp_path, epochs=2), model=Adds(small_model(classes=2), more), train_data=Marked())
    assert (result.status, result.exit_code) == ("finished", 0)
    assert incidents(tmp_path)[0]["culprit"]["image_ids"] == [105]
