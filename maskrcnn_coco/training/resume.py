"""Going on where a run stopped: which checkpoint, whose settings, and putting the state back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from maskrcnn_coco.checkpoint.branches import take_over
from maskrcnn_coco.checkpoint.content import BEST
from maskrcnn_coco.checkpoint.digests import changed_since_saved
from maskrcnn_coco.checkpoint.store import load, load_as_saved, load_newest
from maskrcnn_coco.config.recipes import of_older_run
from maskrcnn_coco.config.settings import Config, given
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import CheckpointError, ConfigError
from maskrcnn_coco.records import StepRecord, record_from
from maskrcnn_coco.report.incident_files import read_incidents, set_aside
from maskrcnn_coco.report.metrics_file import METRICS, last_steps
from maskrcnn_coco.training.continuity import changed_settings, convert_plan, inexact
from maskrcnn_coco.training.incident import note_poisoned, note_settings
from maskrcnn_coco.training.rollback import load_state
from maskrcnn_coco.training.session import KEPT_RECORDS, Session
from maskrcnn_coco.wording import listed


@dataclass
class Found:
    """The checkpoint to go on from. ``skipped`` are damaged or poisoned ones: (path, why)."""

    path: Path | None = None
    state: dict[str, Any] | None = None
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Tensors of ``state`` that are not as the run saved them, where there was no other file to use."""


def find_resume(config: Config) -> Found:
    """Where ``--resume`` goes on from; a damaged or poisoned checkpoint is passed over for the newest healthy one.

    Raises:
        CheckpointError: the path does not exist, or no checkpoint of the folder can be used.
    """
    if config.resume == "none":
        return Found()
    folder = Path(config.checkpoint_dir)
    if config.resume == "auto":
        return _newest(folder, [], auto=True)
    path = Path(config.resume)
    if path.is_dir():
        held = load_newest(path, as_saved=True)[0] is not None
        raise CheckpointError(
            f"{path} is a folder, and --resume takes a file",
            expected="none, auto, or the path of a .pth file",
            fix=f"--resume auto --checkpoint-dir {path}" if held else "name the .pth file",
        )
    try:
        return Found(path, load_as_saved(path))
    except CheckpointError as e:
        if not path.is_file():
            raise
        return _newest(path.parent, [(path, e.what)], auto=False, wanted=path)


def find_together(config: Config, ranks: Ranks) -> Found:
    """`find_resume` for all processes: process 0 chooses, the others load the same file, and none waits for nothing.

    Raises:
        CheckpointError: on every process, if process 0 finds none to use, or another cannot load what it chose.
    """
    if ranks.world == 1:
        return find_resume(config)
    found, said = Found(), _Said()
    if ranks.is_main:
        found, said.error = _tried(lambda: find_resume(config))
        said.path, said.loop = str(found.path or ""), _loop_of(found.state)
        said.skipped = [[str(p), why] for p, why in found.skipped]
    chosen = msgspec.convert(ranks.broadcast_object(msgspec.to_builtins(said)), _Said)
    own = _Said(error=said.error, loop=said.loop)
    if not ranks.is_main and chosen.error is None and chosen.path:
        path = Path(chosen.path)
        found, own.error = _tried(lambda: Found(path, load(path), [(Path(p), why) for p, why in chosen.skipped]))
        own.loop = _loop_of(found.state)
    answers = [msgspec.convert(a, _Said) for a in ranks.gather_objects(msgspec.to_builtins(own))]
    _same_checkpoint(chosen, answers)
    return found


class _Said(msgspec.Struct):
    """What a process says of the checkpoint to go on from. ``error``: what, got, fix."""

    error: list[str | None] | None = None
    path: str = ""
    loop: str = ""
    skipped: list[list[str]] = []


def _tried(find: Callable[[], Found]) -> tuple[Found, list[str | None] | None]:
    try:
        return find(), None
    except CheckpointError as e:
        return Found(), [e.what, e.got, e.fix]


def _loop_of(state: dict[str, Any] | None) -> str:
    # Its readings of the clock make it the mark of one save of one run.
    return "" if state is None else repr(sorted(state["loop"].items()))


def _same_checkpoint(chosen: _Said, answers: list[_Said]) -> None:
    for rank, answer in enumerate(answers):
        if answer.error is not None:
            what, got, fix = answer.error
            raise CheckpointError(f"process {rank} of {len(answers)}: {what}", got=got, fix=fix)
        if chosen.path and answer.loop != chosen.loop:
            raise CheckpointError(
                f"{chosen.path} is another checkpoint on process {rank} of {len(answers)} than on process 0",
                expected="one --checkpoint-dir that every machine sees",
                fix="put it on a shared file system, or copy the same file to every machine",
            )


def _newest(folder: Path, skipped: list[tuple[Path, str]], *, auto: bool, wanted: Path | None = None) -> Found:
    path, state, passed = load_newest(folder, as_saved=True)
    if path is None:
        changed = _changed_but_whole(folder, wanted)
        if changed is not None:
            return changed
    known = {p for p, _ in skipped}
    skipped = skipped + [(p, why) for p, why in passed if p not in known]
    notes = [f"{p} cannot be used: {why}" for p, why in skipped]
    if path is None or state is None:
        if auto and not skipped:
            return Found(notes=[f"--resume auto: no checkpoint in {folder}; starting from the beginning"])
        raise CheckpointError(
            f"no checkpoint in {folder} can be used",
            got="; ".join(notes) or "none",
            fix=f"--weights {wanted} begins a new run with these weights; they are no run of this project to go on with"
            if wanted is not None and _is_weights(wanted)
            else "start again with --resume none; the damaged files are kept for a look",
        )
    if skipped:
        notes.append(f"going on from {path}, step {state['loop']['step']}")
    return Found(path, state, skipped, notes)


def _is_weights(path: Path) -> bool:
    """Whether a file that resumes no run holds a detector's weights all the same."""
    from maskrcnn_coco.model.foreign_files import SCORE
    from maskrcnn_coco.model.weights import detector_state, read_weights

    try:
        return SCORE in detector_state(read_weights(path), path)
    except (CheckpointError, ConfigError):
        return False


def _changed_but_whole(folder: Path, wanted: Path | None) -> Found | None:
    """Where no file is as the run saved it: the one asked for, or the newest, that is whole all the same; and it is
    said what is not as it was."""
    try:
        path, state = (wanted, load(wanted)) if wanted is not None else load_newest(folder)[:2]
    except CheckpointError:
        path, state, _ = load_newest(folder)
    if path is None or state is None:
        return None
    changed = changed_since_saved(state)
    note = (
        f"{path} is not as the run saved it ({listed(changed)} were changed since), and no other checkpoint of "
        f"{folder} is: going on from it as it is, step {state['loop']['step']}"
    )
    return Found(path, state, notes=[note], changed=changed)


def with_saved_settings(config: Config, found: Found) -> Config:
    """Settings that are not given now are those of the checkpoint; a flag given now wins.

    The checkpoint's own folder is the run's, wherever it was copied to, unless another is given: then this is a run of
    its own, and the logs of the older one are not its logs.
    """
    if found.state is None or found.path is None:
        return config
    try:
        saved = of_older_run(msgspec.convert(found.state["config"], type=Config, strict=False))
    except msgspec.ValidationError as e:
        raise CheckpointError(f"the settings in the checkpoint are not readable: {e}", fix="use --weights PATH") from e
    now = {n: getattr(config, n) for n in given(config)}
    now.setdefault("checkpoint_dir", str(found.path.parent))
    if "logdir" not in now and not _same_folder(now["checkpoint_dir"], saved.checkpoint_dir):
        now["logdir"] = config.logdir
    return msgspec.structs.replace(saved, **{**now, "resume": config.resume})


def in_place(config: Config, found: Found) -> bool:
    """Whether the run goes on in the folder of the checkpoint; else it is a new run that begins with that state."""
    return found.path is not None and _same_folder(config.checkpoint_dir, found.path.parent)


def _same_folder(a: str | Path, b: str | Path) -> bool:
    return Path(a).resolve() == Path(b).resolve()


def restore_run(session: Session, found: Found, *, dry_run: bool = False) -> None:
    """Put the checkpoint's state into the session; everything it decided (quarantine, lower rates) stays in force.

    A dry run puts it there too, and leaves all files as they are.

    Raises:
        CheckpointError: the checkpoint is of another model or has another optimizer.
    """
    assert found.state is not None
    unusable = load_state(session, found.state, str(found.path))
    session.changed_in_file = found.changed
    before = session.progress.step
    if not dry_run:
        settle_folder(session, found)
        session.log.open(before, session.progress.closed_epochs)
    converted = convert_plan(session, found.state)
    session.first_step = session.progress.step
    if converted is None:
        session.history = recent_steps(session, before)
    else:
        session.console.warn(converted)
        session.log.count_anew(session.progress.step)
    if not dry_run:
        settle_incidents(session)
    differences = inexact(session, found.state)
    if differences:
        session.console.warn("this resume is inexact, the last bits may differ: " + "; ".join(differences))
    changed = changed_settings(session, found.state)
    if changed:
        session.console.note("changed from here on: " + ", ".join(changed))
    session.console.note(f"going on from {found.path}: step {session.progress.step} of {session.total_steps}")
    if session.progress.step >= session.total_steps:
        limit = "--epochs" if session.config.max_steps is None else "--max-steps"
        now = session.config.epochs if session.config.max_steps is None else session.config.max_steps
        session.console.warn(f"all steps of {limit} {now} are done, nothing is left to train; to go on, raise {limit}")
    for path, why in found.skipped if not dry_run else ():
        note_poisoned(session, path, why)
    if unusable and not dry_run and found.path is not None:
        note_settings(session, found.path, unusable)


def settle_folder(session: Session, found: Found) -> None:
    """The checkpoint folder tells one story, that of this run; a best epoch whose file is gone is none."""
    assert found.path is not None and found.state is not None
    if session.ranks.is_main and in_place(session.config, found):
        branch = session.config.resume == str(found.path)
        for sentence in take_over(session.saver, found.path, found.state, branch=branch):
            session.console.note(sentence)
    there = (Path(session.config.checkpoint_dir) / BEST).exists()
    if not session.ranks.broadcast_object(there) and session.progress.best is not None:
        session.progress.best, session.progress.best_epoch = None, -1
        session.console.note("best.pth is not here: the best epoch from now on is kept")


def recent_steps(session: Session, before: int) -> list[StepRecord]:
    """The records of the last steps before ``before``, from the file: what alarms and the epoch's means look at."""
    records = []
    most = max(2 * session.plan.steps_per_epoch, KEPT_RECORDS)
    for line in last_steps(session.log.folder / METRICS, before=before, count=most):
        with contextlib.suppress(TypeError, ValueError, KeyError):  # a line that is not ours
            records.append(record_from(StepRecord, line))
    return records


def settle_incidents(session: Session) -> None:
    """The incidents that the checkpoint knows; later ones have not happened yet, and their files are set aside."""
    folder, known = session.log.folder / "incidents", set(session.progress.incidents)
    if session.ranks.is_main:
        set_aside(folder, known)
        written = (session.log.folder / "quarantine.json").exists()
        session.log.quarantine_due = written or bool(session.progress.quarantine)
        session.log.write_due(session.progress)
    session.ranks.barrier("incidents")
    found = read_incidents(folder, damaged=lambda what: session.console.warn(f"an incident is left out: {what}"))
    session.incidents = [i for i in found if i.id in known]
