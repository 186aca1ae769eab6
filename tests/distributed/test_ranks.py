"""Several processes: the same bits everywhere, every verdict known to all, no hang when one is lost."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from maskrcnn_coco.distributed.device import resolve_device
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import ConfigError

WORLD = 3
WORKER = """
import hashlib, json, math, os, signal, sys
import torch
from maskrcnn_coco.distributed.device import resolve_device
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import MaskRCNNError

torch.set_num_threads(1)
ranks = Ranks.start("cpu", timeout=4.0)
if "TWO_GROUPS" in os.environ:   # as beside nccl
    ranks._open_words(__import__("datetime").timedelta(seconds=4))
out = {"rank": ranks.rank, "main": ranks.is_main}

def grads(seed):
    g = torch.Generator().manual_seed(1000 * seed + ranks.rank)
    return [torch.randn(s, generator=g) for s in ((3, 5), (7,), (2,), (4,))]

params = [torch.nn.Parameter(torch.zeros(s)) for s in ((3, 5), (7,), (2,), (4,))]
frozen = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
digests = []
for step in range(3):
    for p, g in zip(params, grads(step)):
        p.grad = g
    params[1].grad = None if ranks.rank != 1 else params[1].grad   # on one process only
    params[3].grad = None                                          # on none
    ranks.average_gradients([*params, frozen])
    digests.append(hashlib.sha256(b"".join(p.grad.numpy().tobytes() for p in params[:3])).hexdigest())
out["digests"] = digests
out["mean"] = params[0].grad.tolist()
out["one"] = params[1].grad.tolist()
out["none"] = params[3].grad is None
verdicts = ranks.all_flags({"bad": math.nan if ranks.rank == 2 else 0.0, "image": 2**40 + ranks.rank})
out["bad"] = [r for r, v in enumerate(verdicts) if math.isnan(v["bad"])]
out["images"] = [v["image"] for v in verdicts]
out["objects"] = ranks.gather_objects({"rank": ranks.rank, "scores": [0.1 * ranks.rank] * (1 + 100 * ranks.rank)})
out["from1"] = ranks.broadcast_object([ranks.rank, "ü"], source=1)
weight = torch.full((3, 2), float(ranks.rank)).t()
ranks.broadcast_tensors([weight])
out["weight"] = weight.unique().tolist()
ranks.same_everywhere("the data set", "abc")
try:
    ranks.same_everywhere("the data set", "abc" if ranks.rank != 1 else "abd")
except MaskRCNNError as e:
    out["differs"] = e.what
try:
    ranks.all_flags({"a": 1} if ranks.rank != 1 else {"b": 1})
except MaskRCNNError as e:
    out["misplaced"] = e.what
ranks.barrier("the end of the first part")
print(json.dumps(out), flush=True)
if ranks.rank == 2:
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
try:
    ranks.average_gradients(params)
    print(json.dumps({"lost": None}), flush=True)
except MaskRCNNError as e:
    print(json.dumps({"lost": e.what}), flush=True)
os._exit(0)
"""


class Team:
    """Three processes of `WORKER`, the last of which meets ``fault``; made when all have done their first part.

    What is then waited for costs no computing: several teams may wait at once, and only their starts follow each other.
    """

    def __init__(self, fault: str, **more: str) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(WORLD)}
        common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2]), **more}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, fault],
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(WORLD)
        ]
        self.first = [self._first(process) for process in self.processes]
        self.lost_at = time.monotonic()

    def _first(self, process: subprocess.Popen[str]) -> dict:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise AssertionError(process.communicate(timeout=30)[1])

    def end(self) -> tuple[list[dict], list[dict], float]:
        """What each process said first, what the two that are left said last, and the seconds since the loss."""
        last = []
        for process in self.processes[:2]:
            out, err = process.communicate(timeout=60)
            assert len(said(out)) == 1, err
            last += said(out)
        seconds = time.monotonic() - self.lost_at
        self.processes[2].send_signal(signal.SIGKILL)
        assert said(self.processes[2].communicate(timeout=30)[0]) == []
        return self.first, last, seconds


def said(out: str) -> list[dict]:
    """The lines of a worker; gloo before torch 2.11 writes its own beside them."""
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def teams():
    """Each team begins while those before it wait for the process that they lost."""
    begun = {"SIGSTOP": Team("SIGSTOP"), "two groups": Team("SIGKILL", TWO_GROUPS="1"), "SIGKILL": Team("SIGKILL")}
    return {name: team.end() for name, team in begun.items()}


@pytest.fixture(scope="module")
def killed(teams):
    return teams["SIGKILL"]


def test_averaged_gradients_are_the_mean_and_the_same_bits_everywhere(killed):
    first, _, _ = killed
    assert len({tuple(r["digests"]) for r in first}) == 1
    want = torch.zeros(3, 5)
    for rank in range(WORLD):
        want += torch.randn(3, 5, generator=torch.Generator().manual_seed(2000 + rank))
    torch.testing.assert_close(torch.tensor(first[0]["mean"]), want / WORLD)


def test_a_gradient_on_one_process_only_counts_as_zero_on_the_others(killed):
    first, _, _ = killed
    g = torch.Generator().manual_seed(2001)
    torch.randn(3, 5, generator=g)
    want = torch.randn(7, generator=g) / WORLD
    for r in first:
        torch.testing.assert_close(torch.tensor(r["one"]), want)
        assert r["none"], "a parameter without gradient on any process must stay without"


def test_every_process_learns_which_one_is_bad(killed):
    for r in killed[0]:
        assert r["bad"] == [2]
        assert r["images"] == [2**40, 2**40 + 1, 2**40 + 2]


def test_objects_and_weights_reach_everyone(killed):
    for r in killed[0]:
        assert r["from1"] == [1, "ü"]
        assert [o["rank"] for o in r["objects"]] == [0, 1, 2]
        assert [len(o["scores"]) for o in r["objects"]] == [1, 101, 201]
        assert r["weight"] == [0.0]


def test_processes_that_disagree_are_named(killed):
    for r in killed[0]:
        assert "process 1" in r["differs"] and "the data set" in r["differs"]
        assert "process 1" in r["misplaced"] or "process 0" in r["misplaced"]


def test_a_killed_process_ends_the_wait_with_its_name(killed):
    _, last, seconds = killed
    for answer in last:
        assert "process 2" in answer["lost"] and "averaging of gradients" in answer["lost"]
    assert seconds < 30


@pytest.mark.slow
def test_a_stopped_process_is_noticed_in_time_and_new_processes_get_the_same_bits(killed, teams):
    first, last, seconds = teams["SIGSTOP"]
    assert first[0]["digests"] == killed[0][0]["digests"]
    for answer in last:
        assert "process 2" in answer["lost"]
    assert seconds < 40


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    ranks = Ranks.start("cpu")
    assert (ranks.rank, ranks.world, ranks.is_main) == (0, 1, True)
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.tensor([1.0, math.inf])
    ranks.average_gradients([p])
    assert p.grad.tolist() == [1.0, math.inf]
    assert ranks.all_flags({"a": 1}) == [{"a": 1.0}]
    assert ranks.gather_objects((1, 2)) == [(1, 2)]
    assert ranks.broadcast_object("x") == "x"
    ranks.barrier("nothing")
    ranks.same_everywhere("x", 1)
    ranks.close()
    assert not torch.distributed.is_initialized()


def test_a_broken_environment_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE"):
        Ranks.start("cpu")


def test_more_processes_than_gpus_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "64")
    monkeypatch.setenv("LOCAL_RANK", "63")
    with pytest.raises(ConfigError, match="no GPU"):
        Ranks.start("cuda")


def test_flags_objects_and_barriers_go_by_a_group_of_their_own_beside_nccl(teams):
    first, last, seconds = teams["two groups"]
    for r in first:
        assert r["bad"] == [2] and r["from1"] == [1, "ü"] and r["none"]
        assert r["images"] == [2**40, 2**40 + 1, 2**40 + 2]
    assert len({tuple(r["digests"]) for r in first}) == 1
    assert all(r["lost"] and "process 2" in r["lost"] for r in last) and seconds < 60


def test_processes_that_would_share_a_gpu_say_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="share one GPU"):
        Ranks.start("cuda:0")


def test_a_gpu_with_a_number_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch):
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    device = resolve_device("cuda:1")
    assert current == [device] == [torch.device("cuda", 1)]
    assert resolve_device("cuda") == torch.device("cuda") and len(current) == 1


def test_a_rank_beyond_the_run_is_said(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "5")
    with pytest.raises(ConfigError, match="none of the run's"):
        Ranks.start("cpu")


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_processes_that_do_not_know_where_to_meet_say_so(missing, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    with pytest.raises(ConfigError, match=f"{missing} not where they meet"):
        Ranks.start("cpu")
    monkeypatch.setenv(missing, "x")
    if missing == "MASTER_PORT":
        with pytest.raises(ConfigError, match="not a number"):
            Ranks.start("cpu")
