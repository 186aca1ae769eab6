"""The guard behind loops as people write them: eighty-odd, each with one bad sample; the whole sweep is in bench."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from anywhere.loops import harness
from anywhere.loops.fourth import FOURTH
from anywhere.loops.harness import AT, Run, same, state_of
from anywhere.loops.kinds import KINDS
from anywhere.loops.mechanics import MECHANICS
from anywhere.loops.recipes import RECIPES
from anywhere.loops.third import THIRD
from anywhere.red import caused, culprit
from torch import nn

from maskrcnn_coco import attach

SLICE = ("two_tasks", "spectral", "quantised", "lora", "state_space", "master_copy", "neural_ode", "codebook", "ppo")
LATE = ("annealed", "adapters", "uncertain", "twins", "quantiles", "noisy_centred", "many_words", "ranked")
LOOPS = KINDS | MECHANICS | {name: RECIPES[name] for name in SLICE} | {name: FOURTH[name] for name in LATE}
SLOW = ("lbfgs", "gpt_accumulated", "muon_and_adamw", "flow", "speech", "experts")
"""Loops whose steps take long; bench/anywhere/red.py has them."""


def taken(name: str, fault: str, system: str, steps: int) -> Run:
    torch.manual_seed(0)
    run = Run(fault, system=system, steps=steps)
    LOOPS[name](run)
    return run


@pytest.mark.parametrize("name", [n for n in LOOPS if n not in SLOW])
def test_a_bad_sample_is_refused_bit_for_bit(name: str) -> None:
    run = taken(name, "nan_sample", "attach", AT + 2)
    assert run.finite
    assert not any(w.touched for w in run.watched)
    refused = {s for w in run.watched for s, _ in w.refused}
    assert refused == ({AT} if run.poisoned and name != "scaled_unseen" else set())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["counts", "survival", "raw_returns", "by_formula", "weighted_noise", "swa_at_last"])
def test_of_loud_and_coupled_samples_the_huge_one_alone_is_named(name: str, seed: int) -> None:
    """Data with heavy tails, losses that cross zero or are of the whole batch, maths that overflows."""
    assert culprit(THIRD[name], seed, "huge_sample") == {}


def test_rates_too_high_are_refused_where_healthy_losses_lie_around_zero() -> None:
    """Whatever is far below zero looks like health at first; it must not become the measure of what follows."""
    run = taken_late("energy", "fast", AT + 20)
    assert [s for w in run.watched for s, _ in w.refused][:1] <= [AT + 8] and run.watched[0].refused


def taken_late(name: str, fault: str, steps: int) -> Run:
    torch.manual_seed(0)
    run = Run(fault, steps=steps)
    THIRD[name](run)
    return run


def test_a_sample_that_breaks_the_maths_of_the_whole_batch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 1e30 in a Gaussian process: gradients are NaN, alone it is an honest batch of one."""
    monkeypatch.setattr(harness, "HUGE", 1e30)
    assert culprit(FOURTH["evidence"], 0, "huge_sample") == {}


@pytest.mark.parametrize(
    ("loop", "seed", "fault", "cause"),
    [
        (THIRD["weighted_noise"], 1, "nan_loss", "TRANSIENT"),  # at a batch that is loud by itself
        (THIRD["counts"], 0, "fast", "LR_TOO_HIGH"),  # of a loss that had fallen below zero
        (FOURTH["twins"], 0, "fast", "LR_TOO_HIGH"),  # whose very first update is refused for its size
        (FOURTH["adapters"], 0, "fast", "LR_TOO_HIGH"),
    ],
)
def test_glitches_and_rates_are_told_apart_from_what_they_look_like(
    loop: Any, seed: int, fault: str, cause: str
) -> None:
    assert caused(loop, seed, fault, cause) == {}


def test_an_update_that_is_too_large_for_a_broken_state_is_no_rate_s_fault() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)

    def loss_of(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return (m(x)[:, 0] - x.sum(1)).square().mean()

    guard: Any = attach(model, optimizer, diagnose=True, forward=loss_of, logdir=None, say=False)
    for step in range(AT + 3):
        if step == AT:
            for state in optimizer.state.values():
                state["momentum_buffer"].mul_(1e6)
        x = guard.batch(torch.randn(16, 6))
        optimizer.zero_grad()
        guard.see(loss_of(model, x)).backward()
        optimizer.step()
    assert all(i.cause != "LR_TOO_HIGH" for i in guard.incidents), [(i.step, i.cause) for i in guard.incidents]
    assert loss_of(model, torch.randn(64, 6)) < 50


@pytest.mark.parametrize(
    "name",
    [
        "contrastive_queue",
        "two_tasks",
        "private",
        "odd_buffers",
        "recomputed",
        "rate_tensor",
        "groups_added",
        "swapped",
    ],
)
def test_a_clean_run_has_the_bits_of_the_plain_one(name: str) -> None:
    guarded, plain = (taken(name, "none", system, 25) for system in ("attach", "plain"))
    assert not any(w.refused for w in guarded.watched)
    for one, other in zip(guarded.models, plain.models, strict=True):
        assert same(state_of(*one), state_of(*other))


def test_weights_that_were_never_finite_are_refused_once_they_are_used() -> None:
    model = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])
    with torch.no_grad():
        model[1].weight.fill_(torch.nan)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    guard = attach(model, optimizer, say=False)
    for used in (0, 0, 1, 0):
        optimizer.zero_grad()
        guard.see(model[used](torch.ones(2, 3)).mean()).backward()
        optimizer.step()
        assert guard.refused == (used == 1)
        assert used == 0 or (guard.alarm is not None and guard.alarm.symptom == "param_nonfinite")


def test_a_loop_that_drops_a_bad_loss_itself_goes_on() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    guard = attach(model, optimizer, say=False)
    for step in range(12):
        optimizer.zero_grad()
        loss = guard.see(model(torch.randn(8, 3)).square().mean() * (torch.nan if step == 6 else 1.0))
        if not torch.isfinite(loss):
            continue
        loss.backward()
        optimizer.step()
        assert not guard.refused
