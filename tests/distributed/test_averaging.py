"""Averaging during the backward pass: the bits of averaging after it, and nobody waits for a process that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from averaging_team import BAD, FAULTS, STEPS, WORLD
from torch import nn

from maskrcnn_coco.distributed.buckets import BUCKET_BYTES, FIRST_BYTES, in_buckets

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("averaging")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/helpers/averaging_team.py"), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{r}.json").read_text()) for r in range(WORLD)]


@pytest.mark.parametrize("what", [*FAULTS, "parts", "off", "nested"])
def test_all_processes_do_the_same_and_in_the_bits_of_averaging_afterwards(team, what):
    during, after = (team[0][f"{what}-{early}"]["steps"] for early in (True, False))
    assert during == after
    for other in team[1:]:
        assert [s[:2] for s in other[f"{what}-True"]["steps"]] == [s[:2] for s in during]
    refused = [not s[0] for s in during]
    assert refused == [i == BAD and what in FAULTS[1:5] for i in range(STEPS)]
    assert all((a[1] == b[1]) == r for a, b, r in zip(during, during[1:], refused[1:], strict=False))


@pytest.mark.parametrize(
    ("fault", "symptom"),
    [
        ("crash_forward", "crash"),
        ("crash_backward", "crash"),
        ("nan_loss", "loss_nonfinite"),
        ("nan_gradient", "grad_nonfinite"),
    ],
)
def test_the_process_that_is_bad_is_named_by_all(team, fault, symptom):
    assert [found[f"{fault}-True"]["steps"][BAD][4] for found in team] == [[symptom, 1]] * WORLD


def test_buckets_leave_during_the_backward_pass(team):
    for found in team:
        # Layers that this process did not use hold back those before them.
        assert sum(found["none-True"]["sent"]) > STEPS
        assert sum(found["parts-True"]["sent"]) > STEPS
        assert not any(found["none-False"]["sent"])


def test_gradients_that_are_added_to_after_they_left_are_sent_again_and_from_then_on_late(team):
    for found in team:
        assert not found["nested-True"]["early"]
        assert found["nested-True"]["sent"][0] > 0
        assert not any(found["nested-True"]["sent"][1:])
        assert found["none-True"]["early"]


def test_losses_of_other_names_are_told_and_many_arrive(team):
    for found in team:
        assert "different places" in found["names"]
        assert found["terms"] == [i + 1.0 for i in range(40)]


def test_the_bucket_that_is_ready_last_is_small():
    params = [nn.Parameter(torch.zeros(n << 18)) for n in (0, 1, 2, 3, 1, 9, 1)]
    shares = list(in_buckets(params))
    assert [p for share in shares for p in share] == params
    sizes = [sum(p.nbytes for p in share) for share in shares]
    assert sizes[0] <= FIRST_BYTES
    assert all(s <= BUCKET_BYTES or len(share) == 1 for s, share in zip(sizes, shares, strict=True))
