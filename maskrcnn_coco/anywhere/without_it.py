"""A sample of a step before the alarm that is far out of scale: does the run diverge without it, too?

A target of 255 among shares makes a loss that has no floor: one step of it throws the weights, and the alarm comes some
steps later. That a lower rate keeps them is no proof against the rate where the same steps without that sample do so.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from maskrcnn_coco.anywhere.cases import case_of
from maskrcnn_coco.anywhere.unlike_others import largest_of
from maskrcnn_coco.diagnosis.experiments import Experiments
from maskrcnn_coco.diagnosis.investigate import TEAM_STEPS
from maskrcnn_coco.guard.hooks import Deafness
from maskrcnn_coco.records import Alarm, Culprit, Evidence, Finding
from maskrcnn_coco.replay.isolation import untouched
from maskrcnn_coco.replay.outcome import Outcome

PROOF = 0.92
"""Without the sample the steps are sound; as they were they were not."""


def without_it(found: list[Finding], known: Any, alarm: Alarm) -> list[Finding]:
    """``found``, with that sample at the head where the steps since, taken again without it, are sound.

    Args:
        known: an `AlarmResponder`.
    """
    beside = found[0].detail.get("beside") if found[0].cause == "LR_TOO_HIGH" else None
    if beside is None or known.guard.immediate.team is not None:
        return found
    with contextlib.suppress(Exception):  # what cannot be asked leaves the verdict as it is
        case = case_of(known, alarm)
        with Deafness.deaf(), untouched(known.model, case.now):
            data = _proved(case, known, alarm, found[0], *beside)
        return [data, *found] if data is not None else found
    return found


def _proved(case: Any, known: Any, alarm: Alarm, rate: Finding, name: int, step: int, whole: bool) -> Finding | None:
    kept = {s: known.kept.batches(s) for s in range(step, alarm.step + 1)}
    rest = {s: [_others(b, name) for b in batches] for s, batches in kept.items()}
    start = next((s for s in case.earlier if s.step <= step), None)
    if start is None or any(not len(b) for batches in rest.values() for b in batches):
        return None
    tests = Experiments(replace(case, batches=rest[alarm.step] or case.batches), most_steps=TEAM_STEPS)
    facts, replay = tests.scan_all(), tests.replay
    if not facts.reference.count or not case.covers(start.step):
        return None
    seen = replay.run("every module watched", snapshot=start, batches=kept[step], step=step, locate=True)
    for at, batches in rest.items():
        replay.keep(at, batches)
    test = f"steps {start.step} to {alarm.step} taken again without image {name}"
    walk = replay.walk(test, start, stop=facts.abnormal)
    if facts.abnormal(walk) or any(abs(v) > facts.limits()[0] for _, v, _ in walk.path):
        return None
    mine = [b.subset([p for p, i in enumerate(b.image_ids) if i == name]) for b in kept[step]]
    cause, what = _whose(None if whole else largest_of([b for b in mine if len(b)]), seen)
    scan = Evidence(f"scan: image {name} of step {step}, beside all others kept", what, cause)
    as_they_were = [e for e in rate.evidence if "taken again as they were" in e.test]
    evidence = [scan, Evidence(f"replay: {test}", walk.describe(), cause), *as_they_were]
    detail = {"widespread": False, "proved_on_healthy_weights": True, "back_before": start.step}
    return Finding(cause, PROOF, Culprit(image_ids=[name]), evidence, step, "", detail)


def _others(batch: Any, name: int) -> Any:
    places = [p for p, i in enumerate(batch.image_ids) if i != name]
    return batch if len(places) == len(batch) else batch.subset(places)


def _whose(most: float | None, seen: Outcome) -> tuple[str, str]:
    """Cause and words: a number that no module takes or gives is the target's, and so is a whole one."""
    if most is None:
        return "DATA_LABEL", "a whole number of it is far beyond those of all others"
    if seen.inside is not None and most > seen.inside:
        return "DATA_LABEL", f"values reach {most:.4g}; no module takes or gives one above {seen.inside:.4g}"
    return "DATA_PIXEL", f"values reach {most:.4g}, far beyond those of all others"
