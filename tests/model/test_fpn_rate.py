"""A rate of the FPN's own: the backbone's groups in two, every rate a multiple of its component's."""

from __future__ import annotations

import random

import pytest
import torch
from runs import config, small_model
from torch import nn

from maskrcnn_coco.components import TIMES, times_of
from maskrcnn_coco.model.optim import apply_lr, build_optimizer, has_fpn, optimizer_for, with_fpn_times
from maskrcnn_coco.records import COMPONENTS
from maskrcnn_coco.replay.optimizer import restore_optimizer

RATES = dict(zip(COMPONENTS, (1e-3, 2e-3, 3e-3, 4e-3), strict=True))


@pytest.mark.parametrize("seed", range(8))
def test_every_parameter_is_in_one_group_and_learns_at_its_component_s_rate_times_its_own(seed):
    rng, net = random.Random(seed), small_model()
    for _, parameter in net.named_parameters():
        parameter.requires_grad_(rng.random() < 0.7)
    names = {id(p): n for n, p in net.named_parameters() if p.requires_grad}
    times = rng.choice((0.5, 5.0, rng.uniform(0.1, 30)))
    optimizer = build_optimizer(net, kind=rng.choice(("sgd", "adamw")), fpn_times=times)
    apply_lr(optimizer, RATES)
    held = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(held) == sorted(names)
    order = [(COMPONENTS.index(g["component"]), TIMES in g, not g["decay"]) for g in optimizer.param_groups]
    assert order == sorted(order)
    for group in optimizer.param_groups:
        own = {names[id(p)].startswith("backbone.fpn.") for p in group["params"]}
        assert own == {TIMES in group}
        assert times_of(group) == (times if own == {True} else 1.0)
        assert group["lr"] == RATES[group["component"]] * times_of(group)
        assert {p.ndim > 1 for p in group["params"]} == {group["decay"]}


@pytest.mark.parametrize("times", [None, 1.0])
def test_at_the_backbone_s_rate_the_groups_are_as_without_the_setting(times, tmp_path):
    net = small_model()
    settings = config(None, tmp_path, weight_decay=1e-4, fpn_lr_multiplier=times)
    plain, set_ = build_optimizer(net), optimizer_for(net, settings)
    described = [[{k: v for k, v in g.items() if k != "params"} for g in o.param_groups] for o in (plain, set_)]
    assert described[0] == described[1] and TIMES not in described[0][0]
    for a, b in zip(plain.param_groups, set_.param_groups, strict=True):
        assert list(map(id, a["params"])) == list(map(id, b["params"]))


class Own(nn.Module):
    def __init__(self, *, fpn: bool) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"body": nn.Linear(2, 2), ("fpn" if fpn else "neck"): nn.Linear(2, 2)})


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("fpn", [False, True])
def test_only_what_is_called_backbone_fpn_is_set_apart(fpn, wrapped):
    net = nn.ModuleDict({"module": Own(fpn=fpn)}) if wrapped else Own(fpn=fpn)
    assert has_fpn(net) is fpn
    assert sum(TIMES in g for g in build_optimizer(net, fpn_times=2.0).param_groups) == (2 if fpn else 0)


def test_what_a_group_s_rate_is_of_its_component_s_is_the_live_optimizer_s():
    def of(times: float) -> torch.optim.Optimizer:
        return build_optimizer(Own(fpn=True), fpn_times=times)

    live = of(3.0)
    restore_optimizer(live, of(5.0).state_dict())
    assert [g.get(TIMES) for g in live.param_groups] == [None, None, 3.0, 3.0]
    assert [g.get(TIMES) for g in with_fpn_times(live, 1.0).param_groups] == [None, None, 1.0, 1.0]
    with pytest.raises(KeyError, match="groups differ"):
        restore_optimizer(of(1.0), of(5.0).state_dict())
