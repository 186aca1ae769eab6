"""Events and metrics.jsonl: tags, strict JSON, resume without gap or double, a full disk does not stop training."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from maskrcnn_coco.records import Action, Culprit, EpochRecord, EvalRecord, Evidence, Incident, StepRecord
from maskrcnn_coco.report import event_file
from maskrcnn_coco.report.metrics_file import read_metrics
from maskrcnn_coco.report.tracking import Tracker


def step(s: int, epoch: int = 0, loss: float = 1.0) -> StepRecord:
    lr = {"backbone": 0.005, "box_head": 0.015}
    norms = {"backbone": 1.0, "box_head": 2.0}
    return StepRecord(s, epoch, {"loss_mask": loss}, loss, 3.0, norms, lr, None, [7], True, update_ratio={"rpn": 0.1})


def epoch_record(e: int, s: int) -> EpochRecord:
    return EpochRecord(e, s, {"loss_mask": 1.0}, 1.0, 2.0, {"backbone": 0.005}, 0, 5.0, 1.0)


def evaluation(e: int, s: int) -> EvalRecord:
    return EvalRecord(e, s, {"bbox/AP": 0.5, "bbox/APl": -1.0}, {"circle": {"segm/AP": 0.4}}, 1.0)


def incident() -> Incident:
    return Incident(
        "0001", 2, 0, 1, "diverged", "LR_TOO_HIGH", 0.97, Culprit(component="box_head"),
        [Evidence("replay", "finite", "LR_TOO_HIGH")], Action("rollback", {"to_step": 1}), "recovered", 1,
        "--head-lr-multiplier 3.0", "maskrcnn-coco explain LR_TOO_HIGH",
    )  # fmt: skip


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def run(folder: Path, first: int, last: int, resume: int | None = None) -> None:
    """Steps first..last-1, four an epoch, evaluation after each."""
    tracker = Tracker(folder, resume)
    for s in range(first, last):
        tracker.step(step(s, s // 4))
        if s % 4 == 3:
            tracker.epoch(epoch_record(s // 4, s + 1))
            tracker.eval(evaluation(s // 4, s + 1))
    tracker.close()


def summary(folder: Path) -> list[tuple[str, int, int]]:
    return [(d["kind"], d["epoch"], d["step"]) for d in read_metrics(folder / "metrics.jsonl")]


def test_tags_and_values(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.step(step(0))
    tracker.eval(evaluation(0, 1))
    tracker.incident(incident())
    tracker.text("settings", "lr | 5e-3")
    tracker.close()
    got = points(tmp_path)
    expected = {
        "loss/loss_mask", "loss/total", "lr/backbone", "lr/box_head", "grad_norm/total", "grad_norm/backbone",
        "grad_norm/box_head", "update_ratio/rpn", "skipped", "val/bbox/AP", "val/class/circle/segm/AP",
        "incident/LR_TOO_HIGH", "incident/count",
    }  # fmt: skip
    assert set(got) == expected  # and no val/bbox/APl, which is undefined
    assert got["val/bbox/AP"] == [(1, 0.5)]
    assert got["incident/LR_TOO_HIGH"] == [(2, 1.0)]


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    for s, loss in enumerate((1.0, math.nan, math.inf, -math.inf)):
        tracker.step(step(s, loss=loss))
    tracker.close()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line, parse_constant=refuse)["kind"] == "step"
    losses = [d["loss"] for d in read_metrics(tmp_path / "metrics.jsonl")]
    assert math.isnan(losses[1])
    assert losses[2:] == [math.inf, -math.inf]


def test_resume_leaves_no_gap_and_no_double(tmp_path: Path) -> None:
    run(tmp_path / "whole", 0, 16)
    for resume in range(17):
        folder = tmp_path / f"cut{resume}"
        run(folder, 0, 14)
        run(folder, min(resume, 14), 16, min(resume, 14))
        assert summary(folder) == summary(tmp_path / "whole"), resume
        assert [s for s, _ in points(folder)["loss/total"]] == list(range(16)), resume
        undone = [d["step"] for d in read_metrics(folder / "metrics_undone.jsonl")]
        assert undone == list(range(resume, 14)), resume


def test_torn_last_line_is_repaired(tmp_path: Path) -> None:
    run(tmp_path, 0, 3)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert [d["step"] for d in read_metrics(path)] == [0, 1]
    run(tmp_path, 2, 4, resume=2)
    assert [d["step"] for d in map(json.loads, path.read_text().splitlines())] == [0, 1, 2, 3, 4, 4]


def test_unwritable_folder_warns_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said: list[str] = []
    tracker = Tracker(tmp_path / "file" / "run", warn=said.append)
    tracker.step(step(0))
    tracker.epoch(epoch_record(0, 1))
    assert len(said) == 1
    tracker.close()
    assert len(said) == 2
    assert "the last 2 lines" in said[1]
    assert "training goes on" in said[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_line_is_lost_to_a_disk_that_was_full_for_a_while(tmp_path: Path) -> None:
    said: list[str] = []
    tracker = Tracker(tmp_path, warn=said.append)
    tracker.step(step(0))
    lines = tracker._lines
    with Path("/dev/full").open("ab", buffering=0) as tracker._lines:
        for s in range(1, 5):
            tracker.step(step(s))
    assert len(said) == 1 and "No space left" in said[0]
    assert [d["step"] for d in read_metrics(tmp_path / "metrics.jsonl")] == [0]
    tracker._lines = lines
    tracker.step(step(5))
    assert len(said) == 2 and "no line of metrics.jsonl is missing" in said[1]
    tracker.close()
    assert [d["step"] for d in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3, 4, 5]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2, "half a record would hide those after it"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_lines_that_wait_outlive_a_roll_back(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.step(step(0))
    lines = tracker._lines
    with Path("/dev/full").open("ab", buffering=0) as tracker._lines:
        tracker.step(step(1))
        tracker.epoch(epoch_record(0, 2))
        tracker.step(step(2, epoch=1))
        owed = tracker.take_owed()
    tracker._lines = lines
    tracker.close()
    Tracker(tmp_path, 2, 1, owed=owed).close()
    kinds = [(d["kind"], d["step"]) for d in read_metrics(tmp_path / "metrics.jsonl")]
    assert kinds == [("step", 0), ("step", 1), ("epoch", 2)]


def test_lines_of_an_epoch_that_was_not_closed_are_written_again(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    for s in range(2):
        tracker.step(step(s))
    tracker.epoch(epoch_record(0, 2))
    tracker.close()
    Tracker(tmp_path, 2, 1).close()
    assert [d["kind"] for d in read_metrics(tmp_path / "metrics.jsonl")] == ["step", "step", "epoch"]
    Tracker(tmp_path, 2, 0).close()
    assert [d["kind"] for d in read_metrics(tmp_path / "metrics.jsonl")] == ["step", "step"]


def test_import_is_torch_free() -> None:
    code = "import sys, maskrcnn_coco.report.tracking; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("what", ["folder", "file"])
def test_records_are_whole_after_somebody_deleted_them_while_the_run_goes_on(what, tmp_path):
    said: list[str] = []
    folder = tmp_path / "run"
    tracker = Tracker(folder, warn=said.append)
    for s in range(6):
        if s == 3:
            shutil.rmtree(folder) if what == "folder" else (folder / "metrics.jsonl").unlink()
        tracker.step(step(s))
    tracker.close()
    lines = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(6))
    assert len(said) == 1 and "deleted" in said[0]


@pytest.mark.parametrize("made", [8, 98, 998])
@pytest.mark.parametrize("clock", [0.0, -3600.0, 3600.0])
def test_a_resume_is_read_after_what_it_resumes_whatever_clock_and_counter_say(made, clock, tmp_path, monkeypatch):
    """TensorBoard reads files in the order of their names: a tenth file of one second came before the ninth."""
    monkeypatch.setattr(event_file.EventFile, "_made", made)
    run(tmp_path, 0, 6)
    now = time.time()
    monkeypatch.setattr(event_file.time, "time", lambda: now + clock)
    run(tmp_path, 4, 8, resume=4)
    run(tmp_path, 6, 8, resume=6)
    assert [s for s, _ in points(tmp_path)["loss/total"]] == list(range(8))


def test_where_the_steps_count_anew_tensorboard_shows_none_twice_and_no_line_is_lost(tmp_path):
    run(tmp_path, 0, 6)
    tracker = Tracker(tmp_path, 6)
    tracker.count_anew(3)
    for s in range(3, 5):
        tracker.step(step(s))
    tracker.close()
    assert [s for s, _ in points(tmp_path)["loss/total"]] == list(range(5))
    assert sum(kind == "step" for kind, _, _ in summary(tmp_path)) == 8


def read_back(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), {"images": 0, "scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def test_pictures_and_settings_are_what_tensorboard_reads(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.settings({"lr": 0.1, "demo": True, "model": None, "track": ("mlflow",), "amp": "auto"})
    for at in (5, 9):
        tracker.image("validation/1", b"a JPEG of step %d" % at, (12, 34), at)
    tracker.close()
    seen = read_back(tmp_path)
    assert seen.Tags()["images"] == ["validation/1"]
    pictures = seen.Images("validation/1")
    assert [(p.step, p.width, p.height, p.encoded_image_string) for p in pictures] == [
        (5, 34, 12, b"a JPEG of step 5"),
        (9, 34, 12, b"a JPEG of step 9"),
    ]
    content = seen.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert set(start.hparams) == {"lr", "demo", "track", "amp"}
    assert (start.hparams["lr"].number_value, start.hparams["demo"].bool_value) == (0.1, True)
