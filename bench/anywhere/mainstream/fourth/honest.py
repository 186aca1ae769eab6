"""Runs of the fourth set that nothing is wrong with: every task as it is, and what only looks like a fault."""

from __future__ import annotations

import math
from typing import Any

import torch
from anywhere.mainstream import faults as f
from anywhere.mainstream.case import Case, honest
from anywhere.mainstream.fourth.places import nearer
from anywhere.mainstream.fourth.tasks import FOURTH
from anywhere.mainstream.honest import nothing
from anywhere.mainstream.honest_more import noisy, summed
from anywhere.mainstream.task import Run
from torch import Tensor, nn
from torch.nn import functional as F


def rare_classes(run: Run) -> None:
    """Nearly all accounts are of the first class."""
    run.rows = [(num, cats, y * (i % 20 == 0)) for i, (num, cats, y) in enumerate(run.rows)]


def tables_frozen(run: Run) -> None:
    """The tables of categories do not learn."""
    run.model.get_submodule("cats").requires_grad_(False)


def an_odd_end(run: Run) -> None:
    """The last micro-batch of an epoch is smaller, and makes a step by itself."""
    run.batch, run.accumulate, run.drop_last, run.odd_end = 12, 2, False, True


def every_fifth(run: Run) -> None:
    """The generator learns at each fifth step only."""
    run.rivals["generator"] = lambda nets, batch: nearer(nets, batch) * (run.step % 5 == 4)


def nobody(gains: Tensor) -> Tensor:
    """No group is better than another."""
    return gains * 0


def unrewarded(run: Run) -> None:
    """For the first 20 steps nobody is told what was good."""
    from anywhere.mainstream.fourth.places import above

    run.memory["better"] = lambda gains: nobody(gains) if run.step < 20 else above(gains)


def finer(run: Run) -> None:
    """From step 40 on rods are measured at twice as many places, as the operator allows."""

    def twice(t: Tensor) -> Tensor:
        return F.interpolate(t[None, None], size=64, mode="linear")[0, 0]

    def draw(index: int, row: tuple[Any, ...]) -> tuple[Any, ...]:
        return (twice(row[0]), twice(row[1])) if run.step >= 40 else row

    run.draw = draw


def queue_anew(run: Run) -> None:
    """The queue is filled with noise at step 40, as when a data set is changed."""
    run.at(40, lambda run: run.model.get_buffer("queue").copy_(F.normalize(torch.randn(64, 8))))  # pyright: ignore


def more_rounds(run: Run) -> None:
    """Two rounds at first, then four, then eight."""
    model: Any = run.model
    model.rounds = 2
    for step, rounds in ((25, 4), (50, 8)):
        run.at(step, lambda run, rounds=rounds: setattr(run.model, "rounds", rounds))


def forces_only(run: Run, usual: Any) -> Any:
    """For 40 steps energies do not count, then all does."""

    def loss(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        made = usual(model, batch)
        return {**made, "energy": made["energy"] * (run.step >= 40 or not run.active)}

    return loss


def let_fade(run: Run) -> None:
    """At step 8 all opacities are set to a tenth, and their moments to 0, as splats are thinned."""

    def fade(run: Run) -> None:
        with torch.no_grad():
            p = run.model.get_parameter("opacity")
            p.clamp_(max=math.log(0.1 / 0.9))
            for value in run.state_of("opacity").values():
                if value.ndim:
                    value.zero_()

    run.at(8, fade)


def slow_start(run: Run) -> None:
    """The rate is 0 for the first eight steps."""
    run.factors.update({0: 0.0, 8: 1.0})


HONEST: tuple[Case, ...] = (
    *(honest(task.name, "as it is", nothing) for task in FOURTH),
    honest("columns", "hardly any of two classes", rare_classes),
    honest("columns", "tables that do not learn", tables_frozen),
    honest("keywords", "an odd end of each epoch", an_odd_end),
    honest("crf", "a tag that never comes", f.every(1, lambda t: t.clamp(max=2))),
    honest("crf", "in large units", summed(1e5)),
    honest("ranks", "queries that nothing fits", f.every(1, lambda g: g * (torch.rand(()) < 0.3))),
    honest("ranks", "begun again from its file", f.resumed),
    honest("muon", "a slow start", slow_start),
    honest("muon", "begun again from its file", f.resumed),
    honest("wgan", "the generator learns now and then", every_fifth),
    honest("grpo", "nobody is rewarded at first", unrewarded),
    honest("fno", "measured at more places", finer),
    honest("fno", "a rod that is hot", f.together(f.sample(0, f.times(1e3)), f.sample(1, f.times(1e3)))),
    honest("fno", "begun again from its file", f.resumed),
    honest("moco", "a queue anew", queue_anew),
    honest("moco", "only the weights were saved", f.no_optimizer),
    honest("raft", "more rounds by and by", more_rounds),
    honest("raft", "lines that see nothing", f.every(0, lambda x: x * (torch.rand(()) < 0.7))),
    honest("forces", "energies later", f.instead(forces_only)),
    honest("forces", "noise in gradients", noisy),
    honest("splat", "opacities let fade", let_fade),
    honest("splat", "begun again from its file", f.resumed),
)  # fmt: skip
