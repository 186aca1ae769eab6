"""Memory: what is there, what fits, and a run or an advice that meets its end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import OwnData, config, small_model

from maskrcnn_coco import Config, train
from maskrcnn_coco.advice.advise import advise_data, settle_what_fits
from maskrcnn_coco.advice.prepare import memory_use
from maskrcnn_coco.checkpoint.store import newest_intact, peek
from maskrcnn_coco.config.resolve import resolve_run
from maskrcnn_coco.data.prepare import open_data
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import ConfigError
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


def test_advice_halves_the_batch_until_it_fits(monkeypatch):
    out_of_memory_at(monkeypatch, lambda batch, step: len(batch.images) > 1)
    settings, said, ranks = Config(demo=True, epochs=2, device="cpu"), [], Ranks.start("cpu")
    data = open_data(settings)
    resolved = resolve_run(settings, images=len(data.train), builtin=True, device=ranks.device, world=1)
    bench, fresh, settled = settle_what_fits(resolved, data, ranks, 1.0, said.append)
    assert (bench.config.batch_size, bench.config.accumulate, bench.given["accumulate"]) == (1, 4, 4)
    assert said[0] == "memory ran out at batch size 4: on with 2, accumulated 2 times" and len(said) == 2
    assert fresh.step == 0 and settled.trial.stable and settled.trial.records[0].applied


def test_advice_for_a_model_of_which_not_one_image_fits(monkeypatch):
    out_of_memory_at(monkeypatch, lambda batch, step: True)
    with pytest.raises(ConfigError, match="memory ran out") as caught:
        advise_data(Config(demo=True, epochs=2, batch_size=1, device="cpu"), Console(quiet=True))
    assert "--max-size" in str(caught.value.fix) and "--batch-size" not in str(caught.value.fix)


def test_no_more_images_fit_than_there_are(monkeypatch):
    bench: Any = SimpleNamespace(config=Config(batch_size=4), device=torch.device("cpu"), bytes_before=0, images=50)
    monkeypatch.setattr(memory, "peak", lambda device: 2**30)
    for whole, said in (
        (100, "all 50 images would fit, but"),
        (10, "about 34 would fit, but"),
        (1, "about 3 would fit"),
    ):
        monkeypatch.setattr(memory, "total", lambda device, whole=whole: whole * 2**30)
        sentence = memory_use(bench)[1]
        assert said in sentence and ("this batch size" in sentence) is (whole > 1)
