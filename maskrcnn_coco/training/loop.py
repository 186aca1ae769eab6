"""The training loop: `train`, for a whole run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from maskrcnn_coco.config.settings import Config, validate
from maskrcnn_coco.distributed.ranks import started_alone
from maskrcnn_coco.errors import ConfigError, GuardStop
from maskrcnn_coco.findings.parameters import train_but
from maskrcnn_coco.guard.early_warning import early_warning
from maskrcnn_coco.records import Result, StepRecord
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.system import memory
from maskrcnn_coco.system.defaults import ordinary_defaults
from maskrcnn_coco.training import finish, late_alarms, response
from maskrcnn_coco.training.after_load import jump_after_load
from maskrcnn_coco.training.agreement import EVERY, require_same_weights
from maskrcnn_coco.training.epoch_end import end_epoch
from maskrcnn_coco.training.progress import Progress
from maskrcnn_coco.training.rates_back import give_back
from maskrcnn_coco.training.run_log import Observer
from maskrcnn_coco.training.saving import save_is_due, save_last, save_now
from maskrcnn_coco.training.session import Session
from maskrcnn_coco.training.signals import AtOnce, Interrupts, breakable
from maskrcnn_coco.training.start import open_session
from maskrcnn_coco.training.turned_losses import turned_loss
from maskrcnn_coco.training.unreadable import readable


def train(
    config: Config,
    *,
    model: nn.Module | None = None,
    train_data: Any = None,
    val_data: Any = None,
    observers: Sequence[Observer] = (),
    dry_run: bool = False,
    json_mode: bool = False,
    quiet: bool = False,
    stop_after: int | Literal["epoch"] | None = None,
) -> Result:
    """Fine-tune a detector; refuse, explain and repair every bad step.

    Args:
        config: the settings; fields that are None come from the recipe for the data set's size.
        model: any module with torchvision's detection contract (a dict of losses in train mode, a list of detections
            in eval mode); None builds the one that ``config`` names.
        train_data, val_data: map-style data sets of ``(image float32 (3, H, W) in 0..1, target)`` with torchvision's
            target dict: ``boxes`` float32 (N, 4) xyxy pixels, ``labels`` int64 (N,) in 1..K-1, ``masks`` uint8
            (N, H, W), ``image_id`` int, optionally ``annotation_ids``. ``config.num_classes`` is then needed.
        observers: called with each record as it is written; they look and never change training.
        dry_run: stop before the first step. json_mode: keep stdout clean. quiet: print nothing.
        stop_after: end after so many planned steps, or after one epoch; the learning rates stay those of the whole
            plan, and the epoch is not evaluated.

    Returns:
        How the run ended, as in ``result.json``. A run that the guard stopped returns too (status "stopped").

    Raises:
        ConfigError, DataError, CheckpointError: something is unusable; nothing has been overwritten.
        KeyboardInterrupt: a signal came before the first step, or a second one later.
    """
    validate(config)
    _require_module(model)
    with ordinary_defaults(), Interrupts() as interrupts:
        # To read, check and look at the data may take minutes, and there is nothing to be saved yet.
        with breakable(alone=started_alone(), answer="stopping here, before the first step"):
            session = open_session(
                config,
                model=model,
                train_data=train_data,
                val_data=val_data,
                observers=observers,
                json_mode=json_mode,
                dry_run=dry_run,
                quiet=quiet,
            )
        session.max_steps = session.plan.steps_per_epoch if stop_after == "epoch" else stop_after
        with session:
            if dry_run:
                return finish.dry(session)
            return _to_its_end(session, interrupts)


def _require_module(model: object) -> None:
    if model is not None and not isinstance(model, nn.Module):
        raise ConfigError(
            "the model is no torch.nn.Module",
            got=f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}",
            expected="a detector with torchvision's contract: a dict of losses in train mode",
            fix="make it first, as maskrcnn_resnet50_fpn(num_classes=3), or leave it away: Config(model=…) names one",
        )


def _to_its_end(session: Session, interrupts: Interrupts) -> Result:
    """`run`, and how it ended."""
    try:
        run(session, interrupts)
    except GuardStop as stop:
        return finish.stopped(session, stop)
    except BaseException as error:
        if memory.ran_out(error):
            raise finish.out_of_memory(session, error) from error
        if not (isinstance(error, KeyboardInterrupt) and interrupts.received):  # a second Ctrl-C: at once
            finish.broken_off(session, error)
        raise
    if interrupts.received:
        save_now(session)
        return finish.interrupted(session, interrupts.received)
    return finish.finished(session)


def run(session: Session, interrupts: Interrupts) -> None:
    """All epochs, from where the session stands. Returns early on a signal or when patience is spent."""
    train_but(session.model, session.norms_in_eval)
    while True:
        # Steps to the end of an epoch leave it to be closed, be it by an earlier process that was stopped there.
        if session.progress.closed_epochs < session.epochs_done:
            try:
                end_epoch(session)
            except AtOnce:
                return
        if _out_of_patience(session.config.patience, session.progress):
            session.console.note(f"no better segm/AP for {session.config.patience} epochs: stopped early (--patience)")
            return
        if session.progress.step >= session.total_steps:
            return
        train_epoch(session, interrupts)
        if not late_alarms.caught_up(session):
            continue
        if interrupts.received or session.out_of_steps:
            return


def train_epoch(session: Session, interrupts: Interrupts) -> None:
    """Steps to the end of the current epoch. A roll-back may leave the session in an earlier epoch; then it returns."""
    epoch = session.epoch_of(session.progress.step)
    end = min((epoch + 1) * session.plan.steps_per_epoch, session.total_steps)
    with session.console.progress(epoch, session.epochs, session.plan.steps_per_epoch) as bar:
        while session.progress.step < end and session.epoch_of(session.progress.step) == epoch:
            for batches in readable(session, session.batches(epoch)):
                again = train_step(session, batches)
                if session.progress.step % EVERY == 0:
                    require_same_weights(session)
                bar.update(session.history[-1] if session.history else None, session.progress.step)
                if save_is_due(session):
                    if late_alarms.caught_up(session):
                        save_last(session)
                    else:
                        again = True
                interrupts.agree(session.ranks)
                if interrupts.received or session.out_of_steps:
                    return
                if again or session.progress.step >= end:
                    # The plan of the coming batches changed, the step went back, or --max-steps is reached.
                    break


def train_step(session: Session, batches: list[Any]) -> bool:
    """One planned step on its micro-batches. Returns True where the next batch must be fetched anew."""
    again = _stepped(session, batches)
    session.unsettled = False
    return again


def _stepped(session: Session, batches: list[Any]) -> bool:
    step = session.progress.step
    if session.snapshot_due(step):
        if not late_alarms.caught_up(session):
            return True
        session.keep_snapshot(step)
        give_back(session, step)
    record, guard = session.take_step(batches), session.guard
    alarm = guard.alarm
    session.keep_records(guard.completed)
    if alarm is not None and guard.late:
        late_alarms.go_back_to_look(session, alarm)
        return True
    if alarm is None and late_alarms.look_again(session):
        return True
    late_alarms.resolve_doubt(session, alarm, step)
    if alarm is not None:
        next_step = response.respond(session, alarm, batches)
        changed = next_step != step + 1
        session.progress.step = next_step
        return changed
    session.progress.step = step + 1
    if session.ema is not None and record.applied:
        session.ema.update(session.model)
    for doubt, cause in ((jump_after_load(session), "POISONED_STATE"), (turned_loss(session), "LOSS_MATH")):
        found = response.if_proved(session, doubt, batches, cause) if doubt is not None else None
        if found is not None:
            session.progress.step = found
            return True
    response.maybe_raise_lr(session)
    warn_early(session.history, session.warned, session.console)
    return False


def warn_early(history: Sequence[StepRecord], warned: dict[str, int], console: Console) -> None:
    """Say once per component that a learning rate drifts towards divergence, before the alarm."""
    for warning in early_warning(history[-50:]):
        if warning.component not in warned:
            warned[warning.component] = warning.step
            console.warn(f"step {warning.step}: {warning.message}; {warning.fix}")


def _out_of_patience(patience: int | None, progress: Progress) -> bool:
    if patience is None or progress.best_epoch < 0:
        return False
    return progress.closed_epochs - 1 - progress.best_epoch >= patience
