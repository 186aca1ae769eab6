"""Processes with other settings, data or weights than the rest are named, not averaged."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import config

from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import ConfigError, GuardStop
from maskrcnn_coco.training.agreement import digest, require_same_start, require_same_weights


class Team(Ranks):
    """Process 0 of three; the others answer as ``others`` change what this one says."""

    def __init__(self, *others: Any) -> None:
        self.rank, self.world, self.others = 0, 1 + len(others), others

    def gather_objects(self, value: Any) -> list[Any]:
        return [value, *(change(value) for change in self.others)]


def same(value: Any) -> Any:
    return value


def session(ranks: Team) -> Any:
    torch.manual_seed(0)
    return SimpleNamespace(
        ranks=ranks,
        config=config(None, Path("out")),
        data=SimpleNamespace(class_names=("background", "a"), train=None, val=None),
        plan=SimpleNamespace(image_ids=[1, 2, 3], quarantined=[]),
        model=torch.nn.Linear(3, 2),
        progress=SimpleNamespace(step=50),
    )


def test_processes_that_agree_go_on():
    made = session(Team(same, same))
    require_same_start(made)
    require_same_weights(made)


@pytest.mark.parametrize(
    ("value", "words"),
    [(2e-3, "--lr"), ([1, 2, 3], "images of the plan")],
)
def test_a_process_that_differs_is_named_with_what_differs(value, words):
    def other(said: Any) -> Any:
        return "another" if said == value else said

    with pytest.raises(ConfigError, match=f"{words}.*process 2 differs") as e:
        require_same_start(session(Team(same, other)))
    assert e.value.exit_code == 2


@pytest.mark.parametrize("place", [(0, 0), (1, 2)])
def test_one_finite_weight_that_changed_in_one_process_is_seen(place):
    made = session(Team())
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(made.model.state_dict())
    assert digest(other) == digest(made.model)
    with torch.no_grad():
        other.weight[place] += 1e-7 * (1 + abs(float(other.weight[place])))
    changed = digest(other)
    made.ranks = Team(same, lambda _: changed)
    with pytest.raises(GuardStop, match="process 2 of 3 has other weights") as e:
        require_same_weights(made)
    assert e.value.exit_code == 4


def test_weights_that_changed_places_are_seen_too():
    model = torch.nn.Linear(60, 60)
    before = digest(model)
    with torch.no_grad():
        model.weight.copy_(model.weight.flip(0))
    assert digest(model) != before
