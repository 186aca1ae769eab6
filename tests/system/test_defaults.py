"""What a notebook has set for all of torch neither ends nor changes a run, and stands again afterwards."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from runs import config, lines
from tiny_run import tiny_model

from maskrcnn_coco import train
from maskrcnn_coco.system.defaults import ordinary_defaults

SET = {
    "nothing": contextlib.nullcontext,
    "device meta": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float16": lambda: _dtype(torch.float16),
    "bfloat16": lambda: _dtype(torch.bfloat16),
}


@contextlib.contextmanager
def _dtype(dtype: torch.dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", SET)
def test_what_is_made_inside_is_ordinary_and_outside_as_before(name: str):
    with SET[name]():
        before = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
        with ordinary_defaults():
            made = torch.ones(2, requires_grad=True)
            assert made.device.type == "cpu" and made.dtype == torch.float32
            assert (made * 2).requires_grad and not made.is_inference()
        assert before == (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled())


def test_double_precision_that_somebody_asked_for_stays():
    with _dtype(torch.float64), ordinary_defaults():
        assert torch.ones(1).dtype == torch.float64


def test_a_run_is_the_same_bits_under_any_of_them(tiny_shapes, tmp_path: Path):
    losses = {}
    for name, setting in SET.items():
        out = tmp_path / name
        model = tiny_model()
        with setting():
            result = train(config(tiny_shapes.root, out, max_steps=2, model=None), model=model, quiet=True)
        assert result.exit_code == 0
        losses[name] = [line["loss"] for line in lines(out)]
    assert all(found == losses["nothing"] for found in losses.values())
