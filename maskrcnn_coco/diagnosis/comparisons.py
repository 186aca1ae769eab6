"""Two states of a run side by side, and what its records say of a term: plain comparisons, no replays."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

from torch import Tensor, nn

from maskrcnn_coco.components import component_of
from maskrcnn_coco.diagnosis.facts import Drift, Facts, Redefined, Reference, far_apart
from maskrcnn_coco.diagnosis.limits import LOSS_FACTOR, NORM_FACTOR, WALK
from maskrcnn_coco.records import StepRecord
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.outcome import Outcome
from maskrcnn_coco.replay.snapshot import Snapshot
from maskrcnn_coco.replay.state import in_double

FAR, ALIKE = 20.0, 1.5
"""What the run reached is far beyond weights that stand still; steps this many times as loud as those are alike."""

PROPORTION = 30.0
"""Norms of one tensor in two files of a run, some steps apart, never differ by so much."""
WEIGHED = 1.5
"""A loss has another weight where it is so many times what was recorded, and its gradients just as much."""
USUAL = 0.7
"""Bounds may rise to what the last healthy steps had, and to this share of what the run reached at most."""
RISEN, SWOLLEN = 10.0, 1e3
"""Losses this many times their median are rising; buffers this many times what they were are swollen."""
OFF, THERE = 1e-2, 1e-3
"""A tensor that differs by so much of its norm was written to; one that differs by less is only rounded otherwise."""
TURNED = 0.3
"""A loss that crosses zero by itself is near it the step before; one with another sign is at least so large still."""
EXACT, CHANGED = 0.01, 3.0
"""A replayed loss this close to the recorded one is the same; one so many times another is another formula."""


def differences(model: nn.Module, now: Snapshot) -> list[tuple[float, str]]:
    found = []
    for name, parameter in model.named_parameters():
        other = now.model.get(name.replace("_orig_mod.", ""))
        if other is None:
            continue
        # On the CPU: not every device has float64.
        here, there = (in_double(t.detach().cpu()) for t in (parameter, other))
        size = max(float(there.norm()), float(here.norm()), 1e-12)
        difference = float((here - there).norm()) / size
        found.append((difference if difference == difference else math.inf, name))
    return found


def first_change(history: list[StepRecord], term: str, ratio: float, step: int) -> int:
    """The recorded step from which ``term`` is larger by about ``ratio``, or is turned around; ``step`` where none
    shows it."""
    values = [(r.step, r.losses[term]) for r in history if term in r.losses and math.isfinite(r.losses[term])]
    big = math.sqrt(abs(ratio))
    for (_, a), (at, b) in pairwise(values):
        if ratio < 0 and a * b < 0 and abs(b) > TURNED * big * big * abs(a):
            return at
        if ratio > 0 and abs(a) > 0 and (abs(b) > big * abs(a) if ratio > 1 else abs(b) < big * abs(a)):
            return at
    return step


def turned_at(history: list[StepRecord]) -> int | None:
    """The recorded step at which a loss was turned around: below zero all at once, and hardly smaller in size."""
    terms = {k for r in history for k, v in r.losses.items() if v < 0}
    steps = [first_change(history, term, -1.0, -1) for term in terms]
    return min((s for s in steps if s >= 0), default=None)


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
        here, there = (float(in_double(t).norm()) for t in (tensor, other))
        if max(here, there) > 1e-6 and not 1 / PROPORTION < here / max(there, 1e-30) < PROPORTION:
            found.append((name, here / max(there, 1e-30)))
    return sorted(found, key=lambda f: -abs(math.log(max(f[1], 1e-30))))


def _named_floats(state: Snapshot) -> dict[str, Tensor]:
    return {n: t for n, t in state.model.items() if (t.is_floating_point() or t.is_complex()) and t.numel()}


def drift(differing: list[tuple[float, str]], from_step: int) -> Drift | None:
    """The one tensor that is off, where nearly all others are as they should be."""
    if not differing:
        return None
    ordered = sorted(differing, reverse=True)
    worst, name = ordered[0]
    median = ordered[len(ordered) // 2][0]
    # Non-determinism moves every tensor a little; a changed weight moves one, by far.
    if worst < OFF or median > THERE or (len(ordered) > 8 and ordered[len(ordered) // 8][0] > worst / 10):
        return None
    return Drift(name, component_of(name), name.rpartition(".")[0] or None, worst, from_step)


def astray(differing: list[tuple[float, str]]) -> str | None:
    """The component that is furthest off, where another is not off at all: somebody wrote into this one."""
    most: dict[str, float] = {}
    for off, name in differing:
        component = component_of(name)
        most[component] = max(off, most.get(component, 0.0))
    worst = max(most, key=most.__getitem__, default=None)
    return worst if worst is not None and most[worst] > OFF and min(most.values()) < THERE else None


def weight_now(f: Facts, case: Case, now: Outcome, step: int) -> float | None:
    """What loss and gradients of recorded step ``step``, replayed, are of what they were then; None: not both alike.

    Not where a loop clips: how long its gradients had been then is not known.
    """
    record = next((r for r in case.history if r.applied and r.step == step), None)
    if record is None or now.error or case.rig.max_grad_norm or not (record.loss and record.grad_norm):
        return None
    loss, norm = now.loss / record.loss, now.grad_norm / record.grad_norm
    if not (math.isfinite(loss) and math.isfinite(norm)) or loss <= 0 or not abs(norm - loss) <= EXACT * loss:
        return None
    if not 1 / WEIGHED < loss < WEIGHED and (f.weighed is None or loss > f.weighed):
        f.weighed = loss
        known = f.reference
        f.reference = Reference(
            loss * max(known.loss, abs(record.loss)),
            loss * max(known.norm, record.grad_norm),
            known.count,
            loss * known.lowest,
        )
    return loss


def compare_first(f: Facts, case: Case, walk: Outcome) -> None:
    """The first step of a walk starts from the very state of the run: it must give what was recorded, to the digit.

    Where one loss of several is another, its formula changed since; so did that of a loss that had, in the records,
    jumped by the one factor that all of them are off by. Else replays do not tell of this run.
    """
    if not walk.path or walk.error or not walk.terms[0]:
        return
    first = next((r for r in case.history if r.applied and r.step == walk.path[0][0]), None)
    if first is not None and f.norm_ratio is None and f.accumulate > 1 and walk.path[0][2] > 0:
        f.norm_ratio = first.grad_norm / walk.path[0][2]  # the failing step's own was none
    ratios = compare_step(f, case, walk.path[0][0], walk.terms[0], walk.path[0][1])
    if ratios is not None:
        f.faithful = bool(ratios) and all(abs(v - 1) <= EXACT for v in ratios.values())
    _compare_norms(case, walk)


def _compare_norms(case: Case, walk: Outcome) -> None:
    """How long gradients were in the first steps of ``walk``, for as long as its losses are the recorded ones."""
    records = {r.step: r for r in case.history if r.applied}
    for step, loss, norm in walk.path:
        then = records.get(step)
        if then is None or not abs(loss - then.loss) <= EXACT * abs(then.loss):
            return
        if norm > 0 and math.isfinite(then.grad_norm):
            walk.longer[step] = then.grad_norm / norm


def compare_step(f: Facts, case: Case, step: int, now: dict[str, float], loss: float) -> dict[str, float] | None:
    """The losses of recorded step ``step`` over what was recorded, which may say that a formula changed.

    Args:
        now: the step's losses from the very weights, batch and random numbers of then; ``loss``: all together.

    Returns:
        Name → ratio, of those in both; None: the step is not among the records.
    """
    record = next((r for r in reversed(case.history) if r.applied and r.step == step), None)
    if record is None:
        return None
    then = record.losses
    if set(then) == {"loss"} and "loss" not in now:
        now = {"loss": loss}  # a loop of somebody's own shows the sum of what its model returns
    ratios = {k: now[k] / then[k] for k in now if then.get(k) and math.isfinite(then[k])}
    off = {k: v for k, v in ratios.items() if not abs(v - 1) <= EXACT}
    total = sum(abs(v) for v in then.values() if math.isfinite(v))
    new = [k for k, v in now.items() if k not in then and not abs(v) <= CHANGED * total]
    if new and ratios and not off:
        f.redefined = Redefined(new[0], math.inf, first_seen(case.history, new[0], f.step))
    if not off or not all(map(math.isfinite, off.values())):
        return ratios
    term = max(off, key=lambda k: abs(off[k]))
    ratio = off[term]
    if len(off) == 1 < len(ratios) and (ratio < 0 or far_apart(ratio, 1.0, CHANGED)):
        f.redefined = Redefined(term, ratio, first_change(case.history, term, ratio, f.step))
    elif len(off) == len(ratios) and all(abs(v / ratio - 1) <= EXACT for v in off.values()):
        # Of a loop that weighs its losses anew from step to step nothing jumps.
        at = first_change(case.history, term, ratio, -1)
        # One whose loss calls a rival that has moved on since has another ratio at each recorded step.
        weighs = "own_gradients" in f.settings and not abs(ratio + 1) <= EXACT
        if at >= 0 and not weighs and (ratio < 0 or far_apart(ratio, 1.0, CHANGED)):
            f.redefined = Redefined("" if len(off) > 1 else term, ratio, at)
    return ratios


def level(outcome: Outcome, last: int) -> float:
    """Mean size of the losses in the second half of a walk's ``last`` steps: where it leads, not how it begins.

    A lower rate always has the quieter beginning.
    """
    return statistics.fmean(abs(loss) for _, loss, _ in outcome.path[-max(1, last // 2) :])


def climbing(outcome: Outcome, last: int) -> bool:
    """Whether a walk that stayed within bounds ends far above its own last steps: it only diverges more slowly.

    The same factors as for the onset of a divergence in the run.
    """
    losses, norms = ([abs(step[i]) for step in outcome.path[-last:]] for i in (1, 2))
    return losses[-1] > 2 * statistics.median(losses) or norms[-1] > 4 * statistics.median(norms)


def between(low: float, high: float, most: float) -> float:
    """``low`` times the square root of high / low, at most ``most`` times."""
    return low * min(most, math.sqrt(max(high / low, 1.0))) if low > 0 and math.isfinite(low) else math.inf


def bounds(f: Facts, case: Case) -> tuple[float, float]:
    """(loss, norm) between the healthy medians and what the run reached, on a logarithmic scale."""
    if f.reference.count == 0:
        start = f.outcomes.get("earlier") or f.outcomes.get("same")
        loss, norm = (abs(start.loss), start.grad_norm) if start and start.finite else (math.inf, math.inf)
    else:
        loss, norm = f.reference.loss, f.reference.norm
    base = f.outcomes.get("retrace")
    if base is not None and (f.healthy_retrace() or f.own_leap):
        base = None  # what the run reached was not these steps' doing: it says nothing about what is too far
    peak_loss = max([abs(v) for _, v, _ in base.path] or [math.inf]) if base and base.finite else math.inf
    peak_norm = max([v for _, _, v in base.path] or [math.inf]) if base and base.finite else math.inf
    # The first steps of a run are louder than its median, and walks begin there.
    loud = [r for r in case.history if r.applied and r.step < f.onset_step]
    loudest_loss = max([abs(r.loss) / loss for r in loud if math.isfinite(r.loss)] or [0.0])
    loudest_norm = max([r.grad_norm / norm for r in loud if math.isfinite(r.grad_norm)] or [0.0])
    bound = between(norm, peak_norm, max(8.0, loudest_norm))
    bound_loss = between(loss, peak_loss, max(4.0 / LOSS_FACTOR * f.loss_factor, loudest_loss))
    # What the last healthy steps had is not too far, unless the run itself went hardly further.
    for r in loud[-WALK:]:
        bound_loss = max(bound_loss, min(abs(r.loss), USUAL * peak_loss)) if math.isfinite(r.loss) else bound_loss
        bound = max(bound, min(r.grad_norm, USUAL * peak_norm)) if math.isfinite(r.grad_norm) else bound
    if base is not None and peak_norm <= NORM_FACTOR * norm and peak_loss > LOSS_FACTOR * loss:
        bound = math.inf  # the run's own gradients stayed usual: what went too far is its loss
    if case.rig.norms_clipped and case.rig.max_grad_norm:
        bound = math.inf  # a norm that is cut off at the top says nothing of how far it went
    return bound_loss, bound


def diverges(still: Outcome, f: Facts) -> bool:
    """Whether weights that stand still see the losses rise beyond all bounds, to where the walk ends."""
    losses = [abs(loss) for _, loss, _ in still.path]
    if still.error or len(losses) < 3 or not f.reference.count:
        return False
    if not still.finite:
        return True
    return losses[-1] == max(losses) and losses[-1] > max(f.limits()[0], RISEN * statistics.median(losses))


def swollen(model: nn.Module, start: Snapshot) -> tuple[str, float, str] | None:
    """The buffer that grew most since ``start``, how many times it is what it was (or 1), and its component."""
    times: list[tuple[float, str]] = []
    for name, now in model.named_buffers():
        then = start.model.get(name.replace("_orig_mod.", ""))
        fractions = now.is_floating_point() or now.is_complex()
        if then is not None and fractions and now.numel() and then.shape == now.shape:
            size = max(float(in_double(then).norm()), math.sqrt(now.numel()))
            times.append((float(in_double(now).norm()) / size, name))
    most, name = max(times, default=(0.0, ""))
    return (name, most, component_of(name)) if most > SWOLLEN else None


def louder(still: Outcome, bounds: tuple[float, float], reached: Outcome | None) -> tuple[float, float]:
    """(loss, norm) that count as bounded where weights that stand still are louder than ``bounds``; zeros: not so.

    Batches differ. Only where ``reached``, the steps as the run took them, went far beyond both.
    """
    if not still.finite or still.error or reached is None:
        return 0.0, 0.0
    most = [max((abs(step[i]) for step in still.path), default=0.0) for i in (1, 2)]
    far = [max((abs(step[i]) for step in reached.path), default=0.0) if reached.finite else math.inf for i in (1, 2)]
    quiet = all(mine <= bound for mine, bound in zip(most, bounds, strict=True))
    if quiet or any(FAR * mine > run for mine, run in zip(most, far, strict=True)):
        return 0.0, 0.0
    return ALIKE * most[0], ALIKE * most[1]


def above_still(still: Outcome, reached: Outcome | None, *, least: float) -> float:
    """The mean loss half of the way, in orders of magnitude, from weights that stand still to the steps as they were.

    Infinite where there is no way: those steps cost less than ``least`` times as much. Losses in between are no more
    than what batches differ by: a model that is certain and wrong of one sample is loud without any step.
    """
    if reached is None or not (still.finite and reached.finite) or still.error or reached.error:
        return math.inf
    count = min(len(still.path), len(reached.path))
    low, high = (mean_loss(o, count) for o in (still, reached))
    return math.sqrt(low * high) if 0 < low * least <= high else math.inf


def mean_loss(outcome: Outcome, count: int) -> float:
    """Over the last ``count`` steps of a walk, in size; of the first of all no rate is to blame."""
    return statistics.fmean([abs(loss) for _, loss, _ in outcome.path[1:][-count:]] or [abs(outcome.loss)])


def unlearnt(outcome: Outcome, facts: Facts) -> bool | None:
    """Whether a component's own losses are above their start; None: the alarm was none that they stay there."""
    own = facts.measured.get("own")
    return None if own is None else sum(outcome.losses.get(n, 0.0) for n in own["losses"]) > own["most"]
