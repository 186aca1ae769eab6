"""Runs of the third set that nothing is wrong with: every task as it is, and what only looks like a fault."""

from __future__ import annotations

import math
from typing import Any

import torch
from anywhere.mainstream import faults as f
from anywhere.mainstream.case import Case, honest
from anywhere.mainstream.honest import nothing
from anywhere.mainstream.honest_more import Change, by_value, every_step, noisy, summed
from anywhere.mainstream.second.honest import says_so, weights_averaged
from anywhere.mainstream.task import Run
from anywhere.mainstream.third.faults import kept_margins
from anywhere.mainstream.third.scenes import ciou
from anywhere.mainstream.third.signals import dpo
from anywhere.mainstream.third.tasks import THIRD
from anywhere.mainstream.third.worlds import acts, gain
from torch import Tensor, nn
from torch.nn import functional as F


def held_by_hand(run: Run) -> None:
    """After each step the temperature is cut off at 20, in place."""

    def cut(run: Run) -> None:
        with torch.no_grad():
            run.model.get_parameter("logit_scale").clamp_(0, math.log(20))

    every_step(cut)(run)


def range_anew(run: Run) -> None:
    """The observers' ranges begin anew at step 20, at (inf, -inf), as reset_min_max_vals does."""

    def anew(run: Run) -> None:
        for at in (1, 3):
            run.model.get_buffer(f"{at}.low").fill_(math.inf)
            run.model.get_buffer(f"{at}.high").fill_(-math.inf)

    run.at(20, anew)


def wider(run: Run) -> None:
    """The pictures are twice as bright from step 30 on, in the loader."""

    def draw(index: int, row: tuple[Any, ...]) -> tuple[Any, ...]:
        return (row[0] * (2.0 if run.step >= 30 else 1.0), *row[1:])

    run.draw = draw


def unlike(run: Run, usual: Any) -> Any:
    """The temperature of preferences is a hundredth: nearly no slope."""
    return lambda model, batch: dpo(model, batch, 0.01 if run.active else 0.5)


def swapped_pairs(run: Run) -> None:
    """In a tenth of the pairs the worse one is called the better."""
    run.rows = [(b, a, n) if i % 10 == 0 else (a, b, n) for i, (a, b, n) in enumerate(run.rows)]


def holiday(t: Tensor) -> Tensor:
    """A day on which fifty times as much is sold."""
    t[7] = 50 * t[7] + 50
    return t


def intermittent(run: Run) -> None:
    """Nothing is sold on two of three days."""
    run.rows = [(c * (torch.rand(len(c)) < 0.33),) for (c,) in run.rows]


def far_levels(model: nn.Module, batch: Any) -> Tensor:
    """Levels of noise from a thousandth to hundreds."""
    sigma = (-1.2 + 2.5 * torch.randn(len(batch[0]), 1)).exp()
    off = model(batch[0] + sigma * torch.randn_like(batch[0]), sigma) - batch[0]
    return ((sigma.square() + 0.25) / (0.5 * sigma).square() * off.square()).mean()


def ten_times(run: Run, action: Tensor, best: Tensor) -> Tensor:
    """A level from step 50 on in which everything counts ten times."""
    return gain(run, action, best) * (10.0 if run.step >= 50 else 1.0)


def wild(run: Run, action: Tensor, best: Tensor) -> Tensor:
    """Rewards under noise of twice their size, now and then of twenty times."""
    noise = torch.randn(len(action)) * torch.where(torch.rand(len(action)) < 0.03, 20.0, 2.0)
    return gain(run, action, best) + noise


def every_second(run: Run) -> None:
    """The actor steps every second time only (TD3): in between its loss is 0."""
    run.rivals["actor"] = lambda nets, batch: acts(nets, batch) * (run.step % 2)


def burn_in(run: Run) -> None:
    """The first twenty steps at a tenth of the rate."""
    run.factors.update({0: 0.1, 20: 1.0})


def itself(run: Run) -> None:
    """A node is called its own parent."""
    node, _, others = run.rows[run.bad]
    run.rows[run.bad] = node, node.clone(), others


def by_ciou_only(model: nn.Module, batch: Any) -> Tensor:
    """GIoU's first days: only boxes count, of every cell."""
    from anywhere.mainstream.third.scenes import decoded

    made = decoded(model(batch[0]).float())
    return (1 - ciou(made.flatten(0, 1), batch[1].repeat_interleave(9, 0))).mean()


def a_thin_one(box: Tensor) -> Tensor:
    """Of no width."""
    return box * torch.tensor([1.0, 1.0, 0.0, 1.0])


def thawed_scale(run: Run) -> None:
    """The temperature is frozen for thirty steps."""
    scale: Any = run.model.get_parameter("logit_scale")
    scale.requires_grad_(False)
    run.at(30, lambda run: scale.requires_grad_(True))


def annealed_steps(run: Run) -> None:
    """A coarse path at first: from step 30 on eight times as fine, as ODE solvers refine."""
    model: Any = run.model

    def coarse(y: Tensor) -> Tensor:
        path = []
        for _ in range(8):
            y = y + 0.1 * model.net(y**3)
            path.append(y)
        return torch.stack(path, 1)

    usual = run.loss
    run.loss = lambda m, batch: (
        F.l1_loss(coarse(batch[0]), batch[1]) if run.step < 30 and run.active else usual(m, batch))  # fmt: skip


def resized(every: int) -> Change:
    """Each `every`-th batch the sound is a third as loud."""

    def fault(run: Run) -> None:
        usual = run.loss

        def loss(model: nn.Module, batch: Any) -> Any:
            quiet = 0.33 if run.active and run.step % every == 0 else 1.0
            return usual(model, (batch[0] * batch[0].new_tensor([1, 1, quiet, 1])[:, None], quiet * batch[1]))

        run.loss = loss

    return fault


HONEST: tuple[Case, ...] = (
    *(honest(task.name, "as it is", nothing) for task in THIRD),
    honest("sam", "begun again from its file", f.resumed),
    honest("sam", "a larger radius", f.options(rho=0.3)),
    honest("sam", "margins that are soon kept", f.loss_is(kept_margins)),
    honest("clip", "a temperature held by hand", held_by_hand),
    honest("clip", "a temperature that is frozen first", thawed_scale),
    honest("clip", "begun again from its file", f.resumed),
    honest("yolo", "a box far outside", f.sample(1, lambda b: b + torch.tensor([40.0, 40.0, 0.0, 0.0]))),
    honest("yolo", "a box of no width", f.sample(1, a_thin_one)),
    honest("yolo", "boxes of all cells", f.loss_is(by_ciou_only)),
    honest("mri", "an empty scan", f.together(f.sample(0, f.times(0)), f.sample(2, f.times(0)))),
    honest("mri", "in small units", summed(1e-5)),
    honest("mri", "everything measured", f.every(1, lambda kept: kept * 0 + 1)),
    honest("qat", "ranges begin anew", range_anew),
    honest("qat", "pictures brighter from a step on", wider),
    honest("qat", "begun again from its file", f.resumed),
    honest("dpo", "nothing is answered", f.sample(2, lambda n: n * 0 + 10)),
    honest("dpo", "hardly a preference", f.instead(unlike)),
    honest("dpo", "pairs the wrong way round", swapped_pairs),
    honest("ssm", "clipped at 0.01", f.setting("clip", 0.01)),
    honest("ssm", "begun again from its file", f.resumed),
    honest("vocoder", "a silent wave", f.sample(1, f.times(0))),
    honest("vocoder", "some batches are quiet", resized(4)),
    honest("vocoder", "averaged weights looked at", weights_averaged),
    honest("deepar", "zeros and nothing else", f.sample(0, f.times(0))),
    honest("deepar", "a holiday", f.sample(0, holiday)),
    honest("deepar", "sold now and then", intermittent),
    honest("lbfgs", "in mini-batches", f.together(f.setting("batch", 80), f.options(lr=0.5))),
    honest("lbfgs", "no line search", f.options(line_search_fn=None, lr=0.3)),
    honest("lbfgs", "in other units", summed(1e4)),
    honest("ode", "coarse first", annealed_steps),
    honest("ode", "gradients cut off by value", by_value),
    honest("edm", "levels far apart", f.loss_is(far_levels)),
    honest("edm", "a hundred times from a step on, and says so", says_so(50, 100.0)),
    honest("sac", "a level that counts ten times", lambda run: run.memory.update(gain=ten_times)),
    honest("sac", "rewards under noise", lambda run: run.memory.update(gain=wild)),
    honest("sac", "the actor steps every second time", every_second),
    honest("poincare", "burn-in", burn_in),
    honest("poincare", "a node above itself", itself),
    honest("kernel", "a reading twice", f.copied),
    honest("kernel", "in batches of eight", f.setting("batch", 8)),
    honest("sage", "noise on features", f.every(0, lambda x: x + 0.5 * torch.randn_like(x))),
    honest("sage", "labels of one field only", f.every(3, lambda y: y * 0)),
    honest("ode", "noise in gradients", noisy),
)  # fmt: skip
