"""Large images are decoded once for their tiles, within a bound, and nothing else changes."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.data import dataset as dataset_module
from maskrcnn_coco.data import kept_images
from maskrcnn_coco.data.augment_file import policy_of
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.kept_images import KeptImages, room
from maskrcnn_coco.data.sources import sources
from maskrcnn_coco.data.tile_grid import Tiles


def image(value: int, side: int = 10) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def test_what_was_used_last_stays_and_the_bound_holds():
    kept, reads = KeptImages(3 * image(0).nbytes), []

    def ask(row: int) -> None:
        found = kept.of(row, lambda: (reads.append(row), image(row))[1])
        assert found[0, 0, 0] == row and not found.flags.writeable
        assert kept._bytes == sum(i.nbytes for i in kept._images.values()) <= kept.most

    for row in (0, 1, 2, 0, 1, 2, 3, 0, 2, 3, 1):
        ask(row)
    assert reads == [0, 1, 2, 3, 0, 1], "0 was used before 1 and 2 when 3 came, 1 before 2 when 0 came again"
    assert kept.of(9, lambda: image(9, side=40)).shape == (40, 40, 3) and 9 not in kept._images
    assert len(kept._images) == 3, "one that is too large pushes nothing out"


def test_none_travels_to_a_worker_that_is_spawned():
    kept = KeptImages(1 << 20)
    kept.of(1, lambda: image(1))
    other = pickle.loads(pickle.dumps(kept))
    assert (other.most, len(other._images), len(kept._images)) == (1 << 20, 0, 1)
    assert other.of(1, lambda: image(2))[0, 0, 0] == 2


def test_several_threads_may_ask_at_once():
    kept = KeptImages(4 * image(0).nbytes)
    rows = np.random.default_rng(0).integers(0, 8, 2000).tolist()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: int(kept.of(row, lambda: image(row))[0, 0, 0]), rows))
    assert found == rows and kept._bytes == sum(i.nbytes for i in kept._images.values()) <= kept.most


@pytest.mark.parametrize("augment", ["none", "heavy"])
def test_samples_keep_their_bits_and_each_image_is_decoded_once(
    tiny_table: CocoTable, monkeypatch: pytest.MonkeyPatch, augment: str
):
    tiles = Tiles.of(tiny_table.heights, tiny_table.widths, 40)
    assert len(tiles) > 3 * len(tiny_table), "every image is cut"
    args = {"train": True, "min_size": 48, "policy": policy_of(augment, copy_paste=0.5), "tiles": tiles}
    kept = KeptImages(1 << 24)
    plain, quick = CocoDataset(tiny_table, **args), CocoDataset(tiny_table, kept=kept, **args)
    theirs = [plain.sample(1, index) for index in range(0, len(plain), 2)]
    reads, read = [], dataset_module.read_image
    monkeypatch.setattr(dataset_module, "read_image", lambda *a, **k: (reads.append(a[1]), read(*a, **k))[1])
    before = {}
    for turn in range(2):
        for index, (picture, target) in zip(range(0, len(quick), 2), theirs, strict=True):
            again, same = quick.sample(1, index)
            assert torch.equal(picture, again) and torch.equal(target["boxes"], same["boxes"])
            again.zero_()  # whoever writes to a sample does not reach what is kept
        sums = {row: int(pixels.sum()) for row, pixels in kept._images.items()}
        before = before or sums
        assert sums == before and sums, turn
    assert len(reads) == len(set(reads)) <= len(tiny_table)


def test_a_run_on_tiles_keeps_images_within_a_share_of_what_is_free(tiny_shapes, tiny_table, monkeypatch):
    class Data:
        train, val, bad_annotations, bad_images, notes = tiny_table, tiny_table, (), (), ()

    monkeypatch.setattr(kept_images.memory, "free", lambda device: 48 << 20)
    config = Config(data=str(tiny_shapes.root), min_size=40, max_size=40, tile="auto", workers=2)
    train, val = sources(Data(), config, None, None, small=False, world=2)  # type: ignore[arg-type]
    assert (train.kept.most, val.kept.most) == ((48 << 20) // 8 // 6, (48 << 20) // 8 // 12)
    whole, _ = sources(Data(), Config(data="x", min_size=40, max_size=40), None, None, small=False)  # type: ignore[arg-type]
    assert whole.kept is None
    monkeypatch.setattr(kept_images.memory, "free", lambda device: None)
    assert 0 < room(1) <= kept_images.MOST
    monkeypatch.setattr(kept_images.memory, "free", lambda device: 1 << 50)
    assert room(3) == kept_images.MOST
