"""The rules of this wing in order, what each says about the facts, and the text of a code."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Literal

from maskrcnn_coco.findings.facts import Facts
from maskrcnn_coco.findings.rules import (
    ceiling,
    classes,
    geometry,
    lr_too_low,
    masks_elsewhere,
    memorised,
    no_targets,
    not_learning,
    not_trained,
    pixels,
    same_draws,
)
from maskrcnn_coco.records import RunFinding

RULES: tuple[ModuleType, ...] = (
    no_targets,
    classes,
    geometry,
    pixels,
    not_trained,
    lr_too_low,
    same_draws,
    masks_elsewhere,
    memorised,
    ceiling,
    not_learning,
)
"""What keeps most from being learned comes first."""


def judge(facts: Facts, moment: Literal["before", "steps", "epoch"] = "before") -> list[RunFinding]:
    """What the rules say about ``facts``, in the order of `RULES`; errors first."""
    found = [finding for rule in RULES for finding in rule.judge(facts)]
    for finding in found:
        finding.moment = moment
    return sorted(found, key=lambda f: f.severity != "error")


def finding_key(finding: RunFinding) -> tuple[str, str]:
    """What a finding is said once for: its code, and its kind within the code."""
    return finding.code, str(finding.detail.get("what", ""))


def text_of(code: str) -> str | None:
    """The text of ``code``, or None where it is none of this wing's."""
    rule = next((r for r in RULES if code.strip().upper() == r.CODE), None)
    return None if rule is None else f"{rule.CODE}: {inspect.cleandoc(rule.__doc__ or '')}\n"
