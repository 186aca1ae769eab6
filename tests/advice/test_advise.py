"""Measured advice: limits against closed forms, the choice of settings, early warning, the check at run start."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shlex
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from runs import OwnData, config, narrow, small_model
from toy import quadratic

from maskrcnn_coco.advice import advise
from maskrcnn_coco.advice.candidates import (
    SAFETY,
    Choice,
    ColdStart,
    Joint,
    Tried,
    candidates,
    cap,
    choose,
    clip_from,
    cold_start,
    compare,
    stood,
    two_digits,
    why_this,
)
from maskrcnn_coco.advice.limits import (
    Limit,
    TrialVerdict,
    bracket,
    describe,
    interval,
    judge,
    measure_limits,
    rising,
    settle,
)
from maskrcnn_coco.advice.quick_check import try_rates
from maskrcnn_coco.advice.recommendation import shell_lines
from maskrcnn_coco.advice.remembered import above, fingerprint, recall, remember
from maskrcnn_coco.advice.trials import Trial, Trials, flops_of_step
from maskrcnn_coco.config.recipes import Resolved
from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.data.prepare import open_data
from maskrcnn_coco.errors import ConfigError, DataError
from maskrcnn_coco.guard.early_warning import own_level
from maskrcnn_coco.records import COMPONENTS
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.training import start
from maskrcnn_coco.training.start import check_rates, open_session
from tests.conftest import ShapesFolder

CURVES = {"backbone": 4.0, "rpn": 1.0, "box_head": 100.0, "mask_head": 20.0}


def limit(value: float, high: float | None = None) -> Limit:
    return Limit(value, value / 1.4, value * 1.4 if high is None else high, "for a test", 0, 0.0)


def test_measured_limit_is_the_closed_form():
    found = measure_limits(quadratic(CURVES), base_lr=dict.fromkeys(CURVES, 1e-4), steps=30)
    for component, curvature in CURVES.items():
        assert found[component].low <= 2 / curvature <= found[component].high, describe(found[component])
        assert found[component].width <= 2.0 + 1e-9


@pytest.mark.parametrize(("momentum", "clip", "kind"), [(0.9, 0.0, "sgd"), (0.9, 1.0, "sgd"), (0.9, 0.0, "adamw")])
def test_measured_limit_predicts_a_longer_training(momentum: float, clip: float, kind: str):
    task = quadratic(CURVES, momentum=momentum, clip=clip, kind=kind, noise=1.0)
    base = dict.fromkeys(CURVES, 1e-4)
    found = measure_limits(task, base_lr=base, components=["box_head"])["box_head"]
    trials = Trials(task)
    fresh = trials.save(0)
    level = own_level(settle(trials, base, 10).trial.records, "box_head")
    for factor, stable in ((0.4, True), (2.5, False)):
        trials.load(fresh)
        trial = trials.run(base | {"box_head": found.value * factor}, 60, ramp=rising(15))
        assert judge(trial, "box_head", level).stable is stable


def test_clipping_raises_the_measured_limit():
    """What a curvature alone cannot know: with clipping the same bowl stands far more."""
    plain = measure_limits(quadratic({"backbone": 100.0}), base_lr={"backbone": 1e-4})["backbone"]
    clipped = measure_limits(quadratic({"backbone": 100.0}, clip=1.0), base_lr={"backbone": 1e-4})["backbone"]
    assert clipped.value > 5 * plain.value


def test_a_base_rate_that_diverges_is_lowered():
    trials = Trials(quadratic({"backbone": 1.0, "box_head": 100.0}))
    said: list[str] = []
    settled = settle(trials, {"backbone": 1.0, "box_head": 1.0}, 12, say=said.append)
    assert settled.lr["box_head"] <= 1 / 16
    assert said and "quarter" in said[0]


def test_data_that_fail_at_every_rate_are_not_a_matter_of_learning_rate():
    task = quadratic({"backbone": 1.0})
    broken = dataclasses.replace(task, batches=[torch.tensor(math.nan)])
    with pytest.raises(DataError, match="every learning rate"):
        settle(Trials(broken), {"backbone": 0.1}, 5)


def test_a_lab_returns_to_its_state_bit_for_bit():
    trials = Trials(quadratic(CURVES, momentum=0.9, kind="adamw"))
    lr = dict.fromkeys(CURVES, 1e-2)
    trials.run(lr, 3)
    state = trials.save(3)
    first = trials.run(lr, 5, first_step=3)
    trials.load(state)
    second = trials.run(lr, 5, first_step=3)
    assert first.losses == second.losses
    assert [r.grad_norm for r in first.records] == [r.grad_norm for r in second.records]


@pytest.mark.parametrize("truth", [0.011, 0.3, 7.0])
@pytest.mark.parametrize("guess", [0.002, 0.5, 20.0])
def test_bracket_closes_on_the_truth(truth: float, guess: float):
    calls: list[float] = []
    low, high = bracket(lambda r: calls.append(r) or r < truth, 1e-3, math.inf, guess)
    assert low < truth <= high and high / low <= 1.5
    assert len(calls) <= 11
    value, wide_low, wide_high = interval(low, high)
    assert wide_high / wide_low == pytest.approx(2.0) and wide_low < value < wide_high


def test_bracket_says_so_when_nothing_breaks_or_time_is_up():
    low, high = bracket(lambda r: True, 1e-3, math.inf, 0.1)
    assert math.isinf(high) and low > 5
    assert bracket(lambda r: True, 1e-3, math.inf, 0.1, lambda: True) == (1e-3, math.inf)


def test_so_many_trainings_are_made_whatever_was_spent():
    calls: list[float] = []
    low, high = bracket(lambda r: calls.append(r) or r < 0.2, 1e-3, math.inf, 0.1, lambda: True, least=2)
    assert len(calls) == 2
    assert (low, high) == (0.1, pytest.approx(0.3))


@pytest.mark.parametrize("budget", [60.0, 200.0])
def test_a_busy_machine_measures_what_an_idle_one_does(budget: float, monkeypatch: pytest.MonkeyPatch):
    """Budgets count steps: clocks that run wild change nothing but the seconds that are said."""

    def measured() -> dict[str, Limit]:
        found = measure_limits(quadratic(CURVES), base_lr=dict.fromkeys(CURVES, 1e-4), steps=12, budget=budget)
        return {c: dataclasses.replace(v, seconds=0.0) for c, v in found.items()}

    idle, ticks = measured(), itertools.count(0, 1000)
    for clock in ("monotonic", "thread_time", "process_time", "perf_counter"):
        monkeypatch.setattr(time, clock, lambda: float(next(ticks)))
    assert measured() == idle
    assert any("budget was spent" in v.how for v in idle.values()) is (budget < 100)


def test_the_ceiling_is_no_budget_that_was_spent():
    (found,) = measure_limits(quadratic({"backbone": 1e-4}), base_lr={"backbone": 1e-2}, budget=1.0).values()
    assert found.low == 30.0 and math.isinf(found.high) and "spent" not in found.how


def test_a_rate_that_is_given_and_high_is_no_reason_not_to_measure():
    (high,) = measure_limits(quadratic({"backbone": 1e-3}), base_lr={"backbone": 12.0}).values()
    assert high.measured and high.low >= 24.0
    (past,) = measure_limits(quadratic({"backbone": 1e-3}), base_lr={"backbone": 60.0}).values()
    assert not past.measured and "no rate above 30 is tried" in describe(past)


def test_what_a_step_takes_is_a_number_of_the_model_and_not_of_the_machine():
    trials = Trials(quadratic(CURVES))
    fresh = trials.save(0)
    first = flops_of_step(trials)
    trials.load(fresh)
    assert flops_of_step(trials) == first >= 1.0
    assert trials.work == 2.0


def test_what_was_not_measured_is_said_and_asks_for_no_other_rates():
    unmeasured = Limit(2e-4, 2e-4, math.inf, "0 trainings", 0, 0.0)
    assert not unmeasured.measured and limit(0.1).measured
    assert describe(unmeasured).startswith("not measured")
    recipe = Choice("recipe", 1e-3, 5.0, 1.0)
    assert candidates({"backbone": unmeasured}, recipe, {}, pretrained=True) == [recipe]
    mixed = candidates({"backbone": unmeasured, "rpn": limit(0.1)}, recipe, {}, pretrained=True)
    assert all(c.lr > 0 for c in mixed)
    (said,) = compare({"backbone": unmeasured}, recipe, pretrained=True)
    assert "not measured" in said


def test_an_advised_rate_is_never_above_the_limit_beside_it():
    seen = Limit(2e-4, 2e-4, math.inf, "1 training", 9, 1.0, tried=(TrialVerdict(2e-4, False, 1.0),))
    best = Tried(Choice("recipe", 1e-3, 5.0, 1.0), Trial({}, True, 9, 1.0), {})
    raised = stood({"backbone": seen, "rpn": limit(0.1)}, best)
    assert raised["backbone"].stable == 1e-3
    assert raised["rpn"] == limit(0.1)


def test_the_printed_command_survives_a_terminal_of_80_columns():
    folders = {"data": "/data/a folder/with a name", "logdir": "/data/quite a way/from home/and a run"}
    given = [word for name, path in folders.items() for word in (f"--{name}", path)]
    command = shlex.join(["maskrcnn-coco", "train", *given, "--lr", "0.001", *(["--seed", "7"] * 12)])
    lines = shell_lines(command)
    assert max(map(len, lines)) < 80 and all(line.endswith(" \\") for line in lines[:-1])
    joined = "\n".join(lines).replace("\\\n", " ")
    assert shlex.split(joined) == shlex.split(command)


def test_candidates_stay_below_the_limits_and_keep_what_was_given():
    limits = {"backbone": limit(0.1), "rpn": limit(4.0), "box_head": limit(0.2), "mask_head": limit(2.0)}
    recipe = Choice("recipe", 5e-3, 5.0, 1.0)
    for choice in candidates(limits, recipe, {}, pretrained=False):
        for component, rate in choice.rates.items():
            assert rate <= limits[component].value / 2 * 1.05, (choice, component)
    measured = candidates(limits, recipe, {}, pretrained=False)[-1]
    assert measured.rates["backbone"] == pytest.approx(0.1 / SAFETY, rel=0.1)
    hot = candidates(limits, Choice("recipe", 0.5, 10.0, 1.0), {}, pretrained=False)[0]
    assert "lowered" in hot.name and hot.rates["box_head"] <= 0.2 / 2 * 1.05
    assert all(c.lr == 0.3 for c in candidates(limits, recipe, {"lr": 0.3}, pretrained=False)[1:])
    assert cap(limit(50.0), "backbone", pretrained=True) == 1e-2


def test_choice_is_verified_with_all_components_together():
    trials = Trials(quadratic(CURVES, momentum=0.9))
    settled = settle(trials, dict.fromkeys(CURVES, 1e-3), 6)
    joint = Joint(trials, settled, 20)
    unsafe = Choice("recipe", 0.02, 10.0, 1.0)  # the box head's limit is 0.038
    best, reasons = choose(joint, [unsafe], most=math.inf, fixed_lr=False)
    assert best.safe and best.choice.rates["box_head"] * 2 <= 0.038
    assert any("box_head breaks" in r for r in reasons) and best.choice.name.endswith("halved")
    other = dataclasses.replace(best, choice=Choice("measured", 1, 1, 1))
    assert "no other" in why_this(best) and "lower than the recipe's" in why_this(other)
    kept, reasons = choose(joint, [unsafe], most=math.inf, fixed_lr=True)
    assert kept.choice.lr == 0.02 and any("is kept" in r for r in reasons)
    assert why_this(kept) == "nothing that was tried is safe"


def test_no_figure_of_a_training_that_breaks_is_called_healthy():
    """A given rate is kept though it breaks: norms, and what a step takes, are then of the steps that settled."""
    trials = Trials(quadratic(CURVES))
    settled = settle(trials, dict.fromkeys(CURVES, 1e-4), 6)
    joint = Joint(trials, settled, 20)
    best, _ = choose(joint, [Choice("recipe", 3.0, 10.0, 1.0)], most=math.inf, fixed_lr=True)
    assert not best.safe and max(r.grad_norm for r in best.trial.records) > 1e4
    setup: Any = SimpleNamespace(
        config=Config(lr=3.0, epochs=2), given={"lr": 3.0}, reasons={}, total_steps=60, device=torch.device("cpu")
    )
    setup.bytes_before, setup.images = 10**15, 4
    advice = advise.assemble(setup, settled, {}, best, [], ColdStart((), 5))
    (norms,) = [r for r in advice.reasons if r.startswith("gradient norms")]
    usual = sorted(r.grad_norm for r in settled.trial.records)[3]
    assert f"median {two_digits(usual):g}," in norms
    assert advice.expected_minutes == pytest.approx(settled.trial.seconds / 6 * 60 / 60)


def test_multipliers_that_were_not_given_give_way_to_a_given_rate_without_a_margin():
    trials = Trials(quadratic(CURVES))  # the box head's limit is 0.02
    joint = Joint(trials, settle(trials, dict.fromkeys(CURVES, 1e-4), 6), 20)
    edge, spare = Choice("recipe", 0.0015, 10.0, 1.0), Choice("measured", 1e-5, 1.0, 1.0)
    assert joint.train(edge).safe and not joint.train(edge, 2.0).safe
    taken, reasons = choose(joint, [edge, spare], most=math.inf, fixed_lr=True)
    assert taken.choice is spare and "multipliers stand it" in reasons[-1]


def test_lr_auto_takes_the_advice_and_keeps_what_was_given(
    tiny_shapes: ShapesFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[Config] = []

    def measured(resolved: Resolved, data: Any, ranks: Any) -> Any:
        seen.append(resolved.config)
        return SimpleNamespace(lr=0.0123, head_lr_multiplier=4.5, rpn_lr_multiplier=1.5, seconds=7.0)

    monkeypatch.setattr(advise, "advise_run", measured)
    wanted = config(tiny_shapes.root, tmp_path, lr="auto", head_lr_multiplier=3.0)
    session = open_session(wanted, model=small_model(), quiet=True)
    session.log.close()
    lr = session.schedule.lr
    assert lr == pytest.approx({"backbone": 0.0123, "rpn": 0.0123 * 1.5, "box_head": 0.0369, "mask_head": 0.0369})
    assert "lr: 0.0123" in (tmp_path / "run" / "config.yaml").read_text() and len(seen) == 1
    with pytest.raises(ConfigError, match="COCO folder"):
        open_session(config(None, tmp_path, lr="auto"), model=small_model(classes=2), train_data=OwnData(4), quiet=True)


def test_the_recipe_wins_unless_another_is_clearly_better():
    trials = Trials(quadratic({"backbone": 1.0, "rpn": 1.0, "box_head": 1.0, "mask_head": 1.0}))
    joint = Joint(trials, settle(trials, dict.fromkeys(CURVES, 1e-3), 6), 20)
    slow, fast = Choice("recipe", 0.0101, 1.0, 1.0), Choice("measured", 0.1, 1.0, 1.0)
    assert choose(joint, [slow, fast], most=math.inf, fixed_lr=False)[0].choice.name == "measured"
    near = Choice("measured", 0.0102, 1.0, 1.0)
    assert choose(joint, [slow, near], most=math.inf, fixed_lr=False)[0].choice.name == "recipe"


def test_cold_start_tells_whether_a_warm_up_is_needed():
    trials = Trials(quadratic(CURVES))
    fresh = trials.save(0)
    levels = dict.fromkeys(CURVES, 100.0)
    cold = cold_start(trials, fresh, Choice("", 0.1, 0.1, 1.0), levels, 10)
    assert not cold.broken and "no warm-up" in cold.sentence(0) and "of 48" in cold.sentence(48)
    assert "backbone" in cold_start(trials, fresh, Choice("", 0.9, 0.01, 0.1), levels, 10).broken


def test_clip_norm_comes_from_the_runs_own_gradient_norms():
    assert clip_from([0.1] * 99 + [3.0], 10.0)[0] == 1.0
    assert clip_from([2.0] * 50, 10.0)[0] == 5.0
    assert clip_from([30.0] * 50, 10.0)[0] == 10.0
    assert "clips many" in clip_from([30.0] * 50, 10.0)[1]
    assert clip_from([2.0] * 50, 0.0)[0] == 5.0 and "almost no" in clip_from([2.0] * 50, 0.0)[1]
    assert clip_from([60.0] * 50, 0.0)[0] == 20.0 and "many" in clip_from([60.0] * 50, 0.0)[1]
    assert clip_from([math.inf], 10.0)[0] == 10.0


def test_quick_check_names_the_component_and_the_flag():
    trials = Trials(quadratic(CURVES, momentum=0.9))
    assert try_rates(trials, dict.fromkeys(CURVES, 1e-3), 20) == []
    trials = Trials(quadratic(CURVES, momentum=0.9))
    found = try_rates(trials, {"backbone": 0.01, "rpn": 0.01, "box_head": 0.3, "mask_head": 0.01}, 20)
    assert len(found) == 1 and found[0].startswith("box_head") and "--head-lr-multiplier" in found[0]


def test_limits_are_remembered_and_a_damaged_file_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remember("wide", {"backbone": limit(0.1), "rpn": limit(1.0, math.inf)})
    assert recall("wide") == {}
    remember("ceiling", {"backbone": limit(0.1), "rpn": limit(30.0, math.inf)})
    assert above({"rpn": 29.0}, recall("ceiling")) == []
    remember("abc", {"backbone": limit(0.1), "rpn": limit(100.0)})
    spans = recall("abc")
    assert spans["backbone"][0] == 0.1
    assert [w.split(":")[0] for w in above({"backbone": 0.2, "rpn": 50.0}, spans)] == ["backbone"]
    next(tmp_path.rglob("abc.json")).write_text("{")
    assert recall("abc") == {} and recall(None) == {}


@pytest.mark.slow
@narrow()
def test_advice_on_the_built_in_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(advise.BUDGET_FLOPS, "cpu", 1e11)
    config = Config(device="cpu", amp="off", min_size=64, max_size=64, batch_size=1, lr="auto", logdir=str(tmp_path))
    advice = advise.advise_data(config, Console(quiet=True), ladder=True)
    assert set(advice.max_stable_lr) == set(COMPONENTS)
    for component, rate in Choice("", advice.lr, advice.head_lr_multiplier, advice.rpn_lr_multiplier).rates.items():
        assert 0 < rate < advice.interval[component][1]
    assert advice.command.startswith("maskrcnn-coco train ") and f"--lr {advice.lr:g}" in advice.command
    assert [r.multiplier for r in advice.ladder] == [3.0, 5.0, 7.0, 10.0]
    plot = (tmp_path / "ladder.svg").read_text()
    assert plot.count('class="line s') == 4 and "× 10" in plot
    assert advice.expected_minutes > 0
    for component, value in advice.max_stable_lr.items():
        rates = Choice("", advice.lr, advice.head_lr_multiplier, advice.rpn_lr_multiplier).rates
        assert value is None or rates[component] <= value


def opened(out: Path, monkeypatch: pytest.MonkeyPatch, *, bad: tuple[int, ...] = (), epochs: int = 100, **changes: Any):
    """A session of 10 steps an epoch, its first warnings, and the steps that looking for them took."""
    spent = []
    monkeypatch.setattr(
        Trials, "step", lambda trials, step, step_of=Trials.step: spent.append(step) or step_of(trials, step)
    )
    settings = config(None, out, epochs=epochs, batch_size=1, **changes)
    session = open_session(settings, model=small_model(classes=2), train_data=OwnData(10, bad=bad), quiet=True)
    session.log.close()
    session.lock.close()
    return session, check_rates(session), len(spent)


def test_the_check_at_run_start_takes_a_hundredth_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert opened(tmp_path, monkeypatch)[1:] == ([], 10)
    assert opened(tmp_path, monkeypatch, epochs=99)[1:] == ([], 0)
    _, found, _ = opened(tmp_path, monkeypatch, head_lr_multiplier=1e3)
    assert found and "--head-lr-multiplier" in found[0]


@pytest.mark.parametrize("first", [0, 5])
def test_the_check_at_run_start_blames_no_rate_for_a_bad_image(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A NaN image among the steps that settle, or among those that are tried: it is the guard's to leave out."""
    order = [keys[0].image_id - 100 for _, (keys,) in map(opened(tmp_path, monkeypatch)[0].plan.step, range(10))]
    assert opened(tmp_path, monkeypatch, bad=(order[first],))[1] == []


def test_limits_of_other_settings_are_not_taken(
    tiny_shapes: ShapesFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data, backbone = open_data(Config(data=str(tiny_shapes.root))), tmp_path / "backbone.pth"
    settings = config(tiny_shapes.root, tmp_path, backbone_weights=str(backbone))
    backbone.write_bytes(b"1")
    names = [fingerprint(settings, data, "fp32"), fingerprint(settings, data, "bf16")]
    changes: list[dict[str, Any]] = [{"batch_size": 2}, {"box_batch_size_per_image": 64}, {"accumulate": 2}]
    names += [fingerprint(msgspec.structs.replace(settings, **c), data, "fp32") for c in changes]
    assert fingerprint(msgspec.structs.replace(settings, epochs=7, lr=1.0), data, "fp32") == names[0]
    backbone.write_bytes(b"22")
    names.append(fingerprint(settings, data, "fp32"))
    assert None not in names and len(set(names)) == len(names)


def test_limits_of_one_process_are_not_taken_for_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(start, "recall", lambda key: {"backbone": (1e-9, 1e-9, 1e-9)})
    session, found, _ = opened(tmp_path, monkeypatch, epochs=1)
    assert len(found) == 1
    session.ranks.world = 2
    assert check_rates(session) == []
