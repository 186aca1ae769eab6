"""A run's folder, read back: what the report is made of. Whatever is missing or damaged is left out. Torch-free."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image

from maskrcnn_coco.records import (
    EpochRecord,
    EvalRecord,
    Incident,
    Result,
    RunFinding,
    StepRecord,
    record_from,
    to_json,
)
from maskrcnn_coco.report.metrics_file import METRICS, UNDONE, read_metrics
from maskrcnn_coco.system.plain_files import read_regular, read_yaml

RUN_INFO = "run.json"
_IMAGE_BYTES = 400_000
_LONGEST = 640


_LINES = {"step": StepRecord, "epoch": EpochRecord, "eval": EvalRecord}


class _Info(typing.TypedDict):
    """`RUN_INFO`."""

    reasons: dict[str, str]
    environment: dict[str, Any]
    data: dict[str, Any]
    lr: dict[str, float]
    notes: list[str]
    findings: list[dict[str, Any]]
    counts: dict[str, dict[str, int]]


@dataclass
class RunFiles:
    """Everything known of a run. ``steps``, ``undone``, ``epochs`` and ``evals`` hold dicts as in metrics.jsonl."""

    logdir: Path
    config: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    undone: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    evals: list[dict[str, Any]] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    predictions: dict[str, Any] = field(default_factory=dict)
    analysis: dict[str, Any] = field(default_factory=dict)
    findings: list[RunFinding] = field(default_factory=list)


def write_run_info(
    logdir: Path,
    *,
    reasons: dict[str, str],
    environment: dict[str, Any],
    data: dict[str, Any],
    lr: dict[str, float] | None = None,
    notes: list[str] | None = None,
    findings: list[Any] | None = None,
    counts: dict[str, dict[str, int]] | None = None,
) -> None:
    """Write ``run.json``: what the report shows beside settings and curves. Called once, before the first step.

    Args:
        reasons: setting → why it has its value. environment: `environment.fingerprint`.
        data: facts such as {"train": path, "training images": 153, "classes": [...]}.
        lr: peak learning rate of each component. notes: sentences. findings: `DataFinding` of the audit.
        counts: class → training ``objects`` and ``images``.

    Raises:
        OSError: the folder cannot be written.
    """
    from maskrcnn_coco.system.files import write_text

    content = {"reasons": reasons, "environment": environment, "data": data, "lr": lr or {}, "notes": notes or []}
    content |= {"findings": findings or [], "counts": counts or {}}
    write_text(logdir / RUN_INFO, to_json(content, indent=1))


def read_run(logdir: str | Path) -> RunFiles:
    """What is in a run's folder."""
    logdir = Path(logdir)
    lines = read_metrics(logdir / METRICS)
    of_kind = {k: [d for d in lines if d.get("kind") == k and _fits(d, t)] for k, t in _LINES.items()}
    return RunFiles(
        logdir,
        config=_yaml(logdir / "config.yaml"),
        info=_fitting(_json(logdir / RUN_INFO), _Info),
        result=_fitting(_json(logdir / "result.json"), Result),
        steps=of_kind["step"],
        undone=[d for d in read_metrics(logdir / UNDONE) if _fits(d, StepRecord)],
        epochs=of_kind["epoch"],
        evals=of_kind["eval"],
        incidents=_incidents(logdir / "incidents"),
        predictions=_json(logdir / "predictions" / "predictions.json"),
        analysis=_json(logdir / "predictions" / "analysis.json"),
        findings=_findings(logdir / "findings.json"),
    )


def _findings(path: Path) -> list[RunFinding]:
    try:
        return [record_from(RunFinding, f) for f in json.loads(read_regular(path))]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):  # none, or not written by a run
        return []


def _fits(line: dict[str, Any], kind: type) -> bool:
    """Whether a line of `METRICS` is one of ours: of other programs' lines the page could show nothing."""
    return _needed(kind) <= line.keys() and len(_fitting(line, kind)) == len(line)


def _fitting(data: dict[str, Any], kind: Any) -> dict[str, Any]:
    """``data`` without the fields that are of another type than those of ``kind``."""
    hints = _hints(kind)
    return {name: value for name, value in data.items() if name not in hints or _is(value, hints[name])}


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


@functools.cache
def _needed(kind: Any) -> frozenset[str]:
    fields = dataclasses.fields(kind)
    return frozenset(f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING)


def _is(value: Any, hint: Any) -> bool:
    try:
        msgspec.convert(_numbers(value), hint)
    except (msgspec.ValidationError, RecursionError):
        return False
    return True


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    return float(value) if value in ("nan", "inf", "-inf") else value


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        data = read_yaml(path)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _incidents(folder: Path) -> list[Incident]:
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(record_from(Incident, _json(path)))
        except (TypeError, ValueError, AttributeError):  # not an incident: fields are missing, or of another type
            continue
    return found


def picture(path: Path) -> str | None:
    """The picture as a ``data:`` address, shrunk where it is large; None where it is no picture."""
    try:
        raw = read_regular(path)
        with Image.open(io.BytesIO(raw), formats=("JPEG", "PNG")) as image:
            if len(raw) <= _IMAGE_BYTES and image.format == "JPEG" and max(image.size) <= _LONGEST:
                return _address(raw)
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    small.thumbnail((_LONGEST, _LONGEST))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return _address(file.getvalue())


def _address(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def pictures_of(logdir: Path, incident_id: str) -> list[tuple[str, str]]:
    """(caption, address) of the pictures that `evaluation.pictures.save_incident_images` wrote for an incident."""
    if not incident_id.isalnum():
        return []
    found = []
    for path in sorted((logdir / "incidents").glob(f"{incident_id}_image*.jpg")):
        address = picture(path)
        if address is not None:
            found.append((f"image {path.stem.partition('_image')[2]}", address))
    return found
