"""A run that something else ends, an error outside of the step or ``sys.exit``: what a stop leaves is left here too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import OwnData, config, incidents, small_model, weights
from torch.optim.optimizer import register_optimizer_step_pre_hook

from maskrcnn_coco import Guard, train
from maskrcnn_coco.checkpoint.store import load
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.replay.state import digest


class Own(BaseException):
    """A class of somebody's own that is no Exception."""


class Unsayable(Exception):
    """An error whose text cannot be made."""

    def __str__(self) -> str:
        raise ValueError("no text")


def raising(error: BaseException, *, at: int = 0, training: bool = True, backward: bool = False) -> torch.nn.Module:
    """A model whose code raises in its passes from the ``at``-th on, forward or backward."""
    model, calls = small_model(classes=2), [0]

    def boom(*_: Any) -> None:
        raise error

    def hook(_m: torch.nn.Module, _a: Any, output: Any) -> None:
        if model.training is training:
            calls[0] += 1
            if calls[0] > at and backward:
                next(iter(output.values())).register_hook(boom)
            elif calls[0] > at:
                boom()

    model.register_forward_hook(hook)
    return model


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "run" / "result.json").read_text(encoding="utf-8"))


def as_after(steps: int, out: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """The weights of a run that simply has so many steps."""
    train(
        config(None, out, **changes), model=small_model(classes=2), train_data=OwnData(), quiet=True, stop_after=steps
    )
    return weights(out / "checkpoints" / "last.pth")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (SystemExit(3), "interrupted", 3),
        (KeyboardInterrupt(), "interrupted", 130),
        (Own("x"), "stopped", 1),
        (RuntimeError("CUDA error: device-side assert triggered"), "stopped", 1),
    ],
)
@pytest.mark.parametrize("backward", [False, True])
def test_what_goes_through_the_guard_leaves_all_that_a_stop_leaves(
    tmp_path: Path, error: BaseException, status: str, code: int, backward: bool
):
    model = raising(error, at=2, backward=backward)
    with pytest.raises(type(error)):
        train(config(None, tmp_path), model=model, train_data=OwnData(), quiet=True)
    written = result(tmp_path)
    assert (written["status"], written["exit_code"], written["steps"]) == (status, code, 2)
    assert (tmp_path / "run" / "report.html").exists()
    last = weights(tmp_path / "checkpoints" / "last.pth")
    assert same(last, model.state_dict())
    assert same(last, as_after(2, tmp_path / "plain"))
    named = [i["evidence"][0]["outcome"] for i in incidents(tmp_path)]
    assert len(named) == (status == "stopped") and all("in boom" in said for said in named)


def test_what_comes_between_an_update_and_its_count_is_not_taken_twice(tmp_path: Path):
    """An observer that ends the process is called when the weights have changed and the step is not counted yet."""
    seen: list[int] = []

    def watch(record: Any) -> None:
        if hasattr(record, "image_ids"):
            seen.append(record.step)
            if len(seen) == 3:
                raise SystemExit(0)

    settings = config(None, tmp_path, epochs=2)
    with pytest.raises(SystemExit):
        train(settings, model=small_model(classes=2), train_data=OwnData(), observers=[watch], quiet=True)
    train(config(None, tmp_path, epochs=2, resume="auto"), model=small_model(classes=2), train_data=OwnData())
    assert same(weights(tmp_path / "checkpoints" / "last.pth"), as_after(6, tmp_path / "plain", epochs=2))


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), MemoryError()])
def test_an_optimizer_that_is_broken_off_half_way_leaves_the_state_from_before(tmp_path: Path, error: BaseException):
    model, steps = small_model(classes=2), [0]

    def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        steps[0] += 1
        if steps[0] == 3:
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0].add_(1.0)
            raise error

    handle = register_optimizer_step_pre_hook(hook)
    try:
        with pytest.raises(ConfigError if isinstance(error, MemoryError) else type(error)):
            train(config(None, tmp_path), model=model, train_data=OwnData(), quiet=True)
    finally:
        handle.remove()
    state = load(tmp_path / "checkpoints" / "last.pth")
    assert same(state["model"], model.state_dict())
    assert state["loop"]["step"] == result(tmp_path)["steps"] == 0
    assert same(state["model"], small_model(classes=2).state_dict())


def test_memory_that_runs_out_leaves_a_verdict_too(tmp_path: Path):
    model = raising(torch.OutOfMemoryError("CUDA out of memory"), at=2)
    with pytest.raises(ConfigError):
        train(config(None, tmp_path), model=model, train_data=OwnData(), quiet=True)
    written, (incident,) = result(tmp_path), incidents(tmp_path)
    assert (written["status"], written["exit_code"], written["steps"]) == ("stopped", 2, 2)
    assert "memory ran out" in incident["evidence"][0]["outcome"]
    assert (tmp_path / "run" / "report.html").exists()
    assert load(tmp_path / "checkpoints" / "last.pth")["loop"]["incidents"] == ["0001"]


def test_an_error_without_a_text_is_treated_like_any_other(tmp_path: Path):
    ended = train(config(None, tmp_path), model=raising(Unsayable(), at=1), train_data=OwnData(), quiet=True)
    assert (ended.status, ended.exit_code, incidents(tmp_path)[0]["symptom"]) == ("stopped", 4, "crash")


@pytest.mark.parametrize("error", [KeyError("boxes"), TypeError("x"), ZeroDivisionError()])
def test_losses_on_validation_images_that_raise_cost_the_curve_alone(tmp_path: Path, error: Exception):
    model = raising(error, at=3)  # three training passes, then those of the curve
    ended = train(config(None, tmp_path), model=model, train_data=OwnData(), val_data=OwnData(4), quiet=True)
    assert (ended.status, ended.exit_code, ended.steps) == ("finished", 0, 3)
    assert "bbox/AP" in ended.metrics


def test_an_evaluation_that_raises_costs_its_figures_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(*_: Any, **__: Any) -> Any:
        raise TypeError("odd figures")

    monkeypatch.setattr("maskrcnn_coco.training.epoch_end.evaluate_model", broken)
    ended = train(config(None, tmp_path), model=small_model(classes=2), train_data=OwnData(), val_data=OwnData(4))
    said = capsys.readouterr()
    assert (ended.status, ended.exit_code) == ("finished", 0)
    assert "there is no AP of this epoch: TypeError: odd figures" in said.out + said.err


def test_the_average_goes_back_with_the_weights_where_a_divergence_stops_the_run(tmp_path: Path):
    wild = config(
        None, tmp_path, lr=0.5, head_lr_multiplier=60.0, warmup_steps=0, max_grad_norm=0.0, guard="stop", ema=0.9
    )
    ended = train(wild, model=small_model(classes=2), train_data=OwnData(24), quiet=True)
    state = load(tmp_path / "checkpoints" / "last.pth")
    assert (ended.status, state["loop"]["step"], state["ema"]["updates"]) == ("stopped", 0, 0)
    assert same(state["ema"]["weights"], state["model"])


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt(), SystemExit()])
def test_a_forward_pass_that_the_guard_lets_through_changes_nothing(error: BaseException, deferred: bool):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    guard = Guard(model, optimizer, deferred=deferred, say=False)
    data = torch.randn(8, 4)
    guard.step(lambda b: model(b).square().mean(), data)
    guard.flush()
    before = digest(model, optimizer)

    def broken(b: torch.Tensor) -> torch.Tensor:
        model(b * 3.0).mean().backward()
        raise error

    with pytest.raises(type(error)):
        guard.step(broken, data)
    assert digest(model, optimizer) == before
    assert all(p.grad is None or not bool(p.grad.any()) for p in model.parameters())
