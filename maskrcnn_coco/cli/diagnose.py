"""``diagnose``: the verdict, again, from what is on disk: an incident, a run folder, or a checkpoint.

Where torch is not installed, incidents are told as they were recorded; steps are taken again with it alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from maskrcnn_coco.diagnosis.explain import judge
from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.investigate import investigate
from maskrcnn_coco.errors import CheckpointError, DataError
from maskrcnn_coco.records import PROVED, Culprit, Evidence, Finding, Incident, to_json
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.report.incident_files import read_incident, read_incidents
from maskrcnn_coco.system.plain_files import open_regular


def diagnose_path(path: Path, *, json_mode: bool) -> int:
    """Print the findings for ``path``, best first; returns the exit code.

    Raises:
        DataError: nothing that can be diagnosed. CheckpointError: no such checkpoint.
    """
    console = Console(json_mode=json_mode)
    if path.is_dir():
        found = [_incident(p, console) for p in _incidents_of(path)]
    elif path.suffix == ".json":
        found = [_incident(path, console)]
    elif path.suffix == ".pt":
        found = [_incident(path.with_suffix(".json"), console)]
    else:
        found = [{"checkpoint": str(path), "findings": diagnose_checkpoint(path)}]
        _say(console, f"{path}:", found[0]["findings"])
    if json_mode:
        sys.stdout.write(to_json(found[0] if len(found) == 1 else {"incidents": found}) + "\n")
    elif not found:
        console.note(f"{path}: no incidents")
    return 0


def _incidents_of(folder: Path) -> list[Path]:
    inside = folder / "incidents" if (folder / "incidents").is_dir() else folder
    known = [inside / f"{i.id}.json" for i in read_incidents(inside)]
    if not known and not (folder / "config.yaml").is_file():
        raise DataError(
            f"{folder} is not the folder of a run", expected="runs/maskrcnn, its incidents folder, or 0001.json"
        )
    return known


def _incident(path: Path, console: Console) -> dict[str, Any]:
    incident = read_incident(path)
    case = path.with_suffix(".pt")
    replayed, findings, how = False, [_recorded(incident)], "as recorded; there is no case file to replay"
    try:
        if case.is_file():
            replayed, findings, how = True, replay_case(case), "replayed here"
            for finding in findings:  # the run knew where its data are; a case file does not
                finding.fix = incident.fix if finding.cause == incident.cause else finding.fix
    except CheckpointError as e:
        replayed, how = False, f"as recorded; {e.what}"
    except ModuleNotFoundError as e:
        if e.name not in ("torch", "torchvision"):
            raise
        replayed, how = False, f"as recorded; {e.name} is not installed, with which the step would be replayed"
    _say(console, f"incident {incident.id}, step {incident.step}, {incident.symptom} ({how}):", findings)
    return {"incident": incident, "findings": findings, "replayed": replayed}


def replay_case(
    path: Path,
) -> list[Finding]:
    """Investigate a case file: on this machine's CPU, from the file alone.

    Raises:
        CheckpointError: damaged, or not a case.
    """
    from maskrcnn_coco.model.rig import rig_from_settings
    from maskrcnn_coco.training.case_file import load_case

    state: dict[str, Any] = {}
    case = load_case(path, lambda settings: rig_from_settings(settings, state))
    state.update(case.now.model)
    return investigate(case)


def _recorded(i: Incident) -> Finding:
    return Finding(i.cause, i.confidence, i.culprit, i.evidence, i.onset_step, i.fix, i.detail)


def diagnose_checkpoint(path: Path) -> list[Finding]:
    """What is wrong with a checkpoint: damage, non-finite or impossible numbers; an empty list for a healthy one.

    Raises:
        CheckpointError: no such file, no checkpoint at all, or of no detector that this program knows.
    """
    from maskrcnn_coco.components import component_of
    from maskrcnn_coco.diagnosis.scan_state import scan_state
    from maskrcnn_coco.model.build import build_from_state
    from maskrcnn_coco.model.weights import detector_state, read_weights
    from maskrcnn_coco.replay.snapshot import Snapshot

    if not path.is_file():
        raise CheckpointError(f"there is no file {path}", fix="name a checkpoint, an incident or a run folder")
    require_checkpoint(path)
    try:
        contents = read_weights(path)
        weights = detector_state(contents, path)
    except CheckpointError as e:
        if not _was_a_checkpoint(path):
            raise  # a picture, a text: nothing was poisoned, it was never one
        evidence = [Evidence(f"scan: {path.name} at load", e.render(), "POISONED_STATE")]
        culprit = Culprit(checkpoint=str(path))
        return [Finding("POISONED_STATE", 1.0, culprit, evidence, fix="maskrcnn-coco train --resume auto")]
    model = build_from_state(weights, source=path)
    loop = contents.get("loop") or {}
    optimizer = contents.get("optimizer") or {}
    snapshot = Snapshot(int(loop.get("step", 0)), int(loop.get("epoch", 0)), weights, optimizer, contents.get("scaler"))
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    facts = Facts("param_nonfinite", snapshot.step, snapshot.epoch, snapshot.step)
    facts.state = [f for f in scan_state(snapshot, model, trained, component_of) if f.certain]
    facts.settings = {"resume_path": str(path)}
    return [f for f in judge(facts) if f.cause != "UNKNOWN"] if facts.state else []


def require_checkpoint(path: Path) -> None:
    """Raise CheckpointError for a file that never was a checkpoint: a photo is not a poisoned one."""
    from maskrcnn_coco.checkpoint import archive

    with archive.open_regular(path) as file:
        begin = file.read(8)
    numbers = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x1f\x8b")
    # A damaged beginning of a file with a checkpoint's name is damage; of any other file nothing is known.
    if not begin.startswith(numbers) and path.suffix not in (".pth", ".pt", ".safetensors", ".ckpt", ".bin"):
        raise CheckpointError(
            f"{path} is not a checkpoint",
            got=f"a file that begins with {begin[:4]!r}",
            expected="a .pth file, an incident (0001.json) or a run folder",
        )


BEGINNINGS = (b"PK\x03\x04", b"\x80\x02")
"""Of what ``torch.save`` writes, today and before 2020."""


def _was_a_checkpoint(path: Path) -> bool:
    """Whether a file that cannot be read begins as a checkpoint does."""
    with open_regular(path) as file:
        return file.read(4).startswith(BEGINNINGS)


def _say(console: Console, title: str, findings: list[Finding]) -> None:
    console.note(title)
    if not findings:
        console.note("   healthy: finite, whole, variances above zero")
    for number, finding in enumerate(findings):
        c = finding.culprit
        who = [c.component, c.module, c.checkpoint] + [f"image {i}" for i in c.image_ids[:5]]
        named = ", ".join(str(w) for w in who if w)
        sure = "proved" if finding.confidence >= PROVED else f"confidence {finding.confidence:.2f}"
        console.note(f"   {finding.cause}{f' ({named})' if named else ''}: {sure}")
        if number == 0:
            for e in finding.evidence:
                console.note(f"      {e.test}: {e.outcome}")
            if finding.fix:
                console.note(f"      for good: {finding.fix}")
            console.note(f"      maskrcnn-coco explain {finding.cause}")
