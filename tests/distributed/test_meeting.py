"""Processes of an attempt meet, whatever earlier attempts left in the store, and in whatever order they come."""

from __future__ import annotations

import random
import threading
import time
from datetime import timedelta

import pytest
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from maskrcnn_coco.distributed.meeting import meet

LONG = timedelta(seconds=60)


def attempt(store, world: int, word: str, pauses: list[float]) -> list[list[str]]:
    """What each process reads of all, after each wrote ``word``: as gloo exchanges its addresses."""
    read: list[list[str]] = [[] for _ in range(world)]

    def process(rank: int) -> None:
        time.sleep(pauses[rank])
        own = meet(store, rank, world, LONG)
        time.sleep(pauses[rank])  # the late ones' addresses are not there yet: nobody may read older ones
        own.set(f"address/{rank}", f"{word} of {rank}")
        read[rank] = [own.get(f"address/{r}").decode() for r in range(world)]

    threads = [threading.Thread(target=process, args=(r,)) for r in range(world)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    return read


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_nobody_reads_an_address_of_an_earlier_attempt(world, seed):
    store, draw = HashStore(), random.Random(seed)
    for number in range(3):
        word = f"attempt {number}"
        pauses = [draw.choice([0.0, 0.0, 0.15]) for _ in range(world)]
        assert attempt(store, world, word, pauses) == [[f"{word} of {r}" for r in range(world)]] * world


def test_an_attempt_whose_first_process_died_before_it_invited_leaves_no_trap():
    store = HashStore()
    store.set("meeting/name/1", "one that is gone")  # it had come, and was ended
    assert attempt(store, 2, "new", [0.0, 0.2]) == [["new of 0", "new of 1"]] * 2


def test_an_attempt_that_ended_while_they_came_leaves_no_trap():
    store, ended = HashStore(), []

    def comes() -> None:
        with pytest.raises(RuntimeError):
            meet(store, 1, 3, timedelta(seconds=2))
        ended.append(1)

    thread = threading.Thread(target=comes)
    thread.start()
    with pytest.raises(RuntimeError, match="process 2 did not come"):
        meet(store, 0, 3, timedelta(seconds=0.5))
    thread.join()
    assert ended
    assert attempt(store, 3, "new", [0.1, 0.0, 0.2]) == [[f"new of {r}" for r in range(3)]] * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_does_not_come_ends_the_wait(rank):
    with pytest.raises(RuntimeError):
        meet(HashStore(), rank, 2, timedelta(seconds=0.2))
