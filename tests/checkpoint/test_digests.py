"""A file that another program changed is whole, finite and not what the run saved: its tensors' digests say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from states import state_at

from maskrcnn_coco.checkpoint.digests import DIGESTS, changed_since_saved, digests_of
from maskrcnn_coco.checkpoint.saver import Saver
from maskrcnn_coco.checkpoint.store import load, load_as_saved, load_newest, save
from maskrcnn_coco.errors import CheckpointError


def state(step: int) -> dict[str, Any]:
    made = state_at(step)
    made["model"] = {
        "a.weight": torch.arange(12.0).view(3, 4),
        "b.weight": torch.arange(12.0).view(3, 4) + step,
        "square": torch.arange(9.0).view(3, 3),
        "half": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }
    made["optimizer"] = {"state": {0: {"step": torch.tensor(5.0), "exp_avg": torch.ones(3, 4)}}, "param_groups": []}
    made["ema"] = {"weights": {"a.weight": torch.ones(3, 4)}, "updates": 3}
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saver = Saver(tmp_path)
    for step in (1, 2):
        saver.save_last(state(step))
    assert saver.wait() == []
    return tmp_path


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """``last.pth`` as another program saves it: whole, with its own checksum."""
    found = load(folder / "last.pth")
    change(found)
    save(folder / "last.pth", found, serial=int(found["serial"]))
    return folder / "last.pth"


def exchange(s: dict[str, Any]) -> None:
    s["model"]["a.weight"], s["model"]["b.weight"] = s["model"]["b.weight"], s["model"]["a.weight"]


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str]]] = {
    "zeroed": (lambda s: s["model"]["a.weight"].zero_(), ["model.a.weight"]),
    "exchanged": (exchange, ["model.a.weight", "model.b.weight"]),
    "transposed": (lambda s: s["model"].update(square=s["model"]["square"].t().clone()), ["model.square"]),
    "rows": (lambda s: s["model"].update({"a.weight": s["model"]["a.weight"].flip(0)}), ["model.a.weight"]),
    "sign of zero": (lambda s: s["model"]["half"].abs_(), ["model.half"]),
    "reshaped": (lambda s: s["model"].update({"a.weight": s["model"]["a.weight"].view(4, 3)}), ["model.a.weight"]),
    "counter": (lambda s: s["optimizer"]["state"][0]["step"].zero_(), ["optimizer.state.0.step"]),
    "moment": (lambda s: s["optimizer"]["state"][0]["exp_avg"].mul_(2), ["optimizer.state.0.exp_avg"]),
    "average": (lambda s: s["ema"]["weights"]["a.weight"].add_(1), ["ema.weights.a.weight"]),
    "gone": (lambda s: s["model"].pop("count"), ["model.count"]),
    "new": (lambda s: s["model"].update(more=torch.ones(1)), ["model.more"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_another_program_changed_is_named_and_an_older_file_taken(folder: Path, name: str):
    change, named = CHANGES[name]
    path = rewritten(folder, change)
    assert changed_since_saved(load(path)) == named
    with pytest.raises(CheckpointError, match="not as the run saved it") as e:
        load_as_saved(path)
    assert named[0] in e.value.what
    older, found, skipped = load_newest(folder, as_saved=True)
    assert older is not None and older.name == "previous.pth" and found is not None and found["loop"]["step"] == 1
    assert [s.path.name for s in skipped] == ["last.pth"]


def test_a_file_as_it_was_saved_is_as_it_was_saved(folder: Path):
    assert changed_since_saved(load_as_saved(folder / "last.pth")) == []
    copied = rewritten(folder, lambda s: s["loop"].update(step=9))
    assert load_as_saved(copied)["loop"]["step"] == 9, "plain settings are the reader's own"


def test_files_of_older_versions_tell_no_digests_and_are_taken(folder: Path):
    path = rewritten(folder, lambda s: (s.pop(DIGESTS), exchange(s)))
    assert changed_since_saved(load_as_saved(path)) == []


def test_digests_do_not_depend_on_how_a_tensor_lies_in_memory():
    across = torch.arange(6.0).view(2, 3).t()
    assert digests_of({"model": {"w": across}}) == digests_of({"model": {"w": across.contiguous()}})
    assert digests_of({"model": {"w": torch.zeros(2)}}) != digests_of({"model": {"w": torch.zeros(2).int()}})
