"""Kept columns are the file's columns, for as long as the file is the same."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from maskrcnn_coco.data.audit.cache import fingerprint
from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.coco import cache
from maskrcnn_coco.data.coco.cache import load_kept
from maskrcnn_coco.data.coco.table import CocoTable, load_coco
from maskrcnn_coco.system.files import cache_folder


@pytest.fixture
def path(tiny_shapes, tmp_path: Path) -> Path:
    """A copy of the tiny annotations beside their images, with a problem in it."""
    folder = Path(shutil.copytree(tiny_shapes.train.parent, tmp_path / "train"))
    shutil.rmtree(cache_folder("tables"), ignore_errors=True)
    found = folder / tiny_shapes.train.name
    data = json.loads(found.read_text())
    data["annotations"][0]["bbox"] = "nothing"
    found.write_text(json.dumps(data))
    return found


def load(path: Path) -> CocoTable:
    return load_kept(path, path.parent, large=1)


def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are parsed from now on."""
    seen: list[Path] = []
    monkeypatch.setattr(cache, "load_coco", lambda p, root: (seen.append(p), load_coco(p, root))[1])
    return seen


def same(a: CocoTable, b: CocoTable) -> bool:
    plain = all(
        getattr(a, f.name) == getattr(b, f.name)
        for f in fields(a)
        if f.name not in ("origin", "names", "segmentations") and not isinstance(getattr(a, f.name), np.ndarray)
    )
    columns = all(
        np.array_equal(x, b.shared.arrays[n], equal_nan=x.dtype.kind == "f") for n, x in a.shared.arrays.items()
    )
    return plain and columns


def test_the_second_load_parses_nothing_and_gives_the_same(path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = parsed(monkeypatch)
    first, second = load(path), load(path)
    assert seen == [path] and first.problems
    assert same(first, load_coco(path, path.parent)) and same(second, first)
    rows = np.array([3, 1])
    assert same(second.subset(rows), first.subset(rows)) and audit(second, images=False) == audit(first, images=False)
    assert fingerprint(second) == fingerprint(first) != fingerprint(second.subset(rows))


def test_a_changed_file_is_read_anew(path: Path, monkeypatch: pytest.MonkeyPatch):
    before = load(path)
    data = json.loads(path.read_text())
    data["images"] = data["images"][:5]
    path.write_text(json.dumps(data))
    after = load(path)
    assert len(before) == 24 and len(after) == 5 and fingerprint(after) != fingerprint(before)
    seen = parsed(monkeypatch)
    os.utime(path, ns=(1, 1))
    assert len(load(path)) == 5 and seen == [path]


@pytest.mark.parametrize("name", ["boxes.npy", "rest.json"])
def test_damaged_columns_are_made_again(path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    first = load(path)
    (folder,) = cache_folder("tables").iterdir()
    (folder / name).write_bytes((folder / name).read_bytes()[:40])
    seen = parsed(monkeypatch)
    assert same(load(path), first) and same(load(path), first) and seen == [path]


def test_one_flipped_bit_in_any_kept_file_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch):
    first = load(path)
    seen = parsed(monkeypatch)
    (folder,) = cache_folder("tables").iterdir()
    tried = 0
    for name in sorted(p.name for p in folder.iterdir()):
        for place in (-1, -9, 130):
            raw = bytearray((folder / name).read_bytes())
            if -len(raw) <= place < len(raw):
                raw[place] ^= 4
                (folder / name).write_bytes(raw)
                assert same(load(path), first)
                tried += 1
    assert len(seen) == tried > 30, "each damage is made good by reading the file again"


def test_what_others_may_write_is_not_trusted(path: Path, monkeypatch: pytest.MonkeyPatch):
    load(path)
    (folder,) = cache_folder("tables").iterdir()
    folder.chmod(0o777)
    seen = parsed(monkeypatch)
    load(path)
    assert seen == [path]


def test_small_files_and_folders_that_cannot_be_written_cost_nothing(path: Path, monkeypatch: pytest.MonkeyPatch):
    assert load_kept(path, path.parent).origin is None and not cache_folder("tables").exists()
    blocked = path.parent / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert same(load(path), load_coco(path, path.parent))


def test_only_the_files_used_last_are_kept(path: Path):
    for n in range(cache.KEEP + 2):
        load(Path(shutil.copy(path, path.with_name(f"{n}.json"))))
    left = list(cache_folder("tables").iterdir())
    assert len(left) == cache.KEEP and not [p for p in left if p.name.startswith(".")]
