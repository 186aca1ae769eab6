"""The optimizer, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from maskrcnn_coco.components import FPN, TIMES, components, plain_name, times_of
from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.errors import ConfigError

STEP_AT = (2 / 3, 8 / 9)
FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """At most two groups a component: with weight decay, and without it (norms and biases: at most one dimension).

    Few groups matter: one group a tensor costs up to a quarter of a GPU step.
    """
    groups = []
    for component, named in components(model).items():
        for decay in (True, False):
            params = [p for p in named.values() if (p.ndim > 1) == decay]
            if params:
                group = {"params": params, "component": component, "decay": decay}
                groups.append({**group, "weight_decay": weight_decay if decay else 0.0})
    return groups


def fpn_apart(groups: list[dict], model: nn.Module, times: float) -> list[dict]:
    """``groups`` with those of the FPN split off, which learn at ``times`` the rate of the backbone they belong to.

    At 1, or without an FPN, they are as they were: runs that were saved so go on.
    """
    own = {id(p) for name, p in model.named_parameters() if plain_name(name).startswith(FPN)}
    if times == 1.0 or not own:
        return groups
    backbone = [g for g in groups if g["component"] == "backbone"]
    body = [{**g, "params": [p for p in g["params"] if id(p) not in own]} for g in backbone]
    fpn = [{**g, "params": [p for p in g["params"] if id(p) in own], TIMES: times} for g in backbone]
    others = [g for g in groups if g["component"] != "backbone"]
    return [g for g in (*body, *fpn, *others) if g["params"]]


def build_optimizer(
    model: nn.Module,
    *,
    kind: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    fpn_times: float = 1.0,
    fused: bool | None = None,
) -> Optimizer:
    """SGD or AdamW over the trainable parameters; every group has "component" and "decay".

    The state exists, zero, before the first step: a fused SGD allocates momentum uninitialised on the first step, and
    when that step is skipped on the device the garbage stays. Learning rates start at 0: set them with `apply_lr`.

    Args:
        momentum: SGD's momentum; AdamW's beta1.
        fpn_times: the FPN's rate over the backbone's; see `fpn_apart`.
        fused: one kernel for all tensors; None: where the device has it.

    Raises:
        ConfigError: nothing to train, or an unknown ``kind``.
    """
    groups = fpn_apart(parameter_groups(model, weight_decay), model, fpn_times)
    if not groups:
        raise ConfigError("the model has no trainable parameters", fix="lower --freeze-stages")
    params = [p for g in groups for p in g["params"]]
    if fused is None:
        fused = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in params)
    if kind == "sgd":
        optimizer: Optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=fused)
    elif kind == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(momentum, 0.999), fused=fused)
    else:
        raise ConfigError("--optimizer is not known", got=kind, expected="sgd or adamw")
    zero_state(optimizer)
    return optimizer


def optimizer_for(model: nn.Module, config: Config) -> Optimizer:
    """The optimizer that ``config`` names, of ``model``; every learning rate is still 0.

    Settings of a run that knew no rate of the FPN's own have none: there it is the backbone's.
    """
    return build_optimizer(
        model,
        kind=config.optimizer,
        momentum=config.momentum,
        weight_decay=config.weight_decay or 0.0,
        fpn_times=config.fpn_lr_multiplier or 1.0,
    )


def with_fpn_times(optimizer: Optimizer, times: float) -> Optimizer:
    """``optimizer``, its FPN's groups at ``times`` the backbone's rate; where they are not apart, as it is."""
    for group in optimizer.param_groups:
        if TIMES in group:
            group[TIMES] = times
    return optimizer


def has_fpn(model: nn.Module) -> bool:
    """Whether ``model`` has trainable weights that a rate of the FPN's own is for."""
    return any(p.requires_grad and plain_name(name).startswith(FPN) for name, p in model.named_parameters())


def zero_state(optimizer: Optimizer) -> None:
    """Make the optimizer's state as if no step was taken: buffers that exist and are zero."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            state: dict[str, torch.Tensor] = {}
            if isinstance(optimizer, torch.optim.AdamW):
                on = p.device if group["fused"] or group["capturable"] else torch.device("cpu")
                state = {"step": torch.zeros((), dtype=torch.float32, device=on)}
                state |= {k: torch.zeros_like(p, requires_grad=False) for k in ("exp_avg", "exp_avg_sq")}
            elif group.get("momentum", 0.0) != 0.0:
                state = {"momentum_buffer": torch.zeros_like(p, requires_grad=False)}
            optimizer.state[p] = state


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each component at each step: linear warm-up, then ``kind``.

    "cosine": down to ``floor`` of it along a cosine. "step": a tenth after two thirds of the steps and again after
    eight ninths, as detectron2's 1x schedule does. "constant": level.

    ``lr`` is each component's rate after warm-up. Step 0 of the warm-up uses ``warmup_start`` of it; after
    ``total_steps`` the rate stays at ``floor``. Nothing is stored: any step's rate can be asked for, in any order.
    """

    lr: Mapping[str, float]
    warmup_steps: int
    total_steps: int
    floor: float = 0.01
    kind: str = "cosine"
    warmup_start: float = 1e-3

    def scale(self, step: int) -> float:
        """The share of the full rate at ``step``, in (0, 1]."""
        if step < self.warmup_steps:
            return self.warmup_start + (1.0 - self.warmup_start) * step / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        if self.kind == "step":
            return 0.1 ** sum(step >= self.total_steps * part for part in STEP_AT)
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

    def at(self, step: int, factors: Mapping[str, float] | None = None) -> dict[str, float]:
        """Learning rate per component at planned step ``step``; ``factors`` are recovery's, 1 where absent."""
        scale = self.scale(step)
        return {name: lr * scale * (factors or {}).get(name, 1.0) for name, lr in self.lr.items()}


def every_component(model: nn.Module, lr: Mapping[str, float]) -> dict[str, float]:
    """``lr``, and the backbone's rate for each component of ``model`` that has none of its own (a user's model).

    So that such a component can be lowered by itself, and a replay knows at what rate it was trained.
    """
    others = [c for c in components(model) if c not in lr]
    return {**lr, **{c: lr["backbone"] for c in others if "backbone" in lr}}


def apply_lr(optimizer: Optimizer, lr_by_component: Mapping[str, float]) -> None:
    """Write learning rates into the groups that `build_optimizer` made.

    A component without a rate of its own (a user's model with other top-level children) takes the backbone's.
    """
    for group in optimizer.param_groups:
        rate = lr_by_component.get(group["component"], lr_by_component.get("backbone"))
        if rate is None:
            known = ", ".join(lr_by_component)
            raise ConfigError(f"no learning rate for {group['component']}", got=known, expected="its name, or backbone")
        group["lr"] = rate * times_of(group)
