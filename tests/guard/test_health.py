"""Is the state fit for a step? Whatever is NaN in it is named, and so is a change that no step made."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from maskrcnn_coco.guard.health import Health
from maskrcnn_coco.guard.norms import Layout
from maskrcnn_coco.guard.updates import update_ratio


def make() -> tuple[nn.Linear, torch.optim.Optimizer, Layout, Health]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(torch.ones(4, 3)).square().mean().backward()
    optimizer.step()
    layout = Layout(model, optimizer, None)
    return model, optimizer, layout, Health(layout, optimizer, every=1)


def test_a_healthy_state_is_fit() -> None:
    _, _, _, health = make()
    assert health.check(whole=True) is None and health.check_lr() is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_weight_is_named(value: float) -> None:
    model, _, _, health = make()
    assert health.check(whole=True) is None
    with torch.no_grad():
        model.bias[1] = value
    verdict = health.check(whole=True)
    assert verdict is not None and verdict.symptom == "param_nonfinite" and "bias" in verdict.message


@pytest.mark.parametrize("what", ["exp_avg", "exp_avg_sq"])
def test_a_bad_moment_is_named(what: str) -> None:
    model, optimizer, _, health = make()
    optimizer.state[model.weight][what].view(-1)[0] = math.nan
    verdict = health.check(whole=True)
    assert verdict is not None and verdict.symptom == "optimizer_nonfinite" and what in verdict.message


def test_second_moments_of_large_gradients_are_sound_though_their_squares_are_beyond_range() -> None:
    model, optimizer, _, health = make()
    optimizer.state[model.weight]["exp_avg_sq"].fill_(1e22)
    verdict = health.check(whole=True)
    assert verdict is not None and "exp_avg_sq of" in verdict.message, "of gradients as small as these"
    optimizer.state[model.weight]["exp_avg"].fill_(1e10)
    assert health.check(whole=True) is None
    optimizer.state[model.weight]["exp_avg"].fill_(1e22)
    verdict = health.check(whole=True)
    assert verdict is not None and "exp_avg of" in verdict.message


@pytest.mark.parametrize("name", ["lr", "weight_decay", "eps"])
def test_a_setting_that_is_no_number_is_named(name: str) -> None:
    _, optimizer, _, health = make()
    optimizer.param_groups[0][name] = math.nan
    verdict = health.check_lr()
    assert verdict is not None and name in verdict.message


@pytest.mark.parametrize("name", ["lr", "weight_decay", "eps"])
@pytest.mark.parametrize("kept_as", ["number", "tensor"])
def test_settings_that_were_good_are_looked_at_again(name: str, kept_as: str) -> None:
    _, optimizer, _, health = make()
    group = optimizer.param_groups[0]
    group[name] = torch.tensor(0.01) if kept_as == "tensor" else 0.01
    assert health.check_lr() is None and health.check_lr() is None
    assert health.lr() == health.lr() == {n: pytest.approx(float(group["lr"])) for n in health.layout.components}
    if kept_as == "tensor":
        group[name].fill_(math.nan)  # the same object, another value
    else:
        group[name] = math.nan
    verdict = health.check_lr()
    assert verdict is not None and name in verdict.message
    assert name != "lr" or all(map(math.isnan, health.lr().values()))


def test_betas_that_were_good_are_looked_at_again() -> None:
    _, optimizer, _, health = make()
    assert health.check_lr() is None
    optimizer.param_groups[0]["betas"] = (0.9, math.nan)
    verdict = health.check_lr()
    assert verdict is not None and "betas[1]" in verdict.message


def test_zeroed_second_moments_are_no_healthy_state() -> None:
    model, optimizer, _, health = make()
    assert health.check(whole=True) is None
    optimizer.state[model.weight]["exp_avg_sq"].zero_()
    verdict = health.check(whole=True)
    assert verdict is not None and "second moments are zero" in verdict.message
    optimizer.param_groups[0]["betas"] = (0.9, 0.1)  # squares are forgotten first: without a gradient they vanish
    assert health.check(whole=True) is None


def test_the_ratio_of_an_update_is_that_of_the_norms() -> None:
    model, _, layout, _ = make()
    before = [p.detach().clone() for p in layout.params]
    with torch.no_grad():
        model.weight.mul_(1.1)
        model.bias.mul_(1.1)
    weights = [float(torch.cat([b.flatten() for b in before]).norm())]
    (found,) = update_ratio([b.clone() for b in before], layout, weights).values()
    assert found == pytest.approx(0.1, rel=1e-4) or len(layout.components) > 1


def test_state_of_another_weight_is_refused_before_it_raises() -> None:
    """torch loads optimizer state by position and does not compare shapes: the next step would raise half way."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(torch.ones(4, 3)).square().mean().backward()
    optimizer.step()
    health = Health(Layout(model, optimizer, None), optimizer, every=1)
    assert health.check() is None
    saved = optimizer.state_dict()
    saved["state"] = {i: saved["state"][(i + 2) % 4] for i in range(4)}
    optimizer.load_state_dict(saved)
    verdict = health.check()
    assert verdict is not None and verdict.symptom == "optimizer_nonfinite"
    assert set(verdict.measured["misfits"]) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert "exp_avg has the shape (5, 2), the weight (2, 3)" in verdict.message


def test_state_of_another_shape_by_design_is_no_misfit() -> None:
    """A class of somebody else's may keep its moments in a smaller space, or factored."""

    class Projected(torch.optim.Adam):
        pass

    model = nn.Linear(3, 2)
    optimizer = Projected(model.parameters())
    optimizer.state[model.weight] = {"exp_avg": torch.zeros(1, 3)}
    assert Health(Layout(model, optimizer, None), optimizer, every=1).check_fit() is None


@pytest.mark.parametrize(
    ("factor", "found"),
    [(1e4, "diverged"), (1e-2, None), (1.01, None), (math.nan, "param_nonfinite")],
)
def test_weights_that_somebody_writes_during_the_backward_pass_are_seen_before_the_step(
    factor: float, found: str | None
) -> None:
    """A thread that shares them goes past what autograd counts."""
    model, optimizer, _, health = make()
    for _ in range(2):
        assert health.check() is None and health.written_during() is None
        optimizer.step()
        health.finished(due=False)
    assert health.check() is None
    model.weight.data.mul_(factor)
    verdict = health.written_during()
    assert (verdict and verdict.symptom) == found
    assert found != "diverged" or (verdict and verdict.measured["changed_outside"]) == ["weight"]


@pytest.mark.parametrize(("factor", "found"), [(50.0, True), (2.0, False), (0.05, False), (1e-9, True)])
def test_weights_that_somebody_makes_many_times_what_they_were_or_next_to_nothing(factor: float, found: bool) -> None:
    model, optimizer, _, health = make()
    health.every = 10
    for _ in range(3):
        assert health.check() is None
        optimizer.step()
        health.finished(due=False)
    for p in model.parameters():
        p.data.mul_(factor)
    assert (health.check() is not None) is found
