"""Incident files: strict JSON, a case that replays on another machine, five lines for a person."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from tiny_faults import FAULTS, pixels, put
from tiny_run import TinyRun, rates

from maskrcnn_coco.diagnosis.investigate import investigate
from maskrcnn_coco.errors import CheckpointError, DataError
from maskrcnn_coco.records import Action, Culprit, Evidence, Incident
from maskrcnn_coco.replay.case import Rig
from maskrcnn_coco.replay.replay import Replay
from maskrcnn_coco.report.incident_files import read_incidents, set_aside, write_incident
from maskrcnn_coco.training import case_file
from maskrcnn_coco.training.case_file import load_case, save_case


def incident(cause: str = "DATA_BOX", action: Action | None = None) -> Incident:
    return Incident(
        id="0001",
        step=41,
        epoch=0,
        onset_step=38,
        symptom="loss_nonfinite",
        cause=cause,
        confidence=0.97,
        culprit=Culprit(component="box_head", image_ids=[17], annotation_ids=[203]),
        evidence=[Evidence("replay: same batch, weights of step 30", "finite", cause)],
        action=action or Action("quarantine", {"image_ids": [17]}),
        outcome="recovered",
        lost_steps=0,
        fix="--head-lr-multiplier 3.0",
        explain=f"maskrcnn-coco explain {cause}",
        detail={"loss": math.nan},
    )


def test_json_round_trip_is_strict(tmp_path):
    path = write_incident(tmp_path / "incidents", incident())
    data = json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert list(data)[:6] == ["id", "step", "epoch", "onset_step", "symptom", "cause"]
    (back,) = read_incidents(tmp_path / "incidents")
    assert back.culprit == incident().culprit and back.evidence == incident().evidence
    assert read_incidents(tmp_path / "nothing here") == []


def test_a_damaged_incident_names_its_file(tmp_path):
    (tmp_path / "0002.json").write_text("{")
    with pytest.raises(DataError, match=r"0002\.json"):
        read_incidents(tmp_path)


def rig_of(settings) -> Rig:
    """Another machine: nothing of the failed run, no data."""
    fresh = TinyRun(max_grad_norm=settings["config"]["max_grad_norm"])
    rig = fresh.rig()
    rig.make_batch = None
    return rig


def test_a_batch_of_views_of_one_buffer_can_be_saved(tmp_path):
    """A loader may hand out a whole step as views of one piece of shared memory, of several dtypes."""
    case = TinyRun(spoil=pixels(put((0, 3, 4), float("nan")))).until_alarm()
    buffer = torch.zeros(1 << 16, dtype=torch.uint8)
    own = case.batches[0].targets[0]
    masks, boxes = own["masks"], own["boxes"]
    own["masks"] = buffer[: masks.numel()].view(masks.shape).copy_(masks)
    at = (masks.numel() + 63) // 64 * 64
    own["boxes"] = buffer[at : at + boxes.nbytes].view(torch.float32).view(boxes.shape).copy_(boxes)
    path = save_case(tmp_path, "0001", case)
    kept = torch.load(path, weights_only=True)["batches"][0]["targets"][0]
    assert torch.equal(kept["boxes"], boxes) and torch.equal(kept["masks"], masks)


def test_a_saved_case_gives_the_same_verdict_elsewhere(tmp_path):
    case = TinyRun(lr=rates(box_head=0.3), max_grad_norm=0).until_alarm()
    here = investigate(case)[0]
    path = save_case(tmp_path, "0001", case)
    torch.load(path, weights_only=True)
    loaded = load_case(path, rig_of)
    there = investigate(loaded)[0]
    assert (there.cause, there.culprit, there.confidence) == (here.cause, here.culprit, here.confidence)
    assert Replay(loaded).run("same", digest=True).digest == Replay(case).run("same", digest=True).digest


@pytest.mark.parametrize("fields", [3, 4], ids=["of before repeats were counted", "today's"])
def test_which_time_of_a_repeated_image_it_is_stays_in_a_case(tmp_path, monkeypatch, fields: int):
    case = TinyRun(lr=rates(box_head=0.3), max_grad_norm=0).until_alarm()
    for entry in case.tape:
        entry.keys = [[key._replace(repeat=3) for key in keys] for keys in entry.keys]
    written = [key._replace(repeat=3 * (fields == 4)) for keys in case.tape[0].keys for key in keys]
    pack_batch, pack_entry = case_file._pack_batch, case_file._pack_entry
    cut = lambda keys: [list(key)[:fields] for key in keys]  # noqa: E731
    monkeypatch.setattr(case_file, "_pack_batch", lambda b: (p := pack_batch(b)) | {"keys": cut(p["keys"])})
    monkeypatch.setattr(case_file, "_pack_entry", lambda e: (p := pack_entry(e)) | {"keys": [*map(cut, p["keys"])]})
    loaded = load_case(save_case(tmp_path, "0001", case), rig_of)
    assert [key for keys in loaded.tape[0].keys for key in keys] == written
    assert Replay(loaded).run("same", digest=True).digest == Replay(case).run("same", digest=True).digest


@pytest.mark.parametrize("name", ["B3 NaN", "H1 background row", "G1 mean of nothing"])
def test_other_causes_elsewhere(name: str, tmp_path):
    make, cause, _ = FAULTS[name]
    run = make()
    case = run.until_alarm()
    here = investigate(case)[0]

    def build(settings) -> Rig:
        rig = make().rig()
        rig.make_batch = None
        return rig

    there = investigate(load_case(save_case(tmp_path, "0001", case), build))[0]
    assert (there.cause, there.culprit) == (here.cause, here.culprit) == (cause, here.culprit)


def test_the_size_is_bounded_and_the_failing_step_is_always_there(tmp_path):
    case = TinyRun(lr=rates(box_head=0.3), max_grad_norm=0).until_alarm()
    whole = save_case(tmp_path, "0001", case).stat().st_size
    small = save_case(tmp_path, "0002", case, max_bytes=case.now.nbytes + 1000)
    assert small.stat().st_size < 0.7 * whole
    loaded = load_case(small, rig_of)
    assert (loaded.earlier == [] and not Replay(loaded).run("same").finite) or Replay(loaded).run("same").loss > 100


def test_a_damaged_case_is_a_checkpoint_error(tmp_path):
    path = save_case(tmp_path, "0001", TinyRun(lr=rates(box_head=0.3), max_grad_norm=0).until_alarm())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"0001\.pt"):
        load_case(path, rig_of)
    with pytest.raises(CheckpointError, match="missing"):
        load_case(tmp_path / "missing.pt", rig_of)
    torch.save({"format": 99}, tmp_path / "0003.pt")
    with pytest.raises(CheckpointError, match="not a case"):
        load_case(tmp_path / "0003.pt", rig_of)


def test_incidents_that_a_resumed_run_has_not_had_are_set_aside(tmp_path):
    for number in ("0001", "0002"):
        write_incident(tmp_path, dataclasses.replace(incident(), id=number))
    (tmp_path / "0002_image17.jpg").write_bytes(b"")
    set_aside(tmp_path, {"0001"})
    assert [i.id for i in read_incidents(tmp_path)] == ["0001"]
    assert sorted(p.name for p in (tmp_path / "undone").iterdir()) == ["0002.json", "0002_image17.jpg"]


@pytest.mark.parametrize("content", [b"", b"\0\0", b"[1]", b"{}", b"\xff{"])
def test_a_damaged_incident_is_told_and_does_not_hide_the_others(content, tmp_path):
    write_incident(tmp_path, incident())
    (tmp_path / "0002.json").write_bytes(content)
    (tmp_path / "0003.json").mkdir()
    with pytest.raises(DataError):
        read_incidents(tmp_path)
    said: list[str] = []
    assert [i.id for i in read_incidents(tmp_path, damaged=said.append)] == ["0001"]
    assert len(said) == 2 and "0002.json" in said[0] and "0003.json" in said[1]
