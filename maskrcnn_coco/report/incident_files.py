"""Incident files: NNNN.json says what happened, NNNN.pt beside it replays the step on another machine."""

from __future__ import annotations

import json
from pathlib import Path

from maskrcnn_coco.errors import DataError
from maskrcnn_coco.records import Action, Incident, record_from, to_json
from maskrcnn_coco.system.files import write_text
from maskrcnn_coco.wording import annotation_words


def write_incident(folder: str | Path, incident: Incident) -> Path:
    """Write ``incident`` as ``<folder>/<id>.json``, whole or not at all."""
    folder = Path(folder)
    path = folder / f"{incident.id}.json"
    write_text(path, to_json(incident, indent=1) + "\n")
    return path


def read_incident(path: str | Path) -> Incident:
    """One incident from its JSON file.

    Raises:
        DataError: no such file, or not an incident.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return record_from(Incident, data)
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror}", fix="give an incident file or a run folder") from e
    except (ValueError, TypeError, AttributeError) as e:
        raise DataError(
            f"{path} is not an incident file: {e}", expected="a file NNNN.json of an incidents folder"
        ) from e


def read_incidents(folder: str | Path) -> list[Incident]:
    """All incidents of a folder, by id; an empty list where there is no such folder."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return [read_incident(p) for p in sorted(folder.glob("[0-9]*.json"))]


def set_aside(folder: Path, known: set[str]) -> None:
    """Move the files of incidents other than ``known`` to ``undone/``: the run went back to before they happened."""
    for path in sorted(folder.glob("[0-9]*")):
        if path.is_file() and path.name.split(".")[0].split("_")[0] not in known:
            (folder / "undone").mkdir(exist_ok=True)
            path.replace(folder / "undone" / path.name)


def incident_text(incident: Incident) -> list[str]:
    """Five lines for the console: cause, proof, what was done, what makes it permanent, where to read on."""
    c = incident.culprit
    who = [c.component, c.module]
    who += [f"image {', '.join(map(str, c.image_ids[:5]))}"] if c.image_ids else []
    who += [annotation_words(c.annotation_ids)] if c.annotation_ids else []
    who += [c.checkpoint] if c.checkpoint else []
    who += [f"rank {c.rank}"] if c.rank is not None else []
    named = ", ".join(str(w) for w in dict.fromkeys(who) if w)
    sure = "proved" if incident.confidence >= 0.9 else f"confidence {incident.confidence:.2f}"
    return [
        f"Incident {incident.id}, step {incident.step}: {incident.cause}{f' ({named})' if named else ''}, {sure}",
        f"  proof: {_proof(incident)}",
        f"  done: {_done(incident.action)}",
        f"  for good: {incident.fix or 'nothing to change; the incident file lists every test that was made'}",
        f"  more: {incident.explain}",
    ]


def _proof(incident: Incident) -> str:
    supporting = [e for e in incident.evidence if e.supports == incident.cause] or incident.evidence
    shown = supporting[:2]
    return "; ".join(f"{e.test}: {e.outcome}" for e in shown) or incident.detail.get("message", "none")


def _done(action: Action) -> str:
    d = action.detail
    match action.kind:
        case "skip":
            return "the step was skipped; weights, buffers and optimizer state are as before"
        case "rollback":
            return f"back to the verified state of step {d.get('to_step')}"
        case "quarantine":
            return (
                f"image {', '.join(map(str, d.get('image_ids', [])))} left out for the rest of the run; no rate changed"
            )
        case "lower_lr":
            if "weight_decay" in d:
                return f"weight decay {d['weight_decay']:g} from step {d.get('to_step')} on, all rates as planned"
            names = ", ".join(d.get("components") or [str(d.get("component"))])
            start = d.get("to_step")
            return f"learning rate of {names} × {d.get('factor', 0):.3g} from step {start} on, all others as planned"
        case "precision" if "eager_modules" in d:
            return f"{', '.join(d['eager_modules'])} runs as eager code from now on"
        case "precision" if "libraries" in d:
            return "the vendor's library (oneDNN, cuDNN) is off from now on"
        case "precision" if "module" in d:
            return f"{', '.join(d.get('modules') or [d['module']])} runs in float32 from now on"
        case "precision":
            return f"loss scale set to {d.get('loss_scale', 0):g} and held above its floor"
        case "reload":
            return f"state reloaded from {d.get('checkpoint') or 'the newest verified state'}"
        case _:
            return f"stopped: {d.get('why', 'the guard was told to')}"
