"""A TensorBoard event file, and the values that may stand in one. Imports no torch."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

_FLUSH_SECONDS = 5.0


class EventFile:
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

    def add(self, step: int, scalars: dict[str, float], more: Sequence[Any] = ()) -> None:
        """Scalars, and other values made by the functions below, at ``step``."""
        Summary = _proto("summary").Summary  # noqa: N806
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._put(self._event(wall_time=time.time(), step=step, summary=Summary(value=[*values, *more])))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def _put(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())

    def flush(self) -> None:
        """Hand what was added to the system."""
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def text_value(tag: str, markdown: str) -> Any:
    """Markdown for the text tab."""
    shapes, summary = _proto("tensor_shape").TensorShapeProto, _proto("summary")
    shape = shapes(dim=[shapes.Dim(size=1)])
    tensor = _proto("tensor").TensorProto(dtype="DT_STRING", string_val=[markdown.encode()], tensor_shape=shape)
    metadata = summary.SummaryMetadata(plugin_data=summary.SummaryMetadata.PluginData(plugin_name="text"))
    return summary.Summary.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=tensor)


def image_value(tag: str, picture: bytes, size: tuple[int, int]) -> Any:
    """An encoded RGB picture of ``size`` (height, width) for the images tab."""
    summary = _proto("summary").Summary
    image = summary.Image(height=size[0], width=size[1], colorspace=3, encoded_image_string=picture)
    return summary.Value(tag=tag, image=image)


def hyperparameters(settings: Mapping[str, Any]) -> Any:
    """Settings for the hparams tab: numbers, flags and text as they are, anything else as text; None is left out."""
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    known = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in settings.items() if v is not None}
    return hparams_pb(known).value[0]


def _proto(name: str) -> Any:
    # Generated modules: their classes exist only at run time, so no type checker sees them.
    return import_module(f"tensorboard.compat.proto.{name}_pb2")


def _after_all(logdir: Path) -> int:
    """Seconds for the name of a new event file: now, or later than every older file says.

    TensorBoard reads files in the order of their names. A file that tells it to forget steps must come after those that
    hold them, though both are of one second, or another machine's clock was ahead.
    """
    older = [p.name.split(".")[3] for p in logdir.glob("events.out.tfevents.*.*")]
    return max([int(time.time()), *(int(s) + 1 for s in older if s.isascii() and s.isdigit() and len(s) == 10)])
