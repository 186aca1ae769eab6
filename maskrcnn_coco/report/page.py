"""report.html: one page that tells how a run went, from the files in its folder alone. No torch, no script."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from maskrcnn_coco.config.settings import flag
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.records import FINDING_CODES, RunFinding
from maskrcnn_coco.report.page_analysis import sections
from maskrcnn_coco.report.page_curves import incident_charts, run_charts, timeline
from maskrcnn_coco.report.run_files import RunFiles, picture, pictures_of, read_run
from maskrcnn_coco.wording import (
    action_words,
    clean,
    count,
    culprit_words,
    figure,
    incident_lines,
    recovered,
    score,
    size,
)

_TEMPLATES = Path(__file__).parent / "templates"
STATUS = {
    "finished": "finished",
    "stopped": "stopped by the guard",
    "interrupted": "interrupted, checkpoint saved",
    "": "running, or killed",
}


def write_report(logdir: str | Path) -> Path:
    """Write ``logdir``/report.html from config.yaml, run.json, metrics.jsonl, incidents, predictions and result.json.

    Files that are missing leave their section out, so that a report can be made at any time.

    Returns:
        The path of the report.

    Raises:
        DataError: no such folder, or nothing of a run in it.
        OSError: the report cannot be written.
    """
    from maskrcnn_coco.system.files import write_text

    logdir = Path(logdir)
    run = read_run(logdir)
    if not (run.config or run.steps or run.result or run.incidents):
        raise DataError(
            f"{logdir} has no run in it",
            expected="a folder with config.yaml, metrics.jsonl or result.json",
            fix="name the run's --logdir",
        )
    path = logdir / "report.html"
    write_text(path, render(run))
    return path


def render(run: RunFiles) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clean": clean, "figure": _figure, "score": score, "count": count}
    return environment.get_template("report.html.j2").render(view(run))


def view(run: RunFiles) -> dict[str, Any]:
    """What the template shows."""
    status = str(run.result.get("status", ""))
    finite = run.result.get("finite", True)
    return {
        "title": clean(run.logdir.resolve().name),
        "logdir": clean(run.logdir),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "status": STATUS.get(status, status),
        "tone": "bad" if status == "stopped" or not finite else "good" if status == "finished" else "warn",
        "finite": finite,
        "tiles": tiles(run),
        "subtitle": _subtitle(run),
        "charts": {name: [Markup(svg) for svg in svgs] for name, svgs in run_charts(run).items()},
        "timeline": Markup(timeline(run)),
        "noticed": [{"record": f, "explain": _explain(f.code), "images": _drawn(run, f)} for f in run.findings],
        "incidents": [incident_view(run, n) for n in range(len(run.incidents))],
        "classes": class_rows(run),
        "analysis": sections(run.analysis, _suspects(run)) if run.analysis else [],
        "galleries": [g for name in ("worst", "typical") if (g := gallery(run, name))["entries"]],
        "training_images": picture(run.logdir / "training_images.jpg"),
        "min_score": run.predictions.get("min_score", 0.5),
        "settings": setting_rows(run),
        "environment": [(clean(k), clean(v)) for k, v in run.info.get("environment", {}).items() if v is not None],
        "data": [(clean(k), _listed(v)) for k, v in run.info.get("data", {}).items() if v is not None],
        "notes": [clean(n) for n in run.info.get("notes", [])],
        "findings": finding_rows(run),
    }


def tiles(run: RunFiles) -> list[dict[str, str]]:
    """The figures at the top: label, value, small print."""
    result, metrics = run.result, run.result.get("metrics") or (run.evals[-1]["metrics"] if run.evals else {})
    out = [
        {"label": name, "value": score(metrics[name]), "note": f"AP50 {score(metrics.get(name + '50'))}"}
        for name in ("segm/AP", "bbox/AP")
        if name in metrics
    ]
    losses = [s["loss"] for s in run.steps if s.get("applied")]
    if losses:
        out.append({"label": "loss", "value": _figure(losses[-1]), "note": f"from {_figure(losses[0])}"})
    if run.steps:
        skipped = result.get("skipped_steps", sum(not s.get("applied", True) for s in run.steps))
        note = f"{count(len(run.epochs), 'epoch')}, {skipped} skipped"
        out.append({"label": "steps", "value": f"{run.steps[-1]['step'] + 1:,}".replace(",", "\u202f"), "note": note})
    speed = result.get("images_per_second") or (run.epochs[-1]["images_per_second"] if run.epochs else None)
    if speed is not None:
        memory = result.get("peak_memory_bytes")
        out.append({"label": "images/s", "value": _figure(speed), "note": f"{size(memory)} at most" if memory else ""})
    bad = sum(not recovered(i) for i in run.incidents)
    note = f"{bad} not recovered" if bad else "all recovered" if run.incidents else "nothing was refused or repaired"
    out.append({"label": "incidents", "value": str(len(run.incidents)), "note": note})
    return out


def _subtitle(run: RunFiles) -> str:
    data = run.config.get("data") or ("built-in shapes" if run.config else run.info.get("data", {}).get("train"))
    parts = [run.config.get("model"), data]
    parts.append(run.info.get("environment", {}).get("device") or run.config.get("device"))
    return " · ".join(clean(p) for p in parts if p)


def incident_view(run: RunFiles, n: int) -> dict[str, Any]:
    """One incident, for the template."""
    incident = run.incidents[n]
    lines = incident_lines(incident)
    return {
        "record": incident,
        "headline": lines[0].partition(": ")[2],
        "proof": lines[1].partition(": ")[2],
        "who": culprit_words(incident.culprit),
        "done": action_words(incident.action),
        "charts": [Markup(svg) for svg in incident_charts(run, incident)],
        "images": pictures_of(run.logdir, incident.id),
        "explain": _explain(incident.cause),
        "chain": _chain(run, n),
    }


def _drawn(run: RunFiles, finding: RunFinding) -> list[tuple[str, str]]:
    """(caption, address) of the pictures of a finding that are there."""
    listed = finding.detail.get("pictures", [])
    named = [p for p in listed if isinstance(p, dict)] if isinstance(listed, list) else []
    found = [
        (str(p.get("caption", "")), picture(run.logdir / "findings" / Path(str(p.get("file"))).name)) for p in named
    ]
    return [(caption, address) for caption, address in found if address is not None]


def _explain(cause: str) -> str:
    from maskrcnn_coco.diagnosis.explain import codes, explain

    return explain(cause) if cause in (*codes(), *FINDING_CODES) else ""


def _chain(run: RunFiles, n: int) -> list[str]:
    """From learning rate to NaN with this run's own figures, where the cause is the learning rate."""
    from maskrcnn_coco.diagnosis.explain import chain
    from maskrcnn_coco.records import StepRecord, record_from

    incident = run.incidents[n]
    if incident.cause != "LR_TOO_HIGH":
        return []
    lines = {d["step"]: d for d in run.steps} | {d["step"]: d for d in run.undone if "step" in d}
    history = [record_from(StepRecord, lines[s]) for s in sorted(lines) if s <= incident.step]
    clip = run.config.get("max_grad_norm")
    return chain(history[-40:], max_grad_norm=clip, component=incident.culprit.component) if history else []


def class_rows(run: RunFiles) -> list[dict[str, Any]]:
    """The per-class table: the last evaluation beside what there was to learn from, most objects first."""
    per_class = run.evals[-1]["per_class"] if run.evals else {}
    counts = run.info.get("counts", {})
    rows = [{"name": clean(name), "values": v, "train": counts.get(name)} for name, v in per_class.items()]
    return sorted(rows, key=lambda r: (-r["values"].get("objects", 0), r["name"]))


def _suspects(run: RunFiles) -> list[tuple[str, str]]:
    """(caption, address) of the labels that look wrong; pictures that are gone are left out."""
    found = []
    given = run.analysis.get("pictures")
    for entry in given if isinstance(given, list) else []:
        name = str(entry.get("picture", "")) if isinstance(entry, dict) else ""
        address = picture(run.logdir / "predictions" / name) if name and Path(name).name == name else None
        if address is not None:
            found.append((str(entry.get("caption", "")), address))
    return found


def gallery(run: RunFiles, name: str) -> dict[str, Any]:
    """The worst or typical predictions; entries whose pictures are gone are left out."""
    folder, entries = run.logdir / "predictions", []
    for entry in run.predictions.get(name, []):
        names = [str(entry.get(side, "")) for side in ("truth", "prediction")]
        # A name with a folder in it did not come from this project.
        sides = [picture(folder / n) if n and Path(n).name == n else None for n in names]
        if all(sides):
            entries.append({"truth": sides[0], "prediction": sides[1], **{k: entry.get(k) for k in _GRADES}})
    return {"name": name, "entries": entries}


_GRADES = ("file_name", "image_id", "f1", "found", "missed", "false")


def setting_rows(run: RunFiles) -> list[dict[str, Any]]:
    """Settings that have a value: those given by the user, those chosen for this data, the rest."""
    reasons = run.info.get("reasons", {})
    rows = []
    for name, value in run.config.items():
        if value is None:
            continue
        why = clean(reasons.get(name, "default"))
        group = 0 if why == "given" else 2 if why == "default" else 1
        rows.append({"flag": flag(name), "value": _shown(value), "why": why, "group": group})
    rows += [
        {"flag": f"lr of {clean(name)}", "value": _figure(value), "why": "peak, after warm-up", "group": 1}
        for name, value in run.info.get("lr", {}).items()
    ]
    return sorted(rows, key=lambda r: r["group"])


def finding_rows(run: RunFiles) -> list[dict[str, Any]]:
    """Data findings by code: how many, how bad, and one of them in words."""
    groups: dict[str, dict[str, Any]] = {}
    for finding in run.info.get("findings", []):
        row = groups.setdefault(finding["code"], {**finding, "count": 0})
        row["count"] += 1
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(groups.values(), key=lambda r: (order.get(r["severity"], 3), -r["count"]))


def _figure(value: Any) -> str:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return "–"
    return figure(number) if math.isfinite(number) else str(number)


def _shown(value: Any) -> str:
    return _figure(value) if isinstance(value, float) else clean(value)


def _listed(value: Any) -> str:
    return ", ".join(map(clean, value)) if isinstance(value, list) else clean(value)
