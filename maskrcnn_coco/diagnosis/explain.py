"""What each code means, and the decision tree: the rules in the order in which diagnosis asks them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import ModuleType

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.rules import (
    accumulation,
    anchors,
    backend,
    data_box,
    data_label,
    data_mask,
    data_pixel,
    fp16_overflow,
    loss_math,
    lr_too_high,
    norm_state,
    poisoned_state,
    rank_local,
    scale_collapse,
    transient,
    unknown,
)
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.findings.judge import text_of
from maskrcnn_coco.records import FINDING_CODES, Finding, StepRecord

RULES: tuple[ModuleType, ...] = (
    rank_local,
    poisoned_state,
    norm_state,
    data_box,
    data_label,
    data_pixel,
    data_mask,
    anchors,
    fp16_overflow,
    scale_collapse,
    accumulation,
    transient,
    lr_too_high,
    backend,
    loss_math,
    unknown,
)
"""All rules. Between findings of equal confidence the earlier one is named first: scans before replays."""


DECISION_TREE = """Where to look first (a prior that orders the tests, never the verdict):
  NaN in the first epoch            → learning rate, warm-up, normalisation, weights that were not loaded
  NaN after several epochs          → slow divergence, accumulation, a rare image, a resumed checkpoint
  NaN only sometimes                → data: one image or annotation; then hardware
  loss finite, gradients NaN        → the maths of a loss (sqrt, where, 0/0), half precision
  only with --amp fp16              → half-precision overflow, loss scale"""


def judge(facts: Facts) -> list[Finding]:
    """What each rule says, in the order of `RULES`."""
    return [found for rule in RULES if (found := rule.judge(facts)) is not None]


def codes() -> list[str]:
    """Every cause code, in the order of the rules."""
    return [rule.CODE for rule in RULES]


def explain(code: str) -> str:
    """What ``explain CODE`` prints: the rule's own text and the prior.

    Raises:
        ConfigError: no such code; the message lists those there are.
    """
    rule = next((r for r in RULES if code.strip().upper() == r.CODE), None)
    silent = text_of(code)
    if rule is None and silent is not None:
        return silent
    if rule is None:
        listed = ", ".join(sorted((*codes(), *FINDING_CODES)))
        raise ConfigError(
            f"there is no cause {code!r}", got=code, expected=listed, fix="maskrcnn-coco explain LR_TOO_HIGH"
        )
    return f"{rule.CODE}: {inspect.cleandoc(rule.__doc__ or '')}\n\n{DECISION_TREE}\n"


def chain(
    history: Sequence[StepRecord], *, max_grad_norm: float | None = None, component: str | None = None
) -> list[str]:
    """The chain from learning rate to NaN with the run's own figures: one line a link, last steps of ``history``."""
    return lr_too_high.chain(list(history), max_grad_norm, component)
