"""The end of an epoch: its record, its evaluation, the best so far."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from maskrcnn_coco.errors import DataError
from maskrcnn_coco.evaluation.evaluate import EvalResult, evaluate_model
from maskrcnn_coco.evaluation.pictures import pairs_of
from maskrcnn_coco.guard.forward_backward import in_words
from maskrcnn_coco.records import EpochRecord, EvalRecord
from maskrcnn_coco.system.memory import ran_out
from maskrcnn_coco.training.agreement import require_same_weights
from maskrcnn_coco.training.learning_check import look_after
from maskrcnn_coco.training.saving import save_before_evaluation, save_epoch, weights_finite
from maskrcnn_coco.training.session import Session
from maskrcnn_coco.training.signals import AtOnce, breakable
from maskrcnn_coco.training.validation import validation_losses


def end_epoch(session: Session) -> None:
    """Checkpoint, epoch record, evaluation, checkpoint with its figures, console block.

    Raises:
        AtOnce: a signal came during the evaluation; the epoch stays open, and is closed by the run that goes on.
    """
    step, began = session.progress.step, session.progress.epoch_began_seconds
    epoch = session.epoch_of(step - 1)
    # Saved first: an evaluation may take longer than a machine that is about to go away gives.
    require_same_weights(session)
    save_before_evaluation(session)
    record = epoch_record(session, epoch)
    session.log.record(record)
    try:
        with breakable(alone=session.ranks.world == 1):
            evaluation = evaluate_session(session, epoch)
    except AtOnce:
        session.progress.epoch_began_seconds = began
        raise
    better = False
    if evaluation is not None:
        session.log.record(evaluation)
        show_validation(session)
        better = keep_best(session, evaluation)
    session.console.epoch(record, evaluation, epochs=session.epochs, time_left=session.time_left())
    look_after(session, record, evaluation)
    say_vanished(session)
    session.progress.closed_epochs = epoch + 1
    save_epoch(session, epoch, better=better)
    session.keep_history()


def show_validation(session: Session) -> None:
    """A few validation images, truth beside prediction, in TensorBoard."""
    if session.evaluation is None or session.log.tracker is None:
        return
    try:
        pictures = pairs_of(session.val_source, session.evaluation)
    except Exception as e:  # a picture of odd data is never worth the run
        session.console.warn(f"validation images were not drawn: {type(e).__name__}: {e}")
        return
    for n, (picture, height, width) in enumerate(pictures, 1):
        session.log.tracker.image(f"validation/{n}", picture, (height, width), session.progress.step)


def say_vanished(session: Session) -> None:
    """How many objects augmentation took out of sight in this epoch; the count begins anew."""
    progress = session.progress
    if progress.objects_vanished:
        of = progress.objects_shown + progress.objects_vanished
        share = 100 * progress.objects_vanished / of
        session.console.note(
            f"augmentation took {progress.objects_vanished} of {of} objects out of sight ({share:.1f} %): cropped, "
            "covered or turned away"
        )
    progress.objects_shown = progress.objects_vanished = 0


def epoch_record(session: Session, epoch: int) -> EpochRecord:
    """Means over the applied steps of ``epoch``; refused steps are counted, never averaged in."""
    per = session.plan.steps_per_epoch
    records = [r for r in session.history if r.epoch == epoch and r.step >= epoch * per]
    applied = [r for r in records if r.applied]
    names = sorted({name for r in applied for name in r.losses})
    seconds = session.progress.train_seconds - session.progress.epoch_began_seconds
    images = sum(len(r.image_ids) for r in records) * session.ranks.world
    session.progress.epoch_began_seconds = session.progress.train_seconds
    return EpochRecord(
        epoch=epoch,
        step=session.progress.step,
        losses={n: _mean([r.losses[n] for r in applied if n in r.losses]) for n in names},
        loss=_mean([r.loss for r in applied]),
        grad_norm=_mean([r.grad_norm for r in applied]),
        lr=session.set_lr(session.progress.step - 1),
        skipped_steps=len(records) - len(applied),
        images_per_second=images / seconds if seconds > 0 else 0.0,
        seconds=seconds,
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def evaluate_session(session: Session, epoch: int) -> EvalRecord | None:
    """COCO metrics of the current weights on the validation data; None where there is none, or no finite weights."""
    if session.val_source is None or not weights_finite(session.model):
        return None
    began = time.monotonic()
    try:
        result = better_result(session)
    except DataError as e:  # a validation set that cannot be used must not end a training that goes well
        session.console.warn(f"there is no AP of this epoch: {e.render()}")
        return None
    except Exception as e:  # a stranger's model or data may do anything here; other processes would wait for this one
        if ran_out(e) or session.ranks.world > 1:
            raise
        session.console.warn(f"there is no AP of this epoch: {in_words(e)}")
        return None
    if session.evaluation is None:
        for sentence in result.notes:
            session.console.note(f"validation data: {sentence}")
    say_left_out(session, result.left_out)
    session.evaluation = result
    session.progress.metrics = dict(result.metrics)
    return EvalRecord(
        epoch=epoch,
        step=session.progress.step,
        metrics=result.metrics,
        per_class=result.per_class,
        seconds=time.monotonic() - began,
        losses=validation_losses(session),
    )


def better_result(session: Session) -> EvalResult:
    """The evaluation of the weights, or of their average where that is better (--ema); which one is said."""
    result = evaluate_weights(session)
    if session.ema is None:
        return result
    with session.ema.in_place(session.model):
        averaged = evaluate_weights(session)
    plain_ap, averaged_ap = score_of(result.metrics), score_of(averaged.metrics)
    session.progress.use_ema = averaged_ap > plain_ap
    better = "averaged" if session.progress.use_ema else "plain"
    session.console.note(
        f"AP {averaged_ap:.4f} averaged, {plain_ap:.4f} plain: figures and files are of the {better} weights"
    )
    return averaged if session.progress.use_ema else result


def evaluate_weights(session: Session) -> EvalResult:
    """The evaluation of the model as it is.

    Raises:
        DataError: the validation data cannot be used.
    """
    return evaluate_model(
        session.model,
        session.val_source,
        device=session.device,
        precision=session.precision,
        batch_size=session.config.images_a_pass,
        class_names=session.data.class_names,
        ranks=session.ranks,
        max_dets=session.config.eval_max_dets,
    )


def score_of(metrics: Mapping[str, float]) -> float:
    """What epochs are compared by: segm/AP, or bbox/AP of a detector without masks; -1 where there is none."""
    value = metrics.get("segm/AP", metrics.get("bbox/AP", float("nan")))
    return value if math.isfinite(value) else -1.0


def say_left_out(session: Session, sentences: list[str]) -> None:
    """What this evaluation could not use and the ones before could: its AP is of fewer images than theirs."""
    new = [s for s in sentences if s not in session.left_out]
    for sentence in new[:10]:
        session.console.warn(f"evaluation leaves out: {sentence}")
    if len(new) > 10:
        session.console.warn(f"evaluation leaves out {len(new) - 10} more, for such reasons")
    if new and session.evaluation is not None:
        session.console.warn("AP from here on is of fewer images than before: do not compare it with earlier epochs'")
    session.left_out |= set(new)


def keep_best(session: Session, record: EvalRecord) -> bool:
    """Whether this epoch is the best so far, by segm/AP (bbox/AP for a detector without masks)."""
    value, best = score_of(record.metrics), session.progress.best
    if value < 0 or (best is not None and value <= best):
        return False
    session.progress.best, session.progress.best_epoch = value, record.epoch
    return True
