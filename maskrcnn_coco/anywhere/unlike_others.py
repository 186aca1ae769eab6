"""A sample that replays found guilty, though no scan knows why: what of it is unlike every other sample?"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median

from torch import Tensor

from maskrcnn_coco.anywhere.rig import Kept
from maskrcnn_coco.anywhere.samples import Samples, leaves
from maskrcnn_coco.guard.norms import has_fractions
from maskrcnn_coco.records import Alarm, Culprit, Evidence, Finding

FAR = 100.0
"""A sample whose largest value is this many times that of every other one kept is out of scale."""

LOST = 1e6
"""This many times is a number of no unit that anybody mixes up: garbage, or a value that stands for none."""

BEYOND, RUN_UP = 10.0, 10
"""The same of whole numbers; and how many steps before an alarm are looked at for such a sample."""

UNPROVED = 0.85
"""How sure that alone makes it, without a replay that fails for the sake of that sample."""

REFUSED = re.compile(r"Target (-?\d+) is out of bounds")
"""torch's own words of a cross-entropy."""

NAMES = 4096
"""Most numbers of one tensor that may be names of samples or objects."""


def named(finding: Finding, alarm: Alarm, kept: Kept, *, first: bool = True) -> Finding:
    """``finding``, with a cause where it had none but a proved culprit among the samples.

    A loss's maths that overflows (exp, a square) for one sample alone, far out of scale, is that sample's fault: of a
    target where the loss alone meets so large a number.

    Args:
        first: it is the best one; such a sample is then looked for also where no replay has named any.
    """
    if finding.cause == "LR_TOO_HIGH" and "leapt" not in finding.detail:
        return _beside_a_rate(finding, alarm, kept)
    batches = kept.batches(alarm.step)
    spoiled = finding.cause == "NORM_STATE" and bool(finding.detail.get("by_forward"))
    if not batches or not (spoiled or finding.cause in ("UNKNOWN", "LOSS_MATH", "FP16_OVERFLOW")):
        return finding
    if not finding.culprit.image_ids:
        alone = first and finding.cause != "LOSS_MATH" and alarm.symptom not in ("optimizer_nonfinite", "stalled")
        return (alone and _lone(finding, batches, kept.others(alarm.step))) or finding
    if finding.cause == "FP16_OVERFLOW" or not finding.detail.get("proved_on_healthy_weights"):
        return finding
    if guilty := _far(batches, kept.others(alarm.step), set(finding.culprit.image_ids)):
        # A loss over a whole batch (variances) may fail on any sample alone: of those found, they are the ones.
        finding.culprit.image_ids = guilty
    guilty = set(finding.culprit.image_ids)
    bad = [b.subset([p for p, i in enumerate(b.image_ids) if i in guilty]) for b in batches]
    good = [b.subset([p for p, i in enumerate(b.image_ids) if i not in guilty]) for b in batches]
    good = [b for b in (*good, *kept.others(alarm.step)) if len(b)]
    bad = [b for b in bad if len(b)]
    if not good or not bad:
        return finding
    looks = (("DATA_PIXEL", _out_of_scale), ("DATA_LABEL", _out_of_range))
    finite = finding.cause == "UNKNOWN" or spoiled or "inside" in finding.detail  # else the maths itself has failed
    for cause, look in looks if finite else looks[:1]:
        what = look(bad, good)
        if what is not None:
            taken = finding.detail.get("taken")
            if cause == "DATA_PIXEL" and taken is not None and largest_of(bad) > FAR * max(taken, 1e-12):
                cause, what = "DATA_LABEL", f"{what}; no module takes or gives a number above {taken:.3g}"
            finding.cause, finding.confidence = cause, 0.92
            finding.evidence.insert(0, Evidence("scan: this sample beside all others kept", what, cause))
            return finding
    return _refused_target(finding, alarm, bad, good) or finding


def _refused_target(finding: Finding, alarm: Alarm, bad: list[Samples], good: list[Samples]) -> Finding | None:
    """``finding`` where a loss refuses a class by its number, which no other sample has; within a range that others
    span it may be all the same, where they have an `ignore_index` far below."""
    said = REFUSED.search(str(alarm.measured.get("error", "")))
    if said is None:
        return None
    number = int(said[1])
    held = [any(bool((t == number).any()) for b in bs for t in leaves(b.data) if _is_whole(t)) for bs in (bad, good)]
    if held != [True, False]:
        return None
    finding.cause, finding.confidence = "DATA_LABEL", 0.92
    what = f"class {number}, which the loss refuses; no other sample has it"
    finding.evidence.insert(0, Evidence("scan: this sample beside all others kept", what, "DATA_LABEL"))
    return finding


def _beside_a_rate(finding: Finding, alarm: Alarm, kept: Kept) -> Finding:
    """``finding`` of a rate, less sure where one sample of the steps that diverged is far out of scale.

    A target of 255 among shares makes a loss without a floor: weights run after it at any rate, if later.
    """
    steps = range(max(finding.onset_step or 0, alarm.step - RUN_UP), alarm.step + 1)
    found: dict[int, tuple[int, bool]] = {}
    usual = _sizes(kept.others(-1))
    for step in steps:
        for batch in kept.batches(step):
            if not _is_loud(batch, usual):
                continue
            others = [b for b in kept.others(step) if not set(b.image_ids) & set(batch.image_ids)]
            far = _far([batch], others, set(batch.image_ids))
            for name in far or _beyond([batch], others):
                found.setdefault(name, (step, not far))
    if len(found) != 1:
        return finding
    (name, (step, whole)), *_ = found.items()
    places = [(b, [p for p, i in enumerate(b.image_ids) if i != name]) for b in kept.others(alarm.step)]
    others = [b if len(p) == len(b) else b.subset(p) for b, p in places if p]  # it comes in every epoch
    if lost := _lone(finding, kept.batches(alarm.step), others, by=LOST):
        # No rate makes a step of it sound; the weights led there are none to judge the others by.
        return replace(lost, detail={})
    what = f"step {step}: a number of it is more than {BEYOND:g} times that of any other"
    evidence = [*finding.evidence, Evidence(f"scan: image {name} beside all others kept", what)]
    detail = {**finding.detail, "beside": [name, step, whole]}
    return replace(finding, confidence=min(finding.confidence, UNPROVED), evidence=evidence, detail=detail)


def _sizes(batches: list[Samples]) -> list[list[list[float]]]:
    """For each floating tensor of a batch, and for each of whole numbers: its largest number in every batch."""
    return [_over(batches, _is_float, _highest), _over(batches, _is_whole, lambda t: float(t.long().abs().max()))]


def _is_loud(batch: Samples, usual: list[list[list[float]]]) -> bool:
    """Whether a number of the batch is far beyond the largest of most batches: then its samples are looked at."""
    for rows, owns, times in zip(usual, _sizes([batch]), (FAR, BEYOND), strict=True):
        pairs = [(own[0], median(row)) for row, own in zip(rows, owns, strict=False) if any(row)]
        if any(own > times * most for own, most in pairs):
            return True
    return False


def _is_float(t: Tensor) -> bool:
    return has_fractions(t)


def _highest(t: Tensor) -> float:
    return float(t.detach().abs().max())


def _beyond(batches: list[Samples], others: list[Samples]) -> list[int]:
    """Ids of samples with a whole number far beyond that of any sample of the other steps."""
    usual, found = _whole(others), []
    for batch in batches:
        for position, name in enumerate(batch.image_ids):
            mine = _whole([batch.subset([position])])
            pairs = zip(mine, usual, strict=False)
            if any(max(-a[0], a[1]) > BEYOND * max(-b[0], b[1], 1) for a, b in pairs):
                found.append(name)
    return found


def _lone(finding: Finding, batches: list[Samples], others: list[Samples], by: float = FAR) -> Finding | None:
    """``finding`` of the one sample that is far out of scale, ``by`` so many times; None where there is not one.

    What overflows half precision, or a loss's exp, for its sake is no fault of theirs.
    """
    far = _far(batches, others, {i for b in batches for i in b.image_ids}, by)
    if len(far) != 1:
        return None
    bad = [b.subset([p for p, i in enumerate(b.image_ids) if i in far]) for b in batches if set(far) & set(b.image_ids)]
    what = _out_of_scale(bad, others)
    if what is None:
        return None
    detail = {k: v for k, v in finding.detail.items() if k not in ("fp32_modules", "largest")}
    test = "scan: this sample beside all others kept"
    evidence = [Evidence(test, what, "DATA_PIXEL"), *finding.evidence]
    return replace(
        finding,
        cause="DATA_PIXEL",
        confidence=UNPROVED,
        culprit=Culprit(image_ids=far),
        evidence=evidence,
        detail=detail,
    )


def _far(batches: list[Samples], others: list[Samples], among: set[int], by: float = FAR) -> list[int]:
    """Ids, of those ``among``, with an input far larger than that of any sample of the other steps."""
    if not others:
        return []
    usual, found = _largest(others), []
    for batch in batches:
        for position, name in enumerate(batch.image_ids):
            mine = _largest([batch.subset([position])]) if name in among else []
            if any(not a <= by * max(b, 1e-12) for a, b in zip(mine, usual, strict=False)):
                found.append(name)
    return found


def _out_of_scale(bad: list[Samples], good: list[Samples]) -> str | None:
    """One floating input of the guilty sample is far larger than the same input of any other.

    Of a detector's batch its pictures: the places of boxes and masks in the nest are others for each number of images.
    """
    pictures, usual = _pictures(bad), _pictures(good)
    if pictures and usual:
        mine, others = max(pictures), max(usual)
        return (
            None if mine <= FAR * max(others, 1e-12) else f"pixels reach {mine:.3g}, those of the others {others:.3g}"
        )
    for position, (mine, others) in enumerate(zip(_largest(bad), _largest(good), strict=False)):
        if not mine <= FAR * (max(others, 1e-12) if others else 1.0):  # of zeros no scale is known
            return f"values of input {position} reach {mine:.3g}, those of the others {others:.3g}"
    return None


def _out_of_range(bad: list[Samples], good: list[Samples]) -> str | None:
    """One whole-number input lies outside of what all other samples hold; of a detector's batch its labels."""
    mine, others = _labels(bad), _labels(good)
    if mine and others:
        odd = [v for v in mine if not min(others) <= v <= max(others)]
        return f"label {odd[0]}, those of the others are {min(others)}..{max(others)}" if odd else None
    names = _all_different([*bad, *good])
    for position, (mine, others) in enumerate(zip(_whole(bad), _whole(good), strict=False)):
        if position in names:
            continue  # numbers of images or objects: the last one is larger than all others, and no fault
        low, high = others
        if mine[0] < low or mine[1] > high:
            value = mine[0] if mine[0] < low else mine[1]
            return f"whole-number input {position} is {value}, those of the others are {low}..{high}"
    return None


def _pictures(batches: list[Samples]) -> list[float]:
    """The largest value of each floating picture of a detector's batches."""
    images = [i for b in batches if b.detection is not None for i in b.detection.images]
    floats = [i.detach() for i in images if isinstance(i, Tensor) and i.is_floating_point() and i.numel()]
    return [float(i.abs().max()) for i in floats]


def _labels(batches: list[Samples]) -> list[int]:
    """Every whole-number label of the targets; none where these are no detector's batches."""
    targets = [t for b in batches if b.detection is not None for t in b.detection.targets if isinstance(t, Mapping)]
    labels = [t.get("labels") for t in targets]
    return [v for t in labels if isinstance(t, Tensor) and _is_whole(t) for v in t.flatten().tolist()]


def _largest(batches: list[Samples]) -> list[float]:
    return [max(v) for v in _over(batches, _is_float, _highest)]


def largest_of(batches: list[Samples]) -> float:
    """The largest of what `_out_of_scale` looks at."""
    return max(_pictures(batches) or _largest(batches), default=0.0)


def _whole(batches: list[Samples]) -> list[tuple[int, int]]:
    # As int64: torch has no minimum of unsigned integers of more than 8 bits.
    low = _over(batches, _is_whole, lambda t: float(t.long().min()))
    high = _over(batches, _is_whole, lambda t: float(t.long().max()))
    return [(int(min(a)), int(max(b))) for a, b in zip(low, high, strict=True)]


def _all_different(batches: list[Samples]) -> set[int]:
    """Whole-number inputs no value of which comes twice: they name things."""
    rows = [[_few(t) for t in leaves(b.data) if _is_whole(t) and t.numel()] for b in batches]
    width = max((len(r) for r in rows), default=0)
    found = set()
    for position in range(width):
        values = [v for r in rows if len(r) == width for v in r[position]]
        if len(values) > 1 and len(values) == len(set(values)):
            found.add(position)
    return found


def _few(t: Tensor) -> list[int]:
    """The values; of masks and token tables, which name nothing, two equal ones."""
    return t.flatten().tolist() if t.numel() <= NAMES else [0, 0]


def _is_whole(t: Tensor) -> bool:
    return not has_fractions(t)


def _over(
    batches: list[Samples], wanted: Callable[[Tensor], bool], measure: Callable[[Tensor], float]
) -> list[list[float]]:
    """For each such tensor of a batch, in order, its measure in every batch that has as many of them."""
    rows = [[measure(t) for t in leaves(b.data) if wanted(t) and t.numel()] for b in batches]
    width = max((len(r) for r in rows), default=0)
    return [[r[i] for r in rows if len(r) == width and not math.isnan(r[i])] or [0.0] for i in range(width)]
