"""Rates, momentum, decay, options of optimizers; accumulation and scaling by a loop."""

from __future__ import annotations

from anywhere.mainstream.case import Case
from anywhere.mainstream.faults import LATE, options, rates, setting, together, wrong

LR, SUM, SCALE, POISON = "LR_TOO_HIGH", "ACCUMULATION", "SCALE_COLLAPSE", "POISONED_STATE"


def _rates() -> tuple[Case, ...]:
    """(task, factor, step)."""
    drawn = (
        *(("cnn", 30, 0), ("cnn", 1e3, 0), ("cnn", 1e5, 0), ("cnn", 1e3, LATE), ("vit", 1e3, 0), ("vit", 300, LATE)),
        *(("unet", 1e5, 0), ("unet", 1e3, LATE), ("siamese", 1e5, 0), ("simclr", 1e3, 0), ("diffusion", 1e3, 0)),
        *(("diffusion", 1e5, LATE), ("detector", 100, 0), ("detector", 1e3, 12), ("gpt", 1e3, 0), ("gpt", 300, LATE)),
        *(("texts", 1e3, 0), ("texts", 1e5, LATE), ("forecast", 1e3, 0), ("forecast", 300, LATE), ("ctc", 1e3, 0)),
        *(("distill", 100, 0), ("distill", 1e5, 0), ("houses", 1e3, 0), ("houses", 1e5, 0), ("customers", 1e5, LATE)),
        *(("two_tasks", 1e3, LATE), ("two_tasks", 1e5, 0), ("vae", 1e3, 0), ("vae", 100, LATE), ("graphs", 1e3, 0)),
        *(("graphs", 1e3, LATE), ("films", 30, 0), ("films", 1e3, LATE), ("gan", 1e3, 0), ("policy", 1e3, 0)),
        *(("policy", 300, LATE), ("dqn", 1e3, 0), ("dqn", 1e5, LATE)),
    )
    return rates(drawn)


CASES_RATES: tuple[Case, ...] = (
    *_rates(),
    Case("cnn", "momentum 1.2", LR, options(momentum=1.2)),
    Case("distill", "momentum 1.05", LR, options(momentum=1.05)),
    Case("cnn", "decay 1000", LR, options(weight_decay=1e3)),
    Case("vit", "decay 10000", LR, options(weight_decay=1e4)),
    Case("gpt", "no warm-up, betas 0.9 0.1", LR,
         together(setting("schedule", "none"), options(lr=3.0, betas=(0.9, 0.1)))),
    Case("cnn", "rate 15", LR, options(lr=15.0)),
    # Adam has no step that is too long for a sign that is wrong: no rate cures it.
    Case("houses", "maximize", "UNKNOWN", options(maximize=True), ("LOSS_MATH",), end="open"),
    Case("cnn", "maximize", "UNKNOWN", options(maximize=True), ("LOSS_MATH",), end="open"),
    # 0 / 0 for words, users and films that no batch had yet.
    Case("texts", "eps 0", POISON, options(eps=0.0), ("LOSS_MATH",)),
    Case("films", "eps 0", POISON, options(eps=0.0), ("LOSS_MATH",)),
    Case("gpt", "eps 0", POISON, options(eps=0.0), ("LOSS_MATH", LR)),
    Case("cnn", "keeps gradients", SUM, wrong("keeps gradients"), (LR,), end="open"),
    Case("houses", "keeps gradients", SUM, wrong("keeps gradients"), (LR,), end="open"),
    Case("forecast", "keeps gradients", SUM, together(wrong("keeps gradients"), setting("clip", 0.0)), (LR,),
         end="open"),
    Case("vae", "keeps gradients", SUM, wrong("keeps gradients"), (LR,), end="open"),
    Case("cnn", "undivided", SUM, together(wrong("undivided"), setting("accumulate", 5), setting("batch", 4),
         options(lr=0.5, momentum=0.95)), (LR,), end="open"),
    Case("detector", "undivided", SUM, together(wrong("undivided"), setting("accumulate", 4), setting("batch", 2),
         options(lr=0.3)), (LR,), end="open"),
    Case("vit", "clips scaled", SCALE, wrong("clips scaled"), ("ACCUMULATION", "UNKNOWN"), end="open"),
    Case("cnn", "steps scaled", SCALE, together(setting("precision", "fp16"), wrong("steps scaled")),
         (LR, SUM, "UNKNOWN"), end="open"),
    Case("two_tasks", "steps scaled", SCALE, together(setting("precision", "fp16"), wrong("steps scaled")),
         (LR, SUM, "UNKNOWN"), end="open"),
)  # fmt: skip
