"""Memory: what is there, what fits, and a run or an advice that meets its end."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import OwnData, config, narrow, small_model

from maskrcnn_coco import Config, train
from maskrcnn_coco.advice.advise import advise_data, settle_what_fits
from maskrcnn_coco.advice.batch_size import settle_batch
from maskrcnn_coco.advice.prepare import memory_use, open_setup
from maskrcnn_coco.checkpoint.store import newest_intact, peek
from maskrcnn_coco.config.resolve import resolve_run
from maskrcnn_coco.data.prepare import open_data
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.guard.forward_backward import is_fatal, run
from maskrcnn_coco.guard.norms import Layout
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.system import memory

CPU = torch.device("cpu")


def test_a_container_limit_counts(monkeypatch):
    monkeypatch.setattr(memory, "_from_proc", lambda: (64 << 30, 60 << 30))
    monkeypatch.setattr(memory, "_from_cgroup", lambda: (8 << 30, 3 << 30))
    assert memory.main_memory() == {"total": 8 << 30, "available": 5 << 30}
    assert memory.total(CPU) == 8 << 30


def test_a_tensor_that_is_made_is_held_and_one_that_is_gone_leaves_a_peak():
    before = memory.held(CPU)
    block = torch.ones(128 << 20)  # half a GiB; what other tests left to be reused is less
    assert memory.held(CPU) - before > 200 << 20 and block[0] == 1
    del block
    assert memory.peak(CPU) >= before + (200 << 20)


def test_the_batch_that_fits_grows_with_the_device_and_is_never_zero():
    fits = [memory.batch_that_fits(4, 1 << 30, 3 << 30, whole << 30) for whole in (1, 8, 16, 80)]
    assert fits == [1, 11, 25, 134]


def test_a_real_allocation_that_cannot_be_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert memory.ran_out(caught.value)
    assert memory.ran_out(torch.OutOfMemoryError("CUDA out of memory")) and not memory.ran_out(RuntimeError("shape"))


def out_of_memory_at(monkeypatch, fails):
    """Forward passes for which ``fails(batch, step)`` run out of memory."""
    inner = Forward.losses

    def losses(self, model, batch, step, micro, precision=None):
        if fails(batch, step):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return inner(self, model, batch, step, micro, precision)

    monkeypatch.setattr(Forward, "losses", losses)


def test_a_run_that_runs_out_of_memory_is_saved_and_says_what_fits(tmp_path, monkeypatch):
    settings = config(None, tmp_path, epochs=2)
    with monkeypatch.context() as patch:
        out_of_memory_at(patch, lambda batch, step: step == 4)
        with pytest.raises(ConfigError, match="memory ran out on cpu at step 4; the run so far is saved") as caught:
            train(settings, model=small_model(), train_data=OwnData(12), quiet=True)
    assert "--batch-size 2 --accumulate 2" in str(caught.value.fix)
    newest, _ = newest_intact(tmp_path / "checkpoints")
    assert newest is not None and peek(newest).step == 4
    again = config(None, tmp_path, epochs=2, resume="auto")
    result = train(again, model=small_model(1), train_data=OwnData(12), quiet=True)
    assert (result.status, result.steps, result.skipped_steps) == ("finished", 6, 0)


@narrow()
def test_advice_halves_the_batch_until_it_fits(monkeypatch):
    out_of_memory_at(monkeypatch, lambda batch, step: len(batch.images) > 1)
    settings, said, ranks = Config(demo=True, epochs=2, device="cpu"), [], Ranks.start("cpu")
    data = open_data(settings)
    resolved = resolve_run(settings, images=len(data.train), builtin=True, device=ranks.device, world=1)
    setup, fresh, settled, budget = settle_what_fits(resolved, data, ranks, said.append)
    assert (setup.config.batch_size, setup.config.accumulate, setup.given["accumulate"]) == (1, 4, 4)
    assert said[0] == "memory ran out at batch size 4: on with 2, accumulated 2 times" and len(said) == 2
    assert fresh.step == 0 and budget > 0 and settled.trial.stable and settled.trial.records[0].applied


@narrow()
def test_advice_for_a_model_of_which_not_one_image_fits(monkeypatch):
    out_of_memory_at(monkeypatch, lambda batch, step: True)
    with pytest.raises(ConfigError, match="memory ran out") as caught:
        advise_data(Config(demo=True, epochs=2, batch_size=1, device="cpu"), Console(quiet=True))
    assert "--max-size" in str(caught.value.fix) and "--batch-size" not in str(caught.value.fix)


def test_no_more_images_fit_than_there_are(monkeypatch):
    setup: Any = SimpleNamespace(config=Config(batch_size=4), device=torch.device("cpu"), bytes_before=0, images=50)
    monkeypatch.setattr(memory, "peak", lambda device: 2**30)
    for whole, said in (
        (100, "all 50 images would fit, but"),
        (10, "about 34 would fit, but"),
        (1, "about 3 would fit"),
    ):
        monkeypatch.setattr(memory, "usable", lambda device, whole=whole: whole * 2**30)
        sentence = memory_use(setup)[1]
        assert said in sentence and ("this batch size" in sentence) is (whole > 1)


OUT = [
    "CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 79.10 GiB total capacity)",
    "MPS backend out of memory (MPS allocated: 5.00 GB)",
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate",
    "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "GET was unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm to run convolution",
    "std::bad_alloc",
    "unable to mmap 1024 bytes from file: Cannot allocate memory (12)",
]
NOT_OUT = [
    "mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)",
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
    "CUDA error: device-side assert triggered",
    "view size is not compatible with input tensor's size and stride (at least one dimension spans across memory)",
]


@pytest.mark.parametrize("text", OUT)
def test_what_running_out_says_is_no_fault_of_an_image(text):
    error = RuntimeError(text)
    assert memory.ran_out(error) and is_fatal(error)
    forward = raising(error)
    with pytest.raises(RuntimeError):
        run(forward, [1], None, Layout(*one_weight()))


@pytest.mark.parametrize("text", NOT_OUT)
def test_other_errors_are_not_taken_for_it(text):
    assert not memory.ran_out(RuntimeError(text))
    assert not memory.ran_out(ValueError("the value is out of memory of man"))


def test_the_systems_own_error_counts():
    assert memory.ran_out(OSError(12, "Cannot allocate memory")) and not memory.ran_out(OSError(28, "No space left"))
    assert memory.ran_out(MemoryError())


def raising(error):
    def forward(_batch):
        raise error

    return forward


def one_weight():
    model = torch.nn.Linear(2, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), None


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("where", ["own", "above", "root"])
def test_the_tightest_control_group_counts_without_the_pages_of_files(tmp_path, version, where):
    base = tmp_path / "fs" / "memory" if version == 1 else tmp_path / "fs"
    folder = base / {"own": "job/task", "above": "job", "root": ""}[where]
    (base / "job/task").mkdir(parents=True)
    limit, used = (
        ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    unlimited = "max" if version == 2 else "9223372036854771712"
    for other in (base, base / "job", base / "job/task"):
        (other / limit).write_text(unlimited)
        (other / used).write_text(str(5 << 30))
    (folder / limit).write_text(str(8 << 30))
    name = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"cache 1\n{name} {2 << 30}\n")
    own = tmp_path / "cgroup"
    own.write_text("0::/job/task\n" if version == 2 else "5:cpu:/else\n4:memory:/job/task\n0::/\n")
    assert memory._from_cgroup(tmp_path / "fs", own) == (8 << 30, 3 << 30)


def test_no_control_group_is_no_limit(tmp_path):
    assert memory._from_cgroup(tmp_path, tmp_path / "none") == (None, 0)


def test_the_budget_of_snapshots_knows_the_container_and_the_device(monkeypatch):
    monkeypatch.setattr(memory, "main_memory", lambda: {"total": 64 << 30, "available": 8 << 30})
    assert memory.snapshot_budget() == memory.snapshot_budget(CPU) == 2 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 << 30)
    gpu = torch.device("cuda", 0)
    assert memory.snapshot_budget(gpu) == 1 << 30
    assert memory.is_short(gpu, 3 << 30) and not memory.is_short(gpu, 2 << 30) and not memory.is_short(CPU, 1 << 60)
    assert memory.usable(gpu) == 6 << 30, "what other processes hold is not this one's"


def test_a_peak_can_be_forgotten():
    block = torch.ones(64 << 20)
    del block
    before = memory.peak(CPU)
    memory.reset_peak(CPU)
    if memory.peak(CPU) == before:
        pytest.skip("this system does not let a process forget its peak")
    assert memory.peak(CPU) < before and memory.peak(CPU) >= memory.held(CPU) - (64 << 20)


def test_advice_after_a_failure_measures_the_batch_that_fit(monkeypatch):
    """A batch that did not fit leaves its peak; what is said of the smaller one must not be of that."""
    at = {"peak": 10 << 30}
    monkeypatch.setattr(memory, "reset_peak", lambda device: at.update(peak=2 << 30))
    monkeypatch.setattr(memory, "peak", lambda device: at["peak"])
    monkeypatch.setattr(memory, "usable", lambda device: 12 << 30)
    monkeypatch.setattr(memory, "held", lambda device: 1 << 30)
    ranks = Ranks.start("cpu")
    settings = Config(demo=True, epochs=1, batch_size=2, device="cpu")
    data = open_data(settings)
    resolved = resolve_run(settings, images=len(data.train), builtin=True, device=CPU, world=1)
    setup = open_setup(resolved, data, ranks)
    assert memory_use(setup)[0] == 2 << 30


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(OUT[2])])
def test_an_investigation_without_memory_costs_the_cause_and_never_the_run(tmp_path, monkeypatch, error):
    """Every replay runs out; the scans, which need none, still name the image, and the run goes on."""
    inner, own = Forward.losses, {"once": True}

    def losses(self, model, batch, step, micro, precision=None):
        if model is not own["model"]:
            raise error
        found = inner(self, model, batch, step, micro, precision)
        return {k: v * float("nan") for k, v in found.items()} if step == 1 and own.pop("once", False) else found

    monkeypatch.setattr(Forward, "losses", losses)
    model = own["model"] = small_model(1)
    result = train(config(None, tmp_path, epochs=2), model=model, train_data=OwnData(12, bad=(5,)), quiet=True)
    assert result.status == "finished" and result.finite and len(result.incidents) == 2


def test_batch_size_auto_halves_until_a_step_fits_and_keeps_the_effective_batch(monkeypatch):
    out_of_memory_at(monkeypatch, lambda batch, step: len(batch.images) > 1)
    settings, said, ranks = Config(demo=True, epochs=2, device="cpu", batch_size="auto"), [], Ranks.start("cpu")
    data = open_data(settings)
    resolved = resolve_run(settings, images=len(data.train), builtin=True, device=ranks.device, world=1)
    assert resolved.config.batch_size == 4
    config = settle_batch(resolved, data, ranks, said.append).config
    assert (config.batch_size, config.accumulate) == (1, 4)
    assert [s.split(":")[0] for s in said[:2]] == ["memory ran out at batch size 4", "memory ran out at batch size 2"]
    assert "batch size 1" in said[-1]
    own = dataclasses.replace(data, train=None)
    assert settle_batch(resolved, own, ranks, said.append) is resolved
