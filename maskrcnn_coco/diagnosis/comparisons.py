"""Two states of a run side by side, and what its records say of a term: plain comparisons, no replays."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from maskrcnn_coco.components import component_of
from maskrcnn_coco.diagnosis.facts import Drift
from maskrcnn_coco.records import StepRecord
from maskrcnn_coco.replay.snapshot import Snapshot

PROPORTION = 30.0
"""Norms of one tensor in two files of a run, some steps apart, never differ by so much."""


def differences(model: nn.Module, now: Snapshot) -> list[tuple[float, str]]:
    found = []
    for name, parameter in model.named_parameters():
        other = now.model.get(name.replace("_orig_mod.", ""))
        if other is None:
            continue
        # On the CPU: not every device has float64.
        here, there = parameter.detach().cpu().double(), other.detach().cpu().double()
        size = max(float(there.norm()), float(here.norm()), 1e-12)
        difference = float((here - there).norm()) / size
        found.append((difference if difference == difference else math.inf, name))
    return found


def first_change(history: list[StepRecord], term: str, ratio: float, step: int) -> int:
    """The recorded step from which ``term`` is larger by about ``ratio``; ``step`` where none shows it."""
    values = [(r.step, abs(r.losses[term])) for r in history if term in r.losses and math.isfinite(r.losses[term])]
    if ratio < 0 or len(values) < 2:
        return step
    big = math.sqrt(ratio)
    for (_, a), (at, b) in pairwise(values):
        if a > 0 and ((b > big * a) if ratio > 1 else (b < big * a)):
            return at
    return step


def first_seen(history: list[StepRecord], term: str, step: int) -> int:
    """The first recorded step that has a loss ``term``; ``step`` where none has."""
    return next((r.step for r in history if term in r.losses), step)


def out_of_proportion(loaded: Snapshot, older: Snapshot) -> list[tuple[str, float]]:
    """Tensors of two states of one run whose norms no training of some steps takes so far apart, worst first."""
    found = []
    for name, tensor in _named_floats(loaded).items():
        other = _named_floats(older).get(name)
        if other is None or other.shape != tensor.shape:
            continue
        here, there = float(tensor.detach().double().norm()), float(other.detach().double().norm())
        if max(here, there) > 1e-6 and not 1 / PROPORTION < here / max(there, 1e-30) < PROPORTION:
            found.append((name, here / max(there, 1e-30)))
    return sorted(found, key=lambda f: -abs(math.log(max(f[1], 1e-30))))


def _named_floats(state: Snapshot) -> dict[str, Tensor]:
    return {n: t for n, t in state.model.items() if t.is_floating_point() and t.numel()}


def drift(differing: list[tuple[float, str]], from_step: int) -> Drift | None:
    """The one tensor that is off, where nearly all others are as they should be."""
    if not differing:
        return None
    ordered = sorted(differing, reverse=True)
    worst, name = ordered[0]
    median = ordered[len(ordered) // 2][0]
    # Non-determinism moves every tensor a little; a changed weight moves one, by far.
    if worst < 1e-2 or median > 1e-3 or (len(ordered) > 8 and ordered[len(ordered) // 8][0] > worst / 10):
        return None
    return Drift(name, component_of(name), name.rpartition(".")[0] or None, worst, from_step)
