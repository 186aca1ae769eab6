"""Measured advice before a run: the stable learning rate of each component, and the settings that follow from it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec

from maskrcnn_coco.advice.batch_size import halved
from maskrcnn_coco.advice.candidates import (
    Choice,
    ColdStart,
    Joint,
    Tried,
    candidates,
    choose,
    clip_from,
    cold_start,
    compare,
    stood,
    why_this,
)
from maskrcnn_coco.advice.ladder import climb, svg
from maskrcnn_coco.advice.limits import LEAST, SETTLE_LEAST, Limit, Say, Settled, limits_from, settle
from maskrcnn_coco.advice.prepare import Setup, memory_use, open_setup
from maskrcnn_coco.advice.recommendation import ADVISED, Advice, command_line, over_limit, show
from maskrcnn_coco.advice.remembered import fingerprint, remember
from maskrcnn_coco.advice.trials import flops_of_step
from maskrcnn_coco.config import recipes
from maskrcnn_coco.config.resolve import is_small, resolve_run
from maskrcnn_coco.config.settings import Config, validate
from maskrcnn_coco.data.prepare import RunData, open_data, quarantine_first
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.replay.snapshot import Snapshot
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.system import memory
from maskrcnn_coco.system.files import write_text

BUDGET_FLOPS = {"cuda": 6e14, "cpu": 1e13, "mps": 1e14}
"""Operations of matrix products and convolutions that the measuring may take: a minute or two on common machines."""
SETTLE_STEPS = 10
MOST_STEPS, FEWEST_STEPS = 20, 10
TRIALS = 4
"""Full-length trainings that one component takes, about: diverging ones end early."""


def advise_data(config: Config, console: Console, *, ladder: bool = False) -> Advice:
    """Measure on the data and model that ``config`` names, print the advice, and return it.

    Raises:
        ConfigError, DataError: as `train` does, for settings and data that cannot be used.
    """
    validate(config)
    wanted = msgspec.structs.replace(config, lr=None) if config.lr == "auto" else config
    ranks = Ranks.start(config.device)
    data = open_data(wanted)
    quarantine_first(data, wanted)
    resolved = _resolve(wanted, data, ranks)
    advice = advise_run(resolved, data, ranks, say=console.note, ladder=ladder)
    show(advice, console)
    if advice.ladder_svg is not None and ranks.is_main:
        plot = Path(resolved.config.logdir) / "ladder.svg"
        try:
            plot.parent.mkdir(parents=True, exist_ok=True)
            write_text(plot, advice.ladder_svg)
            console.note(f"losses of the ladder: {plot}")
        except OSError as e:
            console.warn(f"the plot of the ladder was not written: {e}")
    return advice


def _resolve(config: Config, data: RunData, ranks: Ranks) -> recipes.Resolved:
    return resolve_run(
        config, images=data.usable_images(), builtin=data.builtin, device=ranks.device, world=ranks.world
    )


def settle_lr(resolved: recipes.Resolved, data: RunData) -> recipes.Resolved:
    """``--lr auto``: measure, and put the advised rate and multipliers where they were not given; else as it is.

    Raises:
        ConfigError: the data set is the caller's own, which cannot be opened here.
    """
    if resolved.config.lr != "auto":
        return resolved
    if data.train is None:
        raise ConfigError(
            "--lr auto needs the data as a COCO folder or file", got="a data set of your own", fix="give a number"
        )
    config = msgspec.structs.replace(resolved.config, lr=None)
    ranks = Ranks.start(config.device)
    again = _resolve(config, data, ranks)
    reasons = {k: v for k, v in resolved.reasons.items() if k != "lr"}
    advice = advise_run(recipes.Resolved(again.config, {**again.reasons, **reasons}), data, ranks)
    names = [n for n in ("lr", "head_lr_multiplier", "rpn_lr_multiplier") if reasons.get(n) != "given"]
    values = {n: getattr(advice, n) for n in names}
    why = f"measured before the run in {advice.seconds:.0f} s"
    settled = msgspec.structs.replace(again.config, **values)
    warnings = [*resolved.warnings, *recipes.lr_warnings(settled, builtin=is_small(settled, data.builtin))]
    return recipes.Resolved(settled, {**again.reasons, **reasons, **dict.fromkeys(names, why)}, warnings)


def advise_run(
    resolved: recipes.Resolved,
    data: RunData,
    ranks: Ranks,
    *,
    say: Say | None = None,
    ladder: bool = False,
) -> Advice:
    """Measure and recommend for a resolved configuration; the model and optimizer are private to this call.

    Budgets count steps, and how many they are follows from the work of one: the same on a busy machine and an idle one.
    """
    began = time.monotonic()
    setup, fresh, settled, budget = settle_what_fits(resolved, data, ranks, say)
    trials, config, recipe = setup.trials, setup.config, _recipe(setup.config)
    steps = _affordable(len(trials.components), budget)
    if say:
        say(f"trials of {steps} steps, {LEAST} or more for each component" + ", the ladder on top" * ladder)
    limits = limits_from(trials, settled, steps=steps, budget=0.65 * budget - trials.work, say=say)
    remember(fingerprint(config, data, trials.task.precision), limits)
    joint = Joint(trials, settled, steps)
    fixed = {n: _number(v) for n, v in setup.given.items() if n in ADVISED[:3]}
    choices = candidates(limits, recipe, fixed, pretrained=setup.pretrained, optimizer=config.optimizer)
    best, seen = choose(joint, choices, most=0.8 * budget, fixed_lr="lr" in fixed)
    compared = compare(limits, best.choice, pretrained=setup.pretrained, optimizer=config.optimizer)
    limits = stood(limits, best)
    seen = [*settled.notes, *compared, *seen]
    advice = assemble(
        setup, settled, limits, best, seen, cold_start(trials, fresh, best.choice, joint.levels, steps // 2)
    )
    advice.warnings = over_limit(recipe.rates, advice, "the given" if "lr" in fixed else "the recipe's")
    if ladder:
        advice.ladder = climb(trials, settled, best.choice.rates, steps=2 * steps, say=say)
        advice.ladder_svg = svg(advice.ladder)
    advice.seconds = time.monotonic() - began
    return advice


def settle_what_fits(
    resolved: recipes.Resolved, data: RunData, ranks: Ranks, say: Say | None
) -> tuple[Setup, Snapshot, Settled, float]:
    """The setup, its first state, the settled one, and the steps of the budget; where memory runs out, with half the
    batch size and twice the accumulation, as often as needed.

    Raises:
        ConfigError: not even one image fits.
    """
    while True:
        setup = open_setup(resolved, data, ranks)
        fresh = setup.trials.save(0)
        try:
            budget = BUDGET_FLOPS.get(ranks.device.type, BUDGET_FLOPS["cpu"]) / flops_of_step(setup.trials)
            steps = int(min(max(0.15 * budget, SETTLE_LEAST), SETTLE_STEPS))
            setup.trials.load(fresh)
            setup.trials.work = 0.0
            return setup, fresh, settle(setup.trials, _safe(_recipe(setup.config)), steps, say=say), budget
        except (RuntimeError, MemoryError) as error:
            resolved = halved(setup.config, resolved, ranks, error, say)
        del setup, fresh
        memory.release(ranks.device)


def _recipe(config: Config) -> Choice:
    return Choice("recipe", *(_number(getattr(config, n)) for n in ADVISED[:3]))


def assemble(
    setup: Setup, settled: Settled, limits: dict[str, Limit], best: Tried, seen: list[str], cold: ColdStart
) -> Advice:
    """The advice from what was measured; settings that were given stay."""
    config, given = setup.config, setup.given
    # A training that breaks, as given rates may have it, tells nothing of healthy steps.
    healthy = best.trial if best.safe else settled.trial
    clip, why_clip = clip_from([r.grad_norm for r in healthy.records if r.applied], config.max_grad_norm)
    warmup = config.warmup_steps or 0
    if cold.broken and warmup < SETTLE_STEPS and "warmup_steps" not in given:
        warmup = min(max(SETTLE_STEPS, setup.total_steps // 20), setup.total_steps)
    used, fits = memory_use(setup)
    reasons = [*seen, f"advised: {best.choice.name} ({why_this(best)})", why_clip, cold.sentence(warmup), fits]
    advice = Advice(
        lr=best.choice.lr,
        head_lr_multiplier=best.choice.head,
        rpn_lr_multiplier=best.choice.rpn,
        warmup_steps=warmup,
        max_grad_norm=config.max_grad_norm if "max_grad_norm" in given else clip,
        batch_size=config.images_a_pass,
        epochs=config.epochs or 1,
        max_stable_lr={c: limit.stable if limit.measured else None for c, limit in limits.items()},
        interval={c: (limit.low, limit.high) if limit.measured else None for c, limit in limits.items()},
        reasons=[*reasons, f"epochs {config.epochs}: {setup.reasons.get('epochs', 'given')}"],
        command="",
        expected_minutes=healthy.seconds / max(1, healthy.steps) * setup.total_steps / 60,
        memory_bytes=used,
        limits={c: limit for c, limit in limits.items() if limit.measured},
    )
    # What was measured is how far the backbone and its FPN go together.
    fpn = {} if config.fpn_lr_multiplier in (None, 1.0) else {"fpn_lr_multiplier": config.fpn_lr_multiplier}
    advice.command = command_line(advice, {**fpn, **given})
    return advice


def _affordable(components: int, budget: float) -> int:
    return int(min(max(0.6 * budget / (TRIALS * components), FEWEST_STEPS), MOST_STEPS))


def _safe(recipe: Choice) -> dict[str, float]:
    """Where to begin: well below the recipe."""
    return {c: v / 5 for c, v in recipe.rates.items()}


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)):
        raise ConfigError("a learning rate is not settled yet", got=value, fix="call recipes.resolve first")
    return float(value)
