"""When a run saves, what a resumed one says, and how several processes agree on the checkpoint to go on from."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import config, tiny_model
from states import state_at

from maskrcnn_coco import train
from maskrcnn_coco.checkpoint.store import load, save
from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.records import Alarm
from maskrcnn_coco.system.backends import use_fused_attention, use_libraries
from maskrcnn_coco.training import loop
from maskrcnn_coco.training.response import change_precision
from maskrcnn_coco.training.resume import find_together
from maskrcnn_coco.training.rollback import reload
from maskrcnn_coco.training.saving import save_is_due


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


def due(every: str | None, step: int, seconds: float) -> bool:
    session = SimpleNamespace(
        config=SimpleNamespace(checkpoint_every=every),
        ranks=SimpleNamespace(is_main=True),
        progress=SimpleNamespace(step=step),
        last_save=time.monotonic() - seconds,
    )
    return save_is_due(session)  # type: ignore[arg-type]


def test_checkpoint_every_counts_steps_or_seconds():
    assert [step for step in range(1, 10) if due("3", step, 0)] == [3, 6, 9]
    assert [seconds for seconds in (1, 59, 61, 600) if due("60s", 7, seconds)] == [61, 600]
    assert not due(None, 10, 1e6)


def test_a_resume_elsewhere_says_that_it_is_inexact_and_why(tiny_shapes, tmp_path, capsys, monkeypatch):
    settings = {"checkpoint_every": "2", "epochs": 1}
    train(config(tiny_shapes.root, tmp_path, **settings), model=tiny_model(), stop_after=2)
    assert load(tmp_path / "checkpoints" / "last.pth")["loop"]["step"] == 2
    capsys.readouterr()
    again = config(tiny_shapes.root, tmp_path, **settings, resume="auto")
    train(again, model=tiny_model(), stop_after=2)
    said = capsys.readouterr()
    assert "going on from" in said.out + said.err and "inexact" not in said.out + said.err
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    train(again, model=tiny_model(), stop_after=1)
    said = capsys.readouterr()
    sentence = "this resume is inexact, the last bits may differ: ONEDNN_MAX_CPU_ISA was not set and is now AVX2"
    assert sentence in (said.out + said.err).replace("\n", " ")


def test_what_was_decided_since_outlives_a_reload_from_disk(tiny_shapes, tmp_path, monkeypatch):
    held, opened = [], loop.open_session
    monkeypatch.setattr(loop, "open_session", lambda *a, **k: held.append(opened(*a, **k)) or held[0])
    train(config(tiny_shapes.root, tmp_path, checkpoint_every="2"), model=tiny_model(), stop_after=4)
    (session,) = held
    session.ring.clear()
    session.progress.incidents.append("0001")
    session.progress.lr_factors["rpn"] = 0.5
    session.progress.eager_modules.append("backbone")
    session.progress.libraries = session.progress.attention = False
    session.model.get_submodule("backbone")._compiled_call_impl = object()
    session.leave_out([3], [], "0001")
    assert reload(session, Alarm("param_nonfinite", 4, 0, 4, "test")) == 4
    session.log.close()
    assert session.progress.incidents == ["0001"], "the next incident must not take its number"
    assert session.progress.lr_factors == {"rpn": 0.5}
    assert session.progress.quarantine == [{"id": 3, "incident": "0001"}] and session.plan.quarantined == [3]
    assert session.progress.eager_modules == ["backbone"] and not session.progress.libraries
    assert session.model.get_submodule("backbone")._compiled_call_impl is None and not torch.backends.cudnn.enabled
    assert not session.progress.attention and not torch.backends.cuda.flash_sdp_enabled()
    use_libraries(True)
    use_fused_attention(True)


def test_fused_attention_that_was_turned_off_stays_off_in_a_resumed_run_and_no_longer(
    tiny_shapes, tmp_path, monkeypatch
):
    held, opened, seen = [], loop.open_session, []
    monkeypatch.setattr(loop, "open_session", lambda *a, **k: held.append(opened(*a, **k)) or held[-1])
    step = loop.train_step

    def watched(session, *args, **kwargs):
        if len(held) == 1 and session.progress.attention:
            change_precision(session, Alarm("loss_nonfinite", 0, 0, 0, "test"), {"attention": False})
        seen.append((len(held), torch.backends.cuda.flash_sdp_enabled()))
        return step(session, *args, **kwargs)

    monkeypatch.setattr(loop, "train_step", watched)
    train(config(tiny_shapes.root, tmp_path, checkpoint_every="1"), model=tiny_model(), stop_after=2)
    assert torch.backends.cuda.flash_sdp_enabled(), "the setting is the process's, not the run's"
    train(config(tiny_shapes.root, tmp_path, resume="auto"), model=tiny_model(), stop_after=3)
    assert {number for number, _ in seen} == {1, 2} and not any(on for _, on in seen)
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.fixture(scope="module")
def run_of_one_step(tiny_shapes: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings of a run that has ended, as `config` takes them."""
    folder = tmp_path_factory.mktemp("run")
    given = {
        "data": str(tiny_shapes.root), "checkpoint_dir": str(folder / "checkpoints"), "logdir": str(folder / "logs"),
        "model": "maskrcnn_resnet18_fpn", "weights": "none", "min_size": 64, "max_size": 64, "max_steps": 1,
        "box_detections_per_image": 5,
        "device": "cpu", "workers": 0,
    }  # fmt: skip
    train(Config(**given))
    return given


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    [
        ({"model": "maskrcnn_mobilenet_v2_fpn"}, "is of another model", "leave --model away"),
        ({"weights": "imagenet"}, "brings its own weights", "leave --weights away"),
        ({"backbone_weights": "body.pth"}, "brings its own weights", "leave --backbone-weights away"),
    ],
)
def test_another_model_or_other_weights_are_refused_by_their_flag(run_of_one_step, change, what, fix):
    with pytest.raises(CheckpointError, match=what) as error:
        train(Config(**run_of_one_step | change | {"resume": "auto", "max_steps": 2}))
    assert fix in str(error.value.fix)
    (value,) = change.values()
    assert value in str(error.value.got)


def test_a_folder_to_resume_from_is_told_with_the_flags_for_it(run_of_one_step, tmp_path):
    folder = run_of_one_step["checkpoint_dir"]
    with pytest.raises(CheckpointError, match="is a folder") as error:
        train(Config(**run_of_one_step | {"resume": folder}))
    assert error.value.fix == f"--resume auto --checkpoint-dir {folder}"
    with pytest.raises(CheckpointError, match="is a folder"):
        train(Config(**run_of_one_step | {"resume": str(tmp_path)}))


def test_weights_of_another_program_are_no_run_to_go_on_with_and_the_flag_for_them_is_named(run_of_one_step, tmp_path):
    state = torch.load(Path(run_of_one_step["checkpoint_dir"]) / "last.pth", weights_only=True)["model"]
    torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}}, tmp_path / "other.ckpt")
    (tmp_path / "no.pth").write_text("nothing")
    with pytest.raises(CheckpointError, match="can be used") as error:
        train(Config(**run_of_one_step | {"resume": str(tmp_path / "other.ckpt")}))
    assert f"--weights {tmp_path / 'other.ckpt'} begins a new run" in str(error.value.fix)
    with pytest.raises(CheckpointError) as error:
        train(Config(**run_of_one_step | {"resume": str(tmp_path / "no.pth")}))
    assert "--resume none" in str(error.value.fix)
