"""Norms of gradients that float32 can hold but not square, without float64, which not every device has."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from maskrcnn_coco.replay.gradients import _norm, gradient_digest
from maskrcnn_coco.replay.outcome import Outcome
from maskrcnn_coco.replay.state import nonfinite_names


@pytest.mark.parametrize("size", [1e20, 3e30, 2e37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_enormous_numbers(size, dtype):
    tensor = (torch.tensor([3.0, -4.0]) * size).to(dtype)
    assert not math.isfinite(float(tensor.float().square().sum()))
    assert _norm(tensor) == pytest.approx(float(tensor.double().norm()), rel=1e-6)


def test_finiteness_is_asked_in_the_tensors_own_dtype(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "double", lambda self: pytest.fail("float64 on a device"))
    tensors = {
        "half": torch.full((4,), 6e4, dtype=torch.float16),
        "wide": torch.full((4,), 3e38),
        "nan": torch.tensor([math.nan]).bfloat16(),
        "sound": torch.ones(3),
    }
    assert nonfinite_names(tensors) == ["nan"]


def test_sparse_gradients_have_a_digest_of_their_rows_and_numbers():
    def digest_of(word: int, factor: float) -> str:
        torch.manual_seed(0)
        table = nn.Embedding(5, 2, sparse=True)
        (factor * table(torch.tensor([word, word])).sum()).backward()
        return gradient_digest(table, Outcome("", True))

    assert digest_of(1, 1.0) == digest_of(1, 1.0)
    assert len({digest_of(1, 1.0), digest_of(2, 1.0), digest_of(1, 2.0)}) == 3
