"""Cause, proof and recovery for any training: keeps what a replay needs, and answers each alarm of a guard.

The same investigation and the same policy as `train` has. What a strange loop does not allow is not pretended: samples
can be left out of what the guard hands to the model, not of somebody else's loader; there is no file to reload.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from maskrcnn_coco import recovery
from maskrcnn_coco.anywhere.cases import case_of
from maskrcnn_coco.anywhere.fixes import reworded
from maskrcnn_coco.anywhere.lowering import lower, with_gradients
from maskrcnn_coco.anywhere.returning import Returning
from maskrcnn_coco.anywhere.rig import Forwards, Groups, Kept
from maskrcnn_coco.anywhere.samples import Key, Samples, Select, leaves, own_ids, size_of
from maskrcnn_coco.anywhere.suspects import Suspects
from maskrcnn_coco.anywhere.unlike_others import named
from maskrcnn_coco.anywhere.without_it import without_it
from maskrcnn_coco.diagnosis.investigate import TEAM_STEPS, investigate
from maskrcnn_coco.diagnosis.rules.scale_collapse import NORMAL_SCALE
from maskrcnn_coco.errors import GuardStop, GuardWarning
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.guard.hooks import Deafness, Entrances
from maskrcnn_coco.guard.norms import all_finite, has_fractions
from maskrcnn_coco.records import PROVED, Action, Alarm, Evidence, Finding, Incident, StepRecord, incident_of
from maskrcnn_coco.replay.isolation import untouched
from maskrcnn_coco.replay.optimizer import begin_anew, setting_names, settings_of
from maskrcnn_coco.replay.ring import Ring
from maskrcnn_coco.replay.snapshot import Snapshot, restore, state_bytes, take
from maskrcnn_coco.replay.tape import Tape, TapeEntry
from maskrcnn_coco.report.incident_files import write_incident
from maskrcnn_coco.system.backends import run_eagerly, use_fused_attention, use_libraries
from maskrcnn_coco.system.precision import keep_fp32

EVERY, EARLY = 10, (4, 8)
"""Steps between two copies of the state; and two early ones: a way back to the beginning costs all that was learned."""
LARGE = 512 * 2**20
"""A state above so many bytes is copied half as often, and two copies are kept instead of four."""
HOLES = 5
"""Last steps whose batches are looked at for NaN."""
UNCOUNTED = 10**9
"""Samples of a data set whose size nobody told: a share of it is then never too large."""


class AlarmResponder:
    """What one guard knows of its training beside the step in hand.

    Args:
        model: without the wrappers of DistributedDataParallel or torch.compile.
        forward: (model, batch) → loss, or of the batch alone; None: the model itself returns its loss.
        select: (batch, positions) → the batch with these samples only; by default along the first dimension.
        folder: where incident files go; None: nowhere.
        own_batches: batches come to the guard before the model sees them, so that it can leave samples out.
    """

    def __init__(
        self,
        guard: Guard,
        model: nn.Module,
        *,
        forward: Callable[..., Any] | None,
        select: Select | None,
        folder: str | Path | None,
        own_batches: bool = True,
    ) -> None:
        self.guard, self.model, self.own_batches = guard, model, own_batches
        self.folder = Path(folder) if folder is not None else None
        self.groups = Groups(model, guard.optimizer)
        self.kept = Kept()
        self.forwards = Forwards(model, self.kept, forward)
        self.select = select
        large = state_bytes(model, guard.optimizer) > LARGE
        self.every = EVERY * (2 if large else 1)
        self.ring, self.tape = Ring(2 if large else 4), Tape(256)
        self.history: list[StepRecord] = []
        self.incidents: list[Incident] = []
        self.findings: list[Finding] = []
        self.left_out: set[Any] = set()
        self.divisor = 1.0
        """What the loss that was shown last had been divided by."""
        self.fp32_modules: list[str] = []
        self.attention = self.libraries = True
        """False: fused attention, or the vendors' kernels, are off in this process, because one of them was wrong."""
        self.eager_modules: list[str] = []
        # A forward pass may open autocast by itself: seen from inside the modules, in the first steps.
        self._entrances = Entrances(model, self._notice_precision, lambda *_: None)
        self.held: dict[str, float] = {}
        """Group → the highest rate of the steps over which its lowered rate was shown to hold, and no more than twice
        what it was in the sound steps before; 0: there were none."""
        self.returning, self.suspects = Returning(self), Suspects(self)
        self._setting_names = tuple(setting_names(guard.optimizer))
        self._counted = 0
        self._copied = -EVERY

    # --- while the run is healthy

    def before(self, step: int) -> None:
        """At the start of planned step ``step``: a copy of the state, when one is due."""
        if self.groups.outdated:
            self._regroup()
        due = step - self._copied >= self.every or not self.ring.items
        if due or (step in EARLY and self.ring.items[0].step < step):
            self._copied = step if due else self._copied
            self.ring.add(self.snapshot(step))
        self.returning.before(step)

    def _regroup(self) -> None:
        """The optimizer has other groups now: older copies of its state are of something else."""
        guard, self.groups = self.guard, Groups(self.model, self.guard.optimizer)
        guard.instruments.groups = self.groups.names
        guard.instruments.by_groups(self.groups.of(self.model))
        self.ring = Ring(self.ring.capacity)

    def saw(
        self, step: int, data: Any, ids: Sequence[int] | None = None, forward: Callable[..., Any] | None = None
    ) -> None:
        """One micro-batch goes into the model now."""
        size = len(ids) if ids is not None else size_of(data)
        first = self._counted
        self._counted += size
        own = ids if ids is not None else own_ids(data, size)
        given = [int(i) for i in own] if own is not None else list(range(first, first + size))
        micro = len(self.kept.batches(step))
        keys = [Key(step, micro, p, i, i) for p, i in enumerate(given)]
        batch = Samples(data, given, keys, select=self.select, holes=self.guard.instruments.holes)
        self.kept.add(step, batch, torch.get_rng_state(), forward)

    def after(self, record: StepRecord) -> None:
        """The step is over, applied or not."""
        self._entrances.step_taken()
        batches = self.kept.batches(record.step)
        record.image_ids = record.image_ids or [i for b in batches for i in b.image_ids]
        keys = [b.keys for b in batches]
        with self.guard.instruments.lowered_rates():  # as the step had them
            # A rival's pass, or a look at the model, may have begun the step before the schedule came to it.
            record.lr = self.guard.instruments.health.lr()
            settings = settings_of(self.guard.optimizer.param_groups, self._setting_names)
        self.tape.add(
            TapeEntry(record.step, record.epoch, keys, dict(record.lr), None, record.applied, record, settings)
        )
        self.returning.by_schedule(record.step)
        self.history.append(record)
        del self.history[:-300]

    def _notice_precision(self, *_: Any) -> None:
        device = next((p.device.type for p in self.model.parameters()), "cpu")
        if torch.is_autocast_enabled(device):
            half = torch.get_autocast_dtype(device) is torch.float16
            self.forwards.precision = "fp16" if half else "bf16"

    def snapshot(self, step: int) -> Snapshot:
        """A copy of the state as it is now, before ``step``."""
        taken = take(self.model, self.guard.optimizer, None, step=step, epoch=0, guard=self.guard)
        taken.guard.pop("decisions", None)  # they stay in force when an older state comes back
        return taken

    # --- what outlives the process

    def decisions(self) -> dict[str, Any]:
        """What was decided so far, as plain data."""
        return {
            "fp32_modules": list(self.fp32_modules),
            "attention": self.attention,
            "libraries": self.libraries,
            "eager_modules": list(self.eager_modules),
            "factors": dict(self.guard.instruments.lowered.factors),
            "limits": {name: dict(most) for name, most in self.guard.instruments.lowered.limits.items()},
            "usual": dict(self.guard.instruments.lowered.usual),
            "held": dict(self.held),
            "returning": self.returning.state_dict(),
            "left_out": sorted(self.left_out),
        }

    def put_in_force(self, decided: dict[str, Any]) -> None:
        """Take over what `decisions` gave, in another process perhaps."""
        for name in decided["fp32_modules"]:
            if name not in self.fp32_modules:
                keep_fp32(self.model, name)
                self.fp32_modules.append(name)
        if not decided["attention"]:
            self.attention = False
            use_fused_attention(False)
        if not decided.get("libraries", True):
            self.libraries = False
            use_libraries(False)
        self.eager_modules += [n for n in decided.get("eager_modules", ()) if n not in self.eager_modules]
        run_eagerly(self.model, self.eager_modules)
        self.guard.instruments.lowered.factors.update(decided["factors"])
        for name, most in decided.get("limits", {}).items():
            for setting, value in most.items():
                self.guard.instruments.lowered.limit(name, setting, value)
        self.guard.instruments.lowered.usual.update(decided.get("usual", {}))
        self.held.update(decided["held"])
        self.returning.load_state_dict(decided.get("returning", {}))
        self.left_out |= set(decided["left_out"])

    # --- at an alarm

    def respond(self, alarm: Alarm) -> Incident:
        """Find the cause of ``alarm``, act, write it down.

        Raises:
            GuardStop: the policy says that this training cannot go on. The incident is written first.
        """
        began = time.monotonic()
        findings, action = self._agreed(alarm)
        self.findings = findings
        number, factors = len(self.incidents) + 1, self.guard.instruments.lowered.factors
        incident = incident_of(number, alarm, findings, action, history=self.history, lr_factors=factors)
        incident.detail["seconds"] = time.monotonic() - began
        incident.action, back = self._carry_out(action, alarm)
        if "multiplied" in action.detail:
            self.guard.new_regime()  # gradients are so long from here on
        if incident.action.kind == "quarantine" and incident.confidence < PROVED:
            self.suspects.add(alarm.step, incident.action.detail.get("image_ids", []))
        incident.lost_steps = max(0, alarm.step - back) if back is not None else 0
        incident.outcome = "stopped" if incident.action.kind == "stop" else "recovered"
        self.incidents.append(incident)
        self.kept.blamed |= set(incident.culprit.image_ids)
        team = self.guard.immediate.team
        if self.folder is not None and (team is None or team.ranks.is_main):
            self._write(incident)
        if incident.action.kind == "stop":
            raise GuardStop(
                f"stopped at step {alarm.step}: {incident.cause} ({alarm.message})",
                got=incident.action.detail.get("why"),
                fix=incident.fix or f"read the verdict: maskrcnn-coco explain {incident.cause}",
            )
        return incident

    def _agreed(self, alarm: Alarm) -> tuple[list[Finding], Action]:
        """Findings and action; of several processes those of the one to blame, on all: it alone has the batch.

        All take the same action, or their weights would part ways.
        """
        team = self.guard.immediate.team
        if team is None:
            return self._examined(alarm)
        source, said = int(alarm.measured.get("rank", 0)), None
        if team.ranks.rank == source:
            findings, action = self._examined(alarm)
            findings[0].culprit.rank = source if "rank" in alarm.measured else None
            said = msgspec.to_builtins([findings, action], enc_hook=str)
        answer = team.ranks.broadcast_object(said, source=source)
        return msgspec.convert(answer[0], list[Finding]), msgspec.convert(answer[1], Action)

    def _examined(self, alarm: Alarm) -> tuple[list[Finding], Action]:
        found = self._investigate(alarm)
        with contextlib.suppress(Exception):  # a last look at strangers' data: without it they stand
            found = [named(f, alarm, self.kept, first=i == 0) for i, f in enumerate(found)]
            found = without_it(found, self, alarm)
        findings = [reworded(f, self.groups.names) for f in found]
        history = recovery.History(self.incidents, alarm.step, images=UNCOUNTED)
        action, count = recovery.decide(findings, history), len(self.kept.batches(alarm.step))
        if action.kind == "stop" and "weighed_anew" in alarm.measured and findings[0].detail.get("redefined"):
            # The same loss with another weight: the guard takes it for that when it comes again.
            action = Action("skip", {"why": f"the loss counts {alarm.measured['weighed_anew']:.2g} times as much"})
        if alarm.symptom == "crash" and not self.own_batches:
            # What a loop's own forward pass raises is for the loop to answer: nothing was done yet, nothing is undone.
            action = Action("skip", {"why": "the error goes on to the loop"})
        summed = "summed" in findings[0].detail or alarm.symptom == "diverged"
        if findings[0].cause == "ACCUMULATION" and summed and action.kind in ("skip", "rollback") and count > 1:
            # The sum of so many gradients is a rate so many times as high; the weights that it threw away come back.
            onset = findings[0].onset_step
            back = alarm.onset_step if onset is None else onset
            action = Action("lower_lr", {"components": self.groups.names, "factor": 1 / count, "to_step": back})
        action = with_gradients(
            findings[0], action, alarm.step, self.incidents, self.guard.optimizer, self.groups.names
        )
        return findings, action

    def _write(self, incident: Incident) -> None:
        """What cannot be written costs the file, never the training: it is kept in ``incidents`` all the same."""
        assert self.folder is not None
        try:
            write_incident(self.folder, incident)
        except OSError as e:
            text = f"incident {incident.id} cannot be written to {self.folder}: {e.strerror or e}; it is in .incidents"
            warnings.warn(text, GuardWarning, stacklevel=5)

    def _investigate(self, alarm: Alarm) -> list[Finding]:
        self._note_holes(alarm.step)
        case = case_of(self, alarm)
        try:
            with Deafness.deaf(), untouched(self.model, case.now):
                return investigate(case, budget_steps=TEAM_STEPS)
        except Exception as e:  # no investigation may end the training that it is to explain
            return [
                Finding("UNKNOWN", 0.0, evidence=[Evidence("investigation", f"{type(e).__name__}: {str(e)[:200]}")])
            ]

    def _note_holes(self, step: int) -> None:
        """Batches with NaN that were trained on soundly: a loop may fill them in before its model sees them."""
        applied = [r.step for r in self.history[-HOLES:] if r.applied and r.step != step]
        if any(
            not all_finite(t) for s in applied for b in self.kept.batches(s) for t in leaves(b.data) if has_fractions(t)
        ):
            for batch in self.kept.batches(step):
                batch.holes = True

    def _carry_out(self, action: Action, alarm: Alarm) -> tuple[Action, int | None]:
        """Do what was decided; the action as it was done, and the step that the state is of now (None: as before)."""
        detail = action.detail
        if action.kind == "quarantine" and not self.own_batches:
            # Where the model is given a batch that can be taken apart, a sound sample stands in for it from now on.
            self.left_out |= set(detail.get("image_ids", []))
            return Action("skip", {"why": "the loader is the training's own", **detail}), self._before_it()
        if "again" in detail:
            return action, self._before_it()
        if "passed" in detail:
            self.guard.buffers.pass_on()
        elif "weighed" in detail:
            self.guard.new_regime()  # what is healthy is learned anew, in the new measure
        elif action.kind == "quarantine":
            self.left_out |= set(detail.get("image_ids", []))
        elif action.kind == "precision" and "dtype" in detail:
            for name in detail.get("modules", [detail.get("module")]):
                keep_fp32(self.model, str(name))
                self.fp32_modules.append(str(name))
        elif action.kind == "precision" and "attention" in detail:
            self.attention = False
            use_fused_attention(False)  # of this process; slower, and the same numbers as far as rounding goes
        elif action.kind == "precision" and "eager_modules" in detail:
            run_eagerly(self.model, detail["eager_modules"])
            self.eager_modules += detail["eager_modules"]
        elif action.kind == "precision" and detail.get("libraries") is False:
            self.libraries = False
            use_libraries(False)
        elif action.kind == "lower_lr":
            back = self.go_back(int(detail.get("to_step", alarm.step)))
            since = int(detail.get("to_step", alarm.step))
            parts, proved = self.guard.instruments, self.findings[0].confidence >= PROVED
            lower(parts.lowered, detail, self.groups.names, self.history, self.held, since, proved=proved)
            parts.divergence.watch()
            self.returning.lowered(alarm.step, detail, proved=proved)
            return action, back
        elif "usual" in detail:  # the step was refused or undone: the state is sound as it is
            self.guard.instruments.lowered.usual.update(detail["usual"])
        elif "state_anew" in detail and begin_anew(self.guard.optimizer):
            self.ring.clear()  # states of before hold what was found
            self.guard.reset(self.guard.next_step)
        elif action.kind in ("rollback", "reload"):
            if detail.get("older_only"):
                self.ring.drop_after(int(detail["to_step"]))
            back = self.go_back(int(detail.get("to_step") or alarm.step))
            scale = self.guard.instruments.scale
            if back is None and scale.check() is not None:
                scale.set(NORMAL_SCALE)  # nothing was trained at it yet
                return Action("precision", {"loss_scale": NORMAL_SCALE}), None
            if back is None and self._of_the_optimizer_alone() and begin_anew(self.guard.optimizer):
                self.guard.reset(self.guard.next_step)
                return Action("rollback", {"to_step": alarm.step, "state_anew": True}), None
            if back is None:
                return Action("stop", {"why": "the state is bad, and no older one is kept"}), None
            return Action("rollback", {**detail, "to_step": back}), back
        elif action.kind == "precision" and "loss_scale" in detail:
            self.guard.instruments.scale.set(float(detail["loss_scale"]))
        elif action.kind == "precision":
            return Action("skip", {"why": "only the training itself can change this"}), None
        return action, None

    def _before_it(self) -> int | None:
        """Back to before the steps that the named sample has spoilt, where it has: the step of that state."""
        before = self.findings[0].detail.get("back_before")
        return None if before is None else self.go_back(int(before))

    def _of_the_optimizer_alone(self) -> bool:
        """Whether what is wrong with the state is what the optimizer remembers, as a file had it: weights are sound."""
        found, entries = self.findings[0], self.findings[0].detail.get("entries") or ()
        named = all(str(e).startswith("optimizer ") for e in entries) and bool(entries or "to_step" in found.detail)
        return found.cause == "POISONED_STATE" and named and "usual" not in found.detail

    def go_back(self, step: int) -> int | None:
        """Put back the newest copy of the state that is not newer than ``step``; its step, None where there is none."""
        older = [s for s in self.ring.items if s.step <= step] or self.ring.items[-1:]
        if not older:
            return None
        snapshot, guard = older[0], self.guard
        rates, at = [group.get("lr") for group in guard.optimizer.param_groups], guard.next_step
        restore(snapshot, self.model, guard.optimizer, guard=guard, rng=False)
        for group, rate in zip(guard.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # the schedule is the training's own and goes on
        if guard.instruments.scale.check() is not None:
            guard.instruments.scale.set(NORMAL_SCALE)
        guard.reset(at)  # so does its count of steps
        self.ring.drop_after(snapshot.step)
        self.tape.drop_from(snapshot.step)
        self._copied = at - self.every  # the steps between led nowhere: from here on the state has a new number
        return snapshot.step
