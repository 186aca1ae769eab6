"""The first module and op that turn finite numbers into others are named, forward and backward."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_coco.guard.norms import Layout
from maskrcnn_coco.replay.locate import largest, located_run
from maskrcnn_coco.replay.outcome import CONSTANT, NOTHING


class Root(nn.Module):
    """The square root: NaN of what is below zero, an infinite slope at zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.root, self.last = nn.Linear(2, 2, bias=False), Root(), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.root(self.first(x)))


def located(net: nn.Module, batch: Tensor) -> Any:
    forward: Any = lambda b: {"loss": net(b).sum()}  # noqa: E731 - carries an attribute, as `Forward` does
    carried: Any = type("F", (), {"model": net, "__call__": lambda self, b: forward(b)})()
    return located_run(carried, [batch], None, Layout(net, torch.optim.SGD(net.parameters(), 0.1), None))


@pytest.fixture
def net() -> Net:
    made = Net()
    with torch.no_grad():
        made.first.weight.copy_(torch.eye(2))
    return made


def test_the_module_and_op_that_make_the_first_nan(net: Net) -> None:
    found = located(net, torch.tensor([[1.0, -1.0]]))
    assert (found.module, found.phase) == ("root", "forward") and found.op.startswith("sqrt")


def test_a_finite_pass_names_nothing_and_measures_the_largest(net: Net) -> None:
    found = located(net, torch.tensor([[4.0, 900.0]]))
    assert found.module is None and found.op is None
    assert found.largest["root"] == 900.0


def test_an_average_over_nothing_is_named(net: Net) -> None:
    def forward(x: Tensor) -> dict[str, Tensor]:
        out = net(x)
        return {"loss": out.mean() + out[x[:, 0] < 0].mean()}

    carried: Any = type("F", (), {"model": net, "__call__": lambda self, b: forward(b)})()
    found = located_run(carried, [torch.ones(2, 2)], None, Layout(net, torch.optim.SGD(net.parameters(), 0.1), None))
    assert found.phase == "loss" and found.op.startswith("mean" + NOTHING)


def test_a_nan_of_the_backward_pass_names_the_function(net: Net) -> None:
    class Safe(nn.Module):
        """Finite forward; at 0 the slope of the root times the 0 of the mask is NaN."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, x.sqrt(), torch.zeros_like(x))

    net.root = Safe()  # type: ignore[assignment]
    found = located(net, torch.tensor([[1.0, 0.0]]))
    assert found.module is None and found.phase == "backward" and found.op.startswith("SqrtBackward")


def test_hooks_are_gone_afterwards(net: Net) -> None:
    located(net, torch.tensor([[1.0, -1.0]]))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_largest_of_anything_nested() -> None:
    assert largest({"a": [torch.tensor([-7.0]), (torch.ones(2),)], "b": SimpleNamespace()}) == 7.0
    assert not math.isnan(largest([]))


def test_infinities_that_a_module_keeps_to_itself_are_not_blamed() -> None:
    """An image without objects is matched with boxes of no size inside the heads, and their logarithms are not used."""

    class Matching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            unused = (x * 0).log()
            return torch.where(unused.isfinite(), unused, x)

    class Divided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.matching = nn.Linear(2, 2), Matching()

        def forward(self, x: Tensor) -> Tensor:
            return self.matching(self.first(x)) / torch.zeros(())

    found = located(Divided(), torch.ones(1, 2))
    assert found.module is None and found.op.startswith("div")


def test_an_op_that_overflows_in_half_precision_says_so(net: Net) -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 1e5).half().float()

    net.last = nn.Sequential(Half(), net.last)
    found = located(net, torch.tensor([[4.0, 900.0]]))
    assert found.module == "last.0" and found.op.startswith("_to_copy in float16 (")
    net.last[0] = nn.Identity()
    assert " in float16" not in located(net, torch.tensor([[1.0, -1.0]])).op


def test_a_forward_that_reads_what_its_loss_was_multiplied_by_is_watched_too(net: Net) -> None:
    """A rig asks by which number a loop divided its loss; inside the watch that number is no tensor."""
    read = []

    def forward(b: Tensor) -> dict[str, Tensor]:
        term = 0.5 * (net(b).sum() / torch.zeros(()))
        read.append(float(term.grad_fn._saved_other))  # type: ignore[union-attr]
        return {"loss": term, "other": net(b).sum()}

    carried: Any = type("F", (), {"model": net, "__call__": lambda self, b: forward(b)})()
    layout = Layout(net, torch.optim.SGD(net.parameters(), 0.1), None)
    found = located_run(carried, [torch.tensor([[4.0, 9.0]])], None, layout)
    assert read == [0.5] and found.taken.error is None
    assert found.phase == "loss" and found.op.startswith("div")


def test_an_operand_of_the_losses_own_that_is_not_finite_is_named(net: Net) -> None:
    """A class weight of 1 / 0, made long before, and only some batches have the class."""
    weight = 1 / torch.tensor([1.0, 0.0])

    def forward(b: Tensor) -> dict[str, Tensor]:
        return {"loss": net(b).sum() * weight[1], "other": net(b).sum()}

    carried: Any = type("F", (), {"model": net, "__call__": lambda self, b: forward(b)})()
    layout = Layout(net, torch.optim.SGD(net.parameters(), 0.1), None)
    found = located_run(carried, [torch.tensor([[4.0, 9.0]])], None, layout)
    assert (found.module, found.phase, found.met) == (None, "loss", False)
    assert found.op and CONSTANT in found.op and "test_locate.py" in found.op


def test_a_quotient_of_whole_numbers_that_is_not_finite_is_named(net: Net) -> None:
    """So many, by how many of them there are of a class: none."""

    def forward(b: Tensor) -> dict[str, Tensor]:
        share = 4 / (torch.tensor([1, 2, 2, 1]) == 3).sum()
        return {"loss": net(b).sum() * (share / (share - 1)), "other": net(b).sum()}

    carried: Any = type("F", (), {"model": net, "__call__": lambda self, b: forward(b)})()
    layout = Layout(net, torch.optim.SGD(net.parameters(), 0.1), None)
    found = located_run(carried, [torch.tensor([[4.0, 9.0]])], None, layout)
    assert (found.module, found.phase) == (None, "loss")
    assert found.op and found.op.startswith(("div", "reciprocal")) and "test_locate.py" in found.op


def test_what_is_not_finite_in_the_batch_or_the_model_is_no_operand_of_the_losses(net: Net) -> None:
    batch = torch.tensor([[4.0, math.inf]])
    forward = lambda _self, b: {"loss": (net(b[:, :1].repeat(1, 2)) * b).sum()}  # noqa: E731
    carried: Any = type("F", (), {"model": net, "__call__": forward})()
    found = located_run(carried, [batch], None, Layout(net, torch.optim.SGD(net.parameters(), 0.1), None))
    assert found.op is None and not found.met
    assert located(net, batch).met


def test_a_row_that_a_mask_leaves_nothing_of_is_found_where_it_becomes_nan(net: Net) -> None:
    """Masks of minus infinity are no fault: of the second row nothing is left, and softmax divides 0 by 0."""
    mask = torch.zeros(2, 3)
    mask[0, 1], mask[1] = -math.inf, -math.inf

    def forward(b: Tensor) -> dict[str, Tensor]:
        scores = net(b).sum() + mask.clone() + mask
        return {"loss": scores.softmax(1).sum()}

    carried: Any = type("F", (), {"model": net, "__call__": lambda self, b: forward(b)})()
    layout = Layout(net, torch.optim.SGD(net.parameters(), 0.1), None)
    found = located_run(carried, [torch.tensor([[4.0, 9.0]])], None, layout)
    assert found.op and found.op.startswith("_softmax") and CONSTANT in found.op


def test_an_op_that_brings_nan_along_by_itself_is_named() -> None:
    """The logarithm of a determinant below 0 is NaN by a constant: none of its operands is."""

    class Volume(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.logdet()

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.volume, self.scale = Volume(), nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.volume(x)

    found = located(Around(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert found.module == "volume" and found.op.startswith("where of NaN (test_locate.py")


@pytest.mark.parametrize("most", [20.0, 5.0])
def test_an_op_that_makes_enormous_numbers_of_usual_ones_is_named(most: float) -> None:
    found = located(nn.Linear(2, 1), torch.tensor([[1.0, 2.0]]))
    assert found.grown is None
    net = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
    with torch.no_grad():
        net[0].weight.fill_(most / 2)
        net[0].bias.zero_()
    carried: Any = type("F", (), {"model": net, "__call__": lambda self, b: {"loss": net(b).exp().sum()}})()
    layout = Layout(net, torch.optim.SGD(net.parameters(), 0.1), None)
    found = located_run(carried, [torch.ones(3, 2)], None, layout)
    assert found.grown is None if most < 13 else found.grown[0].startswith("exp (test_locate.py")


def test_sums_over_many_and_masks_of_large_numbers_are_not_taken_for_growth() -> None:
    net = nn.Linear(2, 1)

    def forward(x: Tensor) -> dict[str, Tensor]:
        masked = (net(x)[:, 0] + torch.full((len(x),), -1e9)).relu()
        return {"loss": masked.sum() + (net(x) * 0 + 1).expand(-1, 3000).reshape(-1).sum()}

    carried: Any = type("F", (), {"model": net, "__call__": lambda self, b: forward(b)})()
    layout = Layout(net, torch.optim.SGD(net.parameters(), 0.1), None)
    assert located_run(carried, [torch.ones(3000, 2)], None, layout).grown is None
