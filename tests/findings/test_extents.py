"""Boxes against their masks' extents: the true reading wins, and a true set has none."""

from __future__ import annotations

import numpy as np
import pytest

from maskrcnn_coco.findings.extents import Objects, agree, amodal, geometry_of, overlap

RNG = np.random.default_rng(0)
NEAR = RNG.uniform(5, 60, (40, 2))
EXTENTS = np.hstack([NEAR, NEAR + RNG.uniform(12, 40, (40, 2))])
SIZES = np.tile([120.0, 160.0], (40, 1))  # height, width


def objects(boxes: np.ndarray, extents: np.ndarray = EXTENTS) -> Objects:
    return Objects(boxes, extents, SIZES, np.arange(len(boxes)))


def test_overlap_is_iou_and_none_of_inverted_boxes() -> None:
    a = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [10, 10, 0, 0], [0, 0, 4, 4]], float)
    b = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [0, 0, 10, 10], [np.nan] * 4], float)
    assert overlap(a, b).tolist() == pytest.approx([1.0, 1 / 3, 0.0, 0.0])


def test_a_true_set_agrees_and_no_reading_is_offered() -> None:
    found = geometry_of(objects(EXTENTS + RNG.uniform(-0.4, 0.4, EXTENTS.shape)))
    assert (found.measured, found.agree, found.disagree, found.readings) == (40, 40, 0, {})


WIDE = np.array([160, 120, 160, 120.0])
WRONG = {
    "boxes as x, y, width, height": np.hstack([NEAR, EXTENTS[:, 2:] - NEAR]),
    "boxes as centre and size": np.hstack([(NEAR + EXTENTS[:, 2:]) / 2, EXTENTS[:, 2:] - NEAR]),
    "x and y of boxes exchanged": EXTENTS[:, [1, 0, 3, 2]],
    "boxes 0..1": EXTENTS / WIDE,
    "masks moved": EXTENTS - np.array([30, 25, 30, 25.0]),
    "boxes of another image size": EXTENTS * 2.5,
}


@pytest.mark.parametrize("reading", WRONG)
def test_each_wrong_form_is_recognised_by_the_reading_that_mends_it(reading: str) -> None:
    found = geometry_of(objects(WRONG[reading]))
    assert found.disagree >= 30, "most boxes do not fit as they are"
    assert max(found.readings, key=lambda r: found.readings[r]) == reading
    assert found.readings[reading] == found.disagree


def test_empty_masks_are_not_measured() -> None:
    extents = EXTENTS.copy()
    extents[:7] = np.nan
    assert geometry_of(objects(EXTENTS, extents)).measured == 33


def test_a_box_around_what_is_hidden_holds_its_mask() -> None:
    whole = EXTENTS + np.array([-9, -9, 9, 9.0])
    assert amodal(whole, EXTENTS).all() and not amodal(EXTENTS, whole).any()
    assert agree(EXTENTS + 1.5, EXTENTS).all()
