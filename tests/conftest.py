"""Fixtures that every test module may use. Nothing here touches the user's own folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

# Before torch starts its pool: the suite runs several processes on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"

LONGEST = (
    "diagnosis/test_investigate.py",
    "training/test_loop.py",
    "guard/test_team.py",
    "cli/test_verify.py",
    "training/test_late_alarms.py",
    "faults/test_teams.py",
    "faults/test_soak.py",
    "training/test_stops.py",
    "training/test_validation.py",
    "advice/test_advise.py",
    "training/test_continuity.py",
    "bench/test_nanbench.py",
    "distributed/test_ranks.py",
    "system/test_memory.py",
    "test_recovery.py",
    "test_notebook.py",
)
"""Files that take more than half a minute on a busy core, and the longest of those that would come last. They begin the
suite, so that at its end no worker is left alone with one: a file is never split between workers, because its tests
share what its fixtures trained."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, all else in its own order."""
    here = Path(__file__).parent
    place = {here / name: n for n, name in enumerate(LONGEST)}
    if gone := [str(path) for path in place if not path.is_file()]:
        raise pytest.UsageError(f"LONGEST in {__file__} names files that are not there: {gone}")
    items.sort(key=lambda item: place.get(item.path, len(place)))


class ShapesFolder(NamedTuple):
    """A small drawn data set: 24 training and 8 validation images of 64 × 64."""

    root: Path
    train: Path
    val: Path


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """What is cached between runs (drawn shapes, audits) goes to a folder of this test session."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def tiny_shapes(tmp_path_factory: pytest.TempPathFactory) -> ShapesFolder:
    """Drawn once a session; read only. Copy it to change it."""
    from maskrcnn_coco.data.builtin_shapes import write_shapes

    root = tmp_path_factory.mktemp("tiny_shapes")
    train, val = write_shapes(root, train=24, val=8, size=64)
    return ShapesFolder(root, train, val)


@pytest.fixture(scope="session")
def tiny_table(tiny_shapes: ShapesFolder):
    """The training part of `tiny_shapes` as a CocoTable."""
    from maskrcnn_coco.data.coco.table import load_coco

    return load_coco(tiny_shapes.train, tiny_shapes.train.parent)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets; tests that ask for it are skipped where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets are not here")
    return folder
