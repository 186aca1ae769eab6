"""Any change of a watched tensor is seen, by value, by place or by identity; looking alone is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from maskrcnn_coco.guard.outside_changes import Witness

KINDS = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.complex64]


def tensors(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.arange(6).to(dtype).reshape(2, 3), torch.ones(5000).to(dtype)]


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_nothing_done_is_nothing_seen(dtype: torch.dtype) -> None:
    held, witness = tensors(dtype), Witness()
    witness.note(held)
    [t.sum() for t in held]
    assert not witness.changed(held) and witness.which(held) == []


CHANGES: dict[str, Callable[[list[Tensor]], object]] = {
    "in place": lambda held: held[1].add_(1),
    "one entry through .data": lambda held: held[0].data.view(-1).__setitem__(2, 9),
    "filled with NaN": lambda held: held[1].data.fill_(float("nan")),
    "another tensor": lambda held: held.__setitem__(1, held[1].clone()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_seen_and_placed(change: str) -> None:
    held, witness = tensors(), Witness()
    witness.note(held)
    CHANGES[change](held)
    assert witness.changed(held)
    assert witness.which(held) == [0 if "entry" in change else 1]


def test_a_nan_that_was_there_is_no_change() -> None:
    held, witness = [torch.full((4,), float("nan"))], Witness()
    witness.note(held)
    assert not witness.changed(held)


def test_whoever_forgot_trusts_nothing() -> None:
    held, witness = tensors(), Witness()
    assert witness.changed(held)
    witness.note(held)
    witness.forget()
    assert witness.changed(held) and witness.which(held) == []


def test_one_more_tensor_is_a_change() -> None:
    held, witness = tensors(), Witness()
    witness.note(held)
    assert witness.changed([*held, torch.ones(1)])
