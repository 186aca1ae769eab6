"""One process of several met something non-finite; the all-reduce would have spread it to all.

What happens: one rank's loss or gradient is non-finite; the others are finite until the gradients are summed,
  and NaN after it. A rank that skips alone makes the others wait for ever.
Why: the ranks see different images. The inner cause is one of the other codes, on that rank's share of the
  batch.
How it is proved: each rank's own flag from before the reduce; the rank's share is replayed there, and the inner
  cause named beside this one.
What the guard does: all ranks refuse the step together, then act on the inner cause together.
How to fix it: as for the inner cause.
"""

from __future__ import annotations

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.records import Culprit, Evidence, Finding

CODE = "RANK_LOCAL"


def judge(facts: Facts) -> Finding | None:
    flags = [bool(f) for f in facts.measured.get("per_rank_flags") or []]
    bad = [rank for rank, flag in enumerate(flags) if flag]
    if len(flags) < 2 or not bad or len(bad) == len(flags):
        return None
    what = f"rank {', '.join(map(str, bad))} of {len(flags)} non-finite before the reduce, the others finite"
    evidence = [Evidence("guard: flags of each rank", what, CODE)]
    return Finding(CODE, 0.95, Culprit(rank=bad[0]), evidence, facts.step, "", {"ranks": bad})
