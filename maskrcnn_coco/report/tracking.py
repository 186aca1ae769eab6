"""What a run writes while it goes: TensorBoard events and ``metrics.jsonl``. Imports no torch.

A tracker only looks. If it cannot write (disk full, folder gone) it warns, keeps the lines of ``metrics.jsonl`` in
memory until it can, and never raises: losing a curve must not lose a run.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maskrcnn_coco.records import EpochRecord, EvalRecord, Incident, StepRecord, to_json
from maskrcnn_coco.report.event_file import EventFile, hyperparameters, image_value, text_value
from maskrcnn_coco.report.metrics_file import METRICS, cut, truncate
from maskrcnn_coco.report.scalars import scalars_of
from maskrcnn_coco.system.files import sync
from maskrcnn_coco.wording import annotation_words

_MOST_OWED = 64 << 20
"""Bytes of lines that wait in memory while the disk takes none."""
_log = logging.getLogger(__name__)


class Tracker:
    """Writes records to ``logdir``.

    Tags, per step: ``loss/<name>``, ``loss/total``, ``lr/<component>``, ``grad_norm/total``, ``grad_norm/<component>``,
    ``update_ratio/<component>``, ``loss_scale``, ``skipped``; per epoch: ``epoch/loss/<name>``, ``epoch/grad_norm``,
    ``epoch/images_per_second``, ``val/bbox/AP`` …, ``val/loss/<name>``, ``val/class/<name>/segm/AP``; per incident:
    ``incident/<CAUSE>`` (a marker at the step) and a text. Pictures: ``validation/<n>`` after each evaluation,
    ``training_images`` at the end. The settings are hyperparameters.

    Args:
        logdir: the run's folder; created if need be.
        resume_step: the step the run goes on from; lines of ``metrics.jsonl`` from there on are dropped, and
            TensorBoard is told to forget its points from there on. None: a new run.
        closed_epochs: how many epochs the resumed run has closed; it will write the lines of later ones again.
        owed: lines that an earlier tracker could not write (its `take_owed`); they are cut as the file is.
        warn: called with one sentence when writing fails; default: the log.
    """

    def __init__(
        self,
        logdir: str | Path,
        resume_step: int | None = None,
        closed_epochs: int | None = None,
        *,
        owed: bytes = b"",
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.logdir = Path(logdir)
        self._resume = (resume_step, closed_epochs)
        self._warn = warn or _log.warning
        self._lines: io.FileIO | None = None
        self._events: EventFile | None = None
        self._owed = bytearray(cut(owed, resume_step, closed_epochs))
        self._closed = self._failing = False
        self._count = 0
        self._try(self._open)

    def _open(self) -> None:
        self.logdir.mkdir(parents=True, exist_ok=True)
        path = self.logdir / METRICS
        if path.exists():
            truncate(path, *self._resume)
        self._lines = path.open("ab+", buffering=0)
        self._events = EventFile(self.logdir, self._resume[0])

    def step(self, record: StepRecord) -> None:
        """One planned step, applied or refused."""
        self._try(self._write, record, scalars_of(record), record.step, False)

    def epoch(self, record: EpochRecord) -> None:
        """Means over one epoch."""
        self._try(self._write, record, scalars_of(record), record.step, True)

    def eval(self, record: EvalRecord) -> None:
        """COCO metrics; a metric that is undefined (-1, no such ground truth) gets no point."""
        self._try(self._write, record, scalars_of(record), record.step, True)

    def incident(self, incident: Incident) -> None:
        """A marker at the incident's step, and a text with cause, culprit, action and fix."""
        self._count += 1
        scalars = {f"incident/{incident.cause}": 1.0, "incident/count": float(self._count)}
        self._try(self._mark, scalars, incident.step, f"incident/{incident.id}", _markdown(incident))

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Free text for TensorBoard's text tab, such as the settings with their reasons."""
        self._try(self._mark, {}, step, tag, markdown)

    def image(self, tag: str, picture: bytes, size: tuple[int, int], step: int) -> None:
        """An encoded RGB picture of ``size`` (height, width) for the images tab: one tag, a slider over its steps."""
        self._try(self._show, image_value(tag, picture, size), step)

    def settings(self, settings: Mapping[str, Any]) -> None:
        """The settings as hyperparameters, by which TensorBoard's hparams tab compares runs; None is left out."""
        self._try(self._show, hyperparameters(settings), 0)

    def count_anew(self, step: int) -> None:
        """The run counts its steps in another way and goes on at ``step``: TensorBoard forgets its points from there
        on, so that none is shown twice. Lines of ``metrics.jsonl`` say what happened, and stay."""
        self._try(self._begin_events, step)

    def flush(self) -> None:
        """Everything written so far is on disk when this returns."""
        self._try(self._sync)

    def take_owed(self) -> bytes:
        """The lines that cannot be written now, for the tracker that follows this one."""
        self.flush()
        owed, self._owed = bytes(self._owed), bytearray()
        return owed

    def close(self) -> None:
        """Flush and close; nothing is written after it."""
        self._try(self._sync)
        if self._owed and not self._closed:
            self._warn(f"the last {self._owed.count(10)} lines of {self.logdir / METRICS} could not be written")
        self._closed = True
        for file in (self._lines, self._events):
            _close_quietly(file)
        self._lines = self._events = None

    def _write(self, record: StepRecord | EpochRecord | EvalRecord, scalars: dict[str, float], step: int, sync: bool):
        self._owed += to_json(record).encode() + b"\n"
        self._pay()
        if self._events is not None:
            self._events.add(step, scalars)
        if sync:
            self._sync()

    def _pay(self) -> None:
        """Write the lines that wait: at once, each in one write, so that a reader or a crash sees whole lines."""
        if self._lines is not None and os.fstat(self._lines.fileno()).st_nlink == 0:
            self._rescue(self._lines)
        if self._lines is None:
            self._open()
        assert self._lines is not None
        while self._owed:
            del self._owed[: self._lines.write(self._owed)]
        if self._events is None:
            self._events = EventFile(self.logdir, None)
        if self._failing:
            self._failing = False
            self._warn(f"{self.logdir} can be written again: no line of {METRICS} is missing")

    def _rescue(self, lines: io.FileIO) -> None:
        """Somebody deleted the folder or the file: what was written is still there as long as it is open.

        TensorBoard's file is begun anew.
        """
        size = os.fstat(lines.fileno()).st_size
        self._owed[:0] = os.pread(lines.fileno(), size, 0) if hasattr(os, "pread") else b""
        events, self._lines, self._events = self._events, None, None
        self._resume = (None, None)
        _close_quietly(lines)
        _close_quietly(events)
        self._warn(f"{self.logdir / METRICS} was deleted while the run goes on: it is written again, whole")

    def _begin_events(self, step: int) -> None:
        events, self._events = self._events, None
        _close_quietly(events)
        self._events = EventFile(self.logdir, step)

    def _mark(self, scalars: dict[str, float], step: int, tag: str, text: str) -> None:
        if self._events is not None:
            self._events.add(step, scalars, [text_value(tag, text)])
            self._events.flush()

    def _show(self, value: Any, step: int) -> None:
        if self._events is not None:
            self._events.add(step, {}, [value])
            self._events.flush()

    def _sync(self) -> None:
        self._pay()
        if self._lines is not None and self._events is not None:
            sync(self._lines.fileno())
            self._events.flush()

    def _try(self, action: Callable[..., None], *args: object) -> None:
        if self._closed:
            return
        try:
            action(*args)
        except OSError as e:
            events, self._events = self._events, None  # half a record would hide those after it: a new file, later
            _close_quietly(events)
            if not self._failing:
                self._failing = True
                self._warn(
                    f"{self.logdir} cannot be written ({e}): training goes on, its records wait in memory; "
                    "TensorBoard will have a gap"
                )
            if len(self._owed) > _MOST_OWED:
                self._closed = True
                self._warn(f"tracking stopped: {self.logdir} could not be written for too long")


def _close_quietly(file: io.FileIO | EventFile | None) -> None:
    try:
        if file is not None:
            file.close()
    except OSError:  # what could not be written was reported already
        pass


def _markdown(incident: Incident) -> str:
    who = incident.culprit
    rows = [
        f"**{incident.cause}** at step {incident.step} (onset {incident.onset_step}, {incident.symptom}), "
        f"confidence {incident.confidence:.2f}: {incident.outcome}",
        f"culprit: component {who.component}, module {who.module}, images {who.image_ids}, "
        f"{annotation_words(who.annotation_ids) or 'no annotation'}",
        *(f"- {e.test}: {e.outcome}" + (f" → {e.supports}" if e.supports else "") for e in incident.evidence),
        f"action: {incident.action.kind} {to_json(incident.action.detail)}",
        f"fix: `{incident.fix}` · `{incident.explain}`",
    ]
    return "\n\n".join(rows)
