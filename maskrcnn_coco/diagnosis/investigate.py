"""From an alarm to ranked findings: scans first, then the replays that still separate the causes, cheapest first.

Importing this module does not import torch: what needs tensors is in `experiments`, loaded when a case is investigated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from maskrcnn_coco.diagnosis.explain import judge
from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.rules.common import (
    cured,
    diverges_as_weighed,
    divides_by_itself,
    divides_on_sound_weights,
    nonfinite,
    sudden,
)
from maskrcnn_coco.records import PROVED, Culprit, Evidence, Finding
from maskrcnn_coco.recovery import leaves_out
from maskrcnn_coco.wording import listed

if TYPE_CHECKING:
    from maskrcnn_coco.replay.case import Case


BUDGET_STEPS = 300
"""Most steps of one investigation. Of the miniature faults in the tests half take 2, divergences 15 to 110, one 181."""
TEAM_STEPS = 100
"""The same where other processes wait for the answer, and give up some minutes later."""
OUTER = {"RANK_LOCAL", "SCALE_COLLAPSE"}
"""They say how the step failed, and have an inner cause that is looked for too."""


class Tests(Protocol):
    """What an investigation needs: `experiments.Experiments`, or a stand-in."""

    facts: Facts

    @property
    def steps(self) -> float: ...

    def scan_all(self) -> Facts: ...

    def run(self, name: str) -> None: ...

    def redrawn(self, images: Sequence[int]) -> tuple[list[list[int]], list[Evidence]]: ...


def investigate(case: Case | None, *, budget_steps: float = BUDGET_STEPS, tests: Tests | None = None) -> list[Finding]:
    """Findings for the alarm of ``case``, best first; never empty, the last is always UNKNOWN.

    Tests are made until one cause is proved, nothing is left to ask, or replays that cost ``budget_steps`` of the run's
    steps are made.
    """
    if tests is None:
        from maskrcnn_coco.diagnosis.experiments import Experiments

        assert case is not None
        tests = Experiments(case, most_steps=budget_steps)
    facts = tests.scan_all()
    while not proved(facts) and tests.steps < budget_steps:
        test = next_test(facts)
        if test is None:
            break
        tests.run(test)
    findings = rank(facts)
    images = findings[0].culprit.image_ids
    if "redrawn" in facts.can and images and leaves_out(findings[0]):
        _say_of_draws(findings, images, *tests.redrawn(images))
    return findings


def _say_of_draws(findings: list[Finding], images: list[int], draws: list[list[int]], rows: list[Evidence]) -> None:
    """Where other draws of the guilty images are sound, each finding about them is one about these draws."""
    for found in [f for f in findings if f.culprit.image_ids == images]:
        found.evidence = [*found.evidence, *rows]
        if draws:
            found.detail["redraw"] = draws
            found.fix = f"look at what augmentation makes of image {listed(images)}: drawn anew it is sound"


def proved(facts: Facts) -> bool:
    """Whether an inner cause is proved, and everything that its proof wants has been asked."""
    proved = [f for f in judge(facts) if f.confidence >= PROVED and f.cause not in OUTER]
    return bool(proved) and not any(t in facts.can and t not in facts.done for t in _confirm(facts))


def next_test(facts: Facts) -> str | None:
    """The cheapest test that still separates the causes left; None where nothing is left to ask."""
    return next((t for t in wanted(facts) if t in facts.can and t not in facts.done), None)


def wanted(f: Facts) -> Iterator[str]:
    """The tests in the order that costs least, given what is known so far."""
    yield from _confirm(f)
    if f.lethal() or _state_proved(f) or f.state_to_blame():
        return
    if not f.suspects():
        # Soon after a load the file is asked before anything else is blamed.
        yield "file"
        if f.older_file is not None and f.older_file.trains:
            return
    if f.symptom == "diverged" and "own_gradients" in f.settings:
        yield "weight"
    yield "same"
    if f.good("same") or (f.not_repeated() and not f.suspects()):
        yield from _not_repeated(f)
        return
    if f.anchors or any(s.where == "norm" for s in f.state):
        yield "other"
    if f.suspects():
        yield from ("earlier", "repaired", "without", "peek")
        if cured(f):
            return
        if any(t.form for t in f.targets) or any(i.form for i in f.inputs):
            yield "other"
            return
    if f.precision != "fp32" and "same" in f.outcomes and not f.outcomes["same"].finite:
        yield "fp32"
        if f.good("fp32") or ("fp32" in f.outcomes and f.outcomes["fp32"].finite and not f.reference.count):
            yield from ("locate", "module_fp32")
            return
    if _maths_sign(f) and not f.growing:
        yield from ("locate", "earlier")
    # The prior: a norm that climbed speaks for divergence, anything sudden for data.
    yield from (("earlier", "other") if f.growing else ("other", "earlier"))
    if f.good("other") and sudden(f):
        yield from _on_sound_weights(f)
        if f.by_chance or f.came_and_went() or divides_on_sound_weights(f):
            return
    if f.good("earlier"):
        yield from ("again", "passed") if nonfinite(f) and f.bad("other") and sudden(f) else ()
        yield "retrace"
        if sudden(f):
            yield "locate"
        if not (f.healthy_retrace() or f.climbs or divides_by_itself(f)) and f.redefined is None:
            yield "lr"
        yield from ("locate", "again", "reference")
        return
    if f.good("other"):
        yield from ("bisect",)
        if f.guilty_images:
            yield "annotations"
        yield from ("locate",) if f.guilty_images else ("locate", "again", "reference", "retrace")
        if f.guilty_images and not (f.inputs or f.targets) and f.location is not None and not f.location.module:
            yield from ("again", "reference")  # nothing is wrong with the sample itself: the maths, or a kernel
        return
    if f.raises_everywhere():
        return
    yield from ("again", *(["passed"] if nonfinite(f) else []), "locate", "reference", "retrace")
    if not (f.healthy_retrace() or f.climbs) and f.redefined is None:
        yield "lr"


def _on_sound_weights(f: Facts) -> Iterator[str]:
    """Weights on which other batches are sound have not diverged: it comes by chance, by a draw, or by the loss."""
    yield from ("again",) if f.came_and_went() else ("again", "chance")
    if f.by_chance or f.came_and_went():
        yield from ("locate", "reference")
    elif f.good("earlier"):
        yield "locate"
        yield from ("reference",) if divides_on_sound_weights(f) else ()


def _confirm(f: Facts) -> Iterator[str]:
    """Cheap replays that turn what a scan found into a proof."""
    if f.state_changed:
        yield from ("update", "state")
    if f.measured.get("foreign"):
        yield "planned"
    if f.measured.get("by_update") and f.certain_state() and all(s.where == "lr" for s in f.certain_state()):
        yield "settings"
    if diverges_as_weighed(f):
        yield "lr"  # no proof, but what recovery can do about it
    if f.lethal() or (f.suspects() and f.symptom == "input_nonfinite"):
        yield from ("peek", "without", "locate") if f.lethal() else ("peek", "without")
    elif (any(s.where == "norm" for s in f.state) and not _state_proved(f)) or f.anchors:
        yield from ("same", "other")
        if not f.anchors:
            yield "earlier"  # weights that a divergence has ruined fail whatever their norms hold
    elif _maths_sign(f) and f.location is not None and f.location.op:
        # Does one image bring it about, or every batch?
        yield "other"
        if f.good("other") and f.image_ids and sudden(f):
            yield "bisect"
        if f.bad("other"):
            yield "passed"


def _state_proved(f: Facts) -> bool:
    return any(s.where != "norm" for s in f.certain_state())


def _not_repeated(f: Facts) -> Iterator[str]:
    """The replay is normal: look at what differs from the run."""
    yield "update"
    if f.bad("update"):
        if not f.outcomes["update"].finite:
            yield "settings"
            # Where the guard measured how far it went, a lower rate may keep it from going there.
            yield from ("lr",) if f.leap else ()
        return
    yield "live"
    if f.symptom == "scale_collapse" or any(s.where == "scaler" for s in f.state):
        yield "rescaled"
        return
    yield from ("again", "retrace")
    if f.leap:
        yield "lr"  # the steps before it are no witness: the update that was refused is not among them
        return
    if nonfinite(f) or f.symptom == "stalled" or f.not_repeated() or f.healthy_retrace() or f.redefined is not None:
        return  # a rate is asked only where the steps as they were diverge again
    yield "lr"


def _maths_sign(f: Facts) -> bool:
    same = f.outcomes.get("same")
    if same is None or same.error or same.finite:
        return False
    return not same.bad_losses or (len(same.bad_losses) == 1 and len(same.losses) > 1)


def rank(facts: Facts) -> list[Finding]:
    """All findings, most certain first. A RANK_LOCAL or SCALE_COLLAPSE leads, with its inner cause right after it."""
    findings = sorted(judge(facts), key=lambda f: -f.confidence)
    if facts.raises_everywhere() or facts.measured.get("every_batch"):
        # No image to leave out, no state to go back to: what is raised is raised by every batch.
        findings[0].detail["every_batch"] = True
        same = facts.outcomes.get("same")
        said = (same.error if same is not None else None) or facts.measured.get("error")
        findings[0].fix = findings[0].fix or f"look at {said}"
    inner = next((f for f in findings if f.cause not in OUTER and f.cause != "UNKNOWN"), None)
    top = next((f for f in findings if f.cause == "RANK_LOCAL"), None)
    if top is None:
        return findings
    if inner is not None and inner.confidence >= PROVED:
        merged = Culprit(**{**vars(inner.culprit), "rank": top.culprit.rank})
        top.culprit, top.fix = merged, inner.fix
        top.evidence = top.evidence + inner.evidence
        top.detail = {**inner.detail, **top.detail, "inner": inner.cause}
    return [top, *[f for f in findings if f is not top]]
