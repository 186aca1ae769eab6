"""A run's model, batches and optimizer on their own, ready for trials; and what they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from maskrcnn_coco.advice.trials import ForwardAt, Task, Trials
from maskrcnn_coco.config import recipes
from maskrcnn_coco.config.resolve import is_small, total_steps
from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.data.batch import Source, make_batch
from maskrcnn_coco.data.plan import Plan
from maskrcnn_coco.data.prepare import RunData
from maskrcnn_coco.data.sources import make_plan, sources
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.model.build import make_model
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.model.optim import optimizer_for
from maskrcnn_coco.system import memory
from maskrcnn_coco.system.precision import make_scaler, resolve_amp

BATCHES = 8
"""Different batches that trials use in turn; they are held in memory."""


@dataclass
class Setup:
    """A run's settings and data, ready for trials."""

    config: Config
    given: dict[str, Any]
    reasons: dict[str, str]
    trials: Trials
    total_steps: int
    device: torch.device
    pretrained: bool
    bytes_before: int
    """In use before the first step."""
    images: int


def open_setup(resolved: recipes.Resolved, data: RunData, ranks: Ranks) -> Setup:
    """Model, batches and optimizer of a run, on their own."""
    config, device = resolved.config, ranks.device
    small = is_small(config, data.builtin)
    memory.reset_peak(device)  # a batch that did not fit before this one is no measure of it
    precision = resolve_amp(config.amp, device)
    source, _ = sources(data, config, None, None, small=small)
    plan = make_plan(source, data, config, ranks)
    forward = Forward(torch.nn.Identity(), device=device, precision=precision, seed=config.seed)
    trials = Trials(
        make_task(
            config,
            lambda: make_model(config, data.classes, small=small).to(device),
            forward.losses,
            first_batches(source, plan, BATCHES),
            device=device,
            precision=precision,
        )
    )
    given = {n: getattr(config, n) for n, why in resolved.reasons.items() if why == "given"}
    total = total_steps(plan.steps_per_epoch, config)
    pretrained = config.weights != "none" or config.backbone_weights is not None
    return Setup(config, given, resolved.reasons, trials, total, device, pretrained, memory.held(device), len(plan))


def make_task(
    config: Config,
    new_model: Callable[[], torch.nn.Module],
    losses: ForwardAt,
    batches: list[Any],
    *,
    device: torch.device,
    precision: str,
) -> Task:
    """The training that ``config`` names, as trials take it: each on a model that ``new_model`` makes."""
    return Task(
        new_model,
        lambda model: optimizer_for(model, config),
        losses,
        batches,
        max_grad_norm=config.max_grad_norm,
        precision=precision,
        make_scaler=lambda: make_scaler(precision, device),
    )


def first_batches(source: Source, plan: Plan, most: int) -> list[Any]:
    """The batches of the first ``most`` steps, at most an epoch; a list of micro-batches where a step has several.

    Raises:
        DataError: an image cannot be read.
    """
    micro = [[make_batch(source, keys) for keys in plan.step(s)[1]] for s in range(min(most, plan.steps_per_epoch))]
    return [m if len(m) > 1 else m[0] for m in micro]


def memory_use(setup: Setup) -> tuple[int, str]:
    """Highest memory use since the setup was opened, bytes, and a sentence on the batch size that fits."""
    batch, most, whole = setup.config.images_a_pass, memory.peak(setup.device), memory.usable(setup.device)
    if not whole or most <= setup.bytes_before:
        return most, f"batch size {batch}: up to {most / 2**30:.1f} GiB were used"
    fits = memory.batch_that_fits(batch, setup.bytes_before, most, whole)
    room = f"all {setup.images} images" if fits >= setup.images else f"about {fits}"
    text = f"batch size {batch} takes {most / 2**30:.1f} of {whole / 2**30:.0f} GiB; {room} would fit"
    return most, text + ", but the limits above hold for this batch size" * (fits > batch)
