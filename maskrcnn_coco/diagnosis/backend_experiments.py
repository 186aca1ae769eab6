"""The tests of what runs the maths: the step without vendor libraries, on the CPU, without compiled code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.components import component_of
from maskrcnn_coco.diagnosis.facts import Facts, Location
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.isolation import Counted
from maskrcnn_coco.replay.outcome import Outcome
from maskrcnn_coco.replay.replay import Replay
from maskrcnn_coco.system.backends import as_it_was, compiled_modules, eagerly
from maskrcnn_coco.system.known_faults import known_faults


class BackendExperiments:
    """Tests of one case. ``compiled``: modules of the run that are compiled; a deep copy of them is eager."""

    def __init__(self, case: Case, replay: Replay, facts: Facts) -> None:
        self.case, self.replay, self.facts = case, replay, facts
        self.compiled = compiled_modules(case.rig.model) if isinstance(case.rig.model, nn.Module) else []

    def reference(self) -> None:
        """Without the vendors' libraries; where that does not help, eager on the CPU."""
        f = self.facts
        f.known_faults = known_faults(torch.device(self.case.rig.device).type)
        test = "same batch, same weights, without the vendor's library (oneDNN, cuDNN)"
        f.outcomes["reference"] = self.replay.run(test, libraries=False)
        f.libraries = f.good("reference")
        if f.libraries:
            test = "same batch, same weights, attention by plain maths (SDPBackend.MATH)"
            outcome = self.replay.run(test, attention=False)
            if not f.abnormal(outcome) and outcome.finite:
                f.outcomes["reference"], f.attention, f.libraries = outcome, True, False
        if not f.libraries and self.case.rig.reference is not None:
            test = "same batch, same weights, eager on the CPU"
            batches = None
            if f.guilty_images:
                # In float32 a whole batch takes twice the memory of half precision, here beside the run's own.
                test = f"images {', '.join(map(str, f.guilty_images))} only, same weights, eager on the CPU"
                batches = self._guilty(set(f.guilty_images))
            f.outcomes["reference"] = self.replay.run(test, batches=batches, precision="fp32", reference=True)

    def _guilty(self, ids: set[int]) -> list[Any]:
        places = [(b, [n for n, i in enumerate(b.image_ids) if i in ids]) for b in self.case.batches or []]
        return [batch.subset(positions) for batch, positions in places if positions]

    def live(self) -> None:
        """Replays are eager: whether the compiled code of the run is wrong, only the run's own model can say."""
        f = self.facts
        f.outcomes["live"] = self._forward("same batch, same weights, compiled code of the run")
        if not f.bad("live"):
            return
        f.outcomes["live again"] = self._forward("the same once more, compiled code of the run")
        for names in [*([name] for name in self.compiled), self.compiled]:
            outcome = self._forward(f"the same with {', '.join(names)} as eager code", names)
            if outcome.finite:
                f.outcomes["eager"], f.eager_modules = outcome, list(names)
                f.location = Location(names[0], component_of(names[0]))
                return

    def _forward(self, test: str, eager: Sequence[str] = ()) -> Outcome:
        """Forward only, on the run's own model; weights are those of the refused step, buffers and modes are put back.

        ``eager`` names compiled modules to run as plain code.
        """
        model, batches = self.case.rig.model, list(self.case.batches or [])
        assert isinstance(model, nn.Module)
        outcome = Outcome(test, True)
        with self.replay.away(1.0), as_it_was(model), eagerly(model, eager):
            model.train()
            forward = Counted(self.case.rig, model, self.case.alarm.step, None)
            terms = [{k: float(v.detach()) for k, v in forward(b).items()} for b in batches]
        outcome.losses = {k: sum(t[k] for t in terms) / len(terms) for k in terms[0]}
        outcome.loss, outcome.grad_norm = sum(outcome.losses.values()), 0.0
        outcome.bad_losses = sorted(k for k, v in outcome.losses.items() if not math.isfinite(v))
        outcome.finite = not outcome.bad_losses
        return outcome
