"""What a TIFF file is: pages, bands and kinds of numbers, from its directories alone: nothing is decoded."""

from __future__ import annotations

import shlex
import struct
from dataclasses import dataclass
from typing import BinaryIO

_MAX_PAGES = 10_000
_MAX_TAGS = 4096
_KINDS = {1: "unsigned", 2: "signed", 3: "float", 5: "complex", 6: "complex"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 16: 8}
_TAGS = (254, 256, 257, 258, 277, 339)
"""What a page is, width, height, bits, bands, kind of number."""
_CODES = {1: "B", 2: "B", 3: "H", 4: "I", 16: "Q"}


@dataclass(frozen=True)
class TiffFacts:
    """Of the first page: ``bands`` a pixel, ``bits`` a band, ``kind`` of number.

    ``pages``: in the file, but for smaller copies of the first, as pyramids have them, and masks of transparency.
    """

    pages: int
    bands: int
    bits: int
    kind: str

    def __str__(self) -> str:
        bands = "one band" if self.bands == 1 else f"{self.bands} bands"
        return f"{bands} of {self.bits}-bit {self.kind} numbers"


def tiff_facts(file: BinaryIO) -> TiffFacts | None:
    """The facts of an open file; None where it is no TIFF, or is damaged."""
    try:
        file.seek(0)
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None:
            return None
        magic = struct.unpack_from(order + "H", head, 2)[0]
        if magic not in (42, 43):
            return None
        big = magic == 43
        at = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)[0]
        first, pages, seen = None, 0, set()
        while at and at not in seen and pages < _MAX_PAGES:
            seen.add(at)
            tags, at = _directory(file, at, order, big)
            first = first if first is not None else tags
            pages += not _is_beside(tags, first)
    except (struct.error, OSError, ValueError, OverflowError):
        return None
    if first is None:
        return None
    bits = first.get(258, 1)
    return TiffFacts(max(pages, 1), first.get(277, 1), bits, _KINDS.get(first.get(339, 1), "unsigned"))


_REDUCED, _TRANSPARENCY = 1, 4
"""Bits of NewSubfileType."""


def _is_beside(tags: dict[int, int], first: dict[int, int]) -> bool:
    """Whether a page is no picture of its own: it says so, or is smaller than the first one in both directions."""
    smaller = all(0 < tags.get(side, 0) < first.get(side, 0) for side in (256, 257))
    return smaller or bool(tags.get(254, 0) & (_REDUCED | _TRANSPARENCY))


SPLIT = (
    'python -c "import sys; from PIL import Image, ImageSequence as S; '
    "[p.save(f'{sys.argv[1]}_{n:03}.tif') for n, p in enumerate(S.Iterator(Image.open(sys.argv[1])))]\" {file}"
)
"""The command that saves each page of ``{file}`` as a file of its own."""


def split_command(file: str) -> str:
    """`SPLIT` for a file, its name quoted."""
    return SPLIT.replace("{file}", shlex.quote(file))


def _directory(file: BinaryIO, at: int, order: str, big: bool) -> tuple[dict[int, int], int]:
    """The first value of each tag of interest of the directory at ``at``, and where the next one is."""
    file.seek(at)
    count = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))[0]
    if count > _MAX_TAGS:
        raise ValueError("a directory of absurd length")
    size = 20 if big else 12
    data = file.read(count * size)
    following = struct.unpack(order + ("Q" if big else "I"), file.read(8 if big else 4))[0]
    tags: dict[int, int] = {}
    for n in range(count):
        tag, kind = struct.unpack_from(order + "HH", data, n * size)
        if tag in _TAGS and kind in _SIZES:
            tags[tag] = _first_value(file, data, n * size, order, big, kind)
    return tags, following


def _first_value(file: BinaryIO, data: bytes, at: int, order: str, big: bool, kind: int) -> int:
    room, place = (8, at + 12) if big else (4, at + 8)
    number = struct.unpack_from(order + ("Q" if big else "I"), data, at + 4)[0]
    field = data[place : place + room]
    if number * _SIZES[kind] > room:
        file.seek(struct.unpack(order + ("Q" if big else "I"), field)[0])
        field = file.read(_SIZES[kind])
    return struct.unpack_from(order + _CODES[kind], field)[0]
