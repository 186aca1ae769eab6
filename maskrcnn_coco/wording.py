"""How values and incidents are put into words, for console and report alike. Torch-free."""

from __future__ import annotations

import math
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maskrcnn_coco.records import RATE_SETTINGS, Action, Incident, RunFinding, lowered_settings


def figure(value: float) -> str:
    """A number to four significant digits, readable at any size: 0.005, 12.35, 4.1e+28, nan."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return f"{value:.4g}" if 1e-4 <= abs(value) < 1e5 else f"{value:.1e}"


def score(value: float | None) -> str:
    """An AP in 0..1 to four digits; a dash where it is undefined (-1: no such ground truth)."""
    return "–" if value is None or not value >= 0 else f"{value:.4f}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "8 s", "3 min 20 s", "2 h 05 min"."""
    if not math.isfinite(seconds) or seconds < 0:
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``number`` and the noun, with an s (or as ``plural``) where English wants one."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def size(num_bytes: float) -> str:
    """Bytes in the unit a person would choose."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def lr_line(lr: Mapping[str, float]) -> str:
    """Name and rate, as in "backbone 0.005 · rpn 0.005 · …"."""
    return " · ".join(f"{clean(name)} {figure(value)}" for name, value in lr.items())


def incident_lines(incident: Incident) -> list[str]:
    """Five lines: cause, proof, what was done, how to make it permanent, where to read on. In that order."""
    explain = incident.explain or f"maskrcnn-coco explain {incident.cause}"
    return [
        f"{incident.cause} ({incident.confidence:.0%} sure): {_symptom(incident)}",
        f"proof: {_proof(incident)}",
        f"done: {action_words(incident.action)}; {_outcome(incident)}",
        f"make it permanent: {clean(incident.fix) or 'nothing to change'}",
        f"more: {clean(explain)} · incidents/{clean(incident.id)}.json",
    ]


def finding_lines(finding: RunFinding) -> list[str]:
    """Four lines: what, the proof, what to do, where to read on."""
    return [
        f"{finding.code}: {clean(finding.message)}",
        f"proof: {'; '.join(f'{clean(e.test)}: {clean(e.outcome)}' for e in finding.evidence[:3])}",
        f"what to do: {clean(finding.fix)}",
        f"more: {clean(finding.explain)}",
    ]


def finding_markdown(finding: RunFinding) -> str:
    """A finding for TensorBoard's text."""
    rows = [f"**{finding.code}** ({finding.severity}, {finding.moment}): {clean(finding.message)}"]
    rows += [f"- {clean(e.test)}: {clean(e.outcome)}" for e in finding.evidence]
    return "\n\n".join([*rows, f"what to do: `{clean(finding.fix)}` · `{clean(finding.explain)}`"])


def data_flags(data: object, images: object = None) -> str:
    """``--data`` and, where it is given, ``--images``, quoted for the shell."""
    return flags_of([("--data", data), ("--images", images)])


def flags_of(pairs: Iterable[tuple[str, object]]) -> str:
    """Flags with their values, quoted for the shell; without those that are None."""
    return " ".join(f"{flag} {shlex.quote(str(value))}" for flag, value in pairs if value is not None)


def named(text: str, flags: str) -> str:
    """``text`` with the caller's own data in its commands: ``flags`` as he gave them; "" where there are none."""
    return text.replace("--data PATH", flags) if flags else text


def _symptom(incident: Incident) -> str:
    who = culprit_words(incident.culprit)
    onset = f", began at step {incident.onset_step}" if incident.onset_step != incident.step else ""
    return f"{incident.symptom.replace('_', ' ')} at step {incident.step}{onset}" + (f" — {who}" if who else "")


def culprit_words(culprit: Any) -> str:
    """The known parts of a culprit, "" where nothing is known."""
    parts = [clean(culprit.module or culprit.component)] if culprit.module or culprit.component else []
    if culprit.image_ids:
        parts.append(f"image {listed(culprit.image_ids)}")
    if culprit.annotation_ids:
        parts.append(annotation_words(culprit.annotation_ids))
    if culprit.checkpoint:
        parts.append(f"checkpoint {clean(culprit.checkpoint)}")
    if culprit.rank is not None and culprit.rank > 0:
        parts.append(f"rank {culprit.rank}")
    return ", ".join(parts)


def annotation_words(ids: Sequence[int]) -> str:
    """The annotations as their file names them: by id, or, where ids do not tell them apart, by place.

    Those are below 0: -1 stands for the first of the file's ``annotations``, -2 for the second.
    """
    named, placed = [i for i in ids if i >= 0], [f"annotations[{-1 - i}]" for i in ids if i < 0]
    return ", ".join(([f"annotation {listed(named)}"] if named else []) + ([listed(placed)] if placed else []))


def rate_flag(component: str) -> str:
    """The flag that sets the learning rate of ``component``; of other components than torchvision's, ``--lr``."""
    return "--" + RATE_SETTINGS.get(component, "lr").replace("_", "-")


def listed(items: Sequence[object], most: int = 5) -> str:
    """The first few, and how many more: "a, b, c and 4 more"."""
    return ", ".join(map(str, items[:most])) + (f" and {len(items) - most} more" if len(items) > most else "")


def _proof(incident: Incident) -> str:
    for_it = [e for e in incident.evidence if e.supports == incident.cause] or incident.evidence
    return "; ".join(f"{clean(e.test)}: {clean(e.outcome)}" for e in for_it[:2]) or "none; the cause is not proved"


def recovered(incident: Incident) -> bool:
    """Whether the run goes on sound. Who only observes takes the step all the same."""
    return incident.outcome == "recovered" and not incident.action.detail.get("taken")


def _outcome(incident: Incident) -> str:
    if not recovered(incident) and incident.outcome == "recovered":
        return "not repaired"
    return incident.outcome + (f", {count(incident.lost_steps, 'step')} repeated" if incident.lost_steps else "")


def passed_words(detail: Mapping[str, Any]) -> str:
    """What a step that is left out leaves behind."""
    return "; buffers keep what its pass made of them" if detail.get("passed") else ""


def action_words(action: Action) -> str:
    """What recovery did, as a phrase."""
    d = action.detail
    to = f" to step {d['to_step']}" if "to_step" in d else ""
    if action.kind == "skip":
        if d.get("taken"):
            return "nothing, the guard only observes: the step was taken"
        return f"the step was left out{passed_words(d)}"
    if action.kind == "quarantine":
        ids, annotations = d.get("image_ids") or [], d.get("annotation_ids") or []
        return f"left out for good: image {listed(ids)}" + (f", {annotation_words(annotations)}" if annotations else "")
    if action.kind == "rollback" and "redraw" in d:
        return "the step was taken again with another draw of what was bad; no image is left out"
    if action.kind == "rollback":
        return f"went back{to}" + (", and on at the plan's learning rates" if d.get("by_plan") else usual_words(d))
    if action.kind == "lower_lr":
        for name, most in lowered_settings(d).items():
            return f"went back{to}, lowered the {name.replace('_', ' ')} to {figure(most)}"
        if "usual" in d:
            return f"went back{to}{usual_words(d)}"
        factor = d.get("factor")
        names = ", ".join(clean(c) for c in d.get("components") or [d.get("component")])
        times = f" to {figure(factor)} of it" if isinstance(factor, float | int) else ""
        return f"went back{to}, lowered the learning rate of {names}{times}"
    if action.kind == "precision":
        return precision_words(d)
    if action.kind == "reload":
        return f"weights loaded from {clean(d.get('checkpoint') or 'the newest verified state')}"
    return f"stopped: {clean(d.get('why', 'nothing healthy is left'))}"


def usual_words(detail: Mapping[str, Any]) -> str:
    """Which settings of the optimizer have another value from here on, as the end of a sentence."""
    if detail.get("state_anew"):
        return " with an optimizer that remembers nothing: its own state began anew"
    usual = dict(detail.get("usual", {}))
    rates = ", and on at the last sound learning rates where the schedule has none" if usual.pop("lr", None) else ""
    return rates + "".join(
        f", and on with {name} {next(iter(v.values())) if isinstance(v, Mapping) else v}" for name, v in usual.items()
    )


def precision_words(detail: Mapping[str, Any]) -> str:
    """What was changed about how something is computed."""
    if "loss_scale" in detail:
        return f"held the loss scale at {figure(detail['loss_scale'])}"
    if "eager_modules" in detail:
        return f"{', '.join(map(clean, detail['eager_modules']))} runs as eager code from here on"
    if "attention" in detail:
        return "attention by plain maths from here on, no fused kernel"
    if "libraries" in detail:
        return "the vendor's library (oneDNN, cuDNN) is off from here on"
    module = clean(detail.get("module")) or "the whole model"
    return f"{module} runs in {clean(detail.get('dtype', 'fp32'))} from here on"


LIMIT = 1000
"""Characters that are shown of one text; a name or a message that is longer was made to be."""


def clean(text: object, limit: int = LIMIT) -> str:
    """``text`` on one line, with control and direction-changing characters made visible, cut to ``limit`` characters.

    Category and file names come from strangers: printed raw, an escape sequence in one could rewrite the screen. After
    this a text is inert everywhere but in markup, which templates escape.
    """
    found = str(text)
    found = found if len(found) <= limit else found[: limit - 1] + "…"
    return found if found.isprintable() else "".join(map(_visible, found))


def _visible(c: str) -> str:
    if c in "\n\r\t" or unicodedata.category(c) == "Zs":
        return " "
    return c if c.isprintable() else f"\\u{ord(c):04x}"
