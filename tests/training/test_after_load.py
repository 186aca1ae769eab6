"""A file that is finite, whole and not what the run saved: the first losses raise a doubt, an older file proves it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from nanbench.tiny import sample
from runs import config, incidents, tiny_model

from maskrcnn_coco import train
from maskrcnn_coco.checkpoint import content
from maskrcnn_coco.checkpoint.store import load, peek, save
from maskrcnn_coco.training.after_load import jump_after_load


def session(before: list[float], since: list[float], **changes: Any) -> Any:
    losses = [*before, *since]
    history = [SimpleNamespace(step=i, epoch=0, loss=v, losses={}, applied=True) for i, v in enumerate(losses)]
    held = SimpleNamespace(
        resumed_from="last.pth",
        first_step=len(before),
        progress=SimpleNamespace(step=len(losses)),
        ranks=SimpleNamespace(world=1),
        history=history,
    )
    return SimpleNamespace(**{**vars(held), **changes})


CALM = [2.0, 1.9, 1.8, 1.7, 1.8, 1.6]


@pytest.mark.parametrize(
    ("since", "doubt"),
    [([1.6, 1.5], False), ([5.0, 1.5], False), ([2.5, 2.4], False), ([5.8, 2.9], True), ([4.1, 4.2], True)],
)
def test_a_single_hard_batch_is_no_doubt_and_two_losses_above_all_before_are(since: list[float], doubt: bool):
    assert (jump_after_load(session(CALM, since)) is not None) is doubt


def test_nothing_is_compared_where_there_is_nothing_to_compare():
    assert jump_after_load(session(CALM[:3], [9.0, 9.0])) is None, "too few steps before"
    assert jump_after_load(session(CALM, [9.0, 9.0], resumed_from=None)) is None, "nothing was loaded"
    assert jump_after_load(session(CALM, [9.0, 9.0, 9.0])) is None, "asked once, right after the load"


def rewritten(folder: Path, change: Any, *, every: bool = False, digests: bool = False) -> None:
    """Every file of the newest step (or all), changed; as an older version wrote it, without digests, unless asked."""
    newest = load(folder / "last.pth")
    serial, step = peek(folder / "last.pth").serial, newest["loop"]["step"]
    change(newest["model"])
    if not digests:
        newest.pop("digests")
    with mock.patch.object(content, "nonfinite", lambda state: []):
        for path in sorted(folder.glob("*.pth")):
            if every or load(path)["loop"]["step"] == step:
                path.unlink()
                save(path, newest, serial=serial)


def shuffle(weights: dict[str, torch.Tensor]) -> None:
    for name, value in weights.items():
        if name.startswith("roi_heads.box"):
            value.copy_(-3 * value.flip(0))


class Pictures(torch.utils.data.Dataset):
    """Twelve pictures of 64 pixels."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Any:
        return sample(i)


@pytest.mark.parametrize("harm", [True, False])
def test_an_older_file_that_does_better_takes_its_place(tmp_path: Path, harm: bool):
    settings = {"epochs": 8, "lr": 0.02, "batch_size": 4, "num_classes": 4, "min_size": 64, "max_size": 64}
    train(config(None, tmp_path, **settings), model=tiny_model(), train_data=Pictures(), stop_after=14)
    if harm:
        rewritten(tmp_path / "checkpoints", shuffle)
    again = config(None, tmp_path, **settings, resume="auto")
    result = train(again, model=tiny_model(), train_data=Pictures(), stop_after=6)
    found = incidents(tmp_path)
    assert result.exit_code == 0
    assert [(i["cause"], i["action"]["kind"]) for i in found] == ([("POISONED_STATE", "reload")] if harm else [])


SMALL = {"epochs": 4, "lr": 0.02, "batch_size": 4, "num_classes": 4, "min_size": 64, "max_size": 64}


def zeroed(weights: dict[str, torch.Tensor]) -> None:
    weights["roi_heads.mask_head.0.0.weight"].zero_()


@pytest.mark.parametrize("asked", ["auto", "last.pth"])
def test_a_layer_that_another_program_zeroed_is_noticed_at_load_although_losses_hardly_move(tmp_path: Path, asked: str):
    train(config(None, tmp_path, **SMALL), model=tiny_model(), train_data=Pictures(), stop_after=5)
    folder = tmp_path / "checkpoints"
    rewritten(folder, zeroed, digests=True)
    again = config(None, tmp_path, **SMALL, resume=asked if asked == "auto" else str(folder / asked))
    result = train(again, model=tiny_model(), train_data=Pictures(), stop_after=2)
    found = incidents(tmp_path)
    assert result.exit_code == 0
    assert [(i["cause"], i["action"]["kind"]) for i in found] == [("POISONED_STATE", "reload")]
    assert "roi_heads.mask_head.0.0.weight" in found[0]["evidence"][0]["outcome"]
    assert found[0]["culprit"]["checkpoint"].endswith("last.pth")
    assert found[0]["action"]["detail"]["to_step"] == 3, "the epoch before"


def test_where_no_file_is_as_it_was_saved_the_run_goes_on_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture):
    train(config(None, tmp_path, **SMALL), model=tiny_model(), train_data=Pictures(), stop_after=5)
    rewritten(tmp_path / "checkpoints", zeroed, every=True, digests=True)
    again = config(None, tmp_path, **SMALL, resume="auto")
    result = train(again, model=tiny_model(), train_data=Pictures(), stop_after=2)
    assert result.exit_code == 0 and incidents(tmp_path) == []
    told = " ".join("".join(capsys.readouterr()).split())
    assert "is not as the run saved it (model.roi_heads.mask_head.0.0.weight were changed since)" in told


def test_the_only_file_that_there_is_is_named_where_no_batch_is_what_it_was_on_its_weights(tmp_path: Path):
    long = {**SMALL, "batch_size": 2}
    train(config(None, tmp_path, **long), model=tiny_model(), train_data=Pictures(), stop_after=6)
    rewritten(tmp_path / "checkpoints", lambda w: [v.mul_(5) for v in w.values()], every=True, digests=True)
    result = train(config(None, tmp_path, **long, resume="auto"), model=tiny_model(), train_data=Pictures())
    found = incidents(tmp_path)
    assert [(i["cause"], i["action"]["kind"]) for i in found] == [("POISONED_STATE", "stop")]
    assert result.exit_code != 0 and found[0]["culprit"]["checkpoint"].endswith("last.pth")
    assert "and" in found[0]["evidence"][0]["outcome"] and "--resume none" in found[0]["fix"]


@pytest.mark.parametrize(("item", "cause"), [((torch.rand(3, 64, 64), None), "DATA_BOX"), ((None, {}), "DATA_PIXEL")])
def test_an_item_without_a_target_is_not_the_fault_of_its_pixels(tmp_path: Path, item: Any, cause: str):
    class Odd(Pictures):
        def __getitem__(self, i: int) -> Any:
            return item if i == 3 else super().__getitem__(i)

    result = train(config(None, tmp_path, **{**SMALL, "epochs": 1}), model=tiny_model(), train_data=Odd())
    assert result.exit_code == 0
    assert [(i["cause"], i["action"]["kind"]) for i in incidents(tmp_path)] == [(cause, "quarantine")]
