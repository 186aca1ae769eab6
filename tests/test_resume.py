"""Several processes go on from one checkpoint, or all of them say why not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from runs import config

from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.resume import find_together
from maskrcnn_coco.store import load, save

sys.path.insert(0, str(Path(__file__).parent / "faults"))
from states import state_at


class Ranks:
    """One of several processes; the others say what ``others`` holds, in turn for each exchange."""

    def __init__(self, rank: int, said: Any, others: list[dict[str, Any]]) -> None:
        self.rank, self.world, self.is_main = rank, 1 + len(others), rank == 0
        self.said, self.others = said, others

    def broadcast_object(self, value: Any) -> Any:
        self.said = value if self.is_main else self.said
        return self.said

    def gather_objects(self, value: Any) -> list[Any]:
        others = [{"error": None, "path": "", "loop": value["loop"], "skipped": [], **o} for o in self.others]
        return [*others[: self.rank], value, *others[self.rank :]]


@pytest.fixture
def settings(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step, name in ((3, "epoch_001.pth"), (4, "last.pth")):
        save(folder / name, {**state_at(step), "quick": False}, serial=step)
    return config(None, tmp_path, resume="auto")


def together(settings: Any, rank: int = 0, said: Any = None, others: list[dict[str, Any]] | None = None):
    ranks = Ranks(rank, said, [{}] if others is None else others)
    return find_together(settings, ranks), ranks  # type: ignore[arg-type]


def test_all_load_what_process_0_chose_even_where_they_see_a_newer_one(settings):
    newest, ranks = together(settings)
    assert newest.state is not None and newest.state["loop"]["step"] == 4
    older = Path(settings.checkpoint_dir) / "epoch_001.pth"
    said = {**ranks.said, "path": str(older), "loop": repr(sorted(load(older)["loop"].items()))}
    found, _ = together(settings, 1, said, [{"loop": said["loop"]}])
    assert found.path == older and found.state is not None and found.state["loop"]["step"] == 3


def test_a_process_that_cannot_load_it_is_named_on_all(settings):
    with pytest.raises(CheckpointError, match="process 1 of 2: the checkpoint is damaged"):
        together(settings, others=[{"error": ["the checkpoint is damaged", None, None]}])


def test_another_file_under_the_same_name_is_named(settings):
    with pytest.raises(CheckpointError, match="another checkpoint on process 1 of 2"):
        together(settings, others=[{"loop": "[('step', 2)]"}])


def test_a_failure_of_process_0_ends_the_others_with_its_words(settings, tmp_path):
    said = {"error": ["no checkpoint can be used", None, "start again"], "path": "", "loop": "", "skipped": []}
    with pytest.raises(CheckpointError, match="process 0 of 2: no checkpoint can be used") as e:
        together(settings, 1, said, [said])
    assert e.value.fix == "start again"


def test_what_was_passed_over_is_known_to_all(settings):
    last = Path(settings.checkpoint_dir) / "last.pth"
    last.write_bytes(last.read_bytes()[:-100])
    found, ranks = together(settings)
    assert [p for p, _ in found.skipped] == [last]
    other, _ = together(settings, 1, ranks.said, [{}])
    assert [p for p, _ in other.skipped] == [last] and other.path == found.path
