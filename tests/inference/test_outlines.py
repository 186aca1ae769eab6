"""Outlines: exact ones give their mask back, simple ones hardly change it; holes are holes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn_coco.inference.outlines import polygons_of, signed_area


def filled(polygons: list[list[np.ndarray]], height: int, width: int) -> np.ndarray:
    """Even-odd filling at the middle of each pixel."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), bool)
    for ring in (r for p in polygons for r in p):
        ends = np.roll(ring, -1, 0)
        for (ax, ay), (bx, by) in zip(ring, ends, strict=True):
            if ay != by:
                crosses = (ay > y) != (by > y)
                inside ^= crosses & (x < ax + (y - ay) * (bx - ax) / (by - ay))
    return inside


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.floats(0.1, 0.95))
def test_exact_outlines_give_the_mask_back(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    polygons = polygons_of(mask, tolerance=0)
    assert (filled(polygons, height, width) == mask).all()
    assert sum(signed_area(r) for p in polygons for r in p) == mask.sum()
    for outer, *holes in polygons:
        assert signed_area(outer) > 0
        assert all(signed_area(h) < 0 for h in holes)


def test_a_hole_belongs_to_the_object_around_it() -> None:
    mask = np.zeros((30, 30), bool)
    mask[2:28, 2:28] = True
    mask[6:24, 6:24] = False
    mask[10:20, 10:20] = True
    mask[13:16, 13:16] = False
    polygons = polygons_of(mask, 100, 200, tolerance=0)
    assert [len(p) for p in polygons] == [2, 2]
    assert polygons[0][0].min(0).tolist() == [102, 202]
    assert abs(signed_area(polygons[0][1])) == 18 * 18
    assert abs(signed_area(polygons[1][1])) == 9


@pytest.mark.parametrize("radius", [2, 4, 9, 40])
def test_simple_outlines_hardly_change_the_mask(radius: int) -> None:
    y, x = np.mgrid[: 3 * radius, : 3 * radius]
    mask = (y - 1.4 * radius) ** 2 + (x - 1.4 * radius) ** 2 <= radius**2
    exact, simple = polygons_of(mask, tolerance=0)[0][0], polygons_of(mask)[0][0]
    assert len(simple) <= len(exact)
    drawn = filled([[simple]], *mask.shape)
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.93
    if radius >= 9:
        assert len(simple) < 0.7 * len(exact)


def test_an_empty_mask_has_no_outline() -> None:
    assert polygons_of(np.zeros((0, 0), bool)) == []
    assert polygons_of(np.zeros((4, 4), bool)) == []
