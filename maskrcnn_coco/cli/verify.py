"""``verify``: whether a fix holds. The recorded failing steps again, with the new settings; then a short training."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from maskrcnn_coco.cli import checklist
from maskrcnn_coco.cli.checklist import Check
from maskrcnn_coco.config import recipes
from maskrcnn_coco.config.resolve import total_steps
from maskrcnn_coco.config.settings import Config, flag, load_config, validate
from maskrcnn_coco.data.prepare import read_quarantine
from maskrcnn_coco.diagnosis.facts import LOSS_FACTOR, NO_HISTORY_LOSS
from maskrcnn_coco.diagnosis.from_records import reference_of
from maskrcnn_coco.errors import CheckpointError, ConfigError, DataError
from maskrcnn_coco.model.optim import Schedule, with_fpn_times
from maskrcnn_coco.model.rig import rig_from_settings
from maskrcnn_coco.records import Incident, Result, RunFinding, StepRecord, to_json
from maskrcnn_coco.recovery import DATA
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.outcome import Outcome
from maskrcnn_coco.replay.replay import Replay
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.report.incident_files import read_incidents
from maskrcnn_coco.report.run_files import read_run
from maskrcnn_coco.training.case_file import load_case


def verify_run(
    run_dir: Path,
    *,
    changes: dict[str, Any],
    steps: int | None = None,
    json_mode: bool = False,
    model: Any = None,
    train_data: Any = None,
) -> int:
    """Print the checklist for the run's settings with ``changes``; returns 4 where the fix does not hold, else 0.

    Three answers: it holds, it does not, and it cannot be told (too few steps): then 0, with a sentence that says so.

    Args:
        steps: length of the short training; None: one epoch.
        model: a function that builds the caller's own model, where the run had one.
        train_data: the caller's own data set, where the run had one.

    Raises:
        DataError: not the folder of a run, or its own data set is missing. ConfigError: settings that cannot be used.
    """
    if steps is not None and steps < 1:
        raise ConfigError("--steps cannot be used", got=steps, expected="1 or more; not given: one epoch")
    console = Console(json_mode=json_mode)
    if not (run_dir / "config.yaml").is_file():
        raise DataError(
            f"{run_dir} is not the folder of a run", expected="config.yaml in it", fix="name the run's logdir"
        )
    begun = recipes.of_older_run(load_config(run_dir / "config.yaml"))
    config = msgspec.structs.replace(begun, resume="none", **changes)
    validate(config)
    shown = ", ".join(f"{flag(k)} {v}" for k, v in changes.items()) or "the settings as they are"
    if train_data is None and "train" not in read_run(run_dir).info.get("data", {"train": ""}):
        raise DataError(
            f"the run in {run_dir} was trained on a data set of its caller's own, which is in no file",
            expected="that data set",
            fix="from Python: maskrcnn_coco.cli.verify.verify_run(run_dir, changes={…}, model=…, train_data=…)",
        )
    console.note(f"verifying {run_dir} with {shown}")
    checks = [replay_incident(i, run_dir, config, bool(changes)) for i in read_incidents(run_dir / "incidents")]
    checks += train_briefly(config, run_dir, steps, model, train_data)
    said = checklist.verdict(checks)
    if json_mode:
        holds = None if said == "unknown" else said == "holds"
        sys.stdout.write(to_json({"holds": holds, "verdict": said, "changes": changes, "checks": checks}) + "\n")
    for c in checks:
        (console.warn if c.ok is False else console.note)(f"{c.mark} {c.name}: {c.message}")
    console.note(_sentence(said, checks))
    return 4 if said == "does not hold" else 0


def _sentence(said: str, checks: Sequence[Check]) -> str:
    """The last line: what the marks add up to."""
    if said == "holds":
        return "the fix holds: every check passed"
    if said == "does not hold":
        return "the fix does not hold: " + "; ".join(c.name for c in checks if c.ok is False)
    open_ones = "; ".join(c.name for c in checks if c.ok is None)
    return f"nothing speaks against the fix, but this was not enough to tell: {open_ones}. More steps tell (--steps)"


def replay_incident(incident: Incident, run_dir: Path, config: Config, changed: bool) -> Check:
    """One recorded failing step again, with the new settings (and without the images that were left out)."""
    name = f"incident {incident.id} ({incident.cause}, step {incident.step})"
    path = run_dir / "incidents" / f"{incident.id}.pt"
    if not path.is_file():
        if incident.action.kind in ("quarantine", "reload"):
            return Check(name, True, "nothing to replay: the image or the file is left out")
        return Check(name, None, "there is no case file to replay")
    state: dict[str, Any] = {}
    try:
        case = load_case(path, lambda settings: rig_from_settings(settings, state))
    except CheckpointError as e:
        return Check(name, None, f"cannot be replayed: {e.what}")
    state.update(case.now.model)
    case.rig.max_grad_norm = config.max_grad_norm
    build = case.rig.build_optimizer
    case.rig.build_optimizer = lambda model: with_fpn_times(build(model), config.fpn_lr_multiplier or 1.0)
    if incident.cause in DATA:
        outcome = _without_images(case, set(incident.culprit.image_ids))
    else:
        outcome = _with_new_rates(case, config)
    if outcome is None:
        return Check(name, True, "nothing is left of that step once its images are left out")
    limit, healthy = healthy_below(case)
    ok = outcome.finite and outcome.error is None and outcome.loss <= limit
    if not ok and not changed:
        rest = f"; try {incident.fix}" if incident.fix else ""
        return Check(name, False, f"{outcome.describe()}: the settings are unchanged{rest}")
    return Check(name, ok, f"{outcome.describe()} ({healthy})")


def _without_images(case: Case, bad: set[int]) -> Outcome | None:
    kept = []
    for batch in case.batches or []:
        positions = [p for p, image_id in enumerate(batch.image_ids) if image_id not in bad]
        if positions:
            kept.append(batch.subset(positions))
    return Replay(case).run("verify: without the images left out", batches=kept) if kept else None


def _with_new_rates(case: Case, config: Config) -> Outcome:
    """From the oldest state the case holds, over the recorded batches, with the new schedule, to the failing step."""
    total = total_steps(case.settings["steps_per_epoch"], config)
    rates = recipes.component_lrs(config)
    # A caller's own model has components of other names: they take the backbone's rate.
    others = {c: rates["backbone"] for entry in case.tape for c in entry.lr if c not in rates}
    schedule = Schedule({**rates, **others}, config.warmup_steps or 0, total, kind=config.schedule)
    case.tape = [dataclasses.replace(entry, lr=schedule.at(entry.step)) for entry in case.tape]
    replay = Replay(case)
    starts = [s for s in sorted(case.earlier, key=lambda s: s.step) if case.covers(s.step)]
    if not starts:
        return replay.run("verify: the failing step alone")
    return replay.walk("verify: the recorded steps at the new rates", starts[0])


def healthy_below(case: Case) -> tuple[float, str]:
    """The loss above which the replayed step counts as diverged, and where that is from, in words.

    Measured on the run's own steps before the onset; where there is none, what any detector starts far below.
    """
    usual = reference_of(case.history, case.alarm.onset_step)
    if not usual.count:
        return NO_HISTORY_LOSS, f"no healthy step is on record; detectors start far below {NO_HISTORY_LOSS:g}"
    return LOSS_FACTOR * usual.loss, f"healthy is below {LOSS_FACTOR * usual.loss:.3g}"


def train_briefly(config: Config, run_dir: Path, steps: int | None, model: Any, train_data: Any) -> list[Check]:
    """The first epoch (or ``steps`` of it) with the new settings, in a folder of its own."""
    from maskrcnn_coco.training.loop import train

    records: list[StepRecord] = []

    def keep(record: Any) -> None:
        if isinstance(record, StepRecord):
            records.append(record)

    quarantined = run_dir / "quarantine.json"
    left_out = len(read_quarantine(quarantined)["image_ids"]) if quarantined.is_file() else 0
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        short = msgspec.structs.replace(
            config,
            logdir=str(Path(folder) / "run"),
            checkpoint_dir=str(Path(folder) / "checkpoints"),
            checkpoint_every=None,
            quarantine=str(quarantined) if left_out else config.quarantine,
            guard="stop",
        )
        result = train(
            short,
            model=None if model is None else model(),
            train_data=train_data,
            observers=[keep],
            stop_after=steps or "epoch",
            quiet=True,
        )
        data = read_run(short.logdir).info["data"]
        settled = load_config(Path(short.logdir) / "config.yaml")
    total_steps = data["steps an epoch"] * (settled.epochs or 1)
    checks = judge(records, result, settled, left_out=left_out, images=data["training images"], total_steps=total_steps)
    return [*checks, *(said(f) for f in result.findings if f.severity != "info")]


def said(finding: RunFinding) -> Check:
    """A finding as a line of the checklist; what only caps figures is said and no reason to fail."""
    harmless = finding.code in ("CEILING", "SAME_DRAWS", "MEMORISED")
    return Check(finding.code, harmless, f"{finding.message}; {finding.fix}")


def judge(
    records: Sequence[StepRecord], result: Result, config: Config, *, left_out: int, images: int, total_steps: int
) -> list[Check]:
    """The checklist of a short training of a run of ``total_steps``; ``images`` counts those left out too."""
    no_incidents = Check("no incidents", not result.incidents, f"{len(result.incidents)} in {result.steps} steps")
    return [
        checklist.finite(records),
        no_incidents,
        checklist.falling(records),
        checklist.no_spikes(records),
        checklist.curves_smooth(records),
        checklist.norms_bounded(records),
        checklist.weights_move(records, recipes.component_lrs(config), total_steps),
        checklist.clipping_leaves_something(records, config.max_grad_norm),
        checklist.enough_images(left_out, images),
    ]
