"""What the rules of this wing share: how a finding is put together, and how numbers and images are said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from maskrcnn_coco.findings.facts import Facts
from maskrcnn_coco.records import Evidence, RunFinding

TRAINING = "training data"
Severity = Literal["error", "warning", "info"]


def finding(
    code: str,
    what: str,
    severity: Severity,
    message: str,
    fix: str,
    evidence: Sequence[tuple[str, str]],
    *,
    images: Sequence[int] = (),
    of: str = TRAINING,
    **detail: Any,
) -> RunFinding:
    """A finding of ``code``; ``what`` names its kind within the code, ``evidence`` is (test, outcome) pairs.

    ``images`` are of the data that messages call ``of``; the finding says which only where they are not the training's.
    """
    where = {} if of == TRAINING else {"of": of}
    return RunFinding(
        code=code,
        severity=severity,
        image_id=images[0] if images else None,
        annotation_id=None,
        file_name=None,
        message=message,
        fix=fix,
        evidence=[Evidence(test, outcome, code) for test, outcome in evidence],
        detail={"what": what, "image_ids": list(images), **where, **detail},
        explain=f"maskrcnn-coco explain {code}",
    )


def audited(code: str, facts: Facts) -> list[RunFinding]:
    """What the audit of a COCO file found that is ``code``'s, in the audit's own words."""
    return [
        finding(
            code,
            f"{a.kind} {a.of}",
            "warning",
            a.message,
            a.fix,
            [(f"audit of the {a.of}: {a.kind}", a.message)],
            of=a.of,
        )
        for a in facts.audited
        if a.code == code
    ]


def some(images: Sequence[int], most: int = 3) -> str:
    """A few of the images in words, "" for none: " (images 3, 7, 12 and more)"."""
    if not images:
        return ""
    shown = ", ".join(map(str, images[:most]))
    return f" (image{'s' if len(images) > 1 else ''} {shown}{' and more' if len(images) > most else ''})"
