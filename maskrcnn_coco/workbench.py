"""A run's model, batches and optimizer on their own, ready for trials; and what they take."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch

from maskrcnn_coco import recipes
from maskrcnn_coco.batch import make_batch
from maskrcnn_coco.config import Config
from maskrcnn_coco.datasets import RunData
from maskrcnn_coco.distributed import Ranks
from maskrcnn_coco.forward import Forward
from maskrcnn_coco.opening import is_quick, make_model, make_plan, sources
from maskrcnn_coco.optim import build_optimizer
from maskrcnn_coco.precision import make_scaler, resolve_amp
from maskrcnn_coco.trials import Lab, Task

BATCHES = 8
"""Different batches that trials use in turn; they are held in memory."""


@dataclass
class Bench:
    """A run's settings and data, ready for trials."""

    config: Config
    given: dict[str, Any]
    reasons: dict[str, str]
    lab: Lab
    total_steps: int
    device: torch.device
    pretrained: bool


def open_bench(resolved: recipes.Resolved, data: RunData, ranks: Ranks) -> Bench:
    """Model, batches and optimizer of a run, on their own."""
    config, device = resolved.config, ranks.device
    quick = is_quick(config, data)
    precision = resolve_amp(config.amp, device)
    source, _ = sources(data, config, None, None, quick=quick)
    plan = make_plan(source, data, config, ranks)
    batches = []
    for step in range(min(BATCHES, plan.steps_per_epoch)):
        micro = [make_batch(source, keys) for keys in plan.step(step)[1]]
        batches.append(micro if len(micro) > 1 else micro[0])
    forward = Forward(torch.nn.Identity(), device=device, precision=precision, seed=config.seed)

    def optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
        decay = config.weight_decay or 0.0
        return build_optimizer(model, kind=config.optimizer, momentum=config.momentum, weight_decay=decay)

    lab = Lab(
        Task(
            lambda: make_model(config, data.num_classes, quick=quick).to(device),
            optimizer,
            forward.losses,
            batches,
            max_grad_norm=config.max_grad_norm,
            precision=precision,
            make_scaler=lambda: make_scaler(precision, device),
        )
    )
    given = {n: getattr(config, n) for n, why in resolved.reasons.items() if why == "given"}
    total = plan.steps_per_epoch * (config.epochs or 1)
    pretrained = config.weights != "none" or config.backbone_weights is not None
    return Bench(config, given, resolved.reasons, lab, total, device, pretrained)


def memory_use(bench: Bench) -> tuple[int, str]:
    """Highest memory use so far, bytes, and a sentence on the batch size that fits."""
    batch = bench.config.batch_size or 1
    if bench.device.type == "cuda":
        peak, held = torch.cuda.max_memory_allocated(bench.device), torch.cuda.memory_allocated(bench.device)
        whole = torch.cuda.mem_get_info(bench.device)[1]
        most = max(1, int(batch * (0.85 * whole - held) / max(1, peak - held)))
        return peak, f"batch size {batch} takes {peak / 2**30:.1f} of {whole / 2**30:.0f} GiB; about {most} would fit"
    used = _resident_bytes()
    return used, f"batch size {batch}: the process used up to {used / 2**30:.1f} GiB"


def _resident_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
