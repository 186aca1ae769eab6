"""Many RLE masks at once give what each gives by itself."""

from __future__ import annotations

import numpy as np
import pytest

from maskrcnn_coco.data.audit.geometry import boxes_of_runs
from maskrcnn_coco.data.audit.rle_runs import RunLists
from maskrcnn_coco.data.masks import checked_runs, encode_rle


def masks(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(40):
        height, width = (int(v) for v in rng.integers(1, 40, 2))
        found.append(rng.random((height, width)) < rng.choice([0.0, 0.02, 0.5, 0.98, 1.0]))
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("texts", [True, False])
def test_the_same_runs_pixels_and_extents(seed, texts):
    found = masks(seed)
    sizes = np.array([m.shape for m in found], np.int64)
    codes = [encode_rle(m) for m in found]
    alone = [checked_runs(c, *m.shape) for c, m in zip(codes, found, strict=True)]
    if texts:
        runs = RunLists.of_texts([c["counts"].encode() for c in codes], sizes.prod(axis=1))
    else:
        runs = RunLists.of_lists([a.tolist() for a in alone], sizes.prod(axis=1))
    assert runs.good.all() and np.array_equal(runs.runs, np.concatenate(alone))
    pixels, extents = runs.extents(sizes[:, 0])
    for n, (counts, mask) in enumerate(zip(alone, found, strict=True)):
        wanted = boxes_of_runs(counts, mask.shape[0])
        assert pixels[n] == wanted[0] == mask.sum()
        assert np.array_equal(extents[n], wanted[1], equal_nan=True)


def test_damaged_ones_cost_no_other():
    mask = np.zeros((6, 5), bool)
    mask[2:4, 1:3] = True
    good = encode_rle(mask)["counts"].encode()
    bad = [b"", b"\x7f", b"~", good[:-1], good + b"1", b"P", b"o" * 20 + b"1"]
    texts = [good, *(t for b in bad for t in (b, good))]
    runs = RunLists.of_texts(texts, np.full(len(texts), 30))
    assert runs.good.tolist() == [True, *[False, True] * len(bad)]
    pixels, extents = runs.extents(np.full(len(texts), 6))
    assert pixels[::2].tolist() == [4.0] * 8 and np.isnan(pixels[1::2]).all()
    assert extents[::2].tolist() == [[1, 2, 3, 4]] * 8
    assert RunLists.of_texts([], np.zeros(0, np.int64)).extents(np.zeros(0, np.int64))[1].shape == (0, 4)
