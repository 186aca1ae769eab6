"""Where a run stands: what comes back with an older state, and what was decided since and stays."""

from __future__ import annotations

import dataclasses
import math

import pytest

from maskrcnn_coco.records import StepRecord
from maskrcnn_coco.training.progress import DECISIONS, Progress


def record(step: int, loss: float, *, applied: bool = True) -> StepRecord:
    return StepRecord(step, 0, {"loss": loss}, loss, 1.0, {}, {}, None, [], applied=applied)


def test_decisions_stay_and_everything_else_is_of_the_older_state() -> None:
    older = Progress(step=3, best=0.5)
    later = Progress(step=9, best=0.7, lr_factors={"rpn": 0.5}, quarantine=[{"id": 4, "incident": "0001"}])
    later.attention = False
    later.libraries, later.weight_decay, later.incidents = False, 1e-4, ["0001"]
    older.keep_decisions(later)
    assert (older.step, older.best) == (3, 0.5)
    assert all(getattr(older, name) == getattr(later, name) for name in DECISIONS)
    later.lr_factors["rpn"] = 0.1
    assert older.lr_factors == {"rpn": 0.5}, "a copy: the later state can go its own way"


def test_every_decision_is_a_field() -> None:
    assert set(DECISIONS) <= {f.name for f in dataclasses.fields(Progress)}


@pytest.mark.parametrize(
    ("step", "first", "last"), [(0, None, None), (1, 4.0, 4.0), (2, 4.0, 3.0), (3, 4.0, 3.0), (9, 4.0, 1.0)]
)
def test_no_loss_of_a_step_that_was_taken_back(step: int, first: float | None, last: float | None) -> None:
    progress = Progress(first_loss=4.0, last_loss=1.0)
    progress.recall([record(0, 4.0), record(1, 3.0), record(2, math.nan, applied=False), record(3, 1.0)], step)
    assert (progress.first_loss, progress.last_loss) == (first, last)


def test_a_resumed_run_that_goes_back_to_its_first_step_has_the_loss_of_its_file() -> None:
    """The records begin with this process: none of them is from before."""
    progress = Progress(step=12, first_loss=4.0, last_loss=2.0)
    progress.loaded()
    progress.last_loss = 1e9
    progress.recall([record(12, 2.1), record(13, 1e9)], 12)
    assert (progress.first_loss, progress.last_loss) == (4.0, 2.0)


def test_a_file_does_not_tell_whether_its_run_was_resumed() -> None:
    straight, resumed = (
        Progress(step=12, first_loss=4.0, last_loss=2.0),
        Progress(step=12, first_loss=4.0, last_loss=2.0),
    )
    resumed.loaded()
    assert straight.plain() == resumed.plain() and Progress(**resumed.plain()).last_loss == 2.0


def test_plain_is_a_private_copy_that_makes_the_same_progress() -> None:
    progress = Progress(step=2, lr_factors={"rpn": 0.5})
    copied = progress.plain()
    progress.lr_factors["rpn"] = 0.25
    assert copied["lr_factors"] == {"rpn": 0.5} and Progress(**copied).step == 2


def test_batches_are_counted() -> None:
    progress = Progress()
    for _ in range(2):
        progress.count_batches(4, 9, 1, seconds=0.5)
    counted = (progress.images_seen, progress.objects_shown, progress.objects_vanished, progress.train_seconds)
    assert counted == (8, 18, 2, 1.0)
