"""The entries of a COCO file as typed records."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import msgspec

INT_LIMIT = 2**62
"""Ids beyond this are refused: they do not fit the int64 columns."""
UNKNOWN = -(2**63)
"""Stands for an image or category id that could not be read."""
SIDE_LIMIT = 2**20
"""An image side beyond this many pixels is a typing error or an attack."""

Box = tuple[float, float, float, float]
NO_BOX: Box = (math.nan, math.nan, math.nan, math.nan)


class ImageEntry(msgspec.Struct, gc=False):
    """One entry of ``images``. Sizes in pixels, 0 where the file gives none. LVIS has addresses in place of names."""

    id: int
    file_name: str = ""
    height: int = 0
    width: int = 0
    coco_url: str = ""

    @property
    def name(self) -> str:
        """What names the file: ``file_name``, or the address where there is none."""
        return self.file_name or self.coco_url


class AnnotationEntry(msgspec.Struct, gc=False):
    """One entry of ``annotations``; ``bbox`` is xywh in pixels."""

    id: int
    image_id: int
    category_id: int
    bbox: Box
    segmentation: msgspec.Raw = msgspec.Raw(b"")
    area: float = math.nan
    iscrowd: int | bool = 0


class CategoryEntry(msgspec.Struct, gc=False):
    """One entry of ``categories``."""

    id: int
    name: str
    supercategory: str | None = None


@dataclass(frozen=True)
class Problem:
    """Something in the file that did not fit, found while reading; `audit` turns it into a finding.

    ``code`` is the finding's; ``image_id`` and ``annotation_id`` are None where unknown; ``text`` says what was found.
    ``annotation_id`` is as in `CocoTable.ann_ids`; while reading, when those are not known, the place, -(n + 1).
    """

    code: str
    image_id: int | None
    annotation_id: int | None
    text: str


@dataclass
class Entries:
    """The three lists of a COCO file, and what did not fit."""

    images: list[ImageEntry]
    annotations: list[AnnotationEntry]
    categories: list[CategoryEntry]
    problems: list[Problem] = field(default_factory=list)


ABSENT = msgspec.Raw(b"")
"""A field that the entry does not have."""
