"""Masks equal pycocotools bit for bit on valid input, and invalid input is refused before anything is allocated."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest
from pycocotools import mask as reference

from maskrcnn_coco.data.masks import MAX_PIXELS, decode_mask, encode_rle, plain_polygons
from maskrcnn_coco.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside pycocotools


def random_mask(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    h, w = rng.integers(1, 40, 2)
    mask = (rng.random((h, w)) < rng.choice([0.02, 0.5, 0.98])).astype(np.uint8)
    return np.kron(mask, np.ones((25, 25), np.uint8)) if seed % 4 == 0 else mask


@pytest.mark.parametrize("seed", range(60))
def test_rle_equals_pycocotools(seed):
    mask = random_mask(seed)
    ours, theirs = encode_rle(mask), reference.encode(np.asfortranarray(mask))
    assert ours == {"size": theirs["size"], "counts": theirs["counts"].decode()}
    assert np.array_equal(decode_mask(json.dumps(ours).encode(), *mask.shape), mask)
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, len(flat)]).tolist()
    counts = [0, *counts] if flat[0] else counts
    assert np.array_equal(decode_mask({"size": list(mask.shape), "counts": counts}, *mask.shape), mask)


@pytest.mark.parametrize("seed", range(60))
def test_polygons_equal_pycocotools(seed):
    rng = Random(seed)
    h, w = rng.randint(5, 200), rng.randint(5, 200)
    parts = [
        [rng.uniform(-0.3, 1.3) * (h if i % 2 else w) for i in range(2 * rng.randint(3, 12))]
        for _ in range(rng.randint(1, 4))
    ]
    expected = reference.decode(reference.merge(reference.frPyObjects(parts, h, w)))
    found = decode_mask(json.dumps(parts), h, w)
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    assert np.array_equal(found, expected)


def test_parts_without_area_are_left_out_where_others_remain():
    square = [1, 1, 5, 1, 5, 5, 1, 5]
    assert np.array_equal(decode_mask([square, [0, 0, 9, 9], []], 9, 9), decode_mask([square], 9, 9))


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (None, "missing"),
        (b"", "missing"),
        ([], "empty"),
        ([[1, 2, 3]], "3 coordinates"),
        ([[1, 2, 3, 4]], "3 points"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not finite"),
        ([[1, 2, 3, 4, 5, 10**400]], "too large"),
        ([[1, 2, 3, 4, 5, 1e9]], "1e\\+09"),
        ([[1, 2, 3, 4, 5, "6"]], "other than numbers"),
        (b"[[1, 2, 3, 4, 5, 1e400]]", "range"),
        ({"size": [5, 7], "counts": [35]}, "size"),
        ({"size": [7, 5], "counts": [34]}, "add up to 34"),
        ({"size": [7, 5], "counts": [2**40, 1]}, "not a whole number in range"),
        ({"size": [7, 5], "counts": [-1, 36]}, "not a whole number in range"),
        ({"size": [7, 5], "counts": [0] * 1000}, "1000 runs"),
        ({"size": [7, 5], "counts": "oo"}, "damaged"),
        ({"size": [7, 5], "counts": "\x00"}, "damaged"),
        ({"size": [7, 5], "counts": "ooooooooo0"}, "35 bits"),
    ],
)
def test_refused(segmentation, words):
    with pytest.raises(DataError, match=words):
        decode_mask(segmentation, 7, 5)


@pytest.mark.parametrize("size", [(0, 5), (-1, 5), (MAX_PIXELS, 2), (2**33, 2**33)])
def test_sizes_that_cannot_be(size):
    with pytest.raises(DataError, match="image size"):
        decode_mask([[0, 0, 3, 0, 3, 3]], *size)


def test_a_long_outline_is_not_walked():
    with pytest.raises(DataError, match="outline"):
        decode_mask([[v for i in range(200_000) for v in (i % 2 * 300.0, i % 7)]], 100, 100)


ROOF = [2.5, 3.0, 30.0, 4.0, 28.0, 20.5, 9.0, 25.0]
DOOR = [31.0, 10.0, 38.0, 10.0, 38.0, 22.0]


def points(part: list[float]) -> list[list[float]]:
    return [part[i : i + 2] for i in range(0, len(part), 2)]


def named(part: list[float]) -> list[dict[str, float]]:
    return [{"x": x, "y": y} for x, y in points(part)]


@pytest.mark.parametrize(
    ("odd", "parts"),
    [
        (ROOF, [ROOF]),
        ([int(v) for v in ROOF], [[float(int(v)) for v in ROOF]]),
        (points(ROOF), [ROOF]),
        ([points(ROOF)], [ROOF]),
        ([points(ROOF), points(DOOR)], [ROOF, DOOR]),
        ([[points(ROOF)], [points(DOOR)]], [ROOF, DOOR]),
        ([[ROOF, DOOR]], [ROOF, DOOR]),
        ([ROOF, points(DOOR)], [ROOF, DOOR]),
        (named(ROOF), [ROOF]),
        ([named(ROOF), named(DOOR)], [ROOF, DOOR]),
        (points(DOOR), [DOOR]),
        ([points(DOOR)], [DOOR]),
    ],
)
def test_polygons_in_another_form_are_the_same_mask(odd, parts):
    wanted = reference.decode(reference.merge(reference.frPyObjects(parts, 30, 40)))
    assert np.array_equal(decode_mask(odd, 30, 40), wanted)
    assert np.array_equal(decode_mask(json.dumps(odd).encode(), 30, 40), wanted)
    assert plain_polygons(parts) is parts


@pytest.mark.parametrize(
    "odd", [[], [1, 2], [1, 2, 3, 4, 5], [[1, 2], [3, 4]], [[]], [None], ["a"], [[["a", 1]]], [{}]]
)
def test_what_is_no_form_of_polygon_is_refused(odd):
    with pytest.raises(DataError, match="segmentation cannot be used"):
        decode_mask(odd, 30, 40)
