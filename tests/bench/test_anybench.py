"""A slice of AnyBench: what it counts is what happens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from anywhere.faults import AT, FAULTS
from anywhere.models import TRAININGS
from anywhere.run import train

BY_NAME = {f.name: f for f in FAULTS}
TRAINING = {t.name: t for t in TRAININGS}


@pytest.mark.parametrize(
    ("training", "optimizer", "fault"),
    [
        ("cnn_batchnorm", "adamw", "nan_input"),
        ("gpt_block", "sgd", "root_of_zero"),
        ("mlp", "adagrad", "inf_gradient"),
        ("vae", "rmsprop", "huge_loss"),
    ],
)
def test_a_bad_step_is_refused_bit_for_bit_and_the_run_learns_on(training: str, optimizer: str, fault: str):
    done = train(TRAINING[training], optimizer, BY_NAME[fault], 0, "attach")
    assert (done.refused, done.touched, done.finite) == ([AT], 0, True)
    twin = train(TRAINING[training], optimizer, BY_NAME["none"], 0, "plain")
    assert done.loss == pytest.approx(twin.loss, abs=0.25 * abs(twin.loss) + 0.15)
    if fault != "huge_loss":
        assert not train(TRAINING[training], optimizer, BY_NAME[fault], 0, "plain").finite


@pytest.mark.parametrize("decoy", [f.name for f in FAULTS if f.decoy])
def test_what_only_looks_like_a_fault_is_left_alone(decoy: str):
    assert train(TRAINING["mlp"], "adamw", BY_NAME[decoy], 0, "attach").refused == []
