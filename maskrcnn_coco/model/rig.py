"""The run's rig for replays: how to run one of its steps on a private copy of the model, here or on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from maskrcnn_coco.components import components
from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.model.build import build_from_state, set_sampler
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.model.optim import optimizer_for
from maskrcnn_coco.replay.case import Rig
from maskrcnn_coco.replay.isolation import own
from maskrcnn_coco.replay.private_copy import moved_copy
from maskrcnn_coco.system.backends import compiled_modules, run_eagerly


def rig_from_settings(settings: dict[str, Any], state: Mapping[str, Tensor]) -> Rig:
    """A rig on this machine's CPU for a case that was saved elsewhere; batches come from the case itself.

    Args:
        state: weights by name, from which the architecture is read; may be filled after the call, before the first
            replay.
    """
    config = msgspec.convert(settings["config"], type=Config, strict=False)

    def build() -> nn.Module:
        return build_from_state(
            state,
            min_size=config.min_size or 800,
            max_size=config.max_size or 1333,
            source="the case",
        )

    def build_frozen() -> nn.Module:
        model = build()
        set_sampler(model, config.box_batch_size_per_image)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in settings["frozen"])
        return model

    return make_rig(
        config,
        build_frozen,
        torch.device("cpu"),
        settings["precision"],
        rank=settings["rank"],
        make=None,
        fp32_modules=settings["fp32_modules"],
    )


def make_rig(
    config: Config,
    model: Any,
    device: torch.device,
    precision: str,
    *,
    rank: int,
    make: Any,
    fp32_modules: list[str],
    redraw: Any = None,
) -> Rig:
    """A rig around ``model`` (a module, or a function that builds one)."""
    forward = Forward(nn.Identity(), device=device, precision=precision, seed=config.seed, rank=rank)
    on_cpu = Forward(nn.Identity(), device=torch.device("cpu"), precision="fp32", seed=config.seed, rank=rank)
    return Rig(
        model=model,
        build_optimizer=lambda m: optimizer_for(m, config),
        forward=lambda m, batch, step, micro, how: forward.losses(m, batch, step, micro, how),
        components=components,
        make_batch=make,
        redraw=redraw,
        precision=precision,
        max_grad_norm=config.max_grad_norm,
        device=device,
        fp32_modules=list(fp32_modules),
        reference=lambda: reference_of(model),
        reference_forward=lambda m, batch, step, micro, how: on_cpu.losses(m, batch, step, micro, "fp32"),
    )


def reference_of(model: Any) -> nn.Module:
    """A private copy of ``model`` (a module, or what builds one) as plain eager code in float32 on the CPU."""

    def moved(built: nn.Module) -> nn.Module:
        run_eagerly(built, compiled_modules(built))
        return own(built).float().cpu()

    if not isinstance(model, nn.Module):
        built = model()
        return moved(getattr(built, "_orig_mod", built))
    # With its hooks: what they do to gradients is not the device's doing.
    return moved_copy(getattr(model, "_orig_mod", model), moved)
