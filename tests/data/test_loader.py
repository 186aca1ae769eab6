"""The loader yields the same batches whatever happens to its workers."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn_coco.data import loader as loader_module
from maskrcnn_coco.data.batch import Batch, SampleError
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.loader import build_loader
from maskrcnn_coco.data.plan import Plan
from maskrcnn_coco.data.user_data import UserData
from maskrcnn_coco.errors import DataError
from tests.data.test_dataset import Own, same_batch

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked")


@pytest.fixture(scope="module")
def dataset(tiny_table) -> CocoDataset:
    return CocoDataset(tiny_table, train=True, seed=3, min_size=64, max_size=100)


def plan_of(dataset, batch: int = 2, accumulate: int = 2) -> Plan:
    return Plan(3, dataset.image_ids, batch, accumulate, aspect_ratios=dataset.aspect_ratios)


def all_same(a: list[list[Batch]], b: list[list[Batch]]) -> bool:
    return len(a) == len(b) and all(
        same_batch(x, y) for s, t in zip(a, b, strict=True) for x, y in zip(s, t, strict=True)
    )


@pytest.mark.parametrize(("workers", "method"), [(1, "fork"), (2, "fork"), (1, "spawn")])
def test_workers_change_nothing(dataset: CocoDataset, workers: int, method: str):
    plan = plan_of(dataset)
    here = list(build_loader(dataset, plan, 1, plan.steps_per_epoch + 2))
    assert len(here) == plan.steps_per_epoch - 2 and [len(b) for b in here[0]] == [2, 2]
    there = list(build_loader(dataset, plan, 1, plan.steps_per_epoch + 2, workers=workers, method=method))
    assert all_same(here, there)


def test_a_change_of_quarantine_holds_from_the_next_step(dataset: CocoDataset):
    plan = plan_of(dataset)
    loader = build_loader(dataset, plan, 0, 0, workers=1)
    first = next(loader)
    bad = plan.step(2)[1][0][0].image_id
    plan.quarantine([bad])
    loader.restart(1)
    rest = list(loader)
    assert len(first) == 2 and len(rest) == plan.steps_per_epoch - 1
    assert bad not in [i for step in rest for b in step for i in b.image_ids]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(tiny_table, workers: int):
    from dataclasses import replace

    dataset = CocoDataset(replace(tiny_table, image_root=Path("/nowhere")), train=True)
    plan = plan_of(dataset)
    with pytest.raises(SampleError, match=r"\.png") as caught:
        next(build_loader(dataset, plan, 0, 0, workers=workers))
    assert "Traceback" not in str(caught.value) and caught.value.fix
    assert caught.value.key == plan.step(0)[1][0][0]


class Deadly(UserData):
    """Kills the process that reads item 5, or runs out of memory there, the first ``deaths`` times."""

    def __init__(self, flag: Path, deaths: int, *, kill: bool = True) -> None:
        super().__init__(Own(8), seed=0)
        self.flag, self.deaths, self.kill = flag, deaths, kill

    def sample(self, epoch: int, index: int, repeat: int = 0):
        if index == 5:
            done = self.flag.stat().st_size if self.flag.exists() else 0
            if done < self.deaths:
                with self.flag.open("ab") as file:
                    file.write(b"x")
                if not self.kill:
                    raise MemoryError("no memory is left")
                os.kill(os.getpid(), signal.SIGKILL)
        return super().sample(epoch, index, repeat)


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "out of memory"])
def test_a_lost_worker_is_replaced_and_its_step_made_again(tmp_path: Path, kill: bool):
    source = Deadly(tmp_path / "deaths", 1, kill=kill)
    expected = list(build_loader(UserData(Own(8), seed=0), Plan(0, np.arange(8), 2), 0, 0))
    loader = build_loader(source, Plan(0, np.arange(8), 2), 0, 0, workers=1)
    got = list(loader)
    assert [b[0].image_ids for b in got] == [b[0].image_ids for b in expected]
    assert loader.respawned == 1
    for a, b in zip(got, expected, strict=True):
        assert all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(a[0].images, b[0].images, strict=True))


def test_a_lack_of_memory_is_no_fault_of_the_item():
    class Hungry(Own):
        def __getitem__(self, i: int):
            raise MemoryError("no memory is left")

    with pytest.raises(MemoryError):
        UserData(Hungry(2)).sample(0, 1)


@pytest.mark.parametrize("plain_before", [False, True])
def test_the_death_of_a_worker_interrupts_nothing_else(tmp_path: Path, plain_before: bool):
    # torch's own handler would raise here, in the middle of whatever the main thread does
    if plain_before:  # which leaves that handler in the process
        assert len(list(torch.utils.data.DataLoader([1, 2], num_workers=1))) == 2
    before = signal.getsignal(signal.SIGCHLD)
    loader = build_loader(Deadly(tmp_path / "deaths", 99), Plan(0, np.arange(8), 8), 0, 0, workers=1, timeout=60)
    iterator = loader._start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "deaths").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)  # it dies right after it wrote that
    assert (tmp_path / "deaths").exists() and signal.getsignal(signal.SIGCHLD) == before
    iterator._shutdown_workers()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_workers_that_keep_dying_end_in_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loader_module, "POLL", 0.2)
    loader = build_loader(Deadly(tmp_path / "deaths", 99), Plan(0, np.arange(8), 8), 0, 0, workers=1)
    with pytest.raises(DataError, match="4 times in a row at step 0"):
        next(loader)
    assert (tmp_path / "deaths").stat().st_size == 4


class Slow(Own):
    def __getitem__(self, i: int):
        time.sleep(30)


def test_silent_workers_time_out():
    loader = build_loader(UserData(Slow(2)), Plan(0, [0, 1], 2), 0, 0, workers=1, timeout=0.3)
    began = time.monotonic()
    with pytest.raises(DataError, match="in a row"):
        next(loader)
    assert time.monotonic() - began < 25


def test_a_worker_that_is_only_slow_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maskrcnn_coco.data.loader.POLL", 0.2)

    class Late(Own):
        def __getitem__(self, i: int):
            time.sleep(0.7)
            return super().__getitem__(i)

    loader = build_loader(UserData(Late(1)), Plan(0, [0], 1), 0, 0, workers=1)
    assert next(loader)[0].image_ids == [500] and loader.respawned == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_in_quarantine_is_recognised_when_it_says_its_name(workers: int):
    source, plan = UserData(Own(6)), Plan(0, np.arange(6), 2)
    plan.quarantine([503])
    steps = list(build_loader(source, plan, 0, 0, workers=workers))
    seen = [i for step in steps for b in step for i in b.image_ids]
    assert len(seen) == 6 and 503 not in seen
    plan.quarantine([504])
    seen = [i for step in build_loader(source, plan, 1, 3, workers=workers) for b in step for i in b.image_ids]
    assert len(seen) == 6 and not {503, 504} & set(seen)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
def test_workers_that_cannot_start_for_want_of_shared_memory_are_done_without(dataset, number, monkeypatch):
    plan = plan_of(dataset)
    want = list(build_loader(dataset, plan, 0, 0))
    real = loader_module.DataLoader

    def full(*arguments, **named):
        if named["num_workers"]:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **named)

    monkeypatch.setattr(loader_module, "DataLoader", full)
    said: list[str] = []
    assert all_same(want, list(build_loader(dataset, plan, 0, 0, workers=2, warn=said.append)))
    (sentence,) = said
    assert ("/dev/shm" in sentence) == (number == errno.ENOSPC) and "--workers 0" in sentence


def test_workers_killed_by_a_full_shared_memory_are_done_without(dataset, monkeypatch):
    plan = plan_of(dataset)
    want = list(build_loader(dataset, plan, 0, 0))

    def full(batches):
        os.kill(os.getpid(), signal.SIGBUS)

    monkeypatch.setattr(loader_module, "pack", full)
    monkeypatch.setattr(loader_module, "POLL", 0.2)
    said: list[str] = []
    assert all_same(want, list(build_loader(dataset, plan, 0, 0, workers=1, warn=said.append)))
    assert len(said) == 1 and "/dev/shm" in said[0]


def test_batches_that_cannot_be_opened_for_want_of_descriptors_are_made_here(dataset, monkeypatch):
    plan = plan_of(dataset)
    want = list(build_loader(dataset, plan, 0, 0))
    real = loader_module.DataLoader

    class Starved(real):  # type: ignore[misc, valid-type]
        def __iter__(self):
            if not self.num_workers:
                yield from super().__iter__()
            raise RuntimeError("Too many open files. Communication with the workers is no longer possible.")

    monkeypatch.setattr(loader_module, "DataLoader", Starved)
    said: list[str] = []
    assert all_same(want, list(build_loader(dataset, plan, 0, 0, workers=1, warn=said.append))[: len(want)])
    assert len(said) == 1 and "--workers 0" in said[0]


@pytest.mark.parametrize("free", [0, 8, 30])
def test_too_few_descriptors_for_workers_are_seen_before_they_start(dataset, free, monkeypatch):
    """Started with too few, torch's queues are half made: one run waited for ever, others printed tracebacks."""
    plan = plan_of(dataset)
    want = list(build_loader(dataset, plan, 0, 0))
    monkeypatch.setattr(loader_module, "_free_descriptors", lambda: free)
    said: list[str] = []
    assert all_same(want, list(build_loader(dataset, plan, 0, 0, workers=2, warn=said.append)))
    assert len(said) == 1 and "Too many open files" in said[0]
    assert "ulimit -n" in said[0] and "shm" not in said[0]


def test_what_a_worker_met_is_told_and_not_that_it_met_something(dataset, monkeypatch):
    def failing(batches):
        raise RuntimeError("unable to write to file </torch_1>: File too large (27)")

    plan = plan_of(dataset)
    want = list(build_loader(dataset, plan, 0, 0))
    monkeypatch.setattr(loader_module, "pack", failing)
    said: list[str] = []
    assert all_same(want, list(build_loader(dataset, plan, 0, 0, workers=1, warn=said.append)))
    assert len(said) == 1 and "File too large" in said[0]


def test_a_daemonic_process_makes_its_batches_itself(dataset, monkeypatch):
    """As in a pool of a hyperparameter search: such a process may have no children."""
    plan = plan_of(dataset)
    want = list(build_loader(dataset, plan, 0, 0))
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    said: list[str] = []
    assert all_same(want, list(build_loader(dataset, plan, 0, 0, workers=2, warn=said.append)))
    assert len(said) == 1 and "daemonic" in said[0] and "--workers 0" in said[0]
