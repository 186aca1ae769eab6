"""Model and optimizer: which weights can learn, which cannot, and in which mode the layers are."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from maskrcnn_coco.components import real
from maskrcnn_coco.findings.facts import Parameters

LEAST = 1500
"""Numbers that a layer needs to tell its spread."""
SHARE, LAYERS = 0.9, 2
MANY = 8
"""Numbers of a parameter that cannot stay alike by chance."""
OVERLAP = 0.01
"""Ten times the image's side. Anchors of 512 pixels on images of 64 are common in trials, and harm nobody."""


def parameters_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    kept_eval: Iterable[str] = (),
    rates: Sequence[float] = (),
) -> Parameters:
    """What can learn.

    Args:
        kept_eval: norm layers that the caller handed over in eval mode.
        rates: of each group of ``optimizer`` after its warm-up; empty: as it says itself.
    """
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    mine = {id(p) for p in model.parameters()}
    found = Parameters(len(trainable), frozen_random=frozen_random(model), kept_eval=list(kept_eval))
    found.far_anchors, found.image_side = far_anchors(model)
    if optimizer is not None:
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        found.strangers = sum(i not in mine for i in held)
        found.owned = sum(i in mine for i in held)
        found.missing = [name for i, name in trainable.items() if i not in set(held)]
        found.decay, found.decay_of = decay_of(optimizer, rates)
        momenta = [g.get("momentum") for g in optimizer.param_groups]
        found.momentum = max((float(m) for m in momenta if isinstance(m, (int, float))), default=0.0)
        found.unloaded, found.old_rate = _unloaded(model, optimizer), _old_rate(optimizer)
        if not found.frozen_random:
            found.frozen_random = _resting_random(model, optimizer, rates)
    return found


def far_anchors(model: nn.Module) -> tuple[dict[str, float], float]:
    """Anchors so large that not even a box of the whole image overlaps them by `OVERLAP`; and the image's side."""
    side = getattr(getattr(model, "transform", None), "max_size", None)
    generator = next((m for m in model.modules() if hasattr(m, "sizes") and hasattr(m, "aspect_ratios")), None)
    if generator is None or not isinstance(side, (int, float)) or side <= 0:
        return {}, 0.0
    sizes: Any = generator.sizes
    try:
        given = {f"level {n}": float(max(level)) for n, level in enumerate(sizes)}
    except (TypeError, ValueError):  # another generator than torchvision's
        return {}, 0.0
    return {where: size for where, size in given.items() if side**2 < OVERLAP * size**2}, float(side)


def _rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> list[float]:
    # A scheduler that warms up has lowered `lr` already, and left the true rate beside it.
    own = [max(float(g.get("initial_lr", 0.0)), real(g.get("lr", 0.0))) for g in optimizer.param_groups]
    return list(rates) if len(rates) == len(own) else own


def decay_of(optimizer: torch.optim.Optimizer, rates: Sequence[float] = ()) -> tuple[float, tuple[float, float]]:
    """The largest share that decay takes in a step, with its rate and decay; 0 where a step is scaled by gradients."""
    found = [(0.0, (0.0, 0.0))]
    kind = type(optimizer).__name__.lower()
    for group, rate in zip(optimizer.param_groups, _rates(optimizer, rates), strict=True):
        decay = float(group.get("weight_decay", 0.0) or 0.0)
        if kind == "sgd":
            momentum = float(group.get("momentum", 0.0) or 0.0)
            heaped = (1 - float(group.get("dampening", 0.0))) / (1 - momentum) if momentum < 1 else 1.0
            found.append((rate * decay * heaped, (rate, decay)))
        elif kind in ("adamw", "nadamw", "lion"):  # decoupled: torch's Adam scales the decay with the gradient
            found.append((rate * decay, (rate, decay)))
    return max(found)


def _unloaded(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Parameters that the optimizer's loaded state has moved, and that are as an initialiser leaves them: one value.

    A step of another size in each place leaves no parameter alike in all of them.
    """
    rates = {id(p): real(g.get("lr", 0.0)) for g in optimizer.param_groups for p in g["params"]}
    found = []
    for name, p in model.named_parameters():
        state = optimizer.state.get(p) if rates.get(id(p), 0.0) > 0 and p.numel() >= MANY else None
        moved = state.get("exp_avg", state.get("momentum_buffer")) if state else None
        if isinstance(moved, Tensor) and moved.shape == p.shape and len(torch.unique(moved)) > 1:
            values = p.detach().flatten()
            if bool((values == values[0]).all()):
                found.append(name)
    return found if len(found) >= LAYERS else []


def _old_rate(optimizer: torch.optim.Optimizer) -> tuple[float, float] | None:
    """(the rate given, the one that a loaded state brought), where every group has that one as its schedule's first.

    Without a scheduler's `initial_lr` the caller may set rates by hand; of cycles it is the lowest. The optimizer's own
    default was given by nobody: groups that bring their rates leave it there.
    """
    given = optimizer.defaults.get("lr")
    default = inspect.signature(type(optimizer)).parameters.get("lr")
    given = 0.0 if default is not None and default.default == given else float(given or 0.0)
    firsts = {
        float(g["initial_lr"]) if "initial_lr" in g and "max_lr" not in g else None for g in optimizer.param_groups
    }
    first = firsts.pop() if len(firsts) == 1 else None
    if not optimizer.state or first is None or not given or abs(first / given - 1) < 0.01:
        return None
    return given, first


def _resting_random(model: nn.Module, optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> list[str]:
    """Layers with an initialiser's spread in groups of rate 0, where other groups have a rate."""
    own = _rates(optimizer, rates)
    if not own or max(own) == 0:
        return []
    resting = {id(p) for g, rate in zip(optimizer.param_groups, own, strict=True) if rate == 0 for p in g["params"]}
    looked = [
        (name, weight)
        for name, module in model.named_modules()
        if (weight := module._parameters.get("weight")) is not None and id(weight) in resting and weight.ndim >= 2
    ]
    return _mostly_random(looked)


def norms_in_eval(model: nn.Module) -> list[str]:
    """Norm layers with statistics that are in eval mode in a model that is not: somebody meant it."""
    if not model.training:
        return []
    return [
        n for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats and not m.training
    ]


def all_in_eval(model: nn.Module) -> list[str]:
    """Layers that would behave otherwise in training, where every module is in eval mode; else none."""
    if any(m.training for m in model.modules()):
        return []
    return [
        name
        for name, m in model.named_modules()
        if (isinstance(m, _BatchNorm) and m.track_running_stats) or (isinstance(m, _DropoutNd) and m.p > 0)
    ]


def train_but(model: nn.Module, names: Iterable[str]) -> None:
    """Train mode, and eval mode for the modules ``names``."""
    model.train()
    kept = set(names)
    for name, module in model.named_modules():
        if name in kept:
            module.eval()


def frozen_random(model: nn.Module) -> list[str]:
    """Frozen layers whose weights have an initialiser's spread, where (nearly) all frozen layers have; else none."""
    return _mostly_random(list(_frozen(model)))


def _mostly_random(layers: Sequence[tuple[str, Tensor]]) -> list[str]:
    looked = [(name, weight) for name, weight in layers if weight.numel() >= LEAST and not weight.is_meta]
    hits = [name for name, weight in looked if looks_random(weight.detach())]
    return hits if len(hits) >= max(LAYERS, math.ceil(SHARE * len(looked))) else []


def _frozen(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.ndim >= 2 and not weight.requires_grad and not weight.is_meta:
            yield name, weight


def looks_random(weight: Tensor) -> bool:
    """Whether mean, spread and tails are those of a usual initialiser, as closely as so many draws come to them.

    Trained weights have heavier tails than a normal distribution and another spread; by chance one layer may pass.
    """
    values = weight.float().flatten()
    n = values.numel()
    mean, std = float(values.mean()), float(values.std())
    if not math.isfinite(std) or std == 0 or abs(mean) > 5 * std / math.sqrt(n):
        return False
    kurtosis = float((((values - mean) / std) ** 4).mean())
    fan_in = weight[0].numel()
    fan_out = weight.shape[0] * weight[0, 0].numel() if weight.ndim > 2 else weight.shape[0]
    normal = [math.sqrt(2 / fan_out), math.sqrt(2 / fan_in), math.sqrt(2 / (fan_in + fan_out)), 0.01, 0.02]
    uniform = [math.sqrt(1 / (3 * fan_in)), math.sqrt(1 / fan_in), math.sqrt(2 / fan_in), normal[2]]
    for spreads, tails in ((normal, 3.0), (uniform, 1.8)):
        near = 5 * math.sqrt((tails - 1) / (4 * n))
        if abs(kurtosis - tails) < 6 * math.sqrt(24 / n) and any(abs(std / s - 1) < near for s in spreads):
            return True
    return False
