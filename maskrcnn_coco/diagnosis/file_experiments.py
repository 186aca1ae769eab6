"""The tests of a state that was loaded: older files of the run, trained on over the same steps."""

from __future__ import annotations

import dataclasses
import math
from itertools import islice

from maskrcnn_coco.components import component_of
from maskrcnn_coco.diagnosis.comparisons import out_of_proportion
from maskrcnn_coco.diagnosis.facts import Facts, OlderFile
from maskrcnn_coco.diagnosis.limits import NO_HISTORY_LOSS
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.outcome import Outcome
from maskrcnn_coco.replay.replay import Replay
from maskrcnn_coco.replay.snapshot import Snapshot
from maskrcnn_coco.replay.tape import TapeEntry

AFTER_LOAD, MARGIN, FILES = 25, 6, 2
"""Steps after a load within which the file itself is in doubt; steps more that an older file must stand; most files."""


class FileExperiments:
    """Whether the file that a run went on from is to blame."""

    def __init__(self, case: Case, replay: Replay, facts: Facts) -> None:
        self.case, self.replay, self.facts = case, replay, facts

    def after_load(self) -> bool:
        """Whether the run was taken up from a file a few steps ago, and there are older ones."""
        case = self.case
        if case.files is None or case.planned is None or case.loaded_step is None:
            return False
        return 0 <= case.alarm.step - case.loaded_step <= AFTER_LOAD

    def file(self) -> None:
        """Older files, trained on over the planned steps, for as long as the loaded one took to diverge and longer."""
        f, case = self.facts, self.case
        assert case.files is not None and case.planned is not None and case.loaded_step is not None
        count = case.alarm.step - case.loaded_step + MARGIN
        for path, state in islice(case.files(), FILES):
            entries = [e for s in range(state.step, state.step + count) if (e := self._at_these_rates(s)) is not None]
            test = f"{path}, trained on for {len(entries)} steps"
            outcome = self.replay.walk(test, state, instead=entries)
            loaded = next((s for s in case.earlier if s.step == case.loaded_step), case.now)
            differing = out_of_proportion(loaded, state)
            trains = (
                bool(entries) and outcome.finite and not self._over_reference(outcome) and self._does_as_well(state)
            )
            names = [n for n, _ in differing]
            modules = {n.rpartition(".")[0] for n in names}
            owners = {component_of(n) for n in names}
            f.older_file = OlderFile(path, state.step, trains, outcome, differing)
            f.older_file.component = owners.pop() if len(owners) == 1 else None
            f.older_file.module = (modules.pop() or None) if len(modules) == 1 else None
            if trains:
                return

    def _at_these_rates(self, step: int) -> TapeEntry | None:
        """The planned step ``step``, at rates as far above the plan's as those of the failing step: files differ alone.

        Those below the plan's are recovery's doing, which was for other weights.
        """
        plan, now = self.case.planned, self.facts.lr
        entry, failing = (plan(step), plan(self.facts.step)) if plan is not None else (None, None)
        if entry is None or failing is None:
            return entry
        times = {c: max(now.get(c, v) / v, 1.0) if v > 0 else 1.0 for c, v in failing.lr.items()}
        return dataclasses.replace(entry, lr={c: v * times.get(c, 1.0) for c, v in entry.lr.items()})

    def _does_as_well(self, older: Snapshot) -> bool:
        """Where only the first losses after the load are in doubt: the batch of the first, on the older weights."""
        jump, case = self.facts.measured.get("after_load"), self.case
        if jump is None or case.planned is None:
            return True
        first = case.planned(case.loaded_step or 0)
        if first is None:
            return False
        test = f"batch of step {first.step}, weights of step {older.step}, learning rate 0"
        batches = self.replay.batches_of(first)
        outcome = self.replay.run(test, batches=batches, snapshot=older, step=first.step)
        self.facts.outcomes["earlier"] = outcome
        return outcome.finite and abs(outcome.loss) <= math.sqrt(jump[0] * jump[1])

    def _over_reference(self, outcome: Outcome) -> bool:
        jump = self.facts.measured.get("after_load")
        if jump:
            # The loaded file trains, only far worse than before: the older one has to do as well as the run did.
            return any(abs(v) > math.sqrt(jump[0] * jump[1]) for _, v, _ in outcome.path)
        loss, norm = self.facts.limits()
        if not self.facts.reference.count:
            return abs(outcome.loss) > NO_HISTORY_LOSS
        return any(abs(v) > loss or not n <= norm for _, v, n in outcome.path)
