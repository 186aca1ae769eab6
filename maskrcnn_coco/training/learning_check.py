"""Whether a run learns: what is looked at when an epoch ends, and what is tried on a private copy where it does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, median

from maskrcnn_coco.advice.trials import Task, Trials
from maskrcnn_coco.config import recipes
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.evaluation.evaluate import detect, score
from maskrcnn_coco.evaluation.ground_truth import TableSet, UserSet
from maskrcnn_coco.evaluation.readings import mask_readings, matching_of
from maskrcnn_coco.findings.facts import BatchTrial, Facts, Memory, RateTrial
from maskrcnn_coco.findings.rules import memorised, not_learning
from maskrcnn_coco.records import EpochRecord, EvalRecord, StepRecord
from maskrcnn_coco.system import memory
from maskrcnn_coco.training.case import task_of
from maskrcnn_coco.training.findings import tell
from maskrcnn_coco.training.saving import weights_finite
from maskrcnn_coco.training.session import Session

TRIED, BATCHES = 16, 4
"""Steps of a trial, and the batches that they go round."""
FALLEN, FEWEST = 0.6, 12
"""An epoch whose second half has this share of the loss of its first falls, whatever its batches; steps that tell."""
LATE, IMAGES = 3, 50
"""Epochs after which a run that has learned nothing is looked at; images of a comparison."""


def look_after(session: Session, record: EpochRecord, evaluation: EvalRecord | None) -> None:
    """What the end of an epoch shows. Never ends a run: what cannot be tried is not said."""
    progress = session.progress
    if progress.first_epoch_loss is None and math.isfinite(record.loss):
        progress.first_epoch_loss = record.loss
    if session.watch is None or not session.ranks.is_main or session.config.guard == "off":
        return
    try:
        if evaluation is not None and session.evaluation is not None:
            names = {int(c["id"]): str(c["name"]) for c in session.evaluation.truth.categories}
            readings = mask_readings(session.evaluation)
            if readings is not None:
                readings.ended = record.epoch + 1 >= max(2, session.epochs)
            tell(session, Facts(matching=matching_of(session.evaluation, names), mask_readings=readings), "epoch")
        if record.epoch == 0 and weights_finite(session.model):
            tell(session, Facts(rate_trial=rate_trial(session)), "epoch")
        if record.epoch + 1 >= min(LATE, session.epochs):
            tell(session, Facts(batch_trial=batch_trial(session, record, evaluation)), "epoch")
        if record.epoch + 1 >= session.epochs and evaluation is not None:
            tell(session, Facts(memory=memory_of(session, record)), "epoch")
    except DataError:  # a sample that cannot be read, or an evaluation that nothing can be said about
        return
    except (RuntimeError, MemoryError) as error:
        if not memory.ran_out(error):
            raise


def rate_trial(session: Session) -> RateTrial | None:
    """The run's first steps again on a copy, at its rates and at raised ones; None where there is no reason for it."""
    records = [r for r in session.history if r.applied and r.epoch == 0]
    if len(records) < FEWEST or falls(records) or not low(session):
        return None
    trials, config = Trials(task_of(session, BATCHES)), session.config
    before, after, ratio = _tried(trials, session.schedule.lr, factors(session))
    # Momentum adds updates up; a schedule's mean is about half its peak.
    build_up = 0.5 / (1 - config.momentum) if config.optimizer == "sgd" else 0.5
    return RateTrial(TRIED, before, after, dict(session.schedule.lr), reach=ratio * session.total_steps * build_up)


def factors(session: Session) -> tuple[float, ...]:
    """1, and the two highest powers of ten that keep the backbone's rate within what is safe; at least 10."""
    room = recipes.guideline(session.config.optimizer)["backbone"].safe[1] / float(session.config.lr or 1.0)
    top = 10.0 ** max(1, math.floor(math.log10(room) + 1e-9))
    return (1.0, top) if top < 100 else (1.0, top / 10, top)


def falls(records: list[StepRecord]) -> bool:
    """Whether the second half of ``records`` has losses so much lower than the first that no trial is needed."""
    half = len(records) // 2
    first, second = (median(r.loss for r in part) for part in (records[:half], records[half:]))
    return second < FALLEN * first


def low(session: Session) -> bool:
    """Every component learns at a rate below what the guideline calls safe for its weights."""
    guide = recipes.guideline(session.config.optimizer)
    rates = recipes.component_lrs(session.config)
    return all(rate <= guide[c].safe[0] * (1 + 1e-9) for c, rate in rates.items() if c in guide)


def _tried(
    trials: Trials, rates: Mapping[str, float], tried: tuple[float, ...]
) -> tuple[float, dict[str, float], float]:
    """(loss at the start, factor → loss at the end, largest update over weights at the run's own rates).

    Start and end are means over the same batches, which come round again and again.
    """
    start, before, after, ratio = trials.save(0), math.nan, {}, 0.0
    full = {c: rates.get(c, rates.get("backbone", 0.0)) for c in trials.components}
    turn = min(len(trials.task.batches), TRIED // 2)
    for factor in tried:
        trials.load(start)
        trial = trials.run({c: v * factor for c, v in full.items()}, TRIED)
        if math.isnan(before):
            before = fmean(trial.losses[:turn])
            ratio = max((v for r in trial.records for v in r.update_ratio.values()), default=0.0)
        after[f"{factor:g}"] = fmean(trial.losses[-turn:]) if trial.stable else math.inf
    return before, after, ratio


def batch_trial(session: Session, record: EpochRecord, evaluation: EvalRecord | None) -> BatchTrial | None:
    """One batch again and again on a copy, where epochs have taught nothing and no finding says why."""
    progress, ap = session.progress, -1.0
    if evaluation is not None:
        ap = evaluation.metrics.get("segm/AP50", evaluation.metrics.get("bbox/AP50", -1.0))
    first = progress.first_epoch_loss
    explained = any(f["severity"] != "info" and f["code"] not in ("CEILING", "SAME_DRAWS") for f in progress.findings)
    stuck = first is not None and record.epoch > 0 and record.loss >= not_learning.FALLEN * first
    if not stuck or first is None or not 0 <= ap <= not_learning.AP or explained or not weights_finite(session.model):
        return None
    task = task_of(session, 1)
    one = Task(**{**vars(task), "batches": list(task.batches)[:1]})
    before, after, _ = _tried(Trials(one), session.schedule.lr, (1.0, 10.0))
    best = min(after, key=lambda f: after[f])
    return BatchTrial(record.epoch + 1, first, record.loss, ap, TRIED, before, after[best], float(best))


def memory_of(session: Session, record: EpochRecord) -> Memory | None:
    """AP50 on training images beside that on validation images, where the latter is near 0 and the loss is not."""
    val, progress = session.evaluation, session.progress
    if val is None or progress.first_epoch_loss is None:
        return None
    ap = val.metrics.get("bbox/AP50", -1.0)
    if not 0 <= ap <= memorised.LEFT or record.loss > 0.5 * progress.first_epoch_loss:
        return None
    source = session.train_source
    data = (
        TableSet(source.table) if isinstance(source, CocoDataset) else UserSet(source.dataset, session.data.class_names)
    )
    count = min(IMAGES, max(1, val.images), len(data))
    rows = [i * len(data) // count for i in range(count)]
    shard = detect(session.model, data, rows, device=session.device, precision=session.precision)
    train = score([shard], data, session.config.eval_max_dets).metrics.get("bbox/AP50", -1.0)
    leaks = sum(f.code == "IMAGE_LEAK" for f in session.data.findings)
    return Memory(train, ap, count, len(session.plan), objects=len(val.truth.annotations), leaks=leaks)
