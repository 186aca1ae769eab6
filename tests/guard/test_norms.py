"""Norms by component are those of torch on the same tensors; rates are read, and a NaN among them is never lost."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn

from maskrcnn_coco.components import TIMES
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.guard.norms import Layout, all_finite, nonfinite_at, norms


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.rpn = nn.Linear(3, 4), nn.Linear(2, 2)


def optimizer_of(model: nn.Module, **rates: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": list(m.parameters()), "lr": rates[n]} for n, m in model.named_children()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_norms_are_torch_s_in_at_least_single_precision(dtype: torch.dtype) -> None:
    made = [torch.randn(7, 3).to(dtype), torch.zeros(2).to(dtype), torch.randn(1).to(dtype)]
    assert norms(made) == pytest.approx([float(t.double().norm()) for t in made], rel=1e-5)


def test_half_precision_squares_do_not_overflow() -> None:
    (found,) = norms([torch.full((4,), 6e4, dtype=torch.float16)])
    assert found == pytest.approx(2 * 6e4, rel=1e-3)


def test_totals_by_component() -> None:
    model = Two()
    layout = Layout(model, optimizer_of(model, backbone=0.1, rpn=0.2), None)
    assert layout.components == ["backbone", "rpn"]
    found = layout.by_component(layout.totals(norms(layout.params)))
    for name, part in model.named_children():
        flat = torch.cat([p.detach().flatten() for p in part.parameters()])
        assert found[name] == pytest.approx(float(flat.norm()), rel=1e-6)


def test_rates_by_component_keep_the_largest_and_a_nan() -> None:
    model = Two()
    optimizer = optimizer_of(model, backbone=0.1, rpn=0.2)
    layout = Layout(model, optimizer, None)
    assert layout.lr(optimizer) == {"backbone": 0.1, "rpn": 0.2}
    optimizer.param_groups[1]["lr"] = math.nan
    assert math.isnan(layout.lr(optimizer)["rpn"])


@pytest.mark.parametrize("body", [True, False])
def test_a_group_with_a_multiple_of_its_component_s_rate_counts_with_the_component_s_to_the_bit(body: bool) -> None:
    model, rng = Two(), random.Random(0)
    for _ in range(400):
        rate, times = 10 ** rng.uniform(-9, 0), rng.choice((0.3, 2.5, 5.0, 16.66, rng.uniform(0.1, 30)))
        optimizer = optimizer_of(model, backbone=rate, rpn=0.2)
        held = optimizer.param_groups[0]["params"]
        optimizer.param_groups[0] |= {"params": held[:1], **({} if body else {TIMES: times, "lr": rate * times})}
        optimizer.add_param_group({"params": held[1:], "lr": rate * times, TIMES: times})
        layout = Layout(model, optimizer, None)
        found = layout.lr(optimizer)
        assert found["rpn"] == 0.2 and found["backbone"] * times == rate * times
        assert found["backbone"] == rate or not body
        assert layout.largest(found) == [max(rate, rate * times) if body else rate * times, 0.2]
        optimizer.param_groups[2]["lr"] *= 1000
        assert layout.lr(optimizer)["backbone"] == pytest.approx(1000 * rate)
        assert layout.largest(layout.lr(optimizer))[0] >= optimizer.param_groups[2]["lr"] * (1 - 1e-12)
        optimizer.param_groups[2]["lr"] = math.nan
        assert math.isnan(layout.largest(layout.lr(optimizer))[0])


def test_a_layout_is_outdated_by_freezing_and_by_new_parameters() -> None:
    model = Two()
    optimizer = optimizer_of(model, backbone=0.1, rpn=0.2)
    layout = Layout(model, optimizer, None)
    assert not layout.outdated(optimizer)
    model.rpn.bias.requires_grad_(False)
    assert layout.outdated(optimizer)
    model.rpn.bias.requires_grad_(True)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.1})
    assert layout.outdated(optimizer)


def test_an_optimizer_of_frozen_weights_is_refused() -> None:
    model = Two().requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameters"):
        Layout(model, optimizer_of(model, backbone=0.1, rpn=0.2), None)


def test_where_values_are_not_finite() -> None:
    assert list(nonfinite_at([1.0, math.nan, math.inf, -2.0])) == [1, 2]
    assert all_finite(torch.tensor([3e38, 3e38])) and not all_finite(torch.tensor([1.0, math.inf]))
