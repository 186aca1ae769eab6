"""Groups stay whole, each class has its share in each part, and nothing depends on chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.prepare import open_data
from maskrcnn_coco.data.splits import fold_of, groups_of, held_back, split_by
from maskrcnn_coco.errors import ConfigError, DataError
from tests.helpers.odd_sets import OddSet


@pytest.fixture
def data(tmp_path: Path) -> OddSet:
    """60 images of 20 patients; patients 3, 9 and 15 alone have the rare class."""
    found = OddSet(tmp_path / "set", images=60, objects=2)
    found.categories.append({"id": 3, "name": "rare"})
    for n, image in enumerate(found.images):
        (found.folder / image["file_name"]).rename(found.folder / f"p{n // 3:02}_{n}.png")
        image["file_name"] = f"p{n // 3:02}_{n}.png"
    for ann in found.annotations:
        if (ann["image_id"] - 1) // 3 in (3, 9, 15):
            ann["category_id"] = 3
    return found


def patients(table: CocoTable) -> set[str]:
    return {n[:3] for n in table.names.decoded()}


def test_folds_are_whole_groups_and_make_the_set_together(data: OddSet):
    table = data.table()
    seen: list[int] = []
    for n in range(1, 4):
        train, val = split_by(table, 0.15, 0, key=r"^(p\d+)_", fold=f"{n}/3")
        assert not patients(train) & patients(val) and len(train) + len(val) == 60
        assert 15 <= len(val) <= 24 and (val.labels == 3).sum() == 6  # one of the three rare patients each
        seen += val.image_ids.tolist()
    assert sorted(seen) == list(range(1, 61))


@pytest.mark.parametrize("key", [None, r"^p\d+", r"^(p\d+)_"])
def test_the_share_is_held_back_and_the_order_of_the_file_does_not_matter(data: OddSet, key: str | None):
    table = data.table()
    train, val = split_by(table, 0.15, 0, key=key, fold=None)
    assert 6 <= len(val) <= 12 and len(train) + len(val) == 60
    data.images.reverse()
    again = split_by(data.table("b.json"), 0.15, 0, key=key, fold=None)[1]
    assert sorted(again.names.decoded()) == sorted(val.names.decoded())
    assert patients(split_by(table, 0.15, 1, key=key, fold=None)[1]) != patients(val)


def test_groups_from_a_csv(data: OddSet, tmp_path: Path):
    rows = ["file_name,group", *(f"{i['file_name']},g{i['id'] % 4}" for i in data.images[:40])]
    (tmp_path / "groups.csv").write_text("\n".join(rows), encoding="utf-8")
    groups = groups_of(data.table(), str(tmp_path / "groups.csv"))
    assert groups[:2] == ["group:g1", "group:g2"] and groups[50] == f"image:{data.images[50]['file_name']}"


@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_in_its_share(tmp_path: Path, seed: int):
    data = OddSet(tmp_path, images=60, objects=3, seed=seed)
    rng = np.random.default_rng(seed)
    data.categories = [{"id": c, "name": f"c{c}"} for c in range(1, 6)]
    for ann in data.annotations:
        ann["category_id"] = int(rng.choice(5, p=(0.6, 0.2, 0.1, 0.06, 0.04)) + 1)
    table = data.table()
    part = held_back(table, groups_of(table, None), [1.0] * 4, seed)
    assert np.bincount(part).min() >= 12
    for label in range(1, 6):
        per_part = np.bincount(part[table.ann_image[table.labels == label]], minlength=4)
        assert np.ptp(per_part) <= max(3, 0.5 * per_part.mean()), (label, per_part)


def test_the_run_takes_and_tells_it(data: OddSet):
    path = str(data.write())
    opened = open_data(Config(data=path, images=str(data.folder), split_by=r"^(p\d+)_", fold="2/5"))
    assert opened.train is not None and opened.val is not None and not patients(opened.train) & patients(opened.val)
    assert "fold 2/5, whole groups" in opened.notes[-1]
    with pytest.raises(ConfigError, match="--val names"):
        open_data(Config(data=path, images=str(data.folder), val=path, fold="2/5"))


@pytest.mark.parametrize("text", ["5", "0/5", "6/5", "1/1", "a/b", "-1/5", ""])
def test_folds_that_are_none(text: str):
    with pytest.raises(ConfigError, match="no fold"):
        fold_of(text)


@pytest.mark.parametrize(
    ("key", "error", "words"),
    [
        ("^(x", ConfigError, "regular expression"),
        ("nowhere", DataError, "no group"),
        ("none.csv", DataError, "cannot read"),
        (r"^(p)", DataError, "1 group of"),
    ],
)
def test_keys_that_do_not_split(data: OddSet, key: str, error: type[Exception], words: str):
    with pytest.raises(error) as caught:
        split_by(data.table(), 0.15, 0, key=key, fold="1/5")
    assert words in str(caught.value)
