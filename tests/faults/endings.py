"""What a finished run left, without clock readings, and how two runs differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from states import digest

from maskrcnn_coco.checkpoint.content import PREVIOUS
from maskrcnn_coco.checkpoint.store import checkpoints, load, load_newest

TIMES = ("seconds", "images_per_second", "train_seconds", "epoch_began_seconds")
"""Readings of the clock."""


def result(folder: Path) -> dict[str, Any]:
    """What a finished run left, without clock readings: digest of the last state, records, incidents, quarantine."""
    out = folder / "out"
    _, state, _ = load_newest(out / "checkpoints")
    assert state is not None
    numbers: dict[str, str] = {}
    incidents = []
    for path in sorted((out / "run" / "incidents").glob("[0-9]*.json")):
        found = json.loads(path.read_text())
        # A damaged checkpoint is passed over with an incident of its own, which the undisturbed run has not.
        if not (found["cause"] == "POISONED_STATE" and found["action"]["kind"] == "reload"):
            numbers[found["id"]] = f"{len(numbers) + 1:04d}"
            incidents.append(_plain_incident(found))
    left_out = out / "run" / "quarantine.json"
    quarantine = json.loads(left_out.read_text()) if left_out.exists() else {"images": [], "annotations": []}
    named = {k: [(e["id"], numbers.get(e["incident"])) for e in v] for k, v in quarantine.items()}
    answer = json.loads((out / "run" / "result.json").read_text())
    return {
        "state": _state(state),
        # previous.pth is of whichever save came before: that depends on where a run was stopped.
        "files": {p.name: _state(load(p)) for p in checkpoints(out / "checkpoints") if p.name != PREVIOUS},
        "records": [_without_times(d) for d in lines_of(out / "run" / "metrics.jsonl")],
        "incidents": incidents,
        "quarantine": named,
        "in the checkpoint": [
            [(e["id"], numbers.get(e["incident"])) for e in state["loop"][name]]
            for name in ("quarantine", "quarantine_annotations")
        ],
        "result": {k: answer[k] for k in ("status", "finite", "steps", "skipped_steps", "metrics", "last_loss")},
    }


def _state(state: dict[str, Any]) -> str:
    """Digest of what a checkpoint holds, without readings of the clock and counts of saves."""
    without = (*TIMES, "incidents", "quarantine", "quarantine_annotations")
    loop = {k: v for k, v in state["loop"].items() if k not in without}
    return digest({**state, "loop": loop, "config": None, "serial": None})


def _plain_incident(found: dict[str, Any]) -> dict[str, Any]:
    names = ("step", "epoch", "onset_step", "symptom", "cause", "culprit", "action", "outcome", "lost_steps")
    return {name: found[name] for name in names}


def _without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in line.items() if k not in TIMES}


def lines_of(path: Path) -> list[dict[str, Any]]:
    """A JSON-lines file; [] where there is none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def first_difference(a: Any, b: Any) -> str:
    """Where ``b`` is not what ``a`` is, in a few words."""
    if isinstance(a, list) and isinstance(b, list):
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            if x != y:
                return f"entry {i}: {first_difference(x, y)}"
        return f"{len(b)} entries instead of {len(a)}"
    if isinstance(a, dict) and isinstance(b, dict):
        return "; ".join(f"{k}: {first_difference(a.get(k), b.get(k))}" for k in a | b if a.get(k) != b.get(k))[:300]
    return f"{str(b)[:80]} instead of {str(a)[:80]}"
