"""Settings that were not given, from the data set's size.

The recipe table is for fine-tuning pretrained weights. The built-in shapes train a small network
from random weights, which wants a higher rate; their recipe says so. Torch-free.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

import msgspec

from maskrcnn_coco.config.lr_ranges import ADAMW_SHARE, guideline
from maskrcnn_coco.config.settings import COCO_WEIGHTS, Config, given
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.records import COMPONENTS, RATE_SETTINGS
from maskrcnn_coco.wording import rate_flag


@dataclass(frozen=True)
class Recipe:
    """What a data set of one size is trained with."""

    name: str
    lr: float
    head_lr_multiplier: float
    epochs: int


BUILTIN = Recipe("built-in shapes, from random weights", 5e-3, 5.0, 16)
SIZES = (
    (500, Recipe("fewer than 500 images", 1e-3, 5.0, 30)),
    (2001, Recipe("500 to 2000 images", 5e-3, 5.0, 20)),
    (None, Recipe("more than 2000 images", 5e-3, 7.0, 15)),
)


COCO_DETECTIONS = 100
"""Detections of an image that COCO counts."""
FOLLOW_DATA = ("batch_size", "box_detections_per_image")
"""What "auto" means for these is worked out here; for the learning rate it is measured."""
CLIP_GUIDE = ((1.0, "very conservative"), (5.0, "conservative"), (10.0, "default"), (20.0, "loose"))


@dataclass(frozen=True)
class Resolved:
    """A Config without gaps, with the reason for each value and the warnings about them."""

    config: Config
    reasons: dict[str, str]
    warnings: list[str] = field(default_factory=list)


def recipe_for(num_images: int, *, builtin: bool = False) -> Recipe:
    """The recipe for a data set of ``num_images`` training images."""
    if builtin:
        return BUILTIN
    return next(r for limit, r in SIZES if limit is None or num_images < limit)


def component_lrs(config: Config) -> dict[str, float]:
    """Learning rate per component after warm-up. ``config`` must be resolved (no None, no "auto")."""
    lr, head, rpn = config.lr, config.head_lr_multiplier, config.rpn_lr_multiplier
    if not isinstance(lr, float) or head is None or rpn is None:
        raise ConfigError("the learning rate is not settled yet", got=lr, fix="call recipes.resolve first")
    return dict(zip(COMPONENTS, (lr, lr * rpn, lr * head, lr * head), strict=True))


def resolve(
    config: Config,
    *,
    num_images: int,
    builtin: bool = False,
    device: str = "cpu",
    world: int = 1,
    most_objects: int = 0,
) -> Resolved:
    """Fill each setting that was not given and say why; a value that was given stays as it is.

    Args:
        num_images: training images, after quarantine.
        builtin: the data are the built-in shapes.
        device: torch device type, "cpu", "cuda" or "mps".
        world: number of processes.
        most_objects: in one image; 0 where that is not known.
    """
    recipe = recipe_for(num_images, builtin=builtin)
    size = f"recipe: {recipe.name} ({num_images})"
    values = _defaults(config, recipe, size, num_images=num_images, builtin=builtin, device=device, world=world)
    values["box_detections_per_image"] = _default_detections(most_objects)
    filled: dict[str, object] = {}
    reasons = dict.fromkeys(sorted(given(config)), "given")
    for name, (value, reason) in values.items():
        if getattr(config, name) is None or (getattr(config, name) == "auto" and name in FOLLOW_DATA):
            filled[name] = value
            reasons[name] = reason
    resolved = msgspec.structs.replace(config, **filled)
    if resolved.lr_scaling == "linear" and world > 1 and isinstance(resolved.lr, float):
        resolved = msgspec.structs.replace(resolved, lr=resolved.lr * world)
        reasons["lr"] += f", times {world} processes (--lr-scaling linear)"
    warnings = [] if resolved.lr == "auto" else lr_warnings(resolved, builtin=builtin, chosen=given(config))
    if world > 1 and resolved.lr_scaling == "none":
        warnings.append(
            f"{world} processes make the batch {world} times larger while --lr stays {resolved.lr:g}; "
            "--lr-scaling linear would multiply it"
            if isinstance(resolved.lr, float)
            else f"{world} processes make the batch {world} times larger"
        )
    return Resolved(resolved, reasons, warnings)


def _defaults(c: Config, recipe: Recipe, size: str, *, num_images: int, builtin: bool, device: str, world: int):
    """Field → (value, reason) for everything that may be left open."""
    given_batch = c.batch_size if isinstance(c.batch_size, int) else None
    batch_size = given_batch or (4 if builtin else 2 if device == "cpu" else 4)
    per_epoch = max(1, -(-num_images // (batch_size * c.accumulate * world)))
    epochs = c.epochs or recipe.epochs
    if c.max_steps is not None and c.epochs is None:
        epochs, size_of_epochs = -(-c.max_steps // per_epoch), f"as many as hold the {c.max_steps} steps of --max-steps"
    else:
        size_of_epochs = size
    steps = min(per_epoch * epochs, c.max_steps or per_epoch * epochs)
    warmup = min(1000, max(1, steps // 20)) if not builtin else min(60, max(1, steps // 10))
    small = "small network for the built-in shapes"
    cores = os.cpu_count() or 1
    workers = min(4, max(0, cores - 1)) if device != "cpu" else (0 if builtin else min(2, cores - 1))
    adamw = c.optimizer == "adamw"
    lr = (recipe.lr / ADAMW_SHARE, f"{size}, over {ADAMW_SHARE} for adamw") if adamw else (recipe.lr, size)
    return {
        "lr": lr,
        "head_lr_multiplier": (recipe.head_lr_multiplier, size),
        "rpn_lr_multiplier": _default_fresh(c, lr[0], builtin=builtin),
        "fpn_lr_multiplier": _default_fresh(c, lr[0], builtin=builtin),
        "epochs": (epochs, size_of_epochs),
        "batch_size": (batch_size, small if builtin else f"default on {device}"),
        "warmup_steps": (warmup, f"a share of the {steps} planned steps, at most 1000"),
        "weight_decay": (0.05, "default for adamw") if adamw else (1e-4, "default for sgd"),
        "model": (("maskrcnn_resnet18_fpn", small) if builtin else ("maskrcnn_resnet50_fpn_v2", "default")),
        "weights": _default_weights(c, builtin=builtin),
        "min_size": ((128, small) if builtin else (800, "torchvision's default")),
        "max_size": _default_max_size(c, builtin=builtin),
        "workers": (workers, f"{cores} cores, training on {device}"),
        "box_batch_size_per_image": _default_rois(builtin=builtin, device=device),
    }


def _default_fresh(c: Config, recipe_lr: float, *, builtin: bool) -> tuple[float, str]:
    """The multiplier of the region proposal network, and of the FPN: as the backbone, but where only the backbone is
    pretrained.

    Proposals from random weights that learn at a fine-tuning rate are poor for hundreds of steps, and the heads see
    nothing else. bench/results/recipes.md, segm/AP in equal time, 3 seeds, ImageNet backbone, rate of the backbone ·
    5 times it · torchvision's recipe: nuclei 0.181 · 0.232 · 0.214 (a third of the time: 0.014 · 0.110 · 0.037), cars
    0.077 · 0.085 · 0.068. The FPN feeds all of them: as fast as the proposals, nuclei have 0.248 and cars 0.096.
    """
    lr = recipe_lr if c.lr is None else c.lr
    weights = c.weights or _default_weights(c, builtin=builtin)[0]
    fresh = weights == "imagenet" or (weights == "none" and c.backbone_weights is not None)
    top = guideline(c.optimizer)["rpn"].safe[1]
    if builtin or not fresh or not isinstance(lr, float) or lr >= top:
        return 1.0, "default: as the backbone"
    times = math.floor(100 * top / lr + 1e-6) / 100  # down: rounded up, the rate would be above the safe ones
    return times, f"it starts from random weights: {top:g} is the highest rate that is safe for it"


def _default_detections(most_objects: int) -> tuple[int, str]:
    if most_objects > COCO_DETECTIONS:
        return most_objects, "the most objects in one image; COCO's maxDets is 100"
    return COCO_DETECTIONS, "COCO's maxDets"


def _default_rois(*, builtin: bool, device: str) -> tuple[int, str]:
    if builtin:
        return 64, "small network for the built-in shapes"
    if device == "cpu":
        return 128, "on a CPU a quarter of torchvision's 512: a step takes well under half the time"
    return 512, "torchvision's default"


def _default_weights(c: Config, *, builtin: bool) -> tuple[str, str]:
    if builtin:
        return "none", "no download for the built-in shapes"
    if c.backbone_weights is not None:
        return "none", "--backbone-weights gives the backbone; heads start at random"
    if c.model is not None and c.model not in COCO_WEIGHTS:
        return "imagenet", f"{c.model} has no COCO weights"
    return "coco", "default: fine-tune from COCO"


def _default_max_size(c: Config, *, builtin: bool) -> tuple[int, str]:
    if builtin and c.min_size is None:
        return 128, "small network for the built-in shapes"
    if c.min_size is None:
        return 1333, "torchvision's default"
    return round(c.min_size * 1333 / 800), "torchvision's ratio to --min-size"


def lr_warnings(config: Config, *, builtin: bool, chosen: frozenset[str] | None = None) -> list[str]:
    """One sentence for each component whose learning rate is below the guideline's range, or above the safe one.

    Args:
        chosen: the settings that the user gave: of a rate that is the recipe's alone nothing is said. None: all.
    """
    sentences = []
    guides = guideline(config.optimizer)
    for component, lr in component_lrs(config).items():
        guide = guides[component]
        if chosen is not None and not chosen & {"lr", RATE_SETTINGS[component]}:
            continue  # the recipe is ours, and was measured
        if lr < guide.safe[0] * (1 - 1e-9) and not builtin:
            sentences.append(
                f"{component}: learning rate {lr:g} is below the range {guide.safe[0]:g} to {guide.safe[1]:g} of "
                f"{guide.state} weights: it will learn slowly, if at all ({rate_flag(component)})"
            )
        if guide.is_safe(lr):
            continue
        sentences.append(
            f"{component}: learning rate {lr:g} is {guide.describe(lr)} "
            f"(safe for {guide.state} weights: {guide.safe[0]:g} to {guide.safe[1]:g}; {rate_flag(component)})"
        )
    sentences += _fpn_warning(config, chosen)
    if builtin and sentences:
        sentences.append("the guideline is for pretrained weights; the built-in shapes start from random ones")
    if config.max_grad_norm == 0:
        sentences.append("gradient clipping is off (--max-grad-norm 0): one bad batch can start a divergence")
    elif config.max_grad_norm > CLIP_GUIDE[-1][0]:
        sentences.append(
            f"--max-grad-norm {config.max_grad_norm:g} is looser than {CLIP_GUIDE[-1][0]:g} (10 is the default)"
        )
    return sentences


def _fpn_warning(config: Config, chosen: frozenset[str] | None) -> list[str]:
    """A sentence on the FPN's rate, where it is one of its own and above what is safe for random weights."""
    times, guide = config.fpn_lr_multiplier or 1.0, guideline(config.optimizer)["rpn"]
    rate = component_lrs(config)["backbone"] * times
    if times == 1.0 or guide.is_safe(rate) or (chosen is not None and not chosen & {"lr", "fpn_lr_multiplier"}):
        return []
    return [
        f"fpn: learning rate {rate:g} is {guide.describe(rate)} "
        f"(safe for random weights: {guide.safe[0]:g} to {guide.safe[1]:g}; --fpn-lr-multiplier)"
    ]


def of_older_run(config: Config) -> Config:
    """The settings of a run, read from its files: where they do not say how fast the FPN learned, as the backbone."""
    return msgspec.structs.replace(config, fpn_lr_multiplier=config.fpn_lr_multiplier or 1.0)
