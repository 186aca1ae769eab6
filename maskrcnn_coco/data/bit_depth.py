"""Images of more than 8 bits a channel: their values, and one scale that turns those of a whole set into bytes.

Scaled one by one, two frames of one camera come out with other brightness, and the dimmer one may be black. So a set
has one scale: the range that its values fill, or the full range of 8, 10, 12, 14 or 16 bits where they fill half of it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

_BITS = (8, 10, 12, 14, 16)
_FLOAT_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 4095.0), (0.0, 65535.0))
_SLACK = 0.02
"""What filters and resampling overshoot a range by, as a share of it."""
_TAIL = 0.1
"""Percent of an image's pixels, at either end, that do not set the range: dead and hot pixels, reflections."""
_VALUES = 250_000
"""Pixels of an image that its percentiles are taken from."""


class BitRange(NamedTuple):
    """Values that become 0 and 255; what is outside is clipped."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{_plain(self.low)}..{_plain(self.high)}"

    @property
    def flag(self) -> str:
        """As ``--bit-range`` takes it."""
        return f"{_plain(self.low)},{_plain(self.high)}"


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def is_deep(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet has more than 8 bits a channel; 16-bit RGB only shows in its tiles."""
    return image.mode.startswith("I") or image.mode == "F" or _swapped(image) is not None


def _swapped(image: Image.Image) -> list | None:
    """The tiles of 16-bit RGB with the bytes of each number exchanged; None where it is not that, or has no such mode.

    Pillow keeps the upper byte of such numbers. Read once as they are and once exchanged, both bytes are there.
    """
    tiles = []
    for tile in getattr(image, "tile", None) or ():
        args = tile[3]
        raw = args if isinstance(args, str) else args[0] if isinstance(args, tuple) and args else ""
        mode, _, order = str(raw).partition(";16")
        if mode not in ("RGB", "RGBA", "RGBX") or order not in ("L", "B", "N"):
            return None
        other = f"{mode};16{_OTHER[order]}"
        tiles.append(type(tile)(*tile[:3], other if isinstance(args, str) else (other, *args[1:])))
    return tiles or None


_OTHER = {"L": "B", "B": "L", "N": "B" if np.little_endian else "L"}


def deep_values(file: BinaryIO, image: Image.Image, formats: tuple[str, ...]) -> np.ndarray:
    """The numbers of a deep image, turned as its EXIF orientation says: (H, W), or uint16 (H, W, 3).

    Args:
        file: what ``image`` was opened from; it is read a second time for 16-bit RGB.
        image: not loaded yet.
        formats: that Pillow may try.
    """
    tiles = _swapped(image)
    if tiles is None:
        image.load()
        return np.asarray(ImageOps.exif_transpose(image))
    upper = _bytes_of(image)
    file.seek(0)
    again = Image.open(file, formats=formats)
    again.tile = tiles  # pyright: ignore[reportAttributeAccessIssue]
    return (upper.astype(np.uint16) << 8) | _bytes_of(again)


def _bytes_of(image: Image.Image) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image.load()
        return np.asarray(ImageOps.exif_transpose(image))[:, :, :3]


def to_bytes(values: np.ndarray, scale: BitRange) -> np.ndarray:
    """``values`` as uint8 (H, W, 3): ``scale.low`` is 0, ``scale.high`` 255; NaN and infinities are 0."""
    data = np.nan_to_num(values.astype(np.float64), nan=scale.low, posinf=scale.low, neginf=scale.low)
    bytes_ = np.clip(np.rint((data - scale.low) * (255.0 / (scale.high - scale.low))), 0, 255).astype(np.uint8)
    return bytes_ if bytes_.ndim == 3 else np.repeat(bytes_[:, :, None], 3, axis=2)


@dataclass(frozen=True)
class Spread:
    """Of one image: the range without its tails, smallest and largest value, and whether they are whole numbers."""

    low: float
    high: float
    smallest: float
    largest: float
    whole: bool


def spread_of(values: np.ndarray) -> Spread | None:
    """The `Spread` of an image's numbers; None where none of them is finite."""
    flat = values.reshape(-1)
    flat = flat[:: max(1, flat.size // _VALUES)]
    whole = values.dtype.kind in "iu"
    if not whole:
        flat = flat[np.isfinite(flat)]
    if not flat.size:
        return None
    low, high = (float(v) for v in np.percentile(flat, [_TAIL, 100 - _TAIL], method="nearest"))
    return Spread(low, high, float(flat.min()), float(flat.max()), whole)


def auto_range(spreads: Iterable[Spread]) -> BitRange:
    """One scale for all images that ``spreads`` tell of; 0..255 where there is none, or nothing but one value."""
    seen = list(spreads)
    low, high = min((s.low for s in seen), default=0.0), max((s.high for s in seen), default=255.0)
    if low >= high:  # objects of a few pixels on nothing: all that is not equal is in the tails
        low, high = min((s.smallest for s in seen), default=0.0), max((s.largest for s in seen), default=255.0)
    if low >= high:
        return BitRange(0.0, 255.0) if 0 <= low <= 255 else BitRange(low - 1.0, low + 1.0)
    whole = all(s.whole for s in seen)
    usual = _whole_range(low, high) if whole else _float_range(low, high)
    if usual is not None:
        return usual
    if whole:
        return BitRange(math.floor(low), math.ceil(high))
    digits = 3 - math.floor(math.log10(high - low))
    return BitRange(round(low, digits), round(high, digits))


def _whole_range(low: float, high: float) -> BitRange | None:
    full = next((2.0**n - 1 for n in _BITS if high <= 2**n - 1), None)
    return BitRange(0.0, full) if full is not None and low >= 0 and high - low >= full / 2 else None


def _float_range(low: float, high: float) -> BitRange | None:
    for first, last in _FLOAT_RANGES:
        slack = _SLACK * (last - first)
        if low >= first - slack and high <= last + slack and high - low >= (last - first) / 2:
            return BitRange(first, last)
    return None
