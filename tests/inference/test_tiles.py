"""Tiles: an image cut up and put together has the objects of the whole image."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from colours import picture, predictor

from maskrcnn_coco.data.tile_grid import grid
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.inference import tiles as tiling
from maskrcnn_coco.inference.detections import Found, Window, found_of
from maskrcnn_coco.inference.tiles import check_overlap, merge, tile_side


@pytest.mark.parametrize("size", [(200, 300), (64, 500), (97, 97), (500, 33)])
@pytest.mark.parametrize("side", [32, 64, 100])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_tiles_cover_the_image_and_are_of_one_size(size: tuple[int, int], side: int, overlap: float) -> None:
    height, width = size
    tiles = grid(height, width, side, overlap)
    seen = np.zeros(size, int)
    for x0, y0, x1, y1 in tiles:
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        seen[y0:y1, x0:x1] += 1
    assert seen.min() >= 1
    assert len({(x1 - x0, y1 - y0) for x0, y0, x1, y1 in tiles}) == 1
    starts = sorted({t[0] for t in tiles})
    if len(starts) > 1:
        assert max(np.diff(starts)) <= side * (1 - overlap) + 1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("side", "overlap"), [(64, 0.25), (96, 0.1), (48, 0.5)])
def test_the_objects_of_the_whole_image_come_back(seed: int, side: int, overlap: float) -> None:
    # Discs of up to 60 pixels and bars of up to 120: larger than the overlap, and some larger than a tile.
    image = picture(230, 310, 14, seed)
    whole = predictor().predict(image)[0]
    tiled = predictor().predict(image, tile=side, overlap=overlap)[0]
    assert len(tiled) == len(whole)
    for mask, label, box in zip(whole.masks, whole.labels, whole.boxes, strict=True):
        ious = [(m & mask).sum() / (m | mask).sum() for m in tiled.masks]
        best = int(np.argmax(ious))
        assert ious[best] == 1.0
        assert tiled.labels[best] == label
        assert np.abs(tiled.boxes[best] - box).max() <= 1.0


def test_an_image_of_the_tiles_size_is_not_cut() -> None:
    p = predictor()
    p.predict(picture(90, 80, 3, 0), tile=64)[0]
    assert p.engine.seen == [(90, 80)]  # pyright: ignore[reportAttributeAccessIssue]


def test_auto_takes_the_side_the_model_knows() -> None:
    p = predictor(side=64)
    p.predict(picture(130, 130, 3, 0), tile="auto")[0]
    assert set(p.engine.seen) == {(64, 64)}  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("tile", ["big", 10, -5, "1e3", 100_000, 0.5, ""])
def test_a_side_that_is_none_is_refused(tile: object) -> None:
    with pytest.raises(ConfigError, match="--tile"):
        tile_side(tile, 64)  # type: ignore[arg-type]


@pytest.mark.parametrize("overlap", [-0.1, 0.76, 1, 64, float("nan"), "0.25", None, True, [0.25], 1j])
def test_an_overlap_that_is_none_is_refused(overlap: object) -> None:
    with pytest.raises(
        ConfigError, match=r"--overlap.*\n  got: .*\n  expected: 0 to 0.75.*\n  what to do: --overlap 0.25"
    ):
        check_overlap(overlap)  # type: ignore[arg-type]


def scattered(height: int, width: int, side: int, overlap: float, count: int) -> tuple[list[Any], list[Found]]:
    """Tiles, and in each of them ``count`` rectangles of two classes anywhere, one of them empty."""
    rng, tiles = np.random.default_rng(0), grid(height, width, side, overlap)
    found = []
    for x0, y0, x1, y1 in tiles:
        sizes = rng.integers(4, 40, (count, 2))
        sizes[0] = 0
        corners = rng.integers(0, np.array([x1 - x0, y1 - y0]) - sizes)
        windows = [Window(int(x), int(y), np.ones((h, w), bool)) for (x, y), (w, h) in zip(corners, sizes, strict=True)]
        boxes = np.concatenate([corners, corners + sizes], 1)
        found.append(found_of(boxes, rng.uniform(0.1, 1, count), rng.integers(1, 3, count), windows))
    return tiles, found


def pieces_of(tiles: list[Any], found: list[Found], height: int, width: int) -> list[tiling._Piece]:
    both = enumerate(zip(tiles, found, strict=True))
    return [tiling._piece(n, tile, one, i, height, width) for n, (tile, one) in both for i in range(len(one))]


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.6, 0.75])
def test_pieces_that_meet_are_found_along_the_seams(overlap: float) -> None:
    """Whatever two masks have pixels in common, of one class and of two tiles, is compared: as all pairs would say."""
    tiles, found = scattered(300, 400, 100, overlap, 12)
    pieces = pieces_of(tiles, found, 300, 400)
    pairs = set(tiling._near_pairs(pieces, tiles))
    for a, b in combinations(range(len(pieces)), 2):
        p, q = pieces[a], pieces[b]
        alike = p.label == q.label and p.tile != q.tile
        assert ((a, b) in pairs) >= (alike and tiling._common(p.window, q.window) > 0)
        assert (a, b) not in pairs or alike


def test_a_large_image_does_not_compare_all_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, meet = [], tiling._meet
    monkeypatch.setattr(tiling, "_meet", lambda a, b: compared.append((r := meet(a, b)).size) or r)
    tiles, found = scattered(3000, 3000, 200, 0.25, 20)
    count = sum(len(f) for f in found)
    assert len(tiles) > 300
    assert len(merge(tiles, found, 3000, 3000)) < count
    assert sum(compared) < 0.02 * count * count / 2


def block(x0: int, y0: int, x1: int, y1: int, score: float = 0.9, label: int = 1) -> Found:
    window = Window(x0, y0, np.ones((y1 - y0, x1 - x0), bool))
    return found_of([[x0, y0, x1, y1]], [score], [label], [window])


TILES = [(0, 0, 100, 100), (60, 0, 160, 100)]


def test_a_whole_view_comes_before_a_part() -> None:
    merged = merge(TILES, [block(70, 10, 100, 40, 0.99), block(10, 10, 50, 40, 0.6)], 100, 160)
    assert merged.boxes.tolist() == [[70, 10, 110, 40]]
    assert merged.scores.tolist() == pytest.approx([0.6])


@pytest.mark.parametrize(("sure", "box"), [(0.06, [30, 10, 130, 50]), (0.6, [70, 10, 125, 50])])
def test_an_unsure_view_takes_no_sure_object_s_place(sure: float, box: list[float]) -> None:
    # An object that both tiles see cut, and a view of the second tile's that is whole, but a guess.
    second = found_of(
        [[0, 10, 70, 50], [10, 10, 65, 50]], [0.9, sure], [1, 1],
        [Window(0, 10, np.ones((40, 70), bool)), Window(10, 10, np.ones((40, 55), bool))],
    )  # fmt: skip
    merged = merge(TILES, [block(30, 10, 100, 50, 0.9), second], 100, 160)
    assert merged.boxes.tolist() == [box]
    assert merged.scores.tolist() == pytest.approx([0.9 if sure < 0.1 else sure])


def test_neighbours_of_one_class_stay_two() -> None:
    # Side by side in the strip that both tiles see, each seen by both.
    left, right = [(62, 10, 78, 40), (80, 10, 97, 40)], [(2, 10, 18, 40), (20, 10, 37, 40)]
    both = []
    for boxes in (left, right):
        windows = [Window(b[0], b[1], np.ones((b[3] - b[1], b[2] - b[0]), bool)) for b in boxes]
        both.append(found_of(boxes, [0.9, 0.8], [1, 1], windows))
    assert len(merge(TILES, both, 100, 160)) == 2


def test_classes_are_never_joined() -> None:
    merged = merge(TILES, [block(70, 10, 100, 40, label=1), block(10, 10, 60, 40, label=2)], 100, 160)
    assert len(merged) == 2


def test_a_sliver_at_a_tile_s_side_is_no_second_object() -> None:
    # The second tile sees three columns of an object that the first sees whole, and takes them for more than they are.
    merged = merge(TILES, [block(20, 10, 63, 60, 0.9), block(0, 12, 4, 55, 0.7)], 100, 160)
    assert merged.boxes.tolist() == [[20, 10, 63, 60]]


def test_nothing_found_is_nothing() -> None:
    assert len(predictor().predict(np.zeros((300, 300, 3), np.uint8), tile=64)[0]) == 0
