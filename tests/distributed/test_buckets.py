"""Gradients of several processes, whatever the memory layout of the weights: the updates of one process."""

from __future__ import annotations

import os
import socket
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


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_two_processes_train_channels_last_weights_as_one_process_does(precision, tmp_path):
    """Unused branches, an empty batch, clipping, unscaling, a snapshot put back, an optimizer's state from a file."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    out = tmp_path / "end.pt"
    command = [sys.executable, str(ROOT / "tests/helpers/layout_team.py"), precision, str(out)]
    processes = [
        subprocess.Popen(
            command, env={**shared, "RANK": str(r), "LOCAL_RANK": str(r)}, stderr=subprocess.PIPE, text=True
        )
        for r in range(2)
    ]
    for process in processes:
        assert process.communicate(timeout=90)[1] is not None and process.returncode == 0
    found = torch.load(out, weights_only=True)
    wanted = layout_team.straight()
    names = [n for n, _ in layout_team.Net().named_parameters()]
    for what, values, truths in zip(("weight", "momentum"), found, wanted, strict=True):
        for name, value, truth in zip(names, values, truths, strict=True):
            torch.testing.assert_close(
                value, truth, msg=lambda m, w=what, n=name: f"{w} of {n}: {m}", check_stride=False
            )
