"""What training sees of what was annotated, and what keeps the rest out: counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from maskrcnn_coco.data.audit.boxes import sides_of
from maskrcnn_coco.data.coco.table import CocoTable

MIN_SIDE = 1.0
"""Boxes below this many pixels in the resized image are left out, with their masks: RoIAlign cannot learn from them."""


@dataclass(frozen=True)
class Targets:
    """Annotations, counted where they fall out, in this order; what remains is ``left``.

    Attributes:
        annotated: all. strays: of no image, or of no known category. left_out: with errors, or on images with errors.
        crowds: iscrowd 1. thin: under a pixel in the resized image. left: what training sees.
    """

    annotated: int
    strays: int
    left_out: int
    crowds: int
    thin: int
    left: int


def count_targets(
    table: CocoTable,
    bad_images: Iterable[int] = (),
    bad_annotations: Iterable[int] = (),
    *,
    min_size: int = 800,
    max_size: int = 1333,
) -> Targets:
    """How many annotations of ``table`` become training targets when these images and annotations are left out.

    Args:
        bad_images: image ids. bad_annotations: as in `CocoTable.ann_ids`. min_size, max_size: of the model, pixels.
    """
    rows = np.maximum(table.ann_image, 0)
    known = (table.ann_image >= 0) & (table.labels > 0)
    bad = np.isin(table.image_ids, list(bad_images))[rows] | np.isin(table.ann_ids, list(bad_annotations))
    width, height = sides_of(table)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scale = np.minimum(min_size / np.minimum(width, height), max_size / np.maximum(width, height))
        sides = table.boxes[:, 2:] * scale[:, None]
        thin = ((sides >= 0) & (sides < MIN_SIDE)).any(axis=1)  # below 0 is an error of its own
    left = np.ones(len(rows), bool)

    def fall_out(gone: np.ndarray) -> int:
        nonlocal left
        count = int((left & gone).sum())
        left = left & ~gone
        return count

    strays, left_out, crowds = fall_out(~known), fall_out(bad), fall_out(table.iscrowd)
    return Targets(len(rows), strays, left_out, crowds, fall_out(np.asarray(thin)), int(left.sum()))
