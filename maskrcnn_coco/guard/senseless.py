"""Settings that no training can mean: a momentum that only grows, a decay that takes most of each weight.

What they do is nothing to wait for. A loss that saturates stays on a plateau for the rest of the run, and every
copy of the weights made until an alarm of sizes comes holds what they have done by then.
"""

from __future__ import annotations

import torch

from maskrcnn_coco.components import real
from maskrcnn_coco.guard.joined import each
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.records import StepRecord

FORGETS_NOTHING = 1.0
"""A momentum above which what was added once grows for ever. One of just this may learn for as long as rates fall."""
HALVES = 0.5
"""Learning rate times weight decay above which weights halve in every step."""
SEEN = 5
"""Steps with it before anything is said: what follows them is measured beside them."""
OF_THE_WEIGHTS = (torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adam, torch.optim.AdamW)
"""Optimizers whose settings of these names are known to mean that."""


class Senseless:
    """Asks each step's settings, and speaks once of each."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}
        self._said: set[str] = set()

    def judge(self, optimizer: torch.optim.Optimizer, record: StepRecord) -> Verdict | None:
        """The verdict on a step whose sizes are healthy, with the settings as it has them."""
        found = {
            name: text for o in each(optimizer) if isinstance(o, OF_THE_WEIGHTS) for name, text in _found(o).items()
        }
        self._since = {name: self._since.get(name, record.step) for name in found}
        for name, text in found.items():
            if name not in self._said and record.step - self._since[name] >= SEEN:
                self._said.add(name)
                return Verdict("diverged", text, {"loss": record.loss, "setting": name}, self._since[name])
        return None


def _found(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    found: dict[str, str] = {}
    for group in optimizer.param_groups:
        momentum, decay = real(group.get("momentum") or 0.0), real(group.get("weight_decay") or 0.0)
        rate = real(group.get("lr") or 0.0)
        if momentum > FORGETS_NOTHING:
            found["momentum"] = f"momentum {momentum:g}: what is added to it once grows for ever"
        if rate * decay > HALVES:
            text = (
                f"weight decay {decay:.3g} at a rate of {rate:.3g}: {rate * decay:.2g} times each weight in each step"
            )
            found["weight_decay"] = text
    return found
