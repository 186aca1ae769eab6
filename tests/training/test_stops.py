"""However a run stops: the verdict is written, last.pth and the caller's model hold a verified state, nothing raw."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import OwnData, config, incidents, small_model, weights

from maskrcnn_coco import train
from maskrcnn_coco.cli.diagnose import diagnose_path
from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.model.rig import rig_from_settings
from maskrcnn_coco.training import response
from maskrcnn_coco.training.case_file import load_case


class Odd(OwnData):
    """`OwnData` whose items pass through ``change`` (index, image, target)."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def __getitem__(self, i: int) -> Any:
        return self.change(i, *super().__getitem__(i))


def raising(error: Exception, *, at: int = 0) -> torch.nn.Module:
    """A model whose code raises from its ``at``-th training pass on."""
    model, calls = small_model(classes=2), [0]

    def hook(_m: torch.nn.Module, _a: Any, output: Any) -> None:
        calls[0] += 1
        if calls[0] > at:
            raise error

    model.register_forward_hook(hook)
    return model


def finite(model: torch.nn.Module) -> bool:
    return all(bool(t.isfinite().all()) for t in model.state_dict().values() if t.is_floating_point())


@pytest.mark.parametrize("error", [KeyError("area"), TypeError("None"), AttributeError("x"), RuntimeError("shape")])
def test_code_that_raises_on_every_batch_stops_at_once_with_its_own_line(tmp_path: Path, error: Exception):
    model = raising(error, at=1)
    result = train(config(None, tmp_path), model=model, train_data=OwnData())
    (incident,) = incidents(tmp_path)
    assert (result.status, result.exit_code, result.finite) == ("stopped", 4, True)
    assert (incident["cause"], incident["action"]["kind"], incident["outcome"]) == ("UNKNOWN", "stop", "stopped")
    assert "test_stops.py:" in incident["fix"]
    assert "in hook" in incident["fix"]
    last = weights(tmp_path / "checkpoints" / "last.pth")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in last.items())


def test_a_model_that_is_nan_as_built_is_named_by_its_tensor(tmp_path: Path):
    model = small_model(classes=2)
    with torch.no_grad():
        model.get_parameter("roi_heads.box_head.fc6.weight")[0, 0] = math.nan
    result = train(config(None, tmp_path), model=model, train_data=OwnData())
    (incident,) = incidents(tmp_path)
    assert (result.status, result.exit_code, result.incidents) == ("stopped", 4, ["0001"])
    assert (incident["cause"], incident["culprit"]["module"]) == ("POISONED_STATE", "roi_heads.box_head.fc6")
    assert not (tmp_path / "checkpoints" / "last.pth").exists()  # nothing non-finite is ever written


def test_after_a_divergence_the_stop_hands_over_the_state_from_before_it(tmp_path: Path):
    model = small_model(classes=2)
    wild = config(None, tmp_path, lr=0.5, head_lr_multiplier=60.0, warmup_steps=0, max_grad_norm=0.0, guard="stop")
    result = train(wild, model=model, train_data=OwnData(24))
    assert (result.status, result.exit_code) == ("stopped", 4)
    assert finite(model)
    last = weights(tmp_path / "checkpoints" / "last.pth")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in last.items())
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["steps"] <= incidents(tmp_path)[0]["onset_step"]
    # No loss of a step that was taken back.
    assert written["last_loss"] == "nan" or written["last_loss"] < 100


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda i, image, target: (torch.cat([image, image[:1]]) if i == 5 else image, target), "DATA_PIXEL"),
        (
            lambda i, image, target: (image, {**target, "labels": target["labels"][:, None]} if i == 5 else target),
            "DATA_LABEL",
        ),
        (
            lambda i, image, target: (image, {k: v for k, v in target.items() if i != 5 or k != "masks"}),
            "DATA_MASK",
        ),
    ],
)
def test_one_item_of_an_odd_form_is_left_out_and_the_run_goes_on(tmp_path: Path, change: Any, code: str):
    result = train(config(None, tmp_path), model=small_model(classes=2), train_data=Odd(change))
    (incident,) = incidents(tmp_path)
    assert result.status == "finished"
    assert (incident["cause"], incident["culprit"]["image_ids"]) == (code, [105])
    assert incident["confidence"] >= 0.9


def test_one_label_past_the_end_is_left_out_and_does_not_stop_the_run(tmp_path: Path):
    change = lambda i, image, target: (image, {**target, "labels": target["labels"] + 80 * (i == 5)})  # noqa: E731
    result = train(config(None, tmp_path), model=small_model(classes=2), train_data=Odd(change))
    (incident,) = incidents(tmp_path)
    assert result.status == "finished"
    assert (incident["cause"], incident["culprit"]["image_ids"]) == ("DATA_LABEL", [105])


def test_a_flipped_bit_in_a_saved_case_is_noticed_and_proves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train(config(None, tmp_path), model=small_model(classes=2), train_data=OwnData(bad=(3,)))
    case = tmp_path / "run" / "incidents" / "0001.pt"
    rig = lambda settings: rig_from_settings(settings, {})  # noqa: E731
    load_case(case, rig)
    whole = case.read_bytes()
    for at in (len(whole) // 3, len(whole) // 2, len(whole) - 200, len(whole) - 5):
        case.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(CheckpointError):
            load_case(case, rig)
    capsys.readouterr()
    assert diagnose_path(tmp_path / "run", json_mode=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["replayed"], said["findings"][0]["cause"]) == (False, "DATA_PIXEL")


def test_an_investigation_that_fails_itself_is_said_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any, **__: Any) -> Any:
        raise TypeError("a scan met something new")

    monkeypatch.setattr(response, "investigate", broken)
    result = train(config(None, tmp_path), model=small_model(classes=2), train_data=OwnData(bad=(3,)))
    (incident,) = incidents(tmp_path)
    assert result.status == "finished"
    assert (incident["cause"], incident["confidence"]) == ("UNKNOWN", 0.0)
    assert "a scan met something new" in incident["evidence"][0]["outcome"]


def test_many_bad_images_are_left_out_one_by_one_and_said_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Two in five, as of a second camera: what is left trains on, and the run says that it was not the one meant."""
    bad = (0, 3, 5, 8, 11)
    result = train(
        config(None, tmp_path, batch_size=1, epochs=2, val=None),
        model=small_model(classes=2),
        train_data=OwnData(12, bad),
    )
    said = capsys.readouterr()
    assert (result.status, result.finite, result.steps) == ("finished", True, 24)
    assert {i["id"] for i in json.loads((tmp_path / "run" / "quarantine.json").read_text())["images"]} == {
        100 + i for i in bad
    }
    assert "5 of 12 training images (42%) were left out on the way" in said.out + said.err
