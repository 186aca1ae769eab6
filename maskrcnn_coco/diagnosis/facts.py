"""What the scans and replays established, as plain numbers and names: all that a rule may look at. No torch.

A rule never sees a tensor. It reads `Facts`, which the tests in `experiments.py` fill one after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from maskrcnn_coco.diagnosis.limits import FEW, LOSS_FACTOR, NO_HISTORY_LOSS, NORM_FACTOR, ROUGHLY, loss_factor
from maskrcnn_coco.diagnosis.lr_verdict import LEAPT, LrVerdict
from maskrcnn_coco.records import Evidence
from maskrcnn_coco.replay.outcome import Outcome

SQUARES_OVERFLOW = 1e18
SLACK = 1.5
"""What a norm that a loop clips, or that half precision rounds, may be off by."""
BY_STATE, LEAP = 5.0, 1e3
"""An update so many times another is another; one of so many times the weights is a fault whatever made it."""


@dataclass
class StateFault:
    """One bad entry of weights, buffers, optimizer, scaler or lr. ``certain``: no healthy run can hold it."""

    where: str  # parameter | buffer | optimizer | scaler | lr | norm
    name: str
    what: str
    component: str | None = None
    module: str | None = None
    certain: bool = True
    enormous: bool = False
    """Finite, and larger than any weight becomes in training."""


@dataclass
class TargetFault:
    """One bad label, box or mask. ``lethal``: it must not be replayed, native code may crash on it."""

    code: str
    image_id: int
    annotation_id: int | None
    what: str
    lethal: bool
    repairable: bool = False
    form: bool = False
    """Not a bad value but a form that the model does not take: a missing key, a dtype, a shape."""


@dataclass
class InputFault:
    """One bad image. ``when``: "before" or "after" the model's own transform. ``scale``: divide by it to repair."""

    image_id: int
    what: str
    when: str
    lethal: bool
    scale: float | None = None
    form: bool = False


@dataclass
class AnchorFault:
    """An anchor of no size, or anchors that do not fit the feature maps; ``module`` makes them."""

    what: str
    fix: str
    module: str = "rpn.anchor_generator"


@dataclass
class Drift:
    """Weights that are not what the recorded steps lead to: changed outside the step."""

    name: str
    component: str | None
    module: str | None
    relative: float
    from_step: int


@dataclass
class Redefined:
    """A loss whose formula changed: replayed on the very weights and batch of a recorded step, one term is another, and
    the others are as they were; "": every one is. A ratio of infinity: the recorded step did not have that term."""

    term: str
    ratio: float
    step: int


@dataclass
class OlderFile:
    """An older saved state, trained on over the planned steps where the loaded one diverged."""

    path: str
    step: int
    trains: bool
    outcome: Outcome
    differing: list[tuple[str, float]] = field(default_factory=list)
    """Tensors of the loaded state that are out of all proportion to the older file's: name, ratio of the norms."""
    component: str | None = None
    module: str | None = None


@dataclass
class Location:
    """Where non-finite numbers appear first. ``max_abs``: largest finite one there, in fp32; ``took``: by the op."""

    module: str | None = None
    component: str | None = None
    phase: str = "forward"
    op: str | None = None
    took: float | None = None
    max_abs: float | None = None


@dataclass
class Reference:
    """The run's healthy medians before the onset; ``count`` steps went into them. ``lowest``: its lowest loss, or 0."""

    loss: float = math.nan
    norm: float = math.nan
    count: int = 0
    lowest: float = 0.0


@dataclass
class Facts:
    """Everything known about one alarm. Fields are None (or empty with their scan not in ``done``) until tested."""

    symptom: str
    step: int
    epoch: int
    onset_step: int
    measured: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    accumulate: int = 1
    components: list[str] = field(default_factory=list)
    image_ids: list[int] = field(default_factory=list)
    empty_images: list[int] = field(default_factory=list)
    reference: Reference = field(default_factory=Reference)
    growing: bool = False
    climbs: bool = False
    """The loss is far above the usual, and the optimizer is one that is told to climb (``maximize=True``)."""
    update_ratio: dict[str, float] = field(default_factory=dict)
    lr: dict[str, float] = field(default_factory=dict)
    foreign_rates: dict[str, list[float]] = field(default_factory=dict)
    """Component → [step, rate of the plan, rate that the optimizer had], where somebody set a much higher one."""
    usual_lr: dict[str, float] = field(default_factory=dict)
    """Component → its learning rate in the last steps before the onset."""
    rises: dict[str, float] = field(default_factory=dict)
    """Component → its highest rate since the onset over its usual one before."""
    recorded_loss: float | None = None
    recorded_norm: float | None = None
    norm_ratio: float | None = None
    """Recorded gradient norm of the failing step over the replayed one: 1 where both did the same."""
    refused_before: bool = False
    since_last: float = math.inf
    """The most that any component's recorded gradient norm differs by from that of the step before."""
    loss_scale: float | None = None
    earlier_steps: list[int] = field(default_factory=list)
    can: set[str] = field(default_factory=set)
    """Tests that this case has the material for."""

    state: list[StateFault] = field(default_factory=list)
    targets: list[TargetFault] = field(default_factory=list)
    inputs: list[InputFault] = field(default_factory=list)
    anchors: list[AnchorFault] = field(default_factory=list)
    widespread: bool = False
    """Another batch shows the same data fault: the data set, not one image."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    guilty_images: list[int] | None = None
    guilty_annotations: list[int] = field(default_factory=list)
    flat_images: list[int] = field(default_factory=list)
    """Guilty images of one colour all over: a norm over their pixels divides by a deviation of 0."""
    broken_entries: list[TargetFault] = field(default_factory=list)
    """Entries of the guilty images' targets that no scan knows and that are finite in all other images."""
    by_chance: bool = False
    """With other random numbers the same batch, on the same weights, is a normal step."""
    location: Location | None = None
    inside: float | None = None
    """The largest number that any module took or gave in the failing step, losses apart; None: not asked."""
    taken: float | None = None
    """The same, where every number that a module took was finite; else None."""
    grown: tuple[str, float] | None = None
    """The first op that makes numbers beyond sense of usual ones, and its largest; None: none."""
    usual: dict[str, Any] = field(default_factory=dict)
    """Setting of the optimizer that is wrong → what is sound in its place; "lr": component → its usual rate."""
    only_losses: bool = False
    """The numbers of the batch that are not finite are met by the losses alone: no module takes them."""
    fp32_modules: list[str] = field(default_factory=list)
    eager_modules: list[str] = field(default_factory=list)
    """Compiled modules without whose compiled code the step is finite."""
    libraries: bool = False
    """Without the vendors' libraries the step is finite, on the same device."""
    attention: bool = False
    """With attention by plain maths the step is finite: a fused attention kernel is at fault."""
    known_faults: list[str] = field(default_factory=list)
    """What is known to be wrong with the packages installed here on the device of the run."""
    drift: Drift | None = None
    astray: str | None = None
    """The component whose weights are furthest from where the last steps lead, where those of another are there."""
    redefined: Redefined | None = None
    weighed: float | None = None
    """Loss and gradients of a recorded step, replayed, are so many times as large, all alike: the loss has another
    weight now. ``reference`` is of that weight then."""
    older_file: OlderFile | None = None
    faithful: bool | None = None
    """Whether a recorded healthy step, replayed, gives what was recorded; None where that was not asked."""
    missing: list[str] = field(default_factory=list)
    """What replays could not take over from the run's model: their word counts for less."""
    norms_before: set[str] = field(default_factory=set)
    """Norm entries that are as bad in the state from before the onset."""
    began_wild: bool = False
    """The run's very first loss, before any update, was one that nothing healthy starts at."""
    below_zero: set[str] = field(default_factory=set)
    """Losses that were negative in healthy steps: likelihoods, not faults."""
    lr_verdict: LrVerdict | None = None
    done: set[str] = field(default_factory=set)
    tried: list[Evidence] = field(default_factory=list)
    replays: int = 0
    replay_steps: float = 0.0

    def abnormal(self, outcome: Outcome) -> bool:
        """Non-finite, raised, or far outside the run's own healthy figures."""
        if not outcome.finite or outcome.error:
            return True
        if self.reference.count == 0:
            return abs(outcome.loss) > NO_HISTORY_LOSS
        loss, norm = self.limits()
        # Of a loss that crosses zero the median size is near nothing; below, only what it never came near is too far.
        low = min(-loss, LOSS_FACTOR * self.reference.lowest)
        return outcome.loss > loss or outcome.loss < low or outcome.grad_norm > norm or self._negative(outcome)

    def _negative(self, outcome: Outcome) -> bool:
        # Every loss of a detector is a mean of non-negative terms: below zero is a fault (masks not 0/1).
        named = (k for k, v in outcome.losses.items() if v < -1e-3 and k.startswith("loss_"))
        return any(k not in self.below_zero for k in named)

    @property
    def leapt(self) -> dict[str, float]:
        """Component → how many times its usual one its rate was, where that is a schedule's peak or somebody's slip."""
        return {c: v for c, v in self.rises.items() if LEAPT < v < math.inf}

    def limits(self) -> tuple[float, float]:
        """(loss, gradient norm) above which a replay counts as diverged.

        Of a loop that may clip as it likes a few steps do not tell what its norms are before that.
        """
        few = self.reference.count < FEW
        norm = math.inf if few and self.settings.get("own_gradients") else self.reference.norm * NORM_FACTOR
        return self.reference.loss * self.loss_factor, norm

    @property
    def loss_factor(self) -> float:
        """How many times the healthy median loss is too far."""
        return loss_factor(self.reference.loss, self.reference.count, self.recorded_loss)

    def good(self, name: str) -> bool:
        """The replay ``name`` was made and is normal."""
        return name in self.outcomes and not self.abnormal(self.outcomes[name])

    def bad(self, name: str) -> bool:
        """The replay ``name`` was made and is abnormal."""
        return name in self.outcomes and self.abnormal(self.outcomes[name])

    def not_repeated(self) -> bool:
        """The failing step, replayed, is another one: what was recorded did not come from weights and batch alone."""
        same = self.outcomes.get("same")
        if same is None or not same.finite or same.error:
            return False
        if self.recorded_loss is None or not math.isfinite(self.recorded_loss):
            return True
        pairs = [(self.recorded_loss, same.loss)]
        # In half precision the recorded gradients may only have overflowed at the scale of then.
        if self.precision != "fp16" and not self.handled():
            pairs.append((self.recorded_norm or 0.0, same.grad_norm))
        # The squares of a norm beyond 1e19 overflow where it is recorded, and not where a replay sums them.
        # A replay that is as absurd, if not to the digit, shows the same fault: of a loop that weighs its losses anew.
        factor = ROUGHLY if self.abnormal(same) else 2.0
        return any(far_apart(a, b, factor) if math.isfinite(a) else b < SQUARES_OVERFLOW for a, b in pairs if b)

    def handled(self) -> bool:
        """A loop of somebody's own made the recorded gradients smaller than they come from the backward pass.

        It clips in a way of its own, by tensor or by infinity; what a replay gives is what it had before that.
        """
        same = self.outcomes.get("same")
        if same is None or self.recorded_norm is None or not self.settings.get("own_gradients"):
            return False
        return self.recorded_norm < same.grad_norm and far_apart(self.recorded_norm, same.grad_norm)

    def left_over(self) -> bool:
        """A loop's own gradients are, but for a trifle, those of the step before: the batch's are lost in them."""
        same = self.outcomes.get("same")
        if same is None or not same.finite or self.recorded_norm is None or not self.settings.get("own_gradients"):
            return False
        # A sum that the batch's own are added to is as much longer or shorter as those are long, at most.
        added = self.since_last <= SLACK * same.grad_norm
        return added and math.isfinite(self.recorded_norm) and self.recorded_norm > NORM_FACTOR * same.grad_norm

    def unrepeatable(self) -> bool:
        """Two replays of one step, with the same weights, batch and random numbers, are two different steps.

        Something that is in none of these decides: hooks that pile up, a counter of the caller's own.
        """
        same, again = self.outcomes.get("same"), self.outcomes.get("again")
        if same is None or again is None or not (same.finite and again.finite):
            return False
        return far_apart(same.loss, again.loss) or far_apart(same.grad_norm, again.grad_norm)

    def came_and_went(self) -> bool:
        """The step failed in the run and in a replay, and the same replay once more is a normal step."""
        return self.bad("same") and self.good("again")

    def healthy_retrace(self) -> bool:
        """The last steps, taken again as they were, stay normal, although the run did not: no rate is to blame."""
        walk = self.outcomes.get("retrace")
        if walk is None or self.abnormal(walk):
            return False
        last = self.recorded_loss
        if last is not None and math.isfinite(last) and not far_apart(last, walk.loss):
            return False  # it leads where the run went: slowly, perhaps, but there
        return not self.reference.count or all(abs(v) <= self.limits()[0] for _, v, _ in walk.path)

    @property
    def leap(self) -> bool:
        """The guard refused the update itself, by its size, although loss and gradients were sound."""
        return "update_bound" in self.measured

    @property
    def own_leap(self) -> bool:
        """The same where nothing was wrong before: the step's own rate or state is to blame, not those of others."""
        return self.leap and not self.growing and not self.bad("same")

    @property
    def state_changed(self) -> bool:
        """The guard undid an update, and the optimizer's state before it was not what the last step had left."""
        return self.measured.get("state_changed") is not None

    def state_to_blame(self) -> bool:
        """The update is absurd with the optimizer's state as it was, and is not with another."""
        own, other = self.outcomes.get("update"), self.outcomes.get("state")
        if own is None or other is None or other.moved is None or not other.finite or own.error:
            return False
        most = float(self.measured.get("most", LEAP))
        return other.moved <= most and (not own.finite or (own.moved or 0.0) > max(most, BY_STATE * other.moved))

    def raises_everywhere(self) -> bool:
        """The step raises an error on other batches too, and on older weights: the code is wrong, or the whole set."""
        made = [self.outcomes[n] for n in ("same", "other", "earlier") if n in self.outcomes]
        asked = {"same", "other"} <= self.outcomes.keys() and "halves" not in self.done
        return asked and all(o.error for o in made)

    def lethal(self) -> bool:
        """A target or image that must not go through the model again."""
        return any(t.lethal for t in self.targets) or any(i.lethal for i in self.inputs)

    def suspects(self) -> list[int]:
        """Image ids with any data finding, in batch order."""
        named = {t.image_id for t in self.targets} | {i.image_id for i in self.inputs}
        return [i for i in self.image_ids if i in named]

    def certain_state(self) -> list[StateFault]:
        return [s for s in self.state if s.certain]

    def say(self, name: str, supports: str | None) -> Evidence:
        """The outcome of the replay ``name`` as evidence."""
        outcome = self.outcomes[name]
        text = outcome.describe()
        if outcome.finite and not outcome.error and self.abnormal(outcome):
            text += (
                f" (healthy loss {self.reference.loss:.3g}, norm {self.reference.norm:.3g})"
                if self.reference.count
                else " (far above any healthy start)"
            )
        return Evidence(f"replay: {outcome.test}", text, supports)

    def says(self, code: str, *names: str) -> list[Evidence]:
        """Evidence of those of ``names`` that were made; it supports ``code`` where it came out as that needs.

        "!same" needs an abnormal outcome, "=earlier" a normal one; a bare name supports whatever came out.
        """
        rows = []
        for given in names:
            name, needs = given.lstrip("!="), given[:1]
            if name in self.outcomes:
                as_needed = needs not in ("!", "=") or self.abnormal(self.outcomes[name]) == (needs == "!")
                rows.append(self.say(name, code if as_needed else None))
        return rows


def far_apart(a: float, b: float, factor: float = 2.0) -> bool:
    """Whether one is more than ``factor`` times the other in size."""
    a, b = abs(a), abs(b)
    return max(a, b) > factor * min(a, b) + 1e-6
