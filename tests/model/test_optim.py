"""The optimizer's groups and state, and the schedule as a pure function."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import nn

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.model.build import build_model
from maskrcnn_coco.model.optim import Schedule, apply_lr, build_optimizer, zero_state
from maskrcnn_coco.records import COMPONENTS


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.rpn = nn.Linear(4, 4)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_groups_cover_every_parameter_once_and_spare_norms_and_biases(kind):
    net = build_model("maskrcnn_resnet18_fpn", 4, small=True, min_size=64, max_size=64)
    optimizer = build_optimizer(net, kind=kind, weight_decay=0.01)
    groups = optimizer.param_groups
    assert len(groups) == 2 * len(COMPONENTS)
    assert [g["component"] for g in groups[::2]] == list(COMPONENTS)
    listed = [p for g in groups for p in g["params"]]
    assert len(listed) == len({id(p) for p in listed}) == len(list(net.parameters()))
    spared = {id(p) for g in groups if not g["decay"] for p in g["params"]}
    for name, p in net.named_parameters():
        norm = isinstance(net.get_submodule(name.rsplit(".", 1)[0]), nn.GroupNorm)
        assert (id(p) in spared) == (norm or name.endswith(".bias")), name
    assert all(g["weight_decay"] == (0.01 if g["decay"] else 0.0) for g in groups)
    assert all(g["fused"] for g in groups)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("fused", [True, False])
def test_state_is_zero_before_the_first_step_and_changes_nothing(kind, fused):
    torch.manual_seed(0)
    net, twin = Net(), Net()
    twin.load_state_dict(net.state_dict())
    ours = build_optimizer(net, kind=kind, weight_decay=0.0, fused=fused)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    if kind == "adamw":
        plain = torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.0)
    for state in ours.state.values():
        assert state and all(not t.any() for t in state.values())
    apply_lr(ours, {"backbone": 0.1, "rpn": 0.1})
    for _ in range(3):
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ours.step()
        plain.step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    zero_state(ours)
    assert all(not t.any() for state in ours.state.values() for t in state.values())


def test_frozen_parameters_are_left_out():
    net = Net()
    net.backbone.requires_grad_(False)
    assert {g["component"] for g in build_optimizer(net).param_groups} == {"rpn"}
    net.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameters"):
        build_optimizer(net)
    with pytest.raises(ConfigError, match="sgd or adamw"):
        build_optimizer(Net(), kind="lion")


def test_rates_go_to_their_groups():
    optimizer = build_optimizer(Net())
    apply_lr(optimizer, {"backbone": 1e-3, "rpn": 2e-3})
    assert {g["component"]: g["lr"] for g in optimizer.param_groups} == {"backbone": 1e-3, "rpn": 2e-3}
    apply_lr(optimizer, {"backbone": 5e-4})
    assert {g["lr"] for g in optimizer.param_groups} == {5e-4}
    with pytest.raises(ConfigError, match="no learning rate for backbone"):
        apply_lr(optimizer, {"rpn": 1e-3})


def test_schedule_is_a_pure_function_of_the_step():
    schedule = Schedule({"backbone": 1e-2, "box_head": 1e-1}, warmup_steps=10, total_steps=100)
    rates = [schedule.at(s)["backbone"] for s in range(120)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[5] == pytest.approx(1e-5 + (1e-2 - 1e-5) / 2)
    assert rates[10] == pytest.approx(1e-2)
    assert rates[55] == pytest.approx(1e-2 * (0.01 + 0.99 * 0.5))
    assert rates[100] == rates[119] == pytest.approx(1e-4)
    assert all(a < b for a, b in itertools.pairwise(rates[:11]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:101]))
    order = list(range(120))
    random.Random(0).shuffle(order)
    assert all(schedule.at(s)["backbone"] == rates[s] for s in order)
    halved = schedule.at(50, {"box_head": 0.5})
    assert halved["box_head"] == pytest.approx(0.5 * schedule.at(50)["box_head"])
    assert halved["backbone"] == schedule.at(50)["backbone"]


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (1, 1), (5, 3), (0, 0)])
def test_short_schedules_stay_in_range(warmup, total):
    schedule = Schedule({"a": 1.0}, warmup_steps=warmup, total_steps=total)
    assert all(0 < schedule.at(s)["a"] <= 1 for s in range(10))


def test_other_schedules():
    step = Schedule({"a": 1.0}, warmup_steps=10, total_steps=90, kind="step")
    assert [round(step.at(s)["a"], 6) for s in (10, 59, 60, 79, 80, 200)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    level = Schedule({"a": 1.0}, warmup_steps=10, total_steps=90, kind="constant")
    assert level.at(5)["a"] < 1 and {level.at(s)["a"] for s in (10, 50, 89, 500)} == {1.0}
