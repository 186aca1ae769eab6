"""Which older state a run goes back to, and what stays in force there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn_coco.errors import CheckpointError, GuardStop
from maskrcnn_coco.training import rollback
from maskrcnn_coco.training.progress import Progress


def snapshots(*steps: int) -> Any:
    return [SimpleNamespace(step=s) for s in steps]


def live(sound: bool, **more: Any) -> Any:
    return SimpleNamespace(is_sound=lambda: sound, **more)


def incident(symptom: str = "loss_nonfinite", cause: str = "DATA_BOX", onset: int = 7) -> Any:
    return SimpleNamespace(symptom=symptom, cause=cause, onset_step=onset)


def test_a_refused_step_leaves_the_state_before_it_where_that_is_sound() -> None:
    assert rollback.sound_state(live(True), snapshots(8, 4), incident()) is None


@pytest.mark.parametrize(
    ("sound", "last"),
    [(False, incident()), (True, incident("diverged")), (True, incident(cause="LR_TOO_HIGH"))],
    ids=["unsound", "diverged", "rate"],
)
def test_a_ruined_state_gives_way_to_the_newest_from_before_the_onset(sound: bool, last: Any) -> None:
    found = rollback.sound_state(live(sound), snapshots(8, 6, 2), last)
    assert found is not None and found.step == 6


def test_where_none_is_old_enough_the_oldest_stands_and_where_none_is_held_it_is_said() -> None:
    found = rollback.sound_state(live(False), snapshots(9, 8), incident(onset=3))
    assert found is not None and found.step == 8
    with pytest.raises(LookupError):
        rollback.sound_state(live(False), [], incident())


def test_what_was_decided_is_in_force_and_twice_is_once() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    seen: list[Any] = []
    plan: Any = SimpleNamespace(
        quarantine=seen.append, quarantine_at=lambda i: seen.append(("at", i)), redraw=lambda d: None
    )
    source: Any = SimpleNamespace(quarantine=lambda ids, images: seen.append((ids, images)))
    decided = Progress(weight_decay=0.01, quarantine=[{"id": 5}, {"id": 6, "index": 2}])
    decided.quarantine_annotations = [{"id": 11}, {"id": 12, "image_ids": [5]}]
    for _ in range(2):
        rollback.put_in_force(decided, live(True, model=model, optimizer=optimizer), plan, source)
        assert seen == [[5], ("at", 2), ([11], None), ([12], [5])]
        assert optimizer.param_groups[0]["weight_decay"] == 0.01
        seen.clear()


def test_a_lowered_momentum_outlives_a_roll_back_and_a_checkpoint() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=1.25)
    nothing: Any = SimpleNamespace(quarantine=lambda ids: None, quarantine_at=lambda i: None, redraw=lambda d: None)
    later, earlier = Progress(momentum=0.9), Progress()
    earlier.keep_decisions(Progress(**later.plain()))
    rollback.put_in_force(earlier, live(True, model=model, optimizer=optimizer), nothing, nothing)
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_a_lower_decay_of_the_optimizer_s_own_is_not_raised() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=1e-4)
    nothing: Any = SimpleNamespace(quarantine=lambda ids: None, quarantine_at=lambda i: None, redraw=lambda d: None)
    parts = live(True, model=model, optimizer=optimizer)
    rollback.put_in_force(Progress(weight_decay=0.01), parts, nothing, nothing)
    assert optimizer.param_groups[0]["weight_decay"] == 1e-4


def test_files_that_cannot_be_read_or_are_poisoned_are_passed_over_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    def state(step: int) -> dict[str, Any]:
        return {"loop": {"step": step, "epoch": 0}, "model": {}, "optimizer": {}, "scaler": None}

    def load(path: Path) -> dict[str, Any]:
        if path.name == "torn.pth":
            raise CheckpointError("torn.pth is damaged")
        return state(9 if path.name == "bad.pth" else 5)

    monkeypatch.setattr(rollback, "load", load)
    fault = SimpleNamespace(what="not finite", name="weight")
    parts = live(True, poisoned=lambda snapshot: [fault] if snapshot.step == 9 else [])
    said: list[str] = []
    console: Any = SimpleNamespace(note=said.append)
    paths = [Path("torn.pth"), Path("bad.pth"), Path("good.pth"), Path("older.pth")]
    path, found = rollback.sound_file(parts, paths, console)
    assert path == "good.pth" and found["loop"]["step"] == 5
    assert len(said) == 2 and "torn.pth" in said[0] and "bad.pth is passed over: not finite (weight)" in said[1]
    with pytest.raises(GuardStop, match="no verified state"):
        rollback.sound_file(parts, paths[:2], console)
    monkeypatch.setattr(rollback, "by_age", lambda folder: paths)
    assert [(p, s.step) for p, s in rollback.older_files("", 9)] == [("good.pth", 5), ("older.pth", 5)]
