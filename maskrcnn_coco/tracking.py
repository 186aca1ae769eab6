"""What a run writes while it goes: TensorBoard events and ``metrics.jsonl``. Imports no torch.

A tracker only looks. If it cannot write (disk full, folder gone) it warns once, stays silent from then on and never
raises: losing a curve must not lose a run.
"""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from maskrcnn_coco.records import EpochRecord, EvalRecord, Incident, StepRecord, number, to_json

METRICS = "metrics.jsonl"
UNDONE = "metrics_undone.jsonl"
"""Step lines that a roll-back or resume took out of `METRICS`: what those steps looked like the first time."""
_FLUSH_SECONDS = 5.0
_log = logging.getLogger(__name__)


class Tracker:
    """Writes records to ``logdir``.

    Tags, per step: ``loss/<name>``, ``loss/total``, ``lr/<component>``, ``grad_norm/total``, ``grad_norm/<component>``,
    ``update_ratio/<component>``, ``loss_scale``, ``skipped``; per epoch: ``epoch/loss/<name>``, ``epoch/grad_norm``,
    ``epoch/images_per_second``, ``val/bbox/AP`` …, ``val/class/<name>/segm/AP``; per incident: ``incident/<CAUSE>``
    (a marker at the step) and a text.

    Args:
        logdir: the run's folder; created if need be.
        resume_step: the step the run goes on from; lines of ``metrics.jsonl`` from there on are dropped, and
            TensorBoard is told to forget its points from there on. None: a new run.
        warn: called once with one sentence when writing fails; default: the log.
    """

    def __init__(
        self, logdir: str | Path, resume_step: int | None = None, *, warn: Callable[[str], None] | None = None
    ) -> None:
        self.logdir = Path(logdir)
        self._warn = warn or _log.warning
        self._lines: io.BufferedWriter | None = None
        self._events: _EventFile | None = None
        self._count = 0
        self._try(self._open, resume_step)

    def _open(self, resume_step: int | None) -> None:
        self.logdir.mkdir(parents=True, exist_ok=True)
        path = self.logdir / METRICS
        if path.exists():
            _truncate(path, resume_step)
        self._lines = path.open("ab")
        self._events = _EventFile(self.logdir, resume_step)

    def step(self, record: StepRecord) -> None:
        """One planned step, applied or refused."""
        scalars = {f"loss/{k}": v for k, v in record.losses.items()} | {"loss/total": record.loss}
        scalars |= {f"lr/{k}": v for k, v in record.lr.items()}
        scalars |= {f"grad_norm/{k}": v for k, v in record.group_grad_norm.items()} | {
            "grad_norm/total": record.grad_norm
        }
        scalars |= {f"update_ratio/{k}": v for k, v in record.update_ratio.items()}
        scalars["skipped"] = 0.0 if record.applied else 1.0
        if record.loss_scale is not None:
            scalars["loss_scale"] = record.loss_scale
        self._try(self._write, record, scalars, record.step, False)

    def epoch(self, record: EpochRecord) -> None:
        """Means over one epoch."""
        scalars = {f"epoch/loss/{k}": v for k, v in record.losses.items()} | {"epoch/loss/total": record.loss}
        scalars |= {"epoch/grad_norm": record.grad_norm, "epoch/images_per_second": record.images_per_second}
        self._try(self._write, record, scalars, record.step, True)

    def eval(self, record: EvalRecord) -> None:
        """COCO metrics; a metric that is undefined (-1, no such ground truth) gets no point."""
        scalars = {f"val/{k}": v for k, v in record.metrics.items() if v >= 0}
        for name, values in record.per_class.items():
            scalars |= {f"val/class/{name}/{k}": v for k, v in values.items() if v >= 0}
        self._try(self._write, record, scalars, record.step, True)

    def incident(self, incident: Incident) -> None:
        """A marker at the incident's step, and a text with cause, culprit, action and fix."""
        self._count += 1
        scalars = {f"incident/{incident.cause}": 1.0, "incident/count": float(self._count)}
        self._try(self._mark, scalars, incident.step, f"incident/{incident.id}", _markdown(incident))

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Free text for TensorBoard's text tab, such as the settings with their reasons."""
        self._try(self._mark, {}, step, tag, markdown)

    def flush(self) -> None:
        """Everything written so far is on disk when this returns."""
        self._try(self._sync)

    def close(self) -> None:
        """Flush and close; nothing is written after it."""
        self._try(self._sync)
        self._try(self._close)
        self._lines = self._events = None

    def _write(self, record: StepRecord | EpochRecord | EvalRecord, scalars: dict[str, float], step: int, sync: bool):
        if self._lines is None or self._events is None:
            return
        self._lines.write(to_json(record).encode() + b"\n")
        self._lines.flush()  # one line is one write, so that a reader or a crash sees whole lines
        self._events.add(step, scalars)
        if sync:
            self._sync()

    def _mark(self, scalars: dict[str, float], step: int, tag: str, text: str) -> None:
        if self._events is not None:
            self._events.add(step, scalars, (tag, text))
            self._events.flush()

    def _sync(self) -> None:
        if self._lines is not None and self._events is not None:
            self._lines.flush()
            os.fsync(self._lines.fileno())
            self._events.flush()

    def _close(self) -> None:
        for file in (self._lines, self._events):
            if file is not None:
                file.close()

    def _try(self, action: Callable[..., None], *args: object) -> None:
        try:
            action(*args)
        except (OSError, ValueError) as e:  # ValueError: write to a file that an earlier failure closed
            files, self._lines, self._events = (self._lines, self._events), None, None
            for file in files:
                _close_quietly(file)
            self._warn(f"tracking stopped, training goes on: {self.logdir} cannot be written ({e})")


def _close_quietly(file: io.BufferedWriter | _EventFile | None) -> None:
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
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{self._made}"
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
        f"annotations {who.annotation_ids}",
        *(f"- {e.test}: {e.outcome}" + (f" → {e.supports}" if e.supports else "") for e in incident.evidence),
        f"action: {incident.action.kind} {to_json(incident.action.detail)}",
        f"fix: `{incident.fix}` · `{incident.explain}`",
    ]
    return "\n\n".join(rows)


def _truncate(path: Path, resume_step: int | None) -> None:
    """Repair a torn last line; with ``resume_step``, drop what the resumed run will write again. Atomic."""
    raw = path.read_bytes()
    entries = list(_entries(raw))
    kept = entries if resume_step is None else _before(entries, resume_step)
    clean = b"".join(line + b"\n" for line, _ in kept)
    if clean == raw:
        return
    gone = [line for line, d in entries if d.get("kind") == "step" and d.get("step", 0) >= (resume_step or 0)]
    if resume_step is not None and gone:
        with path.with_name(UNDONE).open("ab") as f:
            f.write(b"".join(line + b"\n" for line in gone))
    part = path.with_name(path.name + ".part")
    with part.open("wb") as f:
        f.write(clean)
        f.flush()
        os.fsync(f.fileno())
    part.replace(path)


def _entries(raw: bytes) -> Iterable[tuple[bytes, dict[str, Any]]]:
    for line in raw.split(b"\n"):
        try:
            data = json.loads(line)
        except ValueError:  # empty, or torn by a crash
            continue
        if isinstance(data, dict):
            yield line, data


def _before(entries: list[tuple[bytes, dict[str, Any]]], step: int) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines of what happened before planned step ``step``.

    A step line counts by its step. An epoch or eval line speaks of a whole epoch: it goes if its step lies past
    ``step`` or its epoch has step lines that go.
    """
    gone = {d.get("epoch") for _, d in entries if d.get("kind") == "step" and d.get("step", 0) >= step}

    def stays(d: dict[str, Any]) -> bool:
        if d.get("kind") == "step":
            return d.get("step", 0) < step
        return d.get("step", 0) <= step and d.get("epoch") not in gone

    return [(line, d) for line, d in entries if stays(d)]


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl`` in order, as dicts; a torn line is left out, no file is an empty list.

    The strings "nan", "inf" and "-inf" become floats again. A rolled-back step stands there once for each time it ran.
    """
    path = Path(path)
    if not path.exists():
        return []
    return [_floats(data) for _, data in _entries(path.read_bytes())]


def _floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _floats(v) for k, v in value.items()}
    return number(value) if value in ("nan", "inf", "-inf") else value
