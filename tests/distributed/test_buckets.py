"""Gradients of several processes, whatever the memory layout of the weights: the updates of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import layout_team
import pytest
import torch
from torch import nn

from maskrcnn_coco.distributed.buckets import empty, fill

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = {
    "channels_last": lambda p: p.contiguous(memory_format=torch.channels_last),
    "transposed": lambda p: p.transpose(0, 1).contiguous().transpose(0, 1),
    "row_major": lambda p: p.contiguous(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("present", ["here", "elsewhere", "nowhere"])
def test_a_gradient_comes_out_of_a_bucket_laid_out_as_its_weight(layout, present):
    weight = nn.Parameter(LAYOUTS[layout](torch.randn(4, 3, 2, 5)))
    wanted = torch.randn(4, 3, 2, 5)
    weight.grad = LAYOUTS[layout](wanted) if present == "here" else None
    bucket = torch.empty(weight.numel() + 1)
    fill(bucket, [weight])
    if present == "elsewhere":
        assert not bucket[: weight.numel()].any()
        bucket[: weight.numel()] = wanted.flatten()
    empty(bucket, [weight], {id(weight): int(present != "nowhere")})
    if present == "nowhere":
        assert weight.grad is None
        return
    assert weight.grad is not None and weight.grad.stride() == weight.stride()
    assert torch.equal(weight.grad, wanted)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where both precisions' weights are."""
    out = tmp_path_factory.mktemp("layout")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/helpers/layout_team.py"), str(out), "fp32", "fp16"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_two_processes_train_channels_last_weights_as_one_process_does(precision, trained):
    """Unused branches, an empty batch, clipping, unscaling, a snapshot put back, an optimizer's state from a file."""
    found = torch.load(trained / f"{precision}.pt", weights_only=True)
    wanted = layout_team.straight()
    names = [n for n, _ in layout_team.Net().named_parameters()]
    for what, values, truths in zip(("weight", "momentum"), found, wanted, strict=True):
        for name, value, truth in zip(names, values, truths, strict=True):
            torch.testing.assert_close(
                value, truth, msg=lambda m, w=what, n=name: f"{w} of {n}: {m}", check_stride=False
            )
