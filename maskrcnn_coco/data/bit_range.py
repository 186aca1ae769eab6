"""One scale for the deep images of a whole set: found from a sample of its files, or as it was given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_coco.config.settings import bit_range
from maskrcnn_coco.data.bit_depth import BitRange, Spread, auto_range, spread_of
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.images import is_deep_file, raw_values
from maskrcnn_coco.errors import ConfigError, DataError

_LOOKED_AT = 3000
"""Headers that are read, most: 0.1 s."""
_DECODED = 48
"""Deep images that are decoded for their range, most: about a second of 2048 × 2048."""


@dataclass(frozen=True)
class Depth:
    """``scale`` of a set, None where none of its images is deep; ``deep`` of ``looked`` files that were looked at."""

    scale: BitRange | None
    deep: int
    looked: int
    low: float = 0.0
    high: float = 0.0

    def sentence(self, given: str | None = None) -> str:
        """What a person should know about it; ``given``: where the scale comes from, if it was not found here."""
        which = f"{self.deep} of {self.looked} images looked at have more than 8 bits"
        if given is not None:
            return f"{which}: {self.scale} becomes 0..255, as {given}"
        return (
            f"{which}, with values {_short(self.low)} to {_short(self.high)}: {self.scale} becomes 0..255 for the "
            "whole set; --bit-range LOW,HIGH chooses otherwise"
        )


def _short(value: float) -> str:
    return f"{value:.6g}"


def find_depth(files: Sequence[tuple[Path, str]], given: BitRange | None = None) -> Depth:
    """Look at ``files``, a folder and a name below it each; those that cannot be read are passed over."""
    looked = [files[i] for i in _spread_out(len(files), _LOOKED_AT)]
    deep = [file for file in looked if _is_deep(*file)]
    if not deep:
        return Depth(None, 0, len(looked))
    if given is not None:
        return Depth(given, len(deep), len(looked))
    spreads = [s for i in _spread_out(len(deep), _DECODED) if (s := _spread(*deep[i])) is not None]
    smallest, largest = min((s.smallest for s in spreads), default=0), max((s.largest for s in spreads), default=0)
    return Depth(auto_range(spreads), len(deep), len(looked), smallest, largest)


def with_depth(
    table: CocoTable, given: BitRange | None = None, source: str = "--bit-range says"
) -> tuple[CocoTable, str | None]:
    """``table`` with the scale of its deep images, and what to say about it; None where no image is deep.

    Args:
        given: the scale to use, from ``source``, in words that go on after "as"; None: it is found.
    """
    depth = find_depth([(table.image_root, name) for name in table.names.decoded()], given)
    if depth.scale is None:
        return replace(table, bit_range=given), None
    return replace(table, bit_range=depth.scale), depth.sentence(None if given is None else source)


def saved_range(contents: Mapping[str, Any]) -> BitRange | None:
    """The scale that a checkpoint holds; None where it was trained on images of 8 bits, or before there was one."""
    kept = contents.get("bit_range")
    if not isinstance(kept, (list, tuple)) or len(kept) != 2 or not all(isinstance(v, (int, float)) for v in kept):
        return None
    low, high = float(kept[0]), float(kept[1])
    return BitRange(low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None


def given_range(text: str) -> BitRange | None:
    """``--bit-range`` as a range; None for "auto".

    Raises:
        ConfigError: it is neither.
    """
    try:
        parts = bit_range(text)
    except ValueError as e:
        raise ConfigError(f"--bit-range: {e}", fix="--bit-range auto, or for example --bit-range 0,4095") from e
    return None if parts is None else BitRange(*parts)


def _spread_out(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)).tolist() if count else []


def _is_deep(root: Path, name: str) -> bool:
    try:
        return is_deep_file(root, name)
    except DataError:
        return False


def _spread(root: Path, name: str) -> Spread | None:
    try:
        values = raw_values(root, name)
    except DataError:
        return None
    return None if values is None else spread_of(values)
