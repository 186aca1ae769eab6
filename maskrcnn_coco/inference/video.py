"""Frames of a video, one after the other, by PyAV (an optional extra)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from maskrcnn_coco.errors import ConfigError, DataError
from maskrcnn_coco.wording import clean


def frames(path: Path) -> Iterator[np.ndarray]:
    """The frames of a video file, uint8 (H, W, 3) RGB each, read as they are asked for.

    Raises:
        ConfigError: PyAV is not installed. DataError: not a video, or nothing in it can be decoded.
    """
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise ConfigError(
            f"{clean(path)} is a video: reading it needs PyAV", got=e, fix="pip install 'maskrcnn-coco[video]'"
        ) from e
    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{clean(path)} has no pictures in it", expected="a video")
            for frame in container.decode(video=0):
                count += 1
                yield frame.to_ndarray(format="rgb24")
    except av.FFmpegError as e:
        raise DataError(
            f"the video {clean(path)} cannot be read{f' after {count} frames' if count else ''}: {clean(e)}",
            fix="convert it, for example to .mp4",
        ) from e
