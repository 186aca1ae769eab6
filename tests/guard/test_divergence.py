"""Divergence: seen early in real runaways, never in the noise of healthy ones."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import pytest
import torch
from torch import nn

from maskrcnn_coco.guard.divergence import Divergence
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.guard.unlearnt import Unlearnt
from maskrcnn_coco.guard.updates import Haste, Stall
from maskrcnn_coco.guard.verdict import Verdict


def play(losses: Iterable[float], norms: Iterable[float] | None = None) -> tuple[int, Verdict] | None:
    """Feed a run to the alarm; the first step that it stops at, and its verdict."""
    alarm = Divergence()
    losses = list(losses)
    for step, (loss, norm) in enumerate(zip(losses, norms or [10.0 * x for x in losses], strict=False)):
        verdict = alarm.judge(step, loss, norm, {"a": norm})
        if verdict is not None:
            return step, verdict
        alarm.accept(loss, norm, {"a": norm})
    return None


def healthy(steps: int, seed: int, start: float = 3.7, end: float = 0.8, noise: float = 0.25) -> list[float]:
    rng = random.Random(seed)
    return [(end + (start - end) * math.exp(-i / 30)) * math.exp(rng.gauss(0, noise)) for i in range(steps)]


# Runs as measured on a tiny Mask R-CNN: losses and gradient norms until the first non-finite value.
RUNAWAYS = {
    "batch 1, lr 0.02": ([3.6, 68, 1.0e8], [68, 986, 1.2e9], 2),
    "lr 0.1": ([3.7, 1.7e4], [57, 2e5], 1),
    "momentum 1.2": ([4, 4, 3.9, 4.2, 5, 8, 26, 123, 361, 5e7], [57, 50, 50, 60, 80, 200, 800, 2e3, 9e3, 1e9], 8),
    "Adam lr 0.05": ([3.7, 4e5, 1e9, 1e14, 1e28], [57, 1e7, 1e12, 1e15, 1e19], 1),
    "long ramp": (
        [*healthy(22, 0, 3.7, 1.8, 0.1), 3.1, 6, 8.8, 12, 17, 22, 27, 30, 35, 40, 60, 110],
        [*([20.0] * 22), 22, 50, 85, 120, 203, 250, 322, 400, 500, 900, 2e3, 5e3],
        33,
    ),
    "plateau at 20 times": ([*healthy(60, 1), *([18.0] * 20)], [*([12.0] * 60), *([150.0] * 20)], 66),
}


@pytest.mark.parametrize("name", RUNAWAYS)
def test_runaways_are_seen_while_finite(name: str) -> None:
    losses, norms, latest = RUNAWAYS[name]
    found = play(losses, norms)
    assert found is not None
    step, verdict = found
    assert step <= latest
    assert verdict.symptom == "diverged"
    assert verdict.onset_step is not None
    assert verdict.onset_step <= step


def test_a_first_loss_that_no_training_starts_from_is_an_alarm():
    """Nothing healthy is known yet: a large start is taken as it comes, an absurd one is not."""
    found = Divergence().judge(0, 1e17, 1e18, {})
    assert found is not None and found.symptom == "diverged" and "first loss" in found.message
    assert Divergence().judge(0, 5e4, 1e5, {}) is None
    learned = Divergence()
    learned.accept(5e4, 1e5, {})
    assert learned.judge(1, 2e6, 1e5, {}) is None, "from then on the run's own losses count"


def test_an_enormous_first_loss_is_a_start_at_a_rate_that_fits_it_and_only_there():
    """Losses summed over a whole set, at a rate as many times lower; a broken model in its first warm-up step."""
    honest = Divergence()
    for step, loss in enumerate([4.5e6, 5.8e6, 4.5e6, 3.9e6, 3.1e6, 2.8e6]):
        assert honest.judge(step, loss, 1e7, {}, fits=True) is None
        honest.accept(loss, 1e7, {})
    assert honest.judge(6, 2e6, 1e7, {}) is not None, "a rate that fits no more"
    assert honest.judge(7, 9e5, 1e7, {}) is None, "it has come down: a loss as others have"
    assert Divergence().judge(0, 1e17, 1e18, {}, fits=True) is not None, "whatever the rate"


def test_a_run_that_is_wild_from_its_first_update_does_not_teach_that_this_is_healthy():
    wild = [2.9, 5e3, 4e3, 6e3, 5e3, 4e3, 5e3]
    found = play(wild, [20.0] * 7)
    assert found is not None and found[0] == 3 and found[1].onset_step == 1
    # A first batch without objects, or losses of another scale, are no fault.
    assert play([0.05, *healthy(40, 0, 3.0, 1.0)]) is None
    assert play([3e3, 9e3, 2e3, *([4e3] * 20)]) is None


def test_losses_after_weights_were_thrown_in_the_first_steps_teach_nothing():
    """As measured on a detector with RMSprop at a hundred times its rate: it is thrown in its second step."""
    losses, moved = [2.8, 2.75, 996.0, 89.0, 20.4, 95.5, 47.4, 21.1, 27.2], [0.003, 1.0, 0.38, 0.23, *[0.18] * 5]
    alarm = Divergence()
    for step, (loss, by) in enumerate(zip(losses, moved, strict=True)):
        found = alarm.judge(step, loss, 5 * loss, {})
        if found is not None:
            break
        alarm.accept(loss, 5 * loss, {}, by, by)
    assert found is not None and step <= 8 and found.onset_step == 2
    # Weights that start at zero move by all of their norm as well: the bound knows that they may.
    zeros = Divergence()
    for step, loss in enumerate([0.7, 0.6, 9.0, 8.0, 6.0, 4.0, 3.0, 2.5, 2.0, 2.0]):
        assert zeros.judge(step, loss, loss, {}) is None
        zeros.accept(loss, loss, {}, 0.1, 1.0)


def hasten(losses: list[float], ratios: list[float], bounds: list[float], clipped: bool = True) -> list[int]:
    """The steps at which updates of these sizes are refused; those are not taken."""
    haste, refused = Haste(), []
    for step, (loss, ratio, bound) in enumerate(zip(losses, ratios, bounds, strict=True)):
        verdict = haste.judge(step, loss, 2.9, {"a": bound, "b": 0.01} if clipped else {})
        if verdict is not None:
            assert verdict.measured["component"] == "a" and verdict.onset_step == step - 5
            refused.append(step)
        elif haste.watching:
            haste.measured(step, {"a": ratio, "b": 0.001})
    return refused


def test_clipped_updates_that_keep_replacing_a_component_are_seen_though_no_loss_is_extreme():
    """As measured on a head at a hundred times its rate: clipped to 10, it never explodes and never learns."""
    losses, ratios = [6.7, 4.5, 3.8, 9.0, 5.3, 8.9, 6.4], [0.65, 0.48, 0.31, 0.22, 0.17, 0.33, 0.23]
    bounds = [2 * r for r in ratios]
    assert hasten(losses, ratios, bounds) == [5]
    assert hasten(losses, ratios, bounds, clipped=False) == []
    assert hasten([*losses[:3], 2.5, *losses[4:]], ratios, bounds) == [5], "one easy batch is no learning"
    assert hasten([*losses[:2], 2.5, 2.4, *losses[4:]], ratios, bounds) == [], "it learns"
    # Biases alone come back to about the start: a detector with AdamW at a hundred times its rate.
    back = [93.8, 4.35, 7.07, 3.8, 3.28, 2.78, 2.7]
    assert hasten(back, [0.74, 0.51, 0.31, 0.21, 0.15, 0.11, 0.1], [1.0] * 7) == [5]
    assert hasten([*losses[:5], 2.5, losses[6]], ratios, bounds) == [6], "a loss below the start stands"
    assert hasten(losses, [r / 2 for r in ratios], bounds) == [], "brisk"
    # Weights that leave zero move by all of their norm at first; the bound is on a norm that they may well have.
    assert hasten(losses, [1.0, 0.5, 0.33, 0.25, 0.2, 0.17, 0.14], [0.12] * 7) == []


def test_small_weights_that_have_far_to_go_and_go_there_are_not_thrown_about() -> None:
    """As measured on a table of words whose outputs begin at zero: each is moved by its own size, and learns slowly."""
    ratios = [0.63, 0.42, 0.31, 0.25, 0.21, 0.18, 0.17, 0.16]

    def play_row(losses: list[float]) -> list[int]:
        haste, refused = Haste(), []
        for step, (loss, ratio) in enumerate(zip(losses, ratios, strict=True)):
            if haste.judge(step, loss, 4.15888 if step else math.inf, {"a": 2 * ratio}) is not None:
                refused.append(step)
            elif haste.watching:
                haste.measured(step, {"a": ratio})
        return refused

    assert play_row([4.15888, 4.1587, 4.1547, 4.1459, 4.1404, 4.1292, 4.1216, 4.1123]) == []
    assert play_row([4.15888, 4.1581, 4.1583, 4.1573, 4.1579, 4.1358, 4.1381, 4.12]) == []
    assert play_row([4.15888, 4.1581, 4.1583, 4.2573, 4.1579, 4.1358, 4.1381, 4.12]) == [6], "above the start between"
    assert play_row([4.15888, 4.0, 4.1, 4.0, 4.1, 4.1, 4.0, 4.1]) == [6], "it stays where it is"


@pytest.mark.parametrize("before", [[2.9], [2.9, 2.78], [2.9, 2.8, 2.7, 2.6, 2.5, 2.4, 2.3]])
def test_losses_from_before_the_large_steps_do_not_count_as_learning(before: list[float]) -> None:
    """The first loss is the start itself, and what small steps earned says nothing of the large ones."""
    haste, start = Haste(), math.inf
    for step, loss in enumerate(before):
        assert haste.judge(step, loss, start, {"a": 0.001} if step % 2 else {}) is None and not haste.watching
        start = min(start, before[0])
    losses, refused = [6.7, 4.5, 3.8, 2058.0, 53.0, 269.0], []
    for step, loss in enumerate(losses, len(before)):
        if haste.judge(step, loss, start, {"a": 0.8}) is not None:
            refused.append(step)
        elif haste.watching:
            haste.measured(step, {"a": 0.4})
    assert refused == [len(before) + 5]


@pytest.mark.parametrize(
    ("losses", "refused"),
    [
        ([1.8, 9.0, 52.2, 33.0, 10.8, 42.6], [5]),  # as measured of Adam at 0.5
        ([1.8, 2.0, 2.9, 2.4, 1.9, 3.0], []),  # noise about the start, which a head from zero leaves by large steps
        ([1.8, 9.0, 52.2, 1.2, 0.9, 1.0], []),
    ],
)
def test_what_the_first_step_of_all_moved_counts_where_it_led_to_something_much_worse(
    losses: list[float], refused: list[int]
) -> None:
    haste, start, found = Haste(), math.inf, []
    for step, (loss, ratio) in enumerate(zip(losses, [0.99, 0.33, 0.18, 0.12, 0.09, 0.07], strict=True)):
        if haste.judge(step, loss, start, {"a": 5.0 * ratio}) is not None:
            found.append(step)
        elif haste.watching:
            haste.measured(step, {"a": ratio})
        start = min(start, losses[0])
    assert found == refused


@pytest.mark.parametrize("every", [2, 4, 10])
@pytest.mark.parametrize("seed", range(5))
def test_steps_of_another_task_come_back_at_their_own_size(seed: int, every: int) -> None:
    losses = healthy(200, seed, end=0.1)
    losses = [900.0 * math.exp(0.1 * (i % 7)) if i % every == every - 1 else v for i, v in enumerate(losses)]
    assert play(losses) is None
    assert play([*losses[:100], 5e7, 1e9]) is not None  # what was survived is no licence for more


def test_what_was_survived_comes_back_with_the_state() -> None:
    alarm, other = Divergence(), Divergence()
    for i in range(40):
        loss = 900.0 if i % 4 == 3 else 1.0 if i < 20 else 0.4
        assert alarm.judge(i, loss, 10 * loss, {}) is None
        alarm.accept(loss, 10 * loss, {})
    other.load_state_dict(alarm.state_dict())
    assert other.judge(40, 900.0, 9e3, {}) is None
    other.load_state_dict({k: v for k, v in alarm.state_dict().items() if k != "survived"})  # of an older file
    assert other.judge(41, 900.0, 9e3, {}) is not None


def test_onset_is_the_first_step_of_the_run_up() -> None:
    found = play([*healthy(60, 1, noise=0.05), *([18.0] * 20)])
    assert found is not None
    assert found[1].onset_step == 60
    assert found[0] == 65


@pytest.mark.parametrize("seed", range(20))
def test_noise_warm_up_spikes_and_empty_batches_are_healthy(seed: int) -> None:
    rng = random.Random(seed)
    base = healthy(400, seed, noise=0.5)
    for i in range(20, 400, 37):  # single spikes, up to 1000 times, that fall back by themselves
        base[i] *= 10 ** rng.uniform(1, 3)
    for i in range(5, 400, 23):  # images without objects
        base[i] = 0.02
    norms = [rng.uniform(20, 500) for _ in base]
    assert play(base, norms) is None


@pytest.mark.parametrize("seed", range(10))
def test_a_classifier_that_fits_its_data_may_meet_hard_batches(seed: int) -> None:
    rng = random.Random(seed)
    losses = [2.3 * math.exp(-i / 40) + (rng.expovariate(1.0) if rng.random() < 0.2 else 1e-4) for i in range(3000)]
    norms = [5 * x + 1e-3 for x in losses]
    assert play(losses, norms) is None


def test_a_rise_during_warm_up_and_a_step_of_the_schedule_are_healthy() -> None:
    up = [2.0 + 3.0 * i / 100 for i in range(100)]
    assert play([*up, *healthy(100, 0, 5.0, 1.0, 0.1), *healthy(100, 1, 0.4, 0.3, 0.1)]) is None


def test_a_likelihood_may_fall_below_zero() -> None:
    assert play([10.0 - 5.0 * i for i in range(400)], [30.0] * 400) is None
    assert play([3.7, 3.6, -1.8e31], [50.0, 50.0, 1e30]) is not None


def test_a_zero_loss_proves_nothing() -> None:
    assert play([0.0] * 30 + [0.5] * 30, [0.0] * 30 + [3.0] * 30) is None


def test_one_component_exploding_is_seen() -> None:
    alarm = Divergence()
    for step in range(30):
        groups = {"a": 10.0, "b": 1.0}
        assert alarm.judge(step, 1.0, 10.0, groups) is None
        alarm.accept(1.0, 10.0, groups)
    assert alarm.judge(30, 1.0, 1e12, {"a": 10.0, "b": 1e12}) is not None


def test_state_comes_back() -> None:
    alarm = Divergence()
    for step, loss in enumerate(healthy(60, 0)):
        alarm.judge(step, loss, loss, {"a": loss})
        alarm.accept(loss, loss, {"a": loss})
    other = Divergence()
    other.load_state_dict(alarm.state_dict())
    for step in range(60, 80):
        a, b = (x.judge(step, 18.0, 50.0, {"a": 1.0}) for x in (alarm, other))
        assert a == b
    assert Divergence().state_dict() != other.state_dict()


def test_weights_that_stand_still_are_seen_and_converged_ones_are_not() -> None:
    lr = {"a": 0.01}
    stall = Stall()
    found = [stall.judge(i, {"a": 1e-12}, lr, {"a": 5.0}) for i in range(20)]
    assert found[:19] == [None] * 19
    assert found[19] is not None
    assert found[19].symptom == "stalled"
    assert found[19].onset_step == 0
    ended = Stall()
    for i in range(100):  # the schedule's end
        assert ended.judge(i, {"a": 1e-3 * 0.7**i}, {"a": 0.01 * 0.7**i}, {"a": 5.0}) is None
    fitted = Stall()
    for i in range(100):  # nothing left to learn
        assert fitted.judge(i, {"a": 1e-3 * 0.7**i}, lr, {"a": 5.0 * 0.7**i}) is None


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 8, generator=g)
    return x, x.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("kind", "lr", "clip"), [("adam", 2.0, 10.0), ("adam", 30.0, 10.0), ("sgd", 1.0, 0.0), ("sgd", 3.0, 0.0)]
)
def test_a_real_runaway_is_refused_before_anything_is_non_finite(kind: str, lr: float, clip: float) -> None:
    model = net()
    make = torch.optim.Adam if kind == "adam" else torch.optim.SGD
    optimizer = make(model.parameters(), lr=0.001)
    guard = Guard(model, optimizer, max_grad_norm=clip)
    for i in range(30):
        assert guard.step(lambda b: (model(b[0]) - b[1]).square().mean(), batch(i)).applied
    for group in optimizer.param_groups:
        group["lr"] = lr
    for i in range(30, 45):
        record = guard.step(lambda b: (model(b[0]) - b[1]).square().mean(), batch(i))
        if guard.alarm is not None:
            break
    assert guard.alarm is not None
    assert guard.alarm.symptom == "diverged"
    assert math.isfinite(record.loss)
    assert guard.alarm.onset_step >= 30
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_an_overflow_of_the_gradient_at_a_wild_loss_is_divergence() -> None:
    model = net()
    guard = Guard(model, torch.optim.Adam(model.parameters(), lr=1e-3))
    forward = lambda b: (model(b[0]) - b[1]).square().mean()  # noqa: E731
    for i in range(3):
        guard.step(forward, batch(i))
    guard.step(lambda b: (forward(b) * 1e18) * 1e18, batch(3))
    assert guard.alarm is not None
    assert guard.alarm.symptom == "diverged"


def test_updates_lost_to_precision_are_seen() -> None:
    """bfloat16 weights of 256 that updates of 1e-6 cannot move, though gradients and learning rate are alive."""
    model = nn.Linear(4, 1).to(torch.bfloat16)
    nn.init.constant_(model.weight, 256.0)
    nn.init.constant_(model.bias, 256.0)
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=1e-6), measure_every=1, max_grad_norm=1.0)
    x = torch.ones(2, 4, dtype=torch.bfloat16)
    alarms = []
    for _ in range(25):
        guard.step(lambda b: model(b).float().mean(), x)
        alarms.append(guard.alarm.symptom if guard.alarm else None)
    assert alarms[19] == "stalled"
    assert alarms[:19] == [None] * 19


class Wavy(nn.Module):
    """A bounded loss with a minimum near where it starts: whoever is thrown about sees it rise, and never explode."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((40,), 0.46))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 + (7 * self.w).sin().square().mul(x).mean()


@pytest.mark.parametrize(
    ("kind", "lr", "alarmed"),
    [
        (torch.optim.AdamW, 0.3, True),
        (torch.optim.NAdam, 0.3, True),
        (torch.optim.Adam, 0.3, True),
        (torch.optim.AdamW, 1e-3, False),
        (torch.optim.Adafactor, 30.0, False),
        (torch.optim.RMSprop, 1e-3, False),
        (torch.optim.RMSprop, 0.3, True),
        (torch.optim.Adagrad, 1.0, False),  # long at first whatever its rate, and shorter by themselves
        (torch.optim.Adagrad, 1e-2, False),
    ],
)
def test_steps_of_one_size_throw_weights_about_without_any_clipping(kind: type, lr: float, alarmed: bool):
    """Adam and kin: the gradient does not say how far a step goes, and the loss need not explode."""
    model = Wavy()
    guard = Guard(model, kind(model.parameters(), lr=lr), max_grad_norm=None, components={"w": [model.w]}, say=False)
    found = []
    for step in range(14):
        guard.step(model, 1 + 0.01 * torch.randn(40, generator=torch.Generator().manual_seed(step)))
        found += [guard.alarm] if guard.alarm else []
    assert bool(found) is alarmed
    if alarmed:
        assert found[0].symptom == "diverged" and found[0].measured["moved"]["w"] > 1.5


def rare(steps: int, seed: int, share: float, size: float) -> list[float]:
    """Rewards that come in a share of the batches, and make losses of their own size."""
    rng = random.Random(seed)
    return [0.01 * math.exp(rng.gauss(0, 0.5)) + (size if rng.random() < share else 0.0) for _ in range(steps)]


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
def test_losses_of_two_sizes_that_take_turns_are_a_habit(share: float) -> None:
    seen = [0.01] * 5 + [0.5, 0.01] * 4  # nobody can tell before
    assert all(play([*seen, *rare(400, seed, share, 0.5)]) is None for seed in range(5))


def test_a_habit_hides_neither_what_is_larger_nor_what_stays() -> None:
    losses = [0.05, *rare(120, 0, 0.2, 0.5)]
    found = play([*losses, *([6.0] * 10)])
    assert found is not None and found[0] <= 121 + 5, "larger"
    found = play([*losses, *([0.6] * 80)])
    assert found is not None and found[0] <= 121 + 60, "for good"


def test_what_is_a_habit_outlives_a_checkpoint_or_is_learned_anew() -> None:
    alarm, again = Divergence(), Divergence()
    for loss in [0.05, *rare(60, 0, 0.3, 0.5)]:
        alarm.judge(0, loss, 1.0, {})
        alarm.accept(loss, 1.0, {})
    again.load_state_dict(alarm.state_dict())
    assert again.state_dict() == alarm.state_dict()


def test_components_that_come_while_weights_are_thrown_about() -> None:
    haste = Haste()
    for step in range(12):
        bound = {"body": 0.6} if step < 3 else {"0": 0.6, "1": 0.6}
        found = haste.judge(step, 5.0, 1.0, bound)
        haste.measured(step, bound)
        if found is not None:
            break
    assert found is not None and found.measured["component"] in ("0", "1") and step <= 8


def thrown(stays: float) -> list[float]:
    """An absurd rate for two steps, gradients clipped, as measured on a small SSD: 9 → 6970, and then 108 for good."""
    return [22.6, 28.6, 22.1, 18, 18.5, 13.1, 11, 9.6, 9.3, 8.9, 6970, *([stays] * 12)]


def test_a_run_that_was_thrown_and_stays_there_is_no_spike() -> None:
    """Six times healthy is below every streak, and the gradient is quiet: nothing moves any more."""
    found = play(thrown(108.0), [50.0] * 10 + [1.7e5] + [1.2] * 12)
    assert found is not None and found[0] == 16 and "since step 10" in found[1].message


def test_a_spike_that_falls_back_is_none_however_high() -> None:
    assert play(thrown(18.0), [50.0] * 10 + [1.7e5] + [10.0] * 12) is None


def judged(d: Divergence, losses: list[float], first: int = 0) -> list[int]:
    """Steps whose loss was an alarm; all others were applied."""
    found = []
    for step, loss in enumerate(losses, first):
        if d.judge(step, loss, loss, {"a": loss}) is None:
            d.accept(loss, loss, {"a": loss})
        else:
            found.append(step)
    return found


def test_who_only_refuses_refuses_a_level_once() -> None:
    once, always = Divergence(once=True), Divergence()
    level = [1.0] * 20 + [12.0] * 100
    assert judged(once, level) == [25]
    assert len(judged(always, level)) > 10
    # After so many steps this is what is healthy; what rises far above it is another alarm.
    assert once.reference == pytest.approx(12.0)
    assert judged(once, [150.0] * 8, 120) == [125]


def test_a_level_that_rises_further_is_refused_again_and_is_forgotten_in_the_calm() -> None:
    d = Divergence(once=True)
    assert judged(d, [1.0] * 20 + [10.0] * 8 + [200.0] * 8) == [25, 33]
    assert judged(d, [1.0] * 10 + [10.0] * 8, 36) == [51]


def hurled(after: list[float], moved: float, *, steps: int = 12) -> Verdict | None:
    """Calm steps, one update that ``moved`` weights, and these losses ``after`` it under small steps."""
    alarm = Divergence()
    found = None
    for step, loss in enumerate([10.0] * steps + after):
        found = found or alarm.judge(step, loss, 1.0, {"a": 1.0})
        alarm.accept(loss, 1.0, {"a": 1.0}, moved if step == steps - 1 else 0.003)
    return found


def test_a_loss_that_stays_up_after_weights_were_moved_by_their_own_size_is_an_alarm() -> None:
    """A rate that is absurd for one step: seven times the loss, gradients like any, and no step leads back."""
    found = hurled([36.0, 72, 59, 77, 66, 67, 72], 1.0)
    assert found is not None and "since step 11 moved weights by 1 times their norm" in found.message
    assert found.onset_step == 12


def test_a_high_loss_alone_or_a_far_step_alone_is_no_alarm() -> None:
    """A harder part of the data; weights made anew on purpose, after which losses fall."""
    assert hurled([36.0, 72, 59, 77, 66, 67, 72], 0.1) is None
    assert hurled([70.0, 60, 45, 35, 20, 12, 11, 10], 1.0) is None
    assert hurled([12.0] + [40.0] * 10, 1.0) is None, "what came after a calm loss is not of that step"


def leaps(rate: float, moved: float, after: float, *, rates: int = 12) -> int | None:
    """Calm steps at a rate of 1, one at ``rate`` that ``moved`` weights, then losses of ``after``; the refused step."""
    alarm = Divergence()
    for step, loss in enumerate([10.0] * rates + [after] * 4):
        if alarm.judge(step, loss, 1.0, {"a": 1.0}) is not None:
            return step
        last = step == rates - 1
        alarm.accept(loss, 1.0, {"a": 1.0}, moved if last else 0.003, rates={"a": rate if last else 1.0})
    return None


def test_a_step_at_an_absurd_rate_that_hurled_the_weights_is_told_by_the_next_loss() -> None:
    assert leaps(1e4, 0.47, 60.0) == 12
    assert leaps(9.5, 0.25, 60.0) == 12, "a decay by ten that goes upwards, along a cosine"


@pytest.mark.parametrize(
    ("rate", "moved", "after"),
    [(1e4, 0.1, 60.0), (5.0, 0.47, 60.0), (1.0, 0.25, 60.0), (1e4, 0.47, 40.0)],
    ids=["weights hardly moved", "the rate is a usual one", "it did not rise at all", "the loss hardly rose"],
)
def test_one_sign_of_three_is_waited_for(rate: float, moved: float, after: float) -> None:
    assert leaps(rate, moved, after) is None


def test_a_warm_up_rises_by_far_more_and_is_no_leap() -> None:
    alarm = Divergence()
    for step, rate in enumerate([1e-6, 1e-3, 2e-3, 3e-3, 4e-3, 5e-3]):
        assert alarm.judge(step, 10.0, 1.0, {"a": 1.0}) is None
        alarm.accept(10.0, 1.0, {"a": 1.0}, 0.5, rates={"a": rate})
    assert alarm.judge(6, 60.0, 1.0, {"a": 1.0}) is None


def test_what_a_tail_does_to_losses_of_next_to_nothing_is_no_row() -> None:
    quiet, after = [2e-3] * 20, [0.088] * 8
    norms = [0.05] * 20 + [0.05, 5.0, 0.05] + [0.05] * 3 + [1.0] * 8 + [0.05] * 4
    assert play(quiet + [2e-3, 90.0, 2e-3] + [2e-3] * 3 + after + [2e-3] * 4, norms) is None
    found = play(quiet + [2e-3] * 6 + after + [2e-3] * 4, norms)
    assert found is not None and found[0] == 31, "without the tail it is one"


def after_thrown(losses: list[float], moved: float = 0.9, bounded: bool = True) -> int | None:
    """The step at which a run is refused whose step 1 moved the weights by ``moved``; the first loss is 2.8."""
    unlearnt = Unlearnt()
    for step, loss in enumerate([2.8, 2.8, *losses]):
        found = unlearnt.judge({}, loss, 2.8 if step else math.inf, bounded=bounded)
        if found is not None:
            assert found.onset_step == 1 and found.measured["component"] == "head"
            return step
        unlearnt.measured(step, {"backbone": 0.01, "head": moved if step == 1 else 0.02}, {})
    return None


def test_nothing_is_learned_after_one_step_threw_the_weights_away():
    """As measured on FCOS with RMSprop at thirty times its rate: one step, and the loss stays where it began."""
    stays = [57.9, 6.51, 7.13, 4.07, 3.84, 3.02, 3.04, 2.64, 2.66, 2.75]
    assert after_thrown(stays) == 9
    assert after_thrown(stays, moved=0.2) is None, "no step threw anything away"
    assert after_thrown([57.9, 6.5, 2.4, 4.0, 2.3, 2.6, 2.6, 2.6, 2.6, 2.6]) is None, "it learns"
    lost = [1.9, 1.2, 1.5, 2.0, *([2.9] * 8)]
    assert after_thrown(lost) == 12, "and it is lost again"
    assert after_thrown([*([1.2] * 24), *([2.9] * 8)]) is None, "long after"
    near = [2.7, 2.6, 2.9, 2.7, 2.7, 2.6, 2.75, 2.7]
    assert after_thrown(near, bounded=False) is None, "noise of steps that follow the gradient"
    assert after_thrown(near) == 9


@pytest.mark.parametrize(
    ("moved", "after", "found"),
    [
        ([0.4], 0.7, False),
        ([0.4, 0.35, 0.32], 0.7, False),
        ([0.4], 0.9, True),
        ([1.5], 0.7, True),
        ([0.1, 0.4], 0.7, True),
    ],
    ids=["a first step as Adam's", "a row of them", "losses above the start", "nothing left of them", "a later step"],
)
def test_a_first_step_that_is_long_without_a_warm_up_asks_for_more(moved: list[float], after: float, found: bool):
    """As measured on clicks with Adagrad at 0.05: the first loss is 0.69, and it falls by a tenth in fifteen steps."""
    unlearnt, alarm = Unlearnt(), None
    for step in range(14):
        loss = 0.69 if step == 0 else after
        alarm = alarm or unlearnt.judge({}, loss, 0.69 if step else math.inf, bounded=True)
        unlearnt.measured(step, {"top": moved[step] if step < len(moved) else 0.1}, {})
    assert (alarm is not None) is found


def test_a_component_that_unlearns_is_seen_behind_losses_that_fall():
    """As measured on an RPN at 3000 times the rate, clipped: the heads go on learning what it gives them."""
    own = [0.69, 0.22, 0.27, 0.62, 0.76, 0.96, 0.90, 1.19, 1.20, 5.86, 1.51]
    moved = [0.05, 1.0, 0.66, 0.48, 0.29, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    found, unlearnt = None, Unlearnt()
    for step, (loss, by) in enumerate(zip([0.7, *own], moved, strict=True)):
        losses = {"loss_objectness": loss, "loss_classifier": 1.6 - 0.1 * step}
        found = found or unlearnt.judge(losses, sum(losses.values()), 2.3 if step else math.inf, bounded=True)
        unlearnt.measured(step, {"rpn": by, "box_head": 9.0}, {"box_head": 0.01})
    assert found is not None and found.measured["own"]["component"] == "rpn" and found.onset_step == 3


def test_losses_that_were_far_below_zero_come_back_above_it() -> None:
    """A critic's score of a generator has no scale at zero, where such a run begins."""
    alarm = Divergence()
    start = [0.15, 0.11, 0.05, -0.1, -0.3, -0.4, -1.0, -2.0, -2.2, -3.5, -3.6, -3.9, -4.6, -5.0, -4.0, -3.2, -3.7, -2.4]
    for step, loss in enumerate([*start, -1.0, 1.1, 2.9, 4.3, 5.7, 5.4, 6.2, 6.1, 5.7, 5.8, 5.4, 5.6]):
        assert alarm.judge(step, loss, 5.0, {}) is None, step
        alarm.accept(loss, 5.0, {})
    other = Divergence()
    other.load_state_dict(alarm.state_dict())
    assert other.reference == alarm.reference > 1
    found = [other.judge(40 + i, loss, 50.0, {}) for i, loss in enumerate([200.0, 300.0, 400.0, 500.0])]
    assert any(found), "what is far above that is one still"
