"""The ways a run ends: finished, stopped by the guard, interrupted, out of memory, or a dry run."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

from PIL import Image

from maskrcnn_coco.config.resolve import too_large
from maskrcnn_coco.data.prepare import complaints
from maskrcnn_coco.errors import ConfigError, GuardStop, MaskRCNNError, said_by
from maskrcnn_coco.evaluation.pictures import save_analysis, save_gallery
from maskrcnn_coco.evaluation.training_sheet import save_training_sheet
from maskrcnn_coco.guard.forward_backward import in_words
from maskrcnn_coco.records import Result, RunFinding, record_from, to_json
from maskrcnn_coco.report.page import write_report
from maskrcnn_coco.system import memory
from maskrcnn_coco.system.endings import code_of_exit
from maskrcnn_coco.system.files import write_text
from maskrcnn_coco.training.incident import note_stop
from maskrcnn_coco.training.rollback import stand_on_sound, stand_on_whole
from maskrcnn_coco.training.saving import save_now, save_without_copy, weights_finite
from maskrcnn_coco.training.session import Session
from maskrcnn_coco.training.tracked import close_tracking, write_card
from maskrcnn_coco.wording import count

MANY_LEFT_OUT = 0.1
"""Share of the training images left out under way from which on the end of the run says so."""


def finished(session: Session) -> Result:
    """All planned steps are done. With the guard off the weights may be non-finite: then the exit code is 4."""
    if not weights_finite(session.model):
        return _end(session, "finished", 4, False)
    save_now(session)
    if session.saver.failed:
        session.console.error(
            f"the last state of this run could not be saved in {session.config.checkpoint_dir}\n"
            "  what to do: free some space, then --resume auto goes on from the newest checkpoint, if there is one"
        )
    return _end(session, "finished", 5 if session.saver.failed else 0, True)


def stopped(session: Session, stop: GuardStop) -> Result:
    """The guard stopped the run: its verdict is written, and ``last.pth`` and the model hold a verified state."""
    session.console.error(stop.render())
    if not any(i.outcome == "stopped" for i in session.incidents[-1:]):
        note_stop(session, stop)
    if session.config.guard in ("recover", "stop") and stand_on_sound(session, session.incidents[-1]):
        save_now(session)
    return _end(session, "stopped", stop.exit_code, weights_finite(session.model))


def interrupted(session: Session, number: int) -> Result:
    """A signal ended the run after the checkpoint was saved."""
    last = Path(session.config.checkpoint_dir) / "last.pth"
    next_time = f"--resume auto goes on from {last}" if last.exists() else "nothing was saved"
    session.console.note(f"interrupted at step {session.progress.step}; {next_time}")
    return _end(session, "interrupted", 128 + number, weights_finite(session.model))


def broken_off(session: Session, error: BaseException) -> None:
    """Something else ended the run: an error of the caller's code, ``sys.exit``. It goes on to the caller, but what a
    stop leaves is left: a verified ``last.pth``, the model in that state, and the verdict. What cannot be done is said.
    """
    if session.ranks.world > 1:  # several processes do not end at the same step
        return
    try:
        asked = isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit))
        if not asked:
            note_stop(session, _as_stop(error))
        if stand_on_whole(session):
            save_now(session)
        code = code_of_exit(error) if asked else getattr(error, "exit_code", 1)
        _end(session, "interrupted" if asked else "stopped", code, weights_finite(session.model))
    except Exception as e:  # a device that is gone, a disk that is full: the error itself is what counts
        said = f"{type(e).__name__}: {said_by(e)}"
        session.console.warn(f"what the run has done could not all be saved: {said}; --resume auto takes what there is")


def _as_stop(error: BaseException) -> MaskRCNNError:
    """``error`` with the caller's own line, where it does not speak for itself."""
    return error if isinstance(error, MaskRCNNError) else GuardStop(in_words(error), fix=f"look at {in_words(error)}")


def out_of_memory(session: Session, error: BaseException) -> ConfigError:
    """The error for a step that did not fit, of which nothing was applied; the run so far is saved, and the verdict."""
    memory.let_go(error)
    saved = ""
    if session.ranks.world == 1:  # several processes do not stop at the same step
        whole = stand_on_whole(session)
        session.ring.clear()
        note_stop(session, too_large(session.config, session.device, saved=""))
        if whole:
            save_without_copy(session)
        kept = (
            "not even the run so far could be saved; --resume auto goes on from the newest checkpoint, if there is one"
        )
        if not session.saver.failed:
            kept = "the run so far is saved: add --resume auto"
        saved = f" at step {session.progress.step}; {kept}"
        with contextlib.suppress(Exception):  # of no use where there is no memory for it either
            _end(session, "stopped", ConfigError.exit_code, weights_finite(session.model), pictures=False)
    return too_large(session.config, session.device, saved=saved)


def dry(session: Session) -> Result:
    """Nothing was trained: ``--dry-run``."""
    found = sum(f["severity"] != "info" for f in session.progress.findings) + len(complaints(session.data))
    state = f"{count(found, 'finding')} above: look at them first" if found else "data, model and folders are fine"
    session.console.note(f"dry run: {state}; nothing was trained")
    # A dry run of a resume leaves every file of the run as it is.
    sheet = None if session.resumed_from else draw_training_images(session)
    if sheet is not None:
        session.console.note(f"what training would see: {sheet}")
    return _result(session, "finished", 0, True)


def _end(session: Session, status: str, code: int, finite: bool, *, pictures: bool = True) -> Result:
    session.saver.wait()
    session.ring.clear()  # nobody goes back any more, and the report needs memory too
    result = _result(session, status, code, finite)
    if not session.ranks.is_main:
        return result
    if pictures:
        show_training_images(session, draw_training_images(session))
    session.log.close()
    session.log.write_due(session.progress)
    if pictures:
        draw_predictions(session)
    report = session.log.folder / "report.html"
    try:
        write_text(session.log.folder / "result.json", to_json(result, indent=1))
        report = write_report(session.log.folder)
    except Exception as e:  # the run is over and saved: its report must not make an error of it
        said = f"{type(e).__name__}: {e}"
        session.console.warn(f"result.json or the report was not written: {said}; maskrcnn-coco report makes it later")
    close_tracking(session, result, write_card(session))
    checkpoints = Path(session.config.checkpoint_dir)
    say_left_out(session)
    session.console.end(result, report=report, checkpoints=checkpoints, next_steps=next_steps(session, result))
    return result


def say_left_out(session: Session) -> None:
    """A run that went on without a good part of its images says so at its end: it is not what was meant."""
    gone, images = session.progress.quarantine, len(session.plan.image_ids)
    if len(gone) >= MANY_LEFT_OUT * images:
        session.console.warn(
            f"{len(gone)} of {images} training images ({len(gone) / images:.0%}) were left out on the way, as faulty\n"
            f"  what to do: repair what {session.log.folder / 'quarantine.json'} names, and train on all of them"
        )


def _result(session: Session, status: str, code: int, finite: bool) -> Result:
    p = session.progress
    best = Path(session.config.checkpoint_dir) / "best.pth"
    return Result(
        status=status,  # type: ignore[arg-type]
        exit_code=code,
        finite=finite,
        epochs=p.step // session.plan.steps_per_epoch,
        steps=p.step,
        skipped_steps=p.skipped_steps,
        incidents=list(p.incidents),
        metrics=dict(p.metrics),
        best_checkpoint=str(best) if best.exists() else None,
        first_loss=float("nan") if p.first_loss is None else p.first_loss,
        last_loss=float("nan") if p.last_loss is None else p.last_loss,
        images_per_second=p.images_seen * session.ranks.world / p.train_seconds if p.train_seconds else 0.0,
        guard_seconds=session.guard.seconds,
        peak_memory_bytes=memory.peak(session.device),
        findings=[record_from(RunFinding, f) for f in p.findings],
        per_class=per_class(session),
    )


def per_class(session: Session) -> dict[str, dict[str, float]]:
    """Each class: AP as last evaluated, and how many objects it has in validation and in training."""
    found = {name: dict(v) for name, v in (session.evaluation.per_class if session.evaluation else {}).items()}
    for name, counts in session.data.class_counts.items():
        found.setdefault(name, {}).update(train_objects=counts["objects"], train_images=counts["images"])
    return found


def draw_training_images(session: Session) -> Path | None:
    """Sixteen augmented training images with their masks, on one sheet in the run's folder."""
    if not session.ranks.is_main:
        return None
    try:
        return save_training_sheet(session.log.folder, session.train_source, session.plan, session.data.class_names)
    except Exception as e:  # a picture of odd data is never worth the result
        session.console.warn(f"the training images were not drawn: {type(e).__name__}: {e}")
        return None


def show_training_images(session: Session, sheet: Path | None) -> None:
    """The sheet in TensorBoard too."""
    if sheet is None or session.log.tracker is None:
        return
    with Image.open(sheet) as picture:
        size = (picture.height, picture.width)
    session.log.tracker.image("training_images", sheet.read_bytes(), size, session.progress.step)


def next_steps(session: Session, result: Result) -> list[str]:
    """What a person does with a finished run, ready to be pasted: evaluate, predict, look at the curves."""
    best = result.best_checkpoint
    if result.status != "finished" or best is None:
        return []
    c = session.config
    # A run on a caller's own data set has no folder to name.
    own = c.data is None and session.data.train is None
    where = [c.val or c.data] if c.val or c.data else []
    images = (c.val_images if c.val else c.images) if where else None
    evaluate = ["maskrcnn-coco", "evaluate", best, *(["--data", *where] if where else [])]
    evaluate += ["--images", images] if images else []
    return [
        *([] if own else [shlex.join(evaluate)]),
        f"{shlex.join(['maskrcnn-coco', 'predict', best])} IMAGES…",
        shlex.join(["tensorboard", "--logdir", str(session.log.folder)]),
    ]


def draw_predictions(session: Session) -> None:
    """The worst and the most typical predictions beside the truth, and what lies behind the AP, for the report."""
    if session.evaluation is None or session.val_source is None or not session.ranks.is_main:
        return
    try:
        save_gallery(session.log.folder, session.val_source, session.evaluation)
        save_analysis(session.log.folder, session.val_source, session.evaluation)
    except Exception as e:  # a picture of odd data is never worth the result
        session.console.warn(f"the predictions were not drawn: {type(e).__name__}: {e}")
