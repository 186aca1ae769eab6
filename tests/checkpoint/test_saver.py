"""What is written comes back bit for bit, only what is sound is used, and the disk's moods never end a run."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from states import digest, state_at

from maskrcnn_coco.checkpoint import store
from maskrcnn_coco.checkpoint.content import check_model, epoch_name, plain_copy
from maskrcnn_coco.checkpoint.saver import Saver
from maskrcnn_coco.checkpoint.store import checkpoints, load, load_newest, newest_intact, peek, save
from maskrcnn_coco.checkpoint.verification import verify
from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.system import files


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def step_of(path: Path) -> int:
    return verify(path).step


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path):
    state = state_at(5)
    state["model"]["half"] = torch.tensor([1.5, -0.0], dtype=torch.bfloat16)
    state["model"]["view"] = torch.arange(1000.0)[10:14]
    state["model"]["across"] = torch.arange(6.0).view(2, 3).t()
    state["model"]["empty"] = torch.zeros(0, 3)
    save(tmp_path / "x.pth", state)
    found = load(tmp_path / "x.pth")
    assert digest(found) == digest(plain_copy(state))
    assert torch.equal(found["model"]["across"], state["model"]["across"])
    assert found["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
    assert found["format"] == 1 and found["names"] == ["x.pth"]
    assert (tmp_path / "x.pth").stat().st_size < 40_000, "a view must not take all of its storage along"


def test_torch_and_unzip_read_the_file_too(tmp_path: Path):
    import zipfile

    save(tmp_path / "x.pth", state_at(5))
    found = torch.load(tmp_path / "x.pth", weights_only=True)
    assert digest(found) == digest(state_at(5))
    assert torch.load(tmp_path / "x.pth", weights_only=True, mmap=True)["loop"]["step"] == 5
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        assert archive.testzip() is None


def test_numbers_of_numpy_become_plain_ones(tmp_path: Path):
    state = state_at(1)
    state["loop"] |= {"ap": np.float64(0.5), "ids": (np.int64(7), True), "name": np.str_("é")}
    save(tmp_path / "x.pth", state)
    loop = load(tmp_path / "x.pth")["loop"]
    assert (loop["ap"], loop["ids"], loop["name"]) == (0.5, (7, True), "é")
    assert type(loop["ids"][0]) is int and type(loop["ids"][1]) is bool and type(loop["ap"]) is float


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"loop": {"step": 1, "epoch": 0, "p": Path("x")}}, "loop.p"),
        ({"loop": {"step": 1, "epoch": 0, "s": {1, 2}}}, "loop.s"),
        ({"loop": {"step": 1, "epoch": 0, "k": {(1, 2): 3}}}, "loop.k"),
        ({"model": {"w": torch.zeros(2, dtype=torch.complex64)}}, "model.w"),
        ({"model": {"w": torch.eye(3).to_sparse()}}, "model.w"),
        ({"guard": {"a": np.zeros(3)}}, "guard.a"),
        ({"model": [1]}, "model"),
        ({"loop": {"epoch": 0}}, "loop.step"),
        ({"loop": {"step": True, "epoch": 0}}, "loop.step"),
    ],
)
def test_what_cannot_be_read_again_is_not_written(change: dict[str, Any], where: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=where):
        save(tmp_path / "x.pth", {**state_at(1), **change})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"model": {"w": torch.tensor([0.0, float("nan")])}}, "model.w"),
        ({"model": {"bn.running_var": torch.tensor(float("-inf"))}}, "running_var"),
        ({"model": {"w": torch.tensor([float("inf")], dtype=torch.float16)}}, "model.w"),
        ({"optimizer": {"state": {3: {"momentum_buffer": torch.tensor([float("nan")])}}}}, "optimizer.state.3.mom"),
        ({"optimizer": {"param_groups": [{"lr": float("nan")}]}}, "lr = nan"),
        ({"scaler": {"scale": float("inf")}}, "scaler.scale"),
        ({"loop": {"step": 1, "epoch": 0, "lr_factors": {"backbone": float("nan")}}}, "lr_factors.backbone"),
    ],
)
def test_nothing_non_finite_is_written_or_read(change: dict[str, Any], where: str, tmp_path: Path):
    state = {**state_at(1), **change}
    with pytest.raises(CheckpointError, match="non-finite") as e:
        save(tmp_path / "x.pth", state)
    assert where in e.value.what
    assert names(tmp_path) == []
    torch.save({**state, "format": 1, "names": ["x.pth"], "serial": 1}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as e:
        load(tmp_path / "x.pth")
    assert where in e.value.what, "a file changed by hand is refused for its digest, and for what is wrong in it"


def test_a_best_metric_of_minus_infinity_is_no_reason(tmp_path: Path):
    save(tmp_path / "x.pth", state_at(1))
    assert load(tmp_path / "x.pth")["loop"]["best"] == float("-inf")


def test_the_saver_keeps_epochs_last_and_best(tmp_path: Path):
    saver = Saver(tmp_path)
    saver.save_epoch(1, state_at(10), best=True)
    saver.save_last(state_at(15))
    saver.save_epoch(2, state_at(20))
    assert saver.wait() == []
    assert names(tmp_path) == ["best.pth", "epoch_001.pth", "epoch_002.pth", "last.pth", "previous.pth"]
    steps = {p.name: step_of(p) for p in checkpoints(tmp_path)}
    assert steps == {"best.pth": 10, "epoch_001.pth": 10, "epoch_002.pth": 20, "last.pth": 20, "previous.pth": 15}
    assert not (tmp_path / "last.pth").samefile(tmp_path / "epoch_002.pth"), "one damaged file costs one name"
    assert saver.written == 3


@pytest.mark.parametrize(
    "acts", [["last"], ["best epoch"], ["last", "last"], ["epoch"], ["best epoch", "last", "epoch"]]
)
def test_after_every_save_any_one_file_may_be_lost(acts: list[str], tmp_path: Path):
    saver = Saver(tmp_path, keep_epochs=1)
    for step, act in enumerate(acts, 10):
        if act == "last":
            saver.save_last(state_at(step))
        else:
            saver.save_epoch(step, state_at(step), best=act.startswith("best"))
        assert saver.wait() == []
        for victim in {p.stat().st_ino: p for p in checkpoints(tmp_path)}.values():
            whole = victim.read_bytes()
            victim.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])  # in all of its names
            path, state, _ = load_newest(tmp_path)
            assert path is not None and state is not None, f"one flipped bit in {victim.name} is the end, after {act}"
            victim.write_bytes(whole)


def test_the_saver_takes_a_copy(tmp_path: Path):
    saver, state = Saver(tmp_path), state_at(10)
    want = digest(state)
    saver.save_last(state)
    for tensor in state["model"].values():
        tensor.zero_()
    state["loop"]["step"] = 11
    saver.wait()
    assert digest(load(tmp_path / "last.pth")) == want


def test_old_epochs_go_but_never_the_last_good_ones(tmp_path: Path):
    saver = Saver(tmp_path, keep_epochs=2)
    for number in range(1, 6):
        saver.save_epoch(number, state_at(10 * number), best=number == 2)
    assert saver.wait() == []
    assert names(tmp_path) == ["best.pth", "epoch_004.pth", "epoch_005.pth", "last.pth"]
    assert step_of(tmp_path / "best.pth") == 20


def test_an_epoch_is_not_pruned_while_the_others_are_damaged(tmp_path: Path):
    saver = Saver(tmp_path, keep_epochs=1)
    saver.save_epoch(1, state_at(10))
    saver.wait()
    other = Saver(tmp_path, keep_epochs=1)  # a new process, which has verified nothing yet
    (tmp_path / "best.pth").write_bytes(b"damaged")
    other.save_epoch(2, state_at(20))
    assert other.wait() == []
    assert "epoch_001.pth" in names(tmp_path)
    other.save_epoch(3, state_at(30), best=True)
    other.wait()
    assert {p.name for p in checkpoints(tmp_path)} >= {"epoch_003.pth", "last.pth", "best.pth"}
    assert len({digest(load(p)) for p in checkpoints(tmp_path)}) >= 2


def test_the_newest_counts_by_saves_not_by_clock_or_step(tmp_path: Path):
    saver = Saver(tmp_path)
    saver.save_epoch(3, state_at(30))
    saver.save_last(state_at(22))  # after a rollback
    saver.wait()
    os.utime(tmp_path / "epoch_003.pth", (2e9, 2e9))
    os.utime(tmp_path / "last.pth", (1, 1))
    assert newest_intact(tmp_path) == (tmp_path / "last.pth", [])
    again = Saver(tmp_path)  # a resumed run goes on counting
    again.save_epoch(2, state_at(21))
    again.wait()
    path, state, skipped = load_newest(tmp_path)
    assert path is not None and state is not None
    assert (state["loop"]["step"], skipped) == (21, [])


def test_a_damaged_newest_is_passed_over_with_the_reason(tmp_path: Path):
    saver = Saver(tmp_path)
    for step in (1, 2, 3):
        saver.save_last(state_at(step))
    saver.wait()
    data = bytearray((tmp_path / "last.pth").read_bytes())
    data[len(data) // 3] ^= 4
    (tmp_path / "last.pth").write_bytes(data)
    path, skipped = newest_intact(tmp_path)
    assert path == tmp_path / "previous.pth"
    assert [s.path.name for s in skipped] == ["last.pth"]
    assert "SHA-256" in str(skipped[0])
    (tmp_path / "previous.pth").write_bytes(b"")
    path, state, skipped = load_newest(tmp_path)
    assert (path, state, len(skipped)) == (None, None, 2)
    assert newest_intact(tmp_path / "absent") == (None, [])


def test_a_damaged_last_is_kept_for_a_look_and_does_not_replace_the_intact_one(tmp_path: Path):
    saver = Saver(tmp_path)
    for step in (1, 2, 3):
        saver.save_last(state_at(step))
    saver.wait()
    (tmp_path / "last.pth").write_bytes(b"damaged")
    again = Saver(tmp_path)
    again.save_last(state_at(4))
    assert again.wait() == []
    assert (tmp_path / "last.pth.damaged").read_bytes() == b"damaged"
    assert (step_of(tmp_path / "previous.pth"), step_of(tmp_path / "last.pth")) == (2, 4)


@pytest.mark.parametrize("name", ["epoch_002.pth", "best.pth", "last.pth"])
def test_a_file_under_another_ones_name_is_refused(name: str, tmp_path: Path):
    save(tmp_path / "epoch_001.pth", state_at(10))
    (tmp_path / "epoch_001.pth").rename(tmp_path / name)
    with pytest.raises(CheckpointError, match="another name"):
        load(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "mine.pth")
    assert load(tmp_path / "mine.pth")["loop"]["step"] == 10


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EIO, "error"), (errno.EROFS, "read-only"), (errno.EDQUOT, "quota")],
)
def test_a_bad_disk_is_a_warning_and_tried_again(
    number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    saver = Saver(tmp_path)
    saver.save_epoch(1, state_at(10), best=True)
    assert saver.wait() == []

    def fails(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fails)
        saver.save_epoch(2, state_at(20), best=True)
        (said,) = saver.wait()
    assert words in said and "epoch_002.pth" in said and "older ones are intact" in said
    assert names(tmp_path) == ["best.pth", "epoch_001.pth", "last.pth"]
    assert step_of(tmp_path / "last.pth") == 10
    saver.save_last(state_at(25))
    assert saver.wait() == []
    steps = {p.name: step_of(p) for p in checkpoints(tmp_path)}
    assert steps["epoch_002.pth"] == steps["best.pth"] == 20
    assert steps["last.pth"] == 25
    assert newest_intact(tmp_path)[0] == tmp_path / "last.pth"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_a_warning(tmp_path: Path):
    saver = Saver(tmp_path / "c")
    (tmp_path / "c").mkdir()
    (tmp_path / "c").chmod(0o500)
    saver.save_last(state_at(1))
    (said,) = saver.wait()
    assert "may not be written" in said


def test_a_folder_deleted_in_the_run_is_made_again(tmp_path: Path):
    import shutil

    saver = Saver(tmp_path / "c")
    saver.save_last(state_at(1))
    saver.wait()
    shutil.rmtree(tmp_path / "c")
    saver.save_last(state_at(2))
    assert saver.wait() == []
    assert step_of(tmp_path / "c" / "last.pth") == 2


def test_a_non_finite_state_is_a_warning_and_the_old_one_stays(tmp_path: Path):
    saver = Saver(tmp_path)
    saver.save_last(state_at(1))
    bad = state_at(2)
    bad["model"]["layer0.weight"][0, 0] = float("nan")
    saver.save_last(bad)
    (said,) = saver.wait()
    assert "non-finite" in said and "layer0.weight" in said
    assert step_of(tmp_path / "last.pth") == 1


def test_what_the_disk_gives_back_wrong_is_not_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saver = Saver(tmp_path)
    saver.save_last(state_at(1))
    saver.wait()
    real = files._write_new

    def lossy(path: Path, write: Any) -> None:
        real(path, write)
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(files, "_write_new", lossy)
    saver.save_last(state_at(2))
    (said,) = saver.wait()
    assert "last.pth" in said
    assert step_of(tmp_path / "last.pth") == 1


def test_saving_does_not_hold_up_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    release = threading.Event()
    real = store.write_document

    def slow(*arguments: Any, **named: Any) -> None:
        assert release.wait(20)
        real(*arguments, **named)

    monkeypatch.setattr(store, "write_document", slow)
    saver = Saver(tmp_path)
    began = time.monotonic()
    saver.save_last(state_at(1))
    assert time.monotonic() - began < 5
    assert saver.busy and names(tmp_path) == []
    release.set()
    saver.wait()
    assert not saver.busy and step_of(tmp_path / "last.pth") == 1


def test_ctrl_c_in_a_wait_does_not_lose_sight_of_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from concurrent import futures

    saver = Saver(tmp_path)
    saver.save_last(state_at(1))

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(futures, "wait", interrupted)
        saver.wait()
    assert saver.wait() == []
    assert step_of(tmp_path / "last.pth") == 1


def test_another_model_is_named(tmp_path: Path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 5))
    check_model(model.state_dict(), model, "x.pth")
    with pytest.raises(CheckpointError, match="another model") as e:
        check_model(other.state_dict(), model, tmp_path / "x.pth")
    assert "1.weight" in e.value.what and "[5, 4]" in e.value.what and "[2, 4]" in e.value.what
    lacking = {k: v for k, v in model.state_dict().items() if k != "0.bias"} | {"extra": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"1 missing.*0\.bias.*1 unknown.*extra"):
        check_model(lacking, model, "x.pth")


def test_a_header_is_read_without_the_tensors(tmp_path: Path):
    save(tmp_path / "x.pth", state_at(34), serial=9)
    assert peek(tmp_path / "x.pth") == (9, 34, 3, ("x.pth",))
    assert epoch_name(7) == "epoch_007.pth" and epoch_name(1234) == "epoch_1234.pth"


def test_without_room_for_a_thread_a_save_is_written_by_the_step_itself(tmp_path, monkeypatch):
    def none(*arguments, **named):
        raise RuntimeError("can't start new thread")

    saver = Saver(tmp_path)
    monkeypatch.setattr(saver._worker, "submit", none)
    saver.save_last(state_at(1))
    assert saver.wait() == [] and not saver.failed
    assert (tmp_path / "last.pth").exists()


def no_copies(*arguments, **named):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 147456 bytes")


def test_without_room_for_a_copy_the_state_itself_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("maskrcnn_coco.checkpoint.saver.plain_copy", no_copies)
    state, whole = state_at(1), torch.randn(6, 4, 3, 3)
    state["model"] |= {
        "laid": whole.clone(memory_format=torch.channels_last),
        "part": whole[2],
        "whole": whole,
        "turned": torch.arange(6.0).reshape(2, 3).t(),
    }
    saver = Saver(tmp_path)
    saver.save_epoch(1, state, best=True)
    assert saver.wait() == [] and not saver.failed
    for name in ("epoch_001.pth", "last.pth", "best.pth"):
        read = load(tmp_path / name)["model"]
        assert all(torch.equal(read[n], state["model"][n]) for n in state["model"])
    assert saver.save_last_itself(state_at(2)) == [] and load(tmp_path / "last.pth")["loop"]["step"] == 2


def test_what_is_no_copy_is_not_written_later(tmp_path, monkeypatch):
    """By then training has changed it."""
    saver, write = Saver(tmp_path), Saver._write
    with monkeypatch.context() as patch:
        patch.setattr("maskrcnn_coco.checkpoint.saver.plain_copy", no_copies)
        patch.setattr(Saver, "_write", lambda self, job: (_ for _ in ()).throw(OSError(28, "No space left")))
        saver.save_epoch(1, state_at(1))
        assert "the disk is full" in saver.wait()[0] and saver.failed
    assert Saver._write is write
    saver.save_epoch(2, state_at(2))
    assert saver.wait() == [] and not (tmp_path / "epoch_001.pth").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 513024 vs 412608"),
    ],
)
def test_a_save_that_memory_does_not_suffice_for_ends_no_run(tmp_path, monkeypatch, error):
    saver = Saver(tmp_path)
    saver.save_last(state_at(1))
    assert saver.wait() == []
    write = saver._write

    def short(job):
        raise error

    monkeypatch.setattr(saver, "_write", short)
    saver.save_last(state_at(2))
    (said,) = saver.wait()
    assert "memory ran out" in said and saver.failed
    monkeypatch.setattr(saver, "_write", write)
    saver.save_last(state_at(3))
    assert saver.wait() == [] and not saver.failed
    assert load(tmp_path / "last.pth")["loop"]["step"] == 3
