"""Complex numbers as inputs, weights, gradients, buffers and activations: what is wrong with them is seen and named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_coco import attach
from maskrcnn_coco.checkpoint.content import nonfinite
from maskrcnn_coco.guard.buffers import Buffers
from maskrcnn_coco.guard.inputs import Expected, check
from maskrcnn_coco.guard.norms import Layout
from maskrcnn_coco.replay.gradients import gradient_digest
from maskrcnn_coco.replay.locate import largest
from maskrcnn_coco.replay.outcome import Outcome
from maskrcnn_coco.replay.thrown import thrown

NAN, INF = math.nan, math.inf
KINDS = [torch.optim.SGD, torch.optim.Adam, torch.optim.Adamax, torch.optim.Adagrad, torch.optim.Adadelta,
         torch.optim.RMSprop, torch.optim.NAdam]  # fmt: skip


class Spectral(nn.Module):
    """A complex filter on spectra that come in complex, with a running mean of them."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.full((8,), 0.3 + 0.3j))
        self.register_buffer("mean", torch.zeros(8, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(x.mean(0), 0.1)
        return x * self.filter


def fit(model: nn.Module, batch: Any) -> Tensor:
    """A filter that lets half of everything through, turned by a quarter."""
    return torch.view_as_real(model(batch[0]) - 0.5j * batch[0]).square().mean()


def by_largest(model: nn.Module, batch: Any) -> Tensor:
    """Each spectrum over its largest magnitude; one is empty."""
    x = batch[0] / batch[0].abs().amax(1, keepdim=True)
    return fit(model, (x,))


def trained(change: Any, loss: Any = fit, kind: Any = torch.optim.Adam, steps: int = 30, at: int = 20) -> Any:
    """A guard behind thirty steps; ``change``: of the model, its optimizer and the batch, right before step ``at``."""
    torch.manual_seed(0)
    model = Spectral()
    optimizer = kind(model.parameters(), 0.02)
    guard: Any = attach(model, optimizer, diagnose=True, forward=loss, logdir=None, say=False)
    for step in range(steps):
        x = torch.randn(16, 8, dtype=torch.complex64)
        if step == at:
            change(model, optimizer, x)
        (shown,) = guard.batch((x,), range(16 * step, 16 * step + 16))
        optimizer.zero_grad()
        guard.see(loss(model, (shown,))).backward()
        optimizer.step()
    assert all(bool(t.isfinite().all()) for t in model.state_dict().values())
    return guard


def told(guard: Any) -> list[tuple[int, str, list[int]]]:
    return [(i.step, i.cause, i.culprit.image_ids) for i in guard.incidents]


def put(value: complex) -> Any:
    def change(_model: nn.Module, _optimizer: Any, x: Tensor) -> None:
        x[5, 3] = value

    return change


@pytest.mark.parametrize("value", [complex(NAN, 0), complex(0, NAN), complex(0, INF)], ids=str)
def test_a_complex_input_that_is_not_finite_is_seen_before_the_step(value: complex) -> None:
    guard = trained(put(value))
    assert told(guard) == [(20, "DATA_PIXEL", [325])] and guard.incidents[0].symptom == "input_nonfinite"


def test_the_input_check_names_rows_of_complex_tensors() -> None:
    x = torch.randn(4, 3, dtype=torch.complex64)
    assert check([(x,)], Expected()) == [] and check([(1e38 * x.conj(),)], Expected()) == []
    x[2, 1] = complex(0, NAN)
    (problem,) = check([(x,)], Expected())
    assert (problem.kind, problem.position) == ("input", 2)


def test_a_division_by_0_of_complex_numbers_is_the_losses_own() -> None:
    guard = trained(lambda m, o, x: x[5].mul_(0), by_largest)
    ((step, cause, samples),) = told(guard)
    assert (step, cause, samples) == (20, "LOSS_MATH", [325]) and "test_complex.py" in guard.incidents[0].fix


def test_a_complex_input_far_out_of_scale_is_named() -> None:
    guard = trained(lambda m, o, x: x[5].mul_(1e9j))
    assert told(guard)[0] == (20, "DATA_PIXEL", [325])


@pytest.mark.parametrize("value", [complex(NAN, 0), complex(0, NAN), complex(0, INF)], ids=str)
def test_a_complex_weight_or_buffer_that_is_not_finite_is_found_and_put_back(value: complex) -> None:
    def weight(model: Any, *_: Any) -> None:
        model.filter.data[2] = value

    def buffer(model: Any, *_: Any) -> None:
        model.mean[2] = value

    for change in (weight, buffer):
        assert {(s, c) for s, c, _ in told(trained(change))} <= {(20, "POISONED_STATE"), (20, "TRANSIENT")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_too_high_for_complex_weights(kind: Any) -> None:
    def raise_rate(_model: nn.Module, optimizer: Any, _x: Tensor) -> None:
        optimizer.param_groups[0]["lr"] *= 1e5

    assert {c for _, c, _ in told(trained(raise_rate, kind=kind))} == {"LR_TOO_HIGH"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_weighed_anew_over_complex_weights(kind: Any) -> None:
    """Nothing raises where the lengths of complex updates are asked for."""
    weight = [1.0]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return weight[0] * fit(model, batch)

    def heavier(*_: Any) -> None:
        weight[0] = 1e4

    guard = trained(heavier, loss, kind)
    assert all("Error" not in e.outcome for i in guard.incidents for e in i.evidence)


@pytest.mark.parametrize("kind", KINDS)
def test_a_calm_run_of_complex_weights_is_let_be(kind: Any) -> None:
    guard = trained(lambda *_: None, kind=kind)
    assert not guard.incidents and not guard.refused


class Whitened(nn.Module):
    """Statistics of complex numbers under the names of a norm's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3, dtype=torch.complex64))
        self.register_buffer("running_var", torch.ones(3, dtype=torch.complex64))


def test_complex_statistics_are_measured_in_both_parts() -> None:
    model = Whitened()
    buffers = Buffers(model)
    buffers.save()
    assert buffers.wrong(whole=True) == [] and thrown(model, model.state_dict()) == []
    before = {n: t.clone() for n, t in model.state_dict().items()}
    model.get_buffer("running_mean")[1] = complex(0, NAN)
    assert buffers.wrong(whole=True) == ["running_mean"] and thrown(model, before) == ["running_mean"]
    model.get_buffer("running_mean")[1] = complex(0, 1e30)
    assert buffers.wrong(whole=True) == ["running_mean"]


def test_gradients_that_differ_in_their_imaginary_part_have_other_digests() -> None:
    found = []
    for value in (1 + 1j, 1 + 2j):
        model = Spectral()
        model.filter.grad = torch.full((8,), value)
        found.append(gradient_digest(model, Outcome("", True)))
    assert found[0] != found[1]


def test_the_largest_number_and_a_checkpoint_know_both_parts() -> None:
    x = torch.tensor([1 + 0j, complex(0, -7e5), complex(NAN, 3)])
    assert largest([x]) == pytest.approx(7e5)
    assert nonfinite({"model": {"a": x, "b": x[:2]}}) == ["model.a"]


def test_two_real_numbers_are_counted_for_a_complex_weight() -> None:
    model = Spectral()
    assert Layout(model, torch.optim.SGD(model.parameters(), 0.1), None).sizes == [16]
