"""The other two ways to a limit, beside the one that `advise` uses: line search, and exact curvature of the heads.

    python bench/advice/curvature.py

Prints, for the settings of `run.py` whose names end in "no clip" or that have no momentum: 2 / λ and 2 (1 + m) / λ from
the largest Hessian eigenvalue (power iteration with exact products, one batch), and the critical learning rate.
The backbone is left out: its gradient passes through `roi_align`, which has no double backward.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.advice.run import SETTINGS, make_task
from maskrcnn_coco.advice.limits import settle
from maskrcnn_coco.advice.sharpness import critical_lr
from maskrcnn_coco.advice.trials import Trials
from maskrcnn_coco.guard.early_warning import OWN_LOSSES
from maskrcnn_coco.records import COMPONENTS


def top_eigenvalue(
    loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], *, iterations: int = 20, seed: int = 0
) -> tuple[float, float]:
    """Largest absolute Hessian eigenvalue by power iteration with exact products, and the last relative change.

    Args:
        loss: builds the scalar loss anew or returns one graph; called once.
        parameters: those the Hessian is taken over; the graph to them must be twice differentiable.
    """
    gradients = torch.autograd.grad(loss(), list(parameters), create_graph=True, allow_unused=True)
    used = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None and g.requires_grad]
    wanted = [p for p, _ in used]
    flat = torch.cat([g.reshape(-1) for _, g in used])
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(flat.numel(), generator=generator).to(flat)
    vector /= vector.norm()
    value, change = 0.0, math.inf
    for _ in range(iterations):
        product = torch.autograd.grad(flat @ vector, wanted, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if h is None else h for p, h in zip(wanted, product, strict=True)]
        image = torch.cat([h.reshape(-1) for h in parts])
        new, norm = float(vector @ image), float(image.norm())
        change = abs(new - value) / max(abs(new), 1e-30)
        value = new
        if norm == 0.0:
            break
        vector = image / norm
    return abs(value), change


def main() -> None:
    """Print one line for each setting and component."""
    torch.set_num_threads(1)
    for setting in SETTINGS:
        if setting.optimizer != "sgd" or (setting.clip and setting.momentum):
            continue
        trials = Trials(make_task(setting, seed=1))
        base: dict[str, float] = dict.fromkeys(COMPONENTS, setting.base)
        settled = settle(trials, base, 10)
        for component in ("rpn", "box_head", "mask_head"):
            names = OWN_LOSSES[component]
            trials.load(settled.state)
            step = settled.state.step

            def loss(names: tuple[str, ...] = names, step: int = step, trials: Trials = trials) -> torch.Tensor:
                losses = trials.task.forward(trials.model, trials.batch(step), step, 0)
                return torch.stack([losses[n] for n in names]).sum()

            eigenvalue, change = top_eigenvalue(loss, trials.parameters_of(component), iterations=30)
            start = base[component] * 30
            along = critical_lr(trials, settled.state, component, start=start, losses=names, max_forwards=14)
            total = critical_lr(trials, settled.state, component, start=start, max_forwards=14)
            print(
                f"{setting.name:36} {component:10} eigenvalue {eigenvalue:.3g} (last change {change:.1%}): "
                f"2/λ {2 / eigenvalue:.3g}, 2(1+m)/λ {2 * (1 + setting.momentum) / eigenvalue:.3g}; critical rate, own "
                f"losses {along.lr:.3g} ({along.forwards} forwards), total loss {total.lr:.3g}",
                flush=True,
            )


if __name__ == "__main__":
    main()
