"""Looks at a loop of the caller's own while it runs: its first samples, its optimizer, its first steps.

A watch belongs to a model: guards that are made anew for each epoch go on with it, and nothing is said twice.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from maskrcnn_coco.errors import FindingWarning
from maskrcnn_coco.findings.facts import Facts, Resumed, Still, Way
from maskrcnn_coco.findings.judge import finding_key, judge
from maskrcnn_coco.findings.parameters import all_in_eval, decay_of, norms_in_eval, parameters_of, train_but
from maskrcnn_coco.findings.progress import STEPS, Progress
from maskrcnn_coco.findings.samples import ENOUGH, Samples
from maskrcnn_coco.records import RunFinding, StepRecord

Say = Callable[[RunFinding], None]
RATES_EVERY = 10


def warn(finding: RunFinding) -> None:
    """A Python warning of class `FindingWarning`; what is only good to know is not warned of."""
    if finding.severity != "info":
        text = f"{finding.code}: {finding.message}; what to do: {finding.fix} ({finding.explain})"
        warnings.warn(FindingWarning(text, finding.code), stacklevel=2)


class Watch:
    """What is known of one model in training.

    Args:
        samples: look at the batches too; False where the data were looked at before.
        say: called once for each finding.
        way: how the caller came in, for what to do.
    """

    def __init__(self, model: nn.Module, *, samples: bool = True, say: Say = warn, way: Way = "loop") -> None:
        self.say = say
        self.way: Way = way
        self.findings: list[RunFinding] = []
        self.kept_eval: list[str] = []
        self._said: set[tuple[str, str]] = set()
        self._samples: Samples | None = Samples.for_model(model) if samples else None
        self._progress = Progress()
        self._optimizer: Any = None
        self._without: set[str] | None = None
        self._modes = self._stills = self._moves = False
        self._objects = True

    def optimizer(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Look at the groups of an optimizer, once for each."""
        if self._optimizer is None or self._optimizer() is not optimizer:
            self._optimizer = weakref.ref(optimizer)
            self.decays_by(decay_of(optimizer)[0])
            self.tell(Facts(way=self.way, parameters=parameters_of(model, optimizer)), "before")

    def resumed(self, found: Resumed) -> None:
        """A guard's state was loaded: what came back with it."""
        self.tell(Facts(way=self.way, resumed=found), "before")

    @property
    def highest_rates(self) -> dict[str, float]:
        """Component → the highest learning rate so far."""
        return self._progress.highest_rates

    def clips_at(self, norm: float | None) -> None:
        """Gradients are clipped to this norm; 0 or None: they are not."""
        self._progress.max_grad_norm = float(norm or 0.0)

    def decays_by(self, share: float) -> None:
        """Weight decay alone takes this share of a group's weights in a step, at the most."""
        self._progress.decay = share

    def train_mode(self, model: nn.Module) -> None:
        """Train mode, but for norm layers that were in eval mode while the model was not: they stay so; it is said."""
        found = norms_in_eval(model)
        self.kept_eval = found or self.kept_eval
        train_but(model, self.kept_eval)
        if found:
            facts = parameters_of(model, kept_eval=found)
            facts.frozen_random = []
            self.tell(Facts(way=self.way, parameters=facts), "before")

    def batch(self, model: nn.Module, pairs: Sequence[tuple[Sequence[Tensor], Sequence[Mapping[str, Any]]]]) -> None:
        """Look at the (images, targets) of a coming step; nothing where the batches are not of detection."""
        if not self._modes:
            self._modes = True
            modes = all_in_eval(model)
            if modes:
                facts = parameters_of(model)
                facts.frozen_random, facts.eval_mode = [], modes
                self.tell(Facts(way=self.way, parameters=facts), "steps")
        if pairs:
            self._look_at_gradients(model)
        self._objects = not pairs or any(_count(t) for _, targets in pairs for t in targets)
        if self._samples is None or not pairs:
            return
        for images, targets in pairs:
            for image, target in zip(images, targets, strict=False):
                self._samples.add(image, target, _id(target, self._samples.images))
        found = self._samples
        if found.images >= ENOUGH and (found.objects or found.images >= 20 * ENOUGH):
            self.judge_samples()

    def _look_at_gradients(self, model: nn.Module) -> None:
        """Parameters that got no gradient in any step so far. Only of detectors: others may rest parts on purpose."""
        if self._stills or not self._progress.seen:
            return
        optimizer = self._optimizer() if self._optimizer is not None else None
        held = {id(p) for group in getattr(optimizer, "param_groups", ()) for p in group["params"]}
        none = {n for n, p in model.named_parameters() if id(p) in held and p.requires_grad and p.grad is None}
        self._without = none if self._without is None else self._without & none

    def _still(self) -> Still:
        found = self._progress.still()
        parts = sorted({n.rpartition(".")[0] for n in self._without or ()})
        found.no_gradient += [p for p in parts if not any(p.startswith(n) for n in found.no_gradient)]
        return found

    def judge_samples(self, *, whole: bool = False) -> None:
        """Say what the samples so far show, and look at no more of them."""
        samples, self._samples = self._samples, None
        if samples is not None and samples.images:
            self.tell(samples.facts(self.way, whole=whole), "steps")

    def record(self, record: StepRecord) -> None:
        """Look at a step that is complete."""
        progress = self._progress
        progress.add(record, objects=self._objects)
        facts = Facts(way=self.way)
        if progress.steps >= STEPS and not self._stills:
            self._stills, facts.still = True, self._still()
            self._moves = facts.still.moved is not None
        elif record.update_ratio and self._stills and not self._moves and progress.settled:
            # Nothing was measured among the first steps but those of the warm-up: how far steps go is judged now.
            found = progress.still()
            self._moves, facts.still = found.moved is not None, found.only_moved()
        if progress.seen % RATES_EVERY == 0:
            facts.rates = progress.rates()
        if facts.still is not None or facts.rates is not None:
            self.tell(facts, "steps")

    def end_of_epoch(self, last: Sequence[StepRecord] = ()) -> None:
        """The loader is through: say what few samples and steps show, too. ``last``: records that nobody gave yet."""
        for record in last:
            self.record(record)
        self.judge_samples(whole=True)
        facts = Facts(way=self.way, rates=self._progress.rates())
        if not self._stills and self._progress.steps >= STEPS // 4:
            self._stills, facts.still = True, self._still()
        self.tell(facts, "epoch")

    def known(self, findings: Sequence[RunFinding]) -> None:
        """Findings that were said before: they are not said again."""
        self.findings += findings
        self._said |= {finding_key(f) for f in findings}

    def tell(self, facts: Facts, moment: Any) -> None:
        """Say what is new in what the rules find."""
        for finding in judge(facts, moment):
            if finding_key(finding) not in self._said:
                self._said.add(finding_key(finding))
                self.findings.append(finding)
                self.say(finding)


_WATCHES: weakref.WeakKeyDictionary[nn.Module, Watch] = weakref.WeakKeyDictionary()


def watch_of(model: nn.Module) -> Watch:
    """The watch of ``model``, made at the first call."""
    watch = _WATCHES.get(model)
    if watch is None:
        watch = _WATCHES[model] = Watch(model)
    return watch


def _count(target: Any) -> int:
    boxes = target.get("boxes") if isinstance(target, Mapping) else None
    return len(boxes) if isinstance(boxes, Tensor) else 0


def _id(target: Any, default: int) -> int:
    value = target.get("image_id", default) if isinstance(target, Mapping) else default
    if isinstance(value, Tensor):
        return int(value.reshape(-1)[0]) if value.numel() else default
    return int(value) if isinstance(value, int) else default
