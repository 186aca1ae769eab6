"""Rates, momentum, decay, options, schedules."""

from __future__ import annotations

from anywhere.mainstream.case import Case
from anywhere.mainstream.faults import LATE, options, rates, setting, together, wrong
from anywhere.mainstream.fourth.faults import crept, rival_rate

LR, SUM = "LR_TOO_HIGH", "ACCUMULATION"


def _rates() -> tuple[Case, ...]:
    """(task, factor, step)."""
    drawn = (
        *(("columns", 1e3, 0), ("keywords", 1e4, LATE), ("crf", 1e3, 0), ("crf", 1e3, LATE)),
        *(("muon", 1e3, 0), ("wgan", 1e3, 0), ("grpo", 1e3, LATE), ("fno", 300, 0), ("moco", 1e4, 0)),
        *(("raft", 1e4, LATE), ("forces", 1e3, 0), ("splat", 1e3, LATE)),
    )
    return rates(drawn)


CASES_RATES: tuple[Case, ...] = (
    *_rates(),
    Case("keywords", "the peak of one cycle x1000", LR, options(lr=150.0)),
    Case("moco", "momentum 1.1", LR, options(momentum=1.1)),
    Case("crf", "momentum 1.2", LR, options(momentum=1.2)),
    Case("ranks", "decay 1000", LR, options(weight_decay=1e3)),
    Case("fno", "a rate that creeps up", LR, crept(10.0)),
    Case("columns", "a rate that creeps up", LR, crept(8.0)),
    Case("wgan", "the critic's rate alone x1e5 late", LR, rival_rate(1e5, LATE)),
    Case("keywords", "keeps gradients", SUM, wrong("keeps gradients"), (LR,), end="open"),
    Case("keywords", "undivided", SUM, together(wrong("undivided"), setting("accumulate", 5), setting("batch", 4),
         options(lr=2.0)), (LR,), end="open"),
)  # fmt: skip
