"""Rates, momentum, decay, options; accumulation and scaling by a loop."""

from __future__ import annotations

from anywhere.mainstream.case import Case
from anywhere.mainstream.faults import LATE, options, rates, setting, together, wrong

LR, SUM, SCALE, POISON, MATHS = "LR_TOO_HIGH", "ACCUMULATION", "SCALE_COLLAPSE", "POISONED_STATE", "LOSS_MATH"


def _rates() -> tuple[Case, ...]:
    """(task, factor, step). Adapters at 5e-3: https://github.com/ssbuild/chatglm_finetuning/issues/28; faces at 0.1
    and more: https://github.com/deepinsight/insightface/issues/1486."""
    drawn = (
        *(("lora", 30, 0), ("lora", 1e3, LATE), ("seq2seq", 100, 0), ("seq2seq", 1e3, LATE), ("tagger", 3e4, 0)),
        *(("chars", 100, 0), ("skipgram", 1e3, 0), ("bags", 1e3, 0), ("mae", 1e3, 0), ("mae", 1e4, LATE)),
        *(("keypoints", 1e3, 0), ("keypoints", 100, LATE), ("depth", 100, 0), ("superres", 100, 0)),
        *(("superres", 1e3, LATE), ("arcface", 1e4, 0), ("byol", 1e4, 0), ("vqvae", 1e3, 0), ("vqvae", 100, LATE)),
        *(("survival", 1e3, 0), ("mixture", 100, 0), ("flow", 30, 0), ("flow", 1e3, LATE), ("quantiles", 1e3, 0)),
        *(("tags", 1e3, 0), ("experts", 300, 0), ("points", 100, 0), ("points", 30, LATE), ("pinn", 100, 0)),
        *(("maml", 100, 0), ("ppo", 100, 0), ("nerf", 300, 0), ("nerf", 1e3, LATE)),
    )
    return rates(drawn)


CASES_RATES: tuple[Case, ...] = (
    *_rates(),
    Case("points", "momentum 1.1", LR, options(momentum=1.1)),
    Case("byol", "momentum 1.3", LR, options(momentum=1.3)),
    Case("arcface", "decay 100", LR, options(weight_decay=100.0)),
    Case("lora", "decay 1000", LR, options(weight_decay=1e3)),
    Case("quantiles", "lambda 100", LR, options(lambd=100.0)),
    Case("depth", "decay 10000", LR, options(weight_decay=1e4)),
    Case("chars", "not clipped, rate x30", LR, together(setting("clip", 0.0), options(lr=150.0))),
    # The first gradient of a thin matrix is 0, as its partner is 0 at first: 0 / 0.
    Case("lora", "eps 0", POISON, options(eps=0.0), (MATHS,)),
    # Words that no batch had yet have a gradient of 0.
    Case("seq2seq", "eps 0", POISON, options(eps=0.0), (MATHS,)),
    Case("points", "keeps gradients", SUM, wrong("keeps gradients"), (LR,), end="open"),
    Case("chars", "keeps gradients", SUM, together(wrong("keeps gradients"), setting("clip", 0.0)), (LR,), end="open"),
    Case("byol", "keeps gradients", SUM, wrong("keeps gradients"), (LR,), end="open"),
    Case("points", "undivided", SUM, together(wrong("undivided"), setting("accumulate", 5), setting("batch", 4),
         options(lr=0.6, momentum=0.95)), (LR,), end="open"),
    Case("points", "clips scaled", SCALE,
         together(setting("precision", "fp16"), setting("clip", 1.0), wrong("clips scaled")), (SUM, "UNKNOWN"),
         end="open"),
    Case("points", "steps scaled", SCALE, together(setting("precision", "fp16"), wrong("steps scaled")),
         (LR, SUM, "UNKNOWN"), end="open"),
)  # fmt: skip
