"""The tests that diagnosis may ask for, each by name: scans and replays of one case, written down as `Facts`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from maskrcnn_coco.components import component_of
from maskrcnn_coco.diagnosis import from_records, scan_batch, scan_state
from maskrcnn_coco.diagnosis.backend_experiments import BackendExperiments
from maskrcnn_coco.diagnosis.draws import by_chance, sound_draws
from maskrcnn_coco.diagnosis.facts import Facts, Location, Reference
from maskrcnn_coco.diagnosis.file_experiments import FileExperiments
from maskrcnn_coco.diagnosis.guilty_samples import guilty_annotations, guilty_samples, of_no_sample, weights
from maskrcnn_coco.diagnosis.limits import NO_HISTORY_LOSS, WALK
from maskrcnn_coco.diagnosis.lr_experiments import LrExperiments
from maskrcnn_coco.diagnosis.optimizer_experiments import OptimizerExperiments
from maskrcnn_coco.diagnosis.rules.common import nonfinite
from maskrcnn_coco.diagnosis.rules.scale_collapse import NORMAL_SCALE
from maskrcnn_coco.diagnosis.scan_forms import scan_forms
from maskrcnn_coco.records import Evidence
from maskrcnn_coco.replay.case import Case, dict_of
from maskrcnn_coco.replay.optimizer import optimizer_names
from maskrcnn_coco.replay.replay import Replay, ReplayImpossible
from maskrcnn_coco.replay.tape import TapeEntry

OTHERS = OLDER = 3
"""Most other batches that are asked whether they fail too; most older states on which the failing one is tried."""
MODULES = 4
"""Most modules that are put into float32 one after the other."""


class Experiments:
    """Makes the tests of one case. ``facts`` is filled by `scan_all` and then by `run`."""

    def __init__(self, case: Case, *, most_steps: float = math.inf) -> None:
        self.case = case
        self.replay = Replay(case, most_steps=most_steps)
        self.facts = Facts(case.alarm.symptom, case.alarm.step, case.alarm.epoch, case.alarm.onset_step)
        self.lr = LrExperiments(case, self.replay, self.facts)
        self.files = FileExperiments(case, self.replay, self.facts)
        self.backend = BackendExperiments(case, self.replay, self.facts)
        self.by_optimizer = OptimizerExperiments(self.replay, self.facts)

    @property
    def steps(self) -> float:
        """What the replays cost so far, in the run's steps."""
        return self.replay.steps

    def scan_all(self) -> Facts:
        """What is known before any replay: records and scans."""
        f, case = self.facts, self.case
        try:
            model = self.replay.model
            names = optimizer_names(model, self.replay.optimizer)
        except ReplayImpossible as e:
            f.tried.append(Evidence("replays", str(e)))
            model, names = case.rig.model, []
            if not isinstance(model, nn.Module):
                return f
        f.missing = list(self.replay.missing)
        self._from_records(model)
        self._try("scan: state", lambda: self._scan_state(model, names))
        self._try(
            "scan: anchors", lambda: f.anchors.extend(scan_batch.scan_anchors(model, str(f.measured.get("error", ""))))
        )
        f.image_ids += [i for batch in case.batches or [] for i in batch.image_ids]
        for batch in case.batches or []:
            self._try("scan: targets", lambda b=batch: self._scan_batch(model, b))
            self._try("scan: largest number", lambda b=batch: self._measure_given(b))
        self._try("scan: what the guard's input check found", self._take_reported)
        # Every image of the batch has a data fault: the data set, not one image, where no other batch says otherwise.
        others = case.rig.make_batch is None or self._other_entries()  # none was seen yet: the next one says it
        f.widespread = bool(others) and len(f.image_ids) > 1 and f.suspects() == f.image_ids
        f.done.add("scan")
        f.can = self._possible() if names else set()
        return f

    def _try(self, what: str, scan_one: Callable[[], None]) -> None:
        """One scan; what it cannot look at (odd data of a caller's own) is noted, and the others are made."""
        try:
            scan_one()
        except Exception as e:  # a scan of strangers' data may meet anything
            self.facts.tried.append(Evidence(what, f"could not be made: {type(e).__name__}: {str(e)[:160]}"))

    def _scan_state(self, model: nn.Module, names: list[str]) -> None:
        f, case = self.facts, self.case
        # Buffers of -inf or NaN, and weights of zero, that were so from the start.
        meant = {*(case.settings.get("by_design") or ()), *scan_state.began_at_zero(case)}
        found = scan_state.scan_state(case.now, model, names, component_of)
        f.state = [s for s in found if s.name not in meant] + scan_state.unset(found, meant, case.now)
        self._try("scan: settings of the optimizer", lambda: f.state.extend(self.by_optimizer.refused(f.state)))
        self.by_optimizer.last_possible(self.lr.healthy)
        if f.earlier_steps:  # what became so between two steps is a question for replays: TRANSIENT, if one alone did
            f.state = [s for s in f.state if not s.enormous]
        if f.measured.get("by_update"):
            f.state += scan_state.lost_eps(case.now, names)
        f.state += scan_state.misfits(f.measured.get("misfits") or {}, component_of)
        if f.measured.get("between"):
            # Sound after the last step and not before this one: the names are the guard's.
            known = {s.name for s in f.state}
            f.state += scan_state.overwritten(f.measured.get("buffers") or [], known, case.now, self.lr.healthy)
        if any(s.where == "norm" for s in f.state) and self.lr.healthy is not None:
            before = scan_state.scan_state(self.lr.healthy, model, names, component_of)
            f.norms_before = {s.name for s in before if s.where == "norm"}

    def _scan_batch(self, model: nn.Module, batch: Any) -> None:
        f = self.facts
        raised = str(f.measured.get("error", ""))
        if raised or f.symptom == "input_nonfinite":
            targets, inputs = scan_forms(batch, model, refused=f.symptom == "input_nonfinite", raised=raised)
            f.targets, f.inputs = f.targets + targets, f.inputs + inputs
        f.targets += scan_batch.scan_targets(batch, scan_batch.num_classes(model, f.settings))
        f.inputs += scan_batch.scan_images(batch, getattr(model, "transform", None))
        f.inputs += [] if f.inputs else scan_batch.scan_transformed(batch, getattr(model, "transform", None))
        pairs = zip(batch.image_ids, batch.targets, strict=True)
        f.empty_images += [i for i, t in pairs if isinstance(t, dict) and "boxes" in t and not len(t["boxes"])]

    def _measure_given(self, batch: Any) -> None:
        known = float(self.facts.measured.get("given") or 0.0)
        self.facts.measured["given"] = max(known, scan_batch.largest_given(batch))

    def _take_reported(self) -> None:
        f = self.facts
        ids = f.image_ids if f.accumulate == 1 else []  # positions are counted in each micro-batch
        targets, inputs = scan_batch.reported(f.measured.get("problems") or [], f.targets, f.inputs, ids)
        f.targets, f.inputs = f.targets + targets, f.inputs + inputs

    def run(self, name: str) -> None:
        """Make the test ``name``; what it found is in ``facts`` afterwards. A test that cannot be made is noted."""
        self.facts.done.add(name)
        try:
            if name in ("retrace", "lr", "weight"):
                getattr(self.lr, name)()
            elif name == "file":
                self.files.file()
            elif name in ("reference", "live"):
                getattr(self.backend, name)()
            elif name in ("update", "settings", "planned"):
                getattr(self.by_optimizer, name)()
            else:
                getattr(self, f"_{name}")()
        except ReplayImpossible as e:
            self.facts.tried.append(Evidence(f"replay: {name}", f"could not be made: {str(e)[:160]}"))
        except Exception as e:  # no test of ours may end the run that it is to explain
            what = f"could not be made: {type(e).__name__}: {str(e)[:160]}"
            self.facts.tried.append(Evidence(f"replay: {name}", what))
        self.facts.replays, self.facts.replay_steps = self.replay.count, self.replay.steps

    def redrawn(self, images: Sequence[int]) -> tuple[list[list[int]], list[Evidence]]:
        """The draws of ``images`` that are at fault, where the images are not; and what was tried (`sound_draws`)."""
        return sound_draws(self.case, self.replay, self.facts, images, self.lr.healthy)

    def _from_records(self, model: nn.Module) -> None:
        f, case = self.facts, self.case
        f.settings = {**case.settings, **dict_of(case.settings.get("config"))}
        f.measured = dict(case.alarm.measured)
        f.precision = case.rig.precision
        f.accumulate = max(1, len(case.batches or []))
        f.components = list(case.rig.components(model))
        before = [r for r in case.history if r.step < f.step]
        onset = min(f.onset_step, from_records.onset_of(before, f.step))
        # The first step's own loss is of weights that no update had touched, whatever came of it.
        known_at = (from_records.reference_of(case.history, at) for at in (onset, f.onset_step, min(1, f.step)))
        f.reference = next((r for r in known_at if r.count), Reference())
        f.growing = onset < f.step
        f.onset_step = onset
        failing = from_records.record_of(case, f.step)
        if failing is not None:
            f.recorded_loss, f.recorded_norm, f.loss_scale = failing.loss, failing.grad_norm, failing.loss_scale
            f.lr = dict(failing.lr)
        known = before if failing is None else [*before, failing]
        f.usual_lr = from_records.usual_lr(known, onset)
        f.rises = from_records.rises(known, onset, f.usual_lr)
        f.foreign_rates = from_records.foreign_rates(case, known[-WALK - 1 :])
        f.below_zero = {k for r in before if r.applied for k, v in r.losses.items() if v < -1e-3}
        first = case.history[0] if case.history else None
        f.began_wild = first is not None and first.step == 0 and abs(first.loss) > NO_HISTORY_LOSS
        f.climbs = from_records.climbs(f, case.now.optimizer.get("param_groups", []))
        f.refused_before = bool(before) and not before[-1].applied
        f.since_last = from_records.apart(before[-1], failing) if before and failing is not None else math.inf
        f.update_ratio = from_records.ratios(before, onset)
        older = [s for s in case.earlier if s.step < f.step]
        f.earlier_steps = [s.step for s in older]
        self.lr.healthy = next((s for s in older if s.step <= onset), older[-1] if older else None)

    def _possible(self) -> set[str]:
        case, f = self.case, self.facts
        can: set[str] = set()
        if not case.batches:
            return can
        can |= {"update", "settings"} if f.measured.get("by_update") else set()
        can |= {"update", "state"} if f.state_changed else set()
        can |= {
            "same",
            "again",
            "passed",
            "chance",
            "without",
            "repaired",
            "locate",
            "bisect",
            "annotations",
            "planned",
        }
        if case.rig.precision != "fp32":
            can |= {"fp32", "module_fp32"} | ({"rescaled"} if case.rig.precision == "fp16" else set())
        if case.rig.make_batch and self._other_entries():
            can |= {"other", "peek"}
        elif len(f.image_ids) > 1:
            can.add("other")
        if self.lr.healthy is not None:
            can |= {"earlier", "weight"} | self.lr.walks()
        can |= {"lr"} if f.leap else set()
        can |= {"reference"} | ({"redrawn"} if case.rig.redraw else set())
        if self.files.after_load():
            can.add("file")
        can |= {"live"} if self.backend.compiled else set()
        if f.lethal():
            # Of a detector's batch it is known what is a picture; what kills native code is in no other.
            plain = all(getattr(b, "detection", b) is None for b in case.batches)
            can &= {"without", "peek", "redrawn"} | ({"locate"} if plain else set())
        return can

    def _other_entries(self) -> list[TapeEntry]:
        """Other steps without any of this batch's images, most telling first: recorded, planned, at worst refused."""
        mine = {_sample(k) for b in self.case.batches or [] for k in b.keys}
        at = self.case.alarm.step

        def strange(entry: TapeEntry) -> bool:
            return not mine & {_sample(k) for keys in entry.keys for k in keys}

        applied = [e for e in self.case.tape if e.applied and e.step < at]
        planned = self.case.planned
        coming = [e for s in range(at + 1, at + 1 + 2 * OTHERS) if (e := planned(s) if planned else None) is not None]
        recorded = [e for e in reversed(applied) if strange(e)]
        found = recorded[:1] + [e for e in coming if strange(e)] + recorded[1:OTHERS]
        return (found or applied[-1:] or [e for e in self.case.tape if e.step < at and strange(e)])[:OTHERS]

    def _same(self) -> None:
        f = self.facts
        same = f.outcomes["same"] = self.replay.run("same batch, same weights", digest=True)
        if f.recorded_norm is not None and math.isfinite(f.recorded_norm) and same.finite and same.grad_norm > 0:
            f.norm_ratio = f.recorded_norm / same.grad_norm

    def _again(self) -> None:
        self.facts.outcomes["again"] = self.replay.run("the same once more", digest=True)

    def _state(self) -> None:
        self.by_optimizer.state(self.lr.healthy)

    def _peek(self) -> None:
        """Whether others have the same fault in most images (a label: in any, classes are the set's)."""
        model, mine, looked = self.replay.model, self.facts, list[float]()
        codes = {t.code for t in mine.targets}
        forms = any(t.form for t in mine.targets) or any(i.form for i in mine.inputs)
        for entry in self._other_entries():
            for batch in self.replay.batches_of(entry):
                targets, inputs = scan_batch.scan_values(batch, model, mine.settings)
                if forms:
                    more = scan_forms(batch, model, refused=False, raised=str(mine.measured.get("error", "")))
                    targets, inputs = [*targets, *more[0]], [*inputs, *more[1]]
                found = {t.image_id for t in targets if t.code in codes} | {i.image_id for i in inputs if mine.inputs}
                looked.append(len(found) / max(1, len(batch.image_ids)))
        if looked:
            mine.widespread = all(looked) and (2 * sum(looked) > len(looked) or "DATA_LABEL" in codes)

    def _other(self) -> None:
        """Another batch on the same weights; where it fails too, further ones, until one is normal."""
        entries = self._other_entries()
        for entry in entries:
            batches = self.replay.batches_of(entry)
            test = f"another batch (step {entry.step}), same weights"
            self.facts.outcomes["other"] = self.replay.run(test, batches=batches, step=entry.step)
            if self.facts.good("other"):
                return
        if not entries:
            self._other_half()

    def _other_half(self) -> None:
        """No step was taken yet: the first and the last image of the batch, each alone, stand for other batches."""
        self.facts.done.add("halves")
        count = len(self.facts.image_ids)
        for position in (0, count - 1):
            test = f"image {self.facts.image_ids[position]} alone, same weights"
            batches = self._keep([p == position for p in range(count)])
            self.facts.outcomes["other"] = self.replay.run(test, batches=batches)
            if self.facts.good("other"):
                return

    def _earlier(self) -> None:
        """On older weights, and on still older ones where those are not healthy either."""
        assert self.lr.healthy is not None
        older = [s for s in self.case.earlier if s.step <= self.lr.healthy.step]
        for snapshot in older[:OLDER]:
            test = f"same batch, weights of step {snapshot.step}, learning rate 0"
            self.facts.outcomes["earlier"] = self.replay.run(test, snapshot=snapshot)
            self.lr.healthy = snapshot
            if self.facts.good("earlier"):
                return

    def _fp32(self) -> None:
        self.facts.outcomes["fp32"] = self.replay.run("same batch, same weights, float32", precision="fp32")

    def _rescaled(self) -> None:
        test = f"same batch, same weights, loss scale {NORMAL_SCALE:g}"
        self.facts.outcomes["rescaled"] = self.replay.run(test, loss_scale=NORMAL_SCALE)

    def _without(self) -> None:
        suspects = set(self.facts.suspects())
        kept = self._keep([i not in suspects for b in self.case.batches or [] for i in b.image_ids])
        if not kept:
            return
        named = ", ".join(map(str, sorted(suspects)))
        snapshot = self.lr.healthy
        test = f"without image {named}{weights(snapshot)}"
        self.facts.outcomes["without"] = self.replay.run(test, batches=kept, snapshot=snapshot)

    def _repaired(self) -> None:
        repaired = [scan_batch.repair(b, self.facts) for b in self.case.batches or []]
        snapshot = self.lr.healthy
        test = f"same batch with pixels scaled and masks binary{weights(snapshot)}"
        self.facts.outcomes["repaired"] = self.replay.run(test, batches=repaired, snapshot=snapshot)

    def _locate(self) -> None:
        outcome = self.replay.run("every module and op watched", locate=True)
        f, module, op = self.facts, outcome.first_bad_module, outcome.first_bad_op
        f.inside, f.grown, f.taken = outcome.inside, outcome.grown, None if outcome.met else outcome.inside
        f.only_losses = bool(f.inputs) and outcome.met is False and bool(outcome.bad_losses)
        if module is None and op is None and not outcome.bad_grads:
            return
        inside = outcome.bad_grads and outcome.phase != "loss"  # after an op of the losses' own all of them are bad
        name = module or (outcome.bad_grads[0].rpartition(".")[0] if inside else None)
        value = outcome.max_abs
        if module and f.precision != "fp32":
            value = self._largest_in_fp32(module)
        f.location = Location(name, component_of(name) if name else None, outcome.phase, op, outcome.took, value)
        of_no_sample(f)

    def _largest_in_fp32(self, module: str) -> float | None:
        return self.replay.run(f"values of {module} in float32", precision="fp32", locate=True, watch=module).max_abs

    def _module_fp32(self) -> None:
        f, modules = self.facts, list[str]()
        while not f.fp32_modules and modules != [""]:
            name = self._next_bad(modules) if len(modules) < MODULES else None
            # What overflows may stand between the modules, or in the lines of a loss: then it is the whole model.
            modules = [*modules, name] if name and name not in modules else [""]
            test = f"same batch, same weights, {', '.join(filter(None, modules)) or 'the whole model'} in float32"
            outcome = f.outcomes["module_fp32"] = self.replay.run(test, fp32_modules=modules)
            f.fp32_modules = modules if outcome.finite else []

    def _next_bad(self, modules: list[str]) -> str | None:
        if not modules:
            return self.facts.location.module if self.facts.location else None
        return self.replay.run("every module and op watched", locate=True, fp32_modules=modules).first_bad_module

    def _bisect(self) -> None:
        f = self.facts
        f.guilty_images = guilty_samples(self.case, self.replay, f, self._keep, self.lr.healthy)
        # Samples that fail may have one thing in common: what was drawn at random for this step.
        many = len(f.guilty_images) > max(1, len(f.image_ids) // 2) or f.guilty_images == f.image_ids
        drawn = bool(f.guilty_images) and nonfinite(f) and not f.suspects()
        if (many or drawn) and by_chance(self.replay, f, "reseeded", self.lr.healthy, however_loud=many):
            f.by_chance, f.guilty_images = True, []
        found = [i for b in self.case.batches or [] for i in scan_batch.flat_images(b)] if f.guilty_images else []
        f.flat_images = [i for i in f.guilty_images if i in found]
        for batch in self.case.batches or []:
            f.broken_entries += scan_batch.broken_entries(batch, f.guilty_images)

    def _chance(self) -> None:
        self.facts.by_chance = by_chance(self.replay, self.facts, "chance", None)

    def _annotations(self) -> None:
        self.facts.guilty_annotations += guilty_annotations(self.case, self.replay, self.facts, self.lr.healthy)

    def _passed(self) -> None:
        test = "the same a second time, with the buffers as the first pass left them"
        self.facts.outcomes["passed"] = self.replay.run(test, passes=2)

    def _keep(self, keep: Sequence[bool]) -> list[Any]:
        kept, at = [], 0
        for batch in self.case.batches or []:
            positions = [p for p in range(len(batch)) if keep[at + p]]
            at += len(batch)
            if positions:
                kept.append(batch.subset(positions))
        return kept


def _sample(key: Any) -> Any:
    """What tells one sample from another: its position in the data set, where the key says it."""
    return getattr(key, "index", key)
