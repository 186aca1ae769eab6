"""What to do about data that refused a step, said for the way in which this run's data came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from maskrcnn_coco.findings.facts import Way
from maskrcnn_coco.wording import named

_SAID = {
    "DATA_BOX": ("GEOMETRY",),
    "DATA_MASK": ("GEOMETRY", "NO_TARGETS"),
    "DATA_LABEL": ("CLASSES",),
    "DATA_PIXEL": ("PIXELS",),
}
"""Causes of an incident, and the findings of the whole set that name the same fault once and for all."""
_CHECK = "maskrcnn-coco check --data PATH"


def data_fix(
    cause: str, fix: str, image_ids: list[int], *, way: Way, flags: str, findings: Iterable[Mapping[str, Any]]
) -> str:
    """``fix`` of an incident, or one that the caller can follow.

    Args:
        flags: that name the data, `CocoTable.flags`; "" where no file holds them.
        findings: of the run so far, plain; one that says of the whole set what ``cause`` says of an image goes first.
    """
    for finding in findings:
        if finding["code"] in _SAID.get(cause, ()) and finding["severity"] != "info":
            return finding["fix"]
    if cause not in _SAID or not fix.startswith(_CHECK):
        return fix
    if way != "command":
        many, some = ("s", "them") if len(image_ids) > 1 else ("", "it")
        names = ", ".join(map(str, image_ids[:5]))
        return (
            f"correct image{many} {names} in the data set, or leave {some} out of it" if names else "correct the data"
        )
    return named(fix, flags)
