"""Losses are means over the micro-batches; a bad one ends the pass; what was raised is kept in words."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.guard.forward_backward import Pass, as_terms, run, sum_terms
from maskrcnn_coco.guard.norms import Layout


def model_and_layout() -> tuple[nn.Linear, Layout]:
    model = nn.Linear(2, 1)
    return model, Layout(model, torch.optim.SGD(model.parameters(), 0.1), None)


def test_losses_are_means_and_gradients_add_up_to_those_of_the_whole_batch() -> None:
    model, layout = model_and_layout()
    halves = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])]
    done = run(lambda b: {"a": model(b).mean(), "b": model(b).square().mean()}, halves, None, layout)
    whole = torch.cat(halves)
    assert done.losses["a"] == pytest.approx(model(whole).mean().item(), rel=1e-6)
    assert done.error is None and done.micro_batch is None
    (wanted,) = torch.autograd.grad(model(whole).mean() + model(whole).square().mean(), [model.weight])
    torch.testing.assert_close(model.weight.grad, wanted)


def test_the_first_bad_micro_batch_ends_the_pass_and_is_named() -> None:
    model, layout = model_and_layout()
    seen: list[int] = []

    def forward(number: int) -> Tensor:
        seen.append(number)
        return model(torch.ones(1, 2)).sum() * (math.nan if number == 1 else 1.0)

    done = run(forward, [0, 1, 2], None, layout)
    assert (done.micro_batch, seen) == (1, [0, 1]) and math.isnan(done.loss)


def test_a_nan_that_reaches_no_weight_is_named_and_does_no_harm() -> None:
    model, layout = model_and_layout()
    empty = torch.zeros(0, requires_grad=True)
    done = run(lambda b: {"of none": empty.mean(), "box": model(b).sum()}, [torch.ones(1, 2)], None, layout)
    assert done.without_gradient == ["of none"] and done.micro_batch is None
    assert done.loss == pytest.approx(done.losses["box"]) and model.weight.grad is not None
    assert bool(model.weight.grad.isfinite().all())


def test_what_the_forward_pass_raises_is_kept_in_words_with_its_place() -> None:
    _, layout = model_and_layout()

    def forward(_: Any) -> Tensor:
        raise KeyError("boxes")

    done = run(forward, [0], None, layout)
    assert done.error is not None and "KeyError" in done.error and "boxes" in done.error
    assert done.micro_batch == 0
    with pytest.raises(KeyError):
        run(forward, [0], None, layout, catch=False)


@pytest.mark.parametrize(
    "given", [torch.tensor(2.0), {"loss": torch.tensor(2.0)}, (torch.tensor(2.0), {"logits": torch.ones(3)})]
)
def test_losses_come_in_many_forms(given: Any) -> None:
    terms = as_terms(given)
    assert float(sum_terms(list(terms.values()), 1)) == 2.0
    assert float(sum_terms(list(terms.values()), 4)) == 0.5


def test_of_logits_and_a_loss_the_number_with_a_gradient_is_the_loss() -> None:
    loss = torch.tensor(2.0, requires_grad=True)
    for given in ((torch.ones(4, 3), loss), (torch.ones(4), loss, None), (loss, 3 * loss), (loss, torch.ones(4))):
        assert as_terms(given)["loss"].item() == 2.0


def test_an_empty_pass_has_no_loss() -> None:
    assert math.isnan(Pass().loss)


def per_image(batch: Any) -> dict[str, Tensor]:
    weight = torch.ones((), requires_grad=True)
    return {"a": weight * 1.0, "aux": weight * torch.ones(4)}


def test_a_loss_that_nobody_averaged_is_named_and_under_way_a_fault_like_any_other() -> None:
    _, layout = model_and_layout()
    with pytest.raises(ConfigError, match=r"aux is a tensor of shape \(4,\)") as raised:
        run(per_image, [0], None, layout, first=True)
    assert ".mean()" in str(raised.value)
    done = run(per_image, [0], None, layout)
    assert done.error is not None and done.micro_batch == 0


def test_a_model_whose_parameters_are_all_frozen_says_so() -> None:
    model, layout = model_and_layout()
    model.requires_grad_(False)
    done = run(lambda b: model(torch.ones(1, 2)).sum(), [0], None, layout)
    assert done.error is not None and "every parameter is frozen" in done.error


def test_a_batch_without_a_gradient_is_no_fault_where_others_have_one() -> None:
    _, layout = model_and_layout()
    assert run(lambda b: torch.zeros(()), [0], None, layout).error is None


def test_autograd_that_somebody_left_switched_off_is_said() -> None:
    model, layout = model_and_layout()
    with torch.no_grad():
        done = run(lambda b: model(torch.ones(1, 2)).sum(), [0], None, layout)
    assert done.error is not None and "autograd is switched off" in done.error
