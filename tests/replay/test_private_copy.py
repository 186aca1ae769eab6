"""A private copy of a model: it does what the model does, and touches nothing of the run."""

from __future__ import annotations

import functools
import threading
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.replay.private_copy import around, private_copy
from maskrcnn_coco.replay.state import digest


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def gradients(model: nn.Module) -> list[torch.Tensor]:
    model.zero_grad()
    model(torch.ones(3, 4) * torch.arange(3)[:, None]).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(gradients(a), gradients(b), strict=True))


def test_gradient_hooks_go_along():
    model = net()
    for p in model.parameters():
        p.register_hook(lambda g: g * 0.5)
    halved: list[int] = []
    model[0].weight.register_post_accumulate_grad_hook(lambda p: halved.append(p.grad.mul_(2.0).numel()))
    made = private_copy(model)
    assert made.missing == []
    assert same(model, made.model)
    assert len(halved) == 2


def test_a_patched_forward_works_on_the_copy_and_leaves_the_model_alone():
    for patch in ("closure", "partial", "method", "default"):
        model = net()
        layer, inner = model[2], model[2].forward
        if patch == "closure":
            layer.forward = lambda x, inner=None, kept=inner: kept(x) * 2
        elif patch == "partial":
            layer.forward = functools.partial(lambda f, x: f(x) * 2, inner)
        elif patch == "method":
            layer.forward = inner
        else:
            layer.forward = (lambda held, kept: lambda x: held.weight.sum() + kept(x))(layer, inner)
        copied = private_copy(model).model
        assert same(model, copied), patch
        before = digest(model)
        with torch.no_grad():
            for p in copied.parameters():
                p.zero_()
        assert not copied(torch.ones(2, 4)).any(), patch  # of the copy's weights, not of the run's
        assert digest(model) == before, patch


def test_module_hooks_that_hold_the_model_are_made_around_the_copy():
    model = net()
    seen: list[float] = []

    def watch(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
        seen.append(float(model[0].weight.sum().detach()))

    model[2].register_forward_hook(watch)
    copied = private_copy(model).model
    with torch.no_grad():
        copied[0].weight.zero_()
    copied(torch.ones(2, 4))
    assert seen == [0.0]


def test_counters_in_closures_stay_shared():
    model, calls = net(), [0]

    def count(_m: nn.Module, _a: Any, _o: Any) -> None:
        calls[0] += 1

    model.register_forward_hook(count)
    private_copy(model).model(torch.ones(2, 4))
    assert calls == [1]


def test_what_holds_nothing_of_the_model_is_handed_back_as_it_is():
    function, value = (lambda x: x), object()
    assert around(function, {}) is function
    assert around(value, {}) is value
    deep: Any = function
    for _ in range(9):
        deep = functools.partial(deep)
    assert around(deep, {1: 2}) is not None


def test_what_a_module_has_put_aside_is_copied_without_its_graph():
    """A term for later, a list of features: tensors with a graph, which `copy.deepcopy` refuses."""
    model = net()
    model[0].register_forward_hook(lambda m, _, out: setattr(m, "seen", {"all": [out], "mean": out.mean()}))
    assert same(model, private_copy(model).model)
    made = private_copy(model).model
    assert made[0].seen["mean"].grad_fn is None and torch.equal(made[0].seen["all"][0], model[0].seen["all"][0])


def test_what_cannot_be_copied_is_shared():
    """A writer of logs with a lock."""
    model = net()
    model.lock, model[1].values = threading.Lock(), (v for v in range(3))
    made = private_copy(model).model
    assert made.lock is model.lock and same(model, made)
    assert made[0].weight is not model[0].weight


def test_a_function_that_names_the_model_among_its_globals_is_made_around_the_copy() -> None:
    model = nn.Linear(2, 1)
    twin = private_copy(model).model
    names = {"model": model, "torch": torch}
    exec("def loss(m, x):\n    return model(x).sum()", names)
    found = around(names["loss"], {id(model): twin})(twin, torch.ones(1, 2))
    found.backward()
    assert twin.weight.grad is not None and model.weight.grad is None
    assert names["model"] is model
