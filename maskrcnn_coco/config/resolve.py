"""Settings without gaps: recipe, precision, the small network."""

from __future__ import annotations

import torch

from maskrcnn_coco.config import recipes
from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.system.memory import peak, total
from maskrcnn_coco.system.precision import amp_warning

MOST_REPEATS = 100
"""Times that one step may take each image: a handful of images in large batches is a test that people make."""


def is_small(config: Config, builtin: bool) -> bool:
    """Whether the small network for the built-in shapes is trained."""
    return builtin and config.model in (None, "maskrcnn_resnet18_fpn")


def resolve_run(
    config: Config, *, images: int, builtin: bool, device: torch.device, world: int, most_objects: int = 0
) -> recipes.Resolved:
    """The settings without gaps; ``--lr auto`` stays as it is, to be measured later.

    Args:
        config: the settings as given.
        images: usable training images.
        builtin: whether they are the built-in shapes.
        device: what the run computes on.
        world: processes of the run.
        most_objects: in one image of the data; 0 where that is not known.
    """
    resolved = recipes.resolve(
        config,
        num_images=images,
        builtin=is_small(config, builtin),
        device=device.type,
        world=world,
        most_objects=most_objects,
    )
    require_sane_step(resolved.config, images, world)
    warning = amp_warning(config.amp, device)
    if warning is not None:
        resolved.warnings.append(warning)
    return resolved


def require_sane_step(config: Config, images: int, world: int) -> None:
    """Raise ConfigError where one step would take each image many times: a digit too many, not a wish.

    Its plan alone would fill the memory before anything is trained.
    """
    step = config.images_a_pass * config.accumulate * world
    if step <= max(MOST_REPEATS * images, 1_000):
        return
    raise ConfigError(
        f"a step of {step} images would take each of the {images} training images {step // max(images, 1)} times",
        got=f"--batch-size {config.images_a_pass} --accumulate {config.accumulate}"
        + (f" in {world} processes" if world > 1 else ""),
        expected=f"a step of at most {max(MOST_REPEATS * images, 1_000)} images",
        fix="lower --batch-size or --accumulate",
    )


def total_steps(steps_per_epoch: int, config: Config) -> int:
    """Optimizer steps of the whole run: all epochs, or --max-steps where that is less."""
    steps = steps_per_epoch * (config.epochs or 1)
    return steps if config.max_steps is None else min(steps, config.max_steps)


def too_large(config: Config, device: torch.device, *, saved: str = "") -> ConfigError:
    """The error for a batch that did not fit, with the flags that make it fit at the same effective batch size."""
    batch, parts = config.images_a_pass, config.accumulate
    smaller = [f"--batch-size {batch // 2} --accumulate {parts * 2}"] if batch > 1 else []
    smaller += [f"--max-size {int((config.max_size or 1333) * 0.75)} --min-size {int((config.min_size or 800) * 0.75)}"]
    whole = total(device)
    room = f" of {whole / 2**30:.1f} GiB" if whole else ""
    return ConfigError(
        f"memory ran out on {device}{saved}",
        got=f"batch size {batch}, images up to {config.max_size} pixels, {peak(device) / 2**30:.1f} GiB used{room}",
        expected="a batch that fits",
        fix=", or ".join(smaller) + "; maskrcnn-coco advise says what fits",
    )
