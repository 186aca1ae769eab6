"""What a TIFF file is: pages, bands and kinds of numbers, from its directories alone: nothing is decoded."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

_MAX_PAGES = 10_000
_MAX_TAGS = 4096
_KINDS = {1: "unsigned", 2: "signed", 3: "float", 5: "complex", 6: "complex"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 16: 8}
_CODES = {1: "B", 2: "B", 3: "H", 4: "I", 16: "Q"}


@dataclass(frozen=True)
class TiffFacts:
    """Of the first page: ``bands`` a pixel, ``bits`` a band, ``kind`` of number. ``pages``: in the file."""

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
            tags, at = _directory(file, at, order, big, values=first is None)
            first = first if first is not None else tags
            pages += 1
    except (struct.error, OSError, ValueError, OverflowError):
        return None
    if first is None:
        return None
    bits = first.get(258, 1)
    return TiffFacts(pages, first.get(277, 1), bits, _KINDS.get(first.get(339, 1), "unsigned"))


def _directory(file: BinaryIO, at: int, order: str, big: bool, *, values: bool) -> tuple[dict[int, int], int]:
    """The first value of each tag of interest of the directory at ``at``, and where the next one is."""
    file.seek(at)
    count = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))[0]
    if count > _MAX_TAGS:
        raise ValueError("a directory of absurd length")
    size = 20 if big else 12
    data = file.read(count * size)
    following = struct.unpack(order + ("Q" if big else "I"), file.read(8 if big else 4))[0]
    tags: dict[int, int] = {}
    for n in range(count if values else 0):
        tag, kind = struct.unpack_from(order + "HH", data, n * size)
        if tag in (258, 277, 339) and kind in _SIZES:
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
