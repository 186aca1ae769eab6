"""A data set whose random numbers repeat in every epoch, or in every worker.

What happens: augmentation is on and does next to nothing: each image comes out the same way in every epoch, or two
  images of two workers get the same crop. Training looks healthy and generalises worse.
Why: the data set keeps a generator of its own, which every worker starts with a copy of; or it seeds a global
  generator in `__getitem__`.
How it is proved: the same item is drawn twice from one copy, and again from a fresh copy, as a worker of the next
  epoch has it: the first two differ, the fresh ones are equal. Or: a global generator has one and the same state after
  the item, whatever its state was before. A data set that draws nothing is no fault.
What is done: it warns; the data set is not changed.
How to fix it: draw from torch's, numpy's or Python's global generators: this project seeds them for each sample from
  run, epoch and image.
"""

from __future__ import annotations

from maskrcnn_coco.findings.facts import Draws, Facts
from maskrcnn_coco.findings.rules.common import finding
from maskrcnn_coco.records import RunFinding

CODE = "SAME_DRAWS"


def judge(facts: Facts) -> list[RunFinding]:
    return _judge(facts.draws) if facts.draws is not None and facts.draws.compared else []


def _judge(d: Draws) -> list[RunFinding]:
    if d.reseeds and d.reseeds == d.compared:
        message = (
            f"the data set seeds a global generator in __getitem__: item {d.index} has the same draws in each epoch"
        )
        proof = [("generator after an item, from two states before it", f"equal in {d.reseeds} of {d.compared} items")]
        fix = "do not seed in __getitem__; draw from the global generators"
        return [finding(CODE, "seeded", "warning", message, fix, proof)]
    if d.fresh_copies and d.fresh_copies == d.compared and d.workers:
        message = (
            f"the data set draws from a generator of its own, and each of {d.workers} workers starts every epoch with "
            f"a copy of it: item {d.index} is drawn alike again"
        )
        proof = [
            ("one item drawn twice from one copy", "differs"),
            ("the same from two fresh copies, as two workers have them", f"equal in {d.fresh_copies} of {d.compared}"),
        ]
        fix = "draw from torch's, numpy's or Python's global generator instead of one that is kept in the data set"
        return [finding(CODE, "own generator", "warning", message, fix, proof)]
    return []
