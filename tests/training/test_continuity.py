"""A run that goes on is the same run: its settings, folders, branch, best epoch, plan and data; or it is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import config, lines, tiny_model

from maskrcnn_coco import train
from maskrcnn_coco.checkpoint import branches
from maskrcnn_coco.checkpoint.store import load
from maskrcnn_coco.errors import CheckpointError, ConfigError
from maskrcnn_coco.training import saving
from maskrcnn_coco.training.continuity import steps_per_epoch_of


@pytest.fixture
def data(tiny_shapes: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_shapes.root, tmp_path / "data"))


def go(data: Path, out: Path, *, stop_after: Any = None, **changes: Any) -> Any:
    return train(config(data, out, **changes), model=tiny_model(), stop_after=stop_after)


def step_of(out: Path, name: str) -> int:
    return load(out / "checkpoints" / name)["loop"]["step"]


def test_a_flag_given_with_its_default_value_wins_over_the_older_run(data, tmp_path):
    go(data, tmp_path, max_grad_norm=0.001, stop_after=2)
    go(data, tmp_path, resume="auto", max_grad_norm=10.0, stop_after=1)
    assert load(tmp_path / "checkpoints" / "last.pth")["config"]["max_grad_norm"] == 10.0
    go(data, tmp_path, resume="auto", stop_after=1)
    assert load(tmp_path / "checkpoints" / "last.pth")["config"]["max_grad_norm"] == 10.0


def test_folders_given_by_their_default_names_are_used_and_the_older_run_s_stay(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    go(data, tmp_path / "a", stop_after=2)
    before = {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file() and p.name != ".lock"}
    again = {"checkpoint_dir": "checkpoints", "logdir": "runs/maskrcnn", "resume": "a/checkpoints/last.pth"}
    go(data, tmp_path / "a", **again, stop_after=1)
    assert load(tmp_path / "checkpoints" / "last.pth")["loop"]["step"] == 3
    assert {p: p.read_bytes() for p in before} == before


def test_a_copied_checkpoint_folder_goes_on_in_itself(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    go(data, tmp_path, stop_after=2)
    shutil.copytree("checkpoints", "copy")
    original = (tmp_path / "checkpoints" / "last.pth").read_bytes()
    settings = config(data, tmp_path, resume="copy/last.pth")
    plain = {n: getattr(settings, n) for n in settings.__struct_fields__ if n not in ("checkpoint_dir", "logdir")}
    train(type(settings)(**plain), model=tiny_model(), stop_after=1)
    assert load(tmp_path / "copy" / "last.pth")["loop"]["step"] == 3
    assert (tmp_path / "checkpoints" / "last.pth").read_bytes() == original


@pytest.mark.parametrize("killed", [None, "_set_aside", "_settle_best"])
def test_a_branch_stays_the_branch_wherever_a_kill_comes(killed, data, tmp_path, monkeypatch):
    go(data, tmp_path, epochs=3)
    first = tmp_path / "checkpoints" / "epoch_001.pth"
    if killed:
        with monkeypatch.context() as patch:

            def kill(*arguments: Any) -> list[str]:
                raise KeyboardInterrupt

            patch.setattr(branches, killed, kill)
            with pytest.raises(KeyboardInterrupt):
                go(data, tmp_path, epochs=3, resume=str(first))
    else:
        go(data, tmp_path, epochs=3, resume=str(first), stop_after=1)
    assert step_of(tmp_path, "last.pth") == (6 if killed else 7), "the branch is what goes on"
    go(data, tmp_path, epochs=3, resume="auto", stop_after=1)
    assert step_of(tmp_path, "last.pth") == (7 if killed else 8)
    left = next((tmp_path / "checkpoints").glob("left_at_step_6_*"))
    assert {"epoch_002.pth", "epoch_003.pth"} <= {p.name for p in left.iterdir()}
    assert not (tmp_path / "checkpoints" / "epoch_003.pth").exists()
    best = tmp_path / "checkpoints" / "best.pth"
    assert not best.exists() or load(best)["loop"]["step"] <= 8, "best.pth is of this branch"


def test_a_best_epoch_whose_link_was_lost_or_is_old_gets_it_back(data, tmp_path):
    go(data, tmp_path, epochs=1)
    best = tmp_path / "checkpoints" / "best.pth"
    assert load(best)["loop"]["step"] == 6
    best.unlink()
    go(data, tmp_path, epochs=2, resume="auto", stop_after=1)
    assert load(best)["loop"]["step"] == 6


@pytest.mark.parametrize(
    ("before", "after", "step", "expected"),
    [({}, {"batch_size": 8}, 6, 3), ({}, {"accumulate": 3}, 6, 2), ({}, {"batch_size": 2}, 3, 6), ({}, {}, 5, 5)],
)
def test_another_number_of_steps_an_epoch_keeps_the_share_of_the_run(
    before, after, step, expected, data, tmp_path, capsys
):
    go(data, tmp_path, epochs=4, **before, stop_after=step)
    capsys.readouterr()
    result = go(data, tmp_path, epochs=4, **before, **after, resume="auto", stop_after=1)
    said = capsys.readouterr()
    assert result.steps == expected + 1
    assert ("an epoch has" in said.out + said.err) == bool(after)
    assert [d["step"] for d in lines(tmp_path)][:step] == list(range(step)), "what happened stays written"


def test_a_run_that_goes_on_with_a_larger_batch_trains_all_of_its_epochs(data, tmp_path):
    go(data, tmp_path, epochs=2, stop_after=6)
    result = go(data, tmp_path, epochs=2, batch_size=12, resume="auto")
    assert (result.status, result.steps, result.epochs) == ("finished", 4, 2)


def test_the_plan_of_an_older_checkpoint_follows_from_its_settings():
    state = {"config": {"batch_size": 4, "accumulate": 2}, "environment": {"world": 2}}
    assert steps_per_epoch_of(state, 100) == 7
    assert steps_per_epoch_of({"config": {}, "environment": {}}, 100) is None


def edit(data: Path, change: Any) -> None:
    for path in data.rglob("*.json"):
        content = json.loads(path.read_text())
        if "annotations" in content:
            change(content)
            path.write_text(json.dumps(content))


def swap_names(content: dict[str, Any]) -> None:
    a, b = content["categories"][:2]
    a["name"], b["name"] = b["name"], a["name"]


def shift(content: dict[str, Any]) -> None:
    content["annotations"][0]["bbox"][0] += 1


def reverse(content: dict[str, Any]) -> None:
    content["images"].reverse()


def rename_class(content: dict[str, Any]) -> None:
    content["categories"][0]["name"] = "something else"


def add_class(content: dict[str, Any]) -> None:
    content["categories"].append({"id": 99, "name": "one more"})


@pytest.mark.parametrize(
    ("change", "words"),
    [(swap_names, "another order"), (rename_class, "other classes"), (add_class, "other classes")],
)
def test_other_classes_are_refused_before_anything_is_touched(change, words, data, tmp_path):
    go(data, tmp_path, stop_after=1)
    edit(data, change)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=words):
        go(data, tmp_path, resume="auto")
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "words"), [(shift, "boxes, masks"), (reverse, "their order"), (None, "content of image")]
)
def test_other_data_make_a_resume_inexact_and_it_says_why(change, words, data, tmp_path, capsys):
    go(data, tmp_path, stop_after=1)
    if change is None:
        from PIL import Image

        path = next(p for p in data.rglob("*.png") if "train" in str(p))
        Image.new("RGB", (64, 64), (9, 9, 9)).save(path)
    else:
        edit(data, change)
    capsys.readouterr()
    go(data, tmp_path, resume="auto", stop_after=1)
    said = "".join(capsys.readouterr())
    assert "inexact" in said and words in " ".join(said.split())


def test_another_optimizer_is_refused_in_a_sentence(data, tmp_path):
    go(data, tmp_path, stop_after=1)
    with pytest.raises(CheckpointError, match="another optimizer"):
        go(data, tmp_path, optimizer="adamw", lr=1e-4, resume="auto")


def test_a_dry_run_of_a_resume_leaves_every_file_as_it_is(data, tmp_path):
    go(data, tmp_path, stop_after=2)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    train(config(data, tmp_path, resume="auto"), model=tiny_model(), dry_run=True)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_dry_run_probes_the_folders(data, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ConfigError, match="it is a file"):
        train(config(data, tmp_path), model=tiny_model(), dry_run=True)


def test_a_failed_start_gives_its_folders_back(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("maskrcnn_coco.training.start.introduce", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go(data, tmp_path, stop_after=1)
    assert go(data, tmp_path, stop_after=1).steps == 1


def test_a_disk_too_small_for_two_checkpoints_is_said_at_the_start(data, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match="too small for this run's checkpoints"):
        go(data, tmp_path)


def test_a_run_whose_last_state_is_not_on_the_disk_does_not_end_with_0(data, tmp_path, monkeypatch):
    from maskrcnn_coco.checkpoint import store

    def full(*arguments: Any, **rest: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_document", full)
    result = go(data, tmp_path)
    assert (result.status, result.exit_code) == ("finished", 5)


def test_only_the_newest_epochs_are_kept_where_keep_says_so(data, tmp_path):
    go(data, tmp_path, epochs=4, keep=2)
    kept = sorted(p.name for p in (tmp_path / "checkpoints").glob("epoch_*"))
    assert kept == ["epoch_003.pth", "epoch_004.pth"]
    assert (tmp_path / "checkpoints" / "best.pth").exists()


def test_an_observer_that_raises_is_named_once_and_the_run_goes_on(data, tmp_path, capsys):
    seen = []

    def broken(record: Any) -> None:
        seen.append(record)
        raise ValueError("my own mistake")

    result = train(config(data, tmp_path), model=tiny_model(), observers=[broken])
    assert (result.exit_code, len(seen)) == (0, 1)
    assert "my own mistake" in "".join(capsys.readouterr())


def test_a_resume_says_what_it_changes_and_nothing_where_it_changes_nothing(data, tmp_path, capsys):
    go(data, tmp_path, epochs=2, stop_after=2)
    capsys.readouterr()
    go(data, tmp_path, epochs=2, resume="auto", seed=7, schedule="step", stop_after=1)
    assert "changed from here on: " in (said := capsys.readouterr().out) and "--seed 7 (0 before)" in said
    assert "--schedule step (cosine before)" in said
    go(data, tmp_path, epochs=2, resume="auto", stop_after=1)
    assert "changed from here on" not in capsys.readouterr().out


@pytest.mark.parametrize(("first", "then", "limit"), [
    ({"epochs": 1}, {"epochs": 1}, "--epochs 1"),
    ({"epochs": 1, "max_steps": 2}, {"epochs": 3, "max_steps": 2}, "--max-steps 2"),
])  # fmt: skip
def test_a_resume_of_a_run_that_is_done_says_what_to_raise(first, then, limit, data, tmp_path, capsys):
    go(data, tmp_path, **first)
    assert "nothing is left to train" not in "".join(capsys.readouterr())
    result = go(data, tmp_path, resume="auto", **then)
    said = "".join(capsys.readouterr())
    assert f"all steps of {limit} are done, nothing is left to train; to go on, raise {limit.split()[0]}" in said
    assert (result.status, result.exit_code) == ("finished", 0)
    raised = {"epochs": 2} if "max_steps" not in then else {"max_steps": 4}
    again = go(data, tmp_path, resume="auto", **then | raised)
    assert again.steps > result.steps


def test_an_elastic_resume_shows_no_step_twice_in_tensorboard(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    go(data, tmp_path, epochs=2, stop_after=5)
    go(data, tmp_path, epochs=2, batch_size=8, resume="auto", stop_after=2)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    steps = [e.step for e in events.Scalars("loss/total")]
    assert steps == sorted(set(steps)) and len(lines(tmp_path)) == 7
