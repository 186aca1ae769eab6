"""What a run writes while it goes: TensorBoard events and ``metrics.jsonl``. Imports no torch.

A tracker only looks. If it cannot write (disk full, folder gone) it warns, keeps the lines of ``metrics.jsonl`` in
memory until it can, and never raises: losing a curve must not lose a run.
"""

from __future__ import annotations

import io
import logging
import os
import socket
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from maskrcnn_coco.records import EpochRecord, EvalRecord, Incident, StepRecord, to_json
from maskrcnn_coco.report.metrics_file import METRICS, cut, truncate
from maskrcnn_coco.report.scalars import scalars_of
from maskrcnn_coco.system.files import sync
from maskrcnn_coco.wording import annotation_words

_FLUSH_SECONDS = 5.0
_MOST_OWED = 64 << 20
"""Bytes of lines that wait in memory while the disk takes none."""
_log = logging.getLogger(__name__)


class Tracker:
    """Writes records to ``logdir``.

    Tags, per step: ``loss/<name>``, ``loss/total``, ``lr/<component>``, ``grad_norm/total``, ``grad_norm/<component>``,
    ``update_ratio/<component>``, ``loss_scale``, ``skipped``; per epoch: ``epoch/loss/<name>``, ``epoch/grad_norm``,
    ``epoch/images_per_second``, ``val/bbox/AP`` …, ``val/loss/<name>``, ``val/class/<name>/segm/AP``; per incident:
    ``incident/<CAUSE>`` (a marker at the step) and a text.

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
        self._events: _EventFile | None = None
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
        self._events = _EventFile(self.logdir, self._resume[0])

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
            self._events = _EventFile(self.logdir, None)
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
        self._events = _EventFile(self.logdir, step)

    def _mark(self, scalars: dict[str, float], step: int, tag: str, text: str) -> None:
        if self._events is not None:
            self._events.add(step, scalars, (tag, text))
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


def _after_all(logdir: Path) -> int:
    """Seconds for the name of a new event file: now, or later than every older file says.

    TensorBoard reads files in the order of their names. A file that tells it to forget steps must come after those that
    hold them, though both are of one second, or another machine's clock was ahead.
    """
    older = [p.name.split(".")[3] for p in logdir.glob("events.out.tfevents.*.*")]
    return max([int(time.time()), *(int(s) + 1 for s in older if s.isascii() and s.isdigit() and len(s) == 10)])


def _close_quietly(file: io.FileIO | _EventFile | None) -> None:
    try:
        if file is not None:
            file.close()
    except OSError:  # what could not be written was reported already
        pass


class _EventFile:
    """One TensorBoard event file, written in this thread (TensorBoard's own writer dies in a thread of its own)."""

    _made = 0

    def __init__(self, logdir: Path, purge_step: int | None) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        type(self)._made += 1
        name = f"events.out.tfevents.{_after_all(logdir):010d}.{socket.gethostname()}.{os.getpid()}.{self._made:06d}"
        self._file = (logdir / name).open("ab")
        self._writer = RecordWriter(self._file)
        proto = _proto("event")
        self._event = proto.Event
        self._flushed = 0.0
        self._put(proto.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            # TensorBoard forgets the points of earlier files from this step on.
            start = proto.SessionLog(status=proto.SessionLog.START)
            self._put(proto.Event(wall_time=time.time(), step=purge_step, session_log=start))
        self.flush()

    def add(self, step: int, scalars: dict[str, float], text: tuple[str, str] | None = None) -> None:
        Summary = _proto("summary").Summary  # noqa: N806
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        if text is not None:
            values.append(_text_value(*text))
        self._put(self._event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def _put(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())

    def flush(self) -> None:
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()


def _text_value(tag: str, markdown: str) -> Any:
    shapes, summary = _proto("tensor_shape").TensorShapeProto, _proto("summary")
    shape = shapes(dim=[shapes.Dim(size=1)])
    tensor = _proto("tensor").TensorProto(dtype="DT_STRING", string_val=[markdown.encode()], tensor_shape=shape)
    metadata = summary.SummaryMetadata(plugin_data=summary.SummaryMetadata.PluginData(plugin_name="text"))
    return summary.Summary.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=tensor)


def _proto(name: str) -> Any:
    # Generated modules: their classes exist only at run time, so no type checker sees them.
    return import_module(f"tensorboard.compat.proto.{name}_pb2")


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
