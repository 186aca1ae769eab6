"""Rates, momentum, decay, options, schedules; accumulation and scaling by a loop."""

from __future__ import annotations

from anywhere.mainstream.case import Case
from anywhere.mainstream.faults import LATE, Fault, options, rates, setting, together, wrong
from anywhere.mainstream.task import Run

LR, SUM, SCALE, POISON, MATHS, UNKNOWN = (
    "LR_TOO_HIGH", "ACCUMULATION", "SCALE_COLLAPSE", "POISONED_STATE", "LOSS_MATH", "UNKNOWN")  # fmt: skip


def grows(by: float) -> Fault:
    """A schedule whose gamma is above 1."""

    def fault(run: Run) -> None:
        run.factors.update({s: by**s for s in range(run.task.steps)})

    return fault


def _rates() -> tuple[Case, ...]:
    """(task, factor, step)."""
    drawn = (
        *(("sam", 300, 0), ("sam", 1e4, LATE), ("clip", 3e3, 0), ("clip", 1e4, LATE), ("yolo", 1e3, 0)),
        *(("mri", 300, 0), ("mri", 1e3, LATE), ("qat", 1e3, 0), ("dpo", 1e3, 0), ("dpo", 1e3, LATE), ("ssm", 300, 0)),
        *(("vocoder", 300, 0), ("deepar", 1e3, 0), ("deepar", 1e3, LATE), ("ode", 1e3, 0), ("ode", 300, LATE)),
        *(
            ("edm", 1e3, 0),
            ("sac", 300, 0),
            ("poincare", 1e4, 0),
            ("kernel", 300, 0),
            ("sage", 1e3, 0),
            ("sage", 1e4, LATE),
        ),
    )
    return rates(drawn)


CASES_RATES: tuple[Case, ...] = (
    *_rates(),
    # Not the rate, but how far it climbs before it steps: the same divergence.
    Case("sam", "a radius of 100", LR, options(rho=100.0), (UNKNOWN,)),
    Case("sam", "momentum 1.15", LR, options(momentum=1.15)),
    Case("clip", "decay 10000", LR, options(weight_decay=1e4)),
    Case("lbfgs", "no line search, rate 30", LR, options(line_search_fn=None, lr=30.0)),
    Case("mri", "a schedule that grows", LR, grows(1.25)),
    Case("vocoder", "a schedule that grows", LR, grows(1.25)),
    # Places that no text reaches have a gradient of 0: 0 / 0.
    Case("dpo", "eps 0", POISON, options(eps=0.0), (MATHS,)),
    # Adam has no step that is too long for a sign that is wrong.
    Case("edm", "maximize", UNKNOWN, options(maximize=True), (MATHS, LR), end="open"),
    Case("yolo", "keeps gradients", SUM, together(wrong("keeps gradients"), setting("clip", 0.0),
         setting("precision", "fp32")), (LR,), end="open"),
    Case("yolo", "undivided", SUM, together(wrong("undivided"), setting("accumulate", 5), setting("batch", 4),
         setting("clip", 0.0), options(lr=0.8, momentum=0.97)), (LR,), end="open"),
    Case("yolo", "clips scaled", SCALE, together(setting("clip", 1.0), wrong("clips scaled")), (SUM, UNKNOWN),
         end="open"),
    Case("yolo", "steps scaled", SCALE, wrong("steps scaled"), (LR, SUM, UNKNOWN), end="open"),
)  # fmt: skip
