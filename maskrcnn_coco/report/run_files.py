"""A run's folder, read back: what the report is made of. Whatever is missing or damaged is left out. Torch-free."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from maskrcnn_coco.records import Incident, record_from, to_json
from maskrcnn_coco.report.metrics_file import METRICS, UNDONE, read_metrics

RUN_INFO = "run.json"
_IMAGE_BYTES = 400_000
_LONGEST = 640


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


def write_run_info(
    logdir: Path,
    *,
    reasons: dict[str, str],
    environment: dict[str, Any],
    data: dict[str, Any],
    lr: dict[str, float] | None = None,
    notes: list[str] | None = None,
    findings: list[Any] | None = None,
) -> None:
    """Write ``run.json``: what the report shows beside settings and curves. Called once, before the first step.

    Args:
        reasons: setting → why it has its value. environment: `environment.fingerprint`.
        data: facts such as {"train": path, "training images": 153, "classes": [...]}.
        lr: peak learning rate of each component. notes: sentences. findings: `DataFinding` of the audit.

    Raises:
        OSError: the folder cannot be written.
    """
    from maskrcnn_coco.system.files import write_text

    content = {"reasons": reasons, "environment": environment, "data": data, "lr": lr or {}, "notes": notes or []}
    write_text(logdir / RUN_INFO, to_json(content | {"findings": findings or []}, indent=1))


def read_run(logdir: str | Path) -> RunFiles:
    """What is in a run's folder."""
    logdir = Path(logdir)
    lines = read_metrics(logdir / METRICS)
    of_kind = {k: [d for d in lines if d.get("kind") == k] for k in ("step", "epoch", "eval")}
    return RunFiles(
        logdir,
        config=_yaml(logdir / "config.yaml"),
        info=_json(logdir / RUN_INFO),
        result=_json(logdir / "result.json"),
        steps=of_kind["step"],
        undone=read_metrics(logdir / UNDONE),
        epochs=of_kind["epoch"],
        evals=of_kind["eval"],
        incidents=_incidents(logdir / "incidents"),
        predictions=_json(logdir / "predictions" / "predictions.json"),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}


def _incidents(folder: Path) -> list[Incident]:
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(record_from(Incident, _json(path)))
        except TypeError:  # not an incident: fields are missing
            continue
    return found


def picture(path: Path) -> str | None:
    """The picture as a ``data:`` address, shrunk where it is large; None where it is no picture."""
    try:
        raw = path.read_bytes()
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
    """(caption, address) of the pictures that `showcase.save_incident_images` wrote for an incident."""
    if not incident_id.isalnum():
        return []
    found = []
    for path in sorted((logdir / "incidents").glob(f"{incident_id}_image*.jpg")):
        address = picture(path)
        if address is not None:
            found.append((f"image {path.stem.partition('_image')[2]}", address))
    return found
