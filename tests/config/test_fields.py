"""A `Config` made in Python: its own habits are understood, and nothing of another type gets through."""

from __future__ import annotations

import datetime
import decimal
import fractions
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from maskrcnn_coco.config.settings import Config, dump_config, flag, validate
from maskrcnn_coco.errors import ConfigError

STRANGE = [
    b"x", [1], {}, {"a": 1}, 1j, object(), print, Config, decimal.Decimal("0.5"), fractions.Fraction(1, 3), {1},
    datetime.date(2026, 1, 2), "\ud800", np.array([1, 2]), torch.ones(2), float("nan"), 10**400, 10**5000,
]  # fmt: skip


@pytest.mark.parametrize("name", Config.__struct_fields__)
def test_a_value_of_no_type_of_the_field_is_told_by_its_flag(name):
    for value in STRANGE:
        with pytest.raises(ConfigError) as e:
            validate(Config(**{name: value}))
        assert flag(name) in e.value.what
        assert len(e.value.what) < 600


@pytest.mark.parametrize(
    ("field", "value", "held"),
    [
        ("data", Path("a"), "a"),
        ("logdir", Path("a/b"), "a/b"),
        ("lr", np.float32(0.5), 0.5),
        ("lr", torch.tensor(0.25), 0.25),
        ("epochs", np.int64(3), 3),
        ("device", torch.device("cuda", 1), "cuda:1"),
        ("track", ["mlflow"], ("mlflow",)),
        ("momentum", 0, 0),
    ],
)
def test_what_python_uses_for_numbers_paths_and_devices_is_taken(field, value, held):
    config = Config(**{field: value})
    validate(config)
    assert getattr(config, field) == held
    assert dump_config(config)
    assert type(getattr(config, field)) in (str, float, int, tuple)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"guard": "Recover"}, "--guard: got 'Recover' (str), expected recover, stop, observe, off; did you mean"),
        ({"lr": "1e-3"}, "--lr: got '1e-3' (str), expected a number, auto or None"),
        ({"strict": "no"}, "--strict: got 'no' (str), expected True or False"),
        ({"epochs": 1.5}, "--epochs: got 1.5 (float), expected a whole number or None"),
        ({"seed": True}, "--seed: got True (bool), expected a whole number"),
        ({"track": "mlflow"}, "expected a tuple of mlflow, wandb, trackio; did you mean 'mlflow'?"),
        ({"resume": None}, "--resume: got None (NoneType), expected text"),
    ],
)
def test_the_sentence_says_what_a_field_takes(fields, words):
    with pytest.raises(ConfigError) as e:
        validate(Config(**fields))
    assert words in e.value.what


def test_a_copy_is_held_to_the_same():
    with pytest.raises(ConfigError, match="--guard"):
        validate(msgspec.structs.replace(Config(), guard="on"))
