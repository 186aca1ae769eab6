"""One attempt of a real small training run, in a forked process, and the faults that hit it from the inside.

The parent has imported everything, so that a start costs tenths of a second instead of seconds. What an attempt tells:
``digests.jsonl`` (the state after each step), ``faults.log`` (the faults that took place), and the step on a pipe.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import imported  # noqa: F401
import torch
from runs import config, tiny_model
from states import digest

from maskrcnn_coco import train
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import MaskRCNNError
from maskrcnn_coco.records import StepRecord
from maskrcnn_coco.system.endings import code_of
from maskrcnn_coco.training import loop
from maskrcnn_coco.training import session as session_module
from maskrcnn_coco.training.session import Session

HANG = 1.0
"""Seconds after which the loader gives up on a silent worker; as short as a busy machine allows."""
TOGETHER = 10.0
"""Seconds that a process waits for the others."""
COUNT, FAIL_ON = 0, 5
YEARS = 365.25 * 86400


@dataclass(frozen=True)
class Scenario:
    """A run. ``changes``: settings beside those of `runs.config`."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    vanishing: int | None = None
    """An image that is deleted the moment that epoch 1 or later wants it; put back before each start."""
    spoiled: int | None = None
    """An image one of whose boxes is NaN in epoch 1 and later."""

    @property
    def workers(self) -> int:
        """Loader processes."""
        return self.changes.get("workers", 0)


SCENARIOS = {
    s.name: s
    for s in (
        Scenario("every step, SGD", {"checkpoint_every": "1"}),
        Scenario("every 3rd step, AdamW", {"checkpoint_every": "3", "optimizer": "adamw", "lr": 2e-4}),
        Scenario("2 workers", {"checkpoint_every": "1", "workers": 2, "batch_size": 2, "accumulate": 2}),
        Scenario("1 worker, epochs only", {"workers": 1}),
        Scenario("bad data", {"checkpoint_every": "1"}, vanishing=7, spoiled=12),
        Scenario("bad data, 2 workers", {"checkpoint_every": "2", "workers": 2}, vanishing=3, spoiled=20),
    )
}


class Inner(NamedTuple):
    """A fault inside the process, after step ``step``."""

    kind: str
    step: int
    number: int
    """What it needs to be random: calls before the disk is full, years that the clock jumps …"""


IN_WORKERS = ("worker killed", "out of memory in a worker", "worker hangs")
INNER = (*IN_WORKERS, "clock jumps", "disk full")


class Attempt:
    """The faults of one attempt, and what it tells its parent. Lives in the forked process."""

    def __init__(
        self,
        folder: Path,
        scenario: Scenario,
        faults: list[Inner],
        pipe: int,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.folder, self.scenario, self.pipe = folder, scenario, pipe
        self.environment = environment or {}
        """For one process of several: RANK, WORLD_SIZE …"""
        self.suffix = {"0": ""}.get(rank := self.environment.get("RANK", "0"), f"_{rank}")
        self.faults = {f.step: f for f in faults}
        self.die_after: int | None = None
        self.deaf = False
        """Nobody reads what it says: stdout and stderr are pipes whose reader has gone."""
        self.armed = folder / "armed"
        self.session: Session | None = None
        self.offset = 0.0
        self.full_until: int | None = None
        library = os.environ.get("LD_PRELOAD")
        self.shim = ctypes.CDLL(library) if library else None

    def run(self, data: Path, *, epochs: int) -> int:
        """Train, from where the last attempt stopped; the exit code."""
        self._patch()
        if self.shim is not None:
            self.shim.shim_arm(str(self.folder / "out").encode(), 0, COUNT, 0, 0)
        settings = {"epochs": epochs, "resume": "auto", **self.scenario.changes}
        return train(
            config(data, self.folder / "out", **settings), model=tiny_model(), observers=[self.look], quiet=True
        ).exit_code

    def look(self, record: Any) -> None:
        """After each step: write the digest down, then let the fault of this step happen."""
        if not isinstance(record, StepRecord):
            return
        assert self.session is not None
        line = {"step": record.step, "applied": record.applied, "digest": state_digest(self.session)}
        append(self.folder / f"digests{self.suffix}.jsonl", json.dumps({**line, "images": record.image_ids}))
        os.write(self.pipe, record.step.to_bytes(4, "little"))
        if self.full_until is not None and record.step >= self.full_until:
            self._aim(0, COUNT)
            self.full_until = None
        if record.step == self.die_after:
            self._happened("killed after a step")
            os.kill(os.getpid(), signal.SIGKILL)
        fault = self.faults.pop(record.step, None)
        if fault is not None:
            self._begin(fault)

    def _begin(self, fault: Inner) -> None:
        if fault.kind in IN_WORKERS:
            self.armed.write_text(fault.kind)
        elif fault.kind == "clock jumps":
            self.offset += (fault.number % 41 - 20) * YEARS / 2
            self._happened(fault.kind)
        elif fault.kind == "disk full" and self.shim is not None:
            self._aim(1 + fault.number % 30, FAIL_ON)
            self.full_until = fault.step + 1 + fault.number % 3
            self._happened(fault.kind)

    def _aim(self, call: int, how: int) -> None:
        assert self.shim is not None
        self.shim.shim_aim(call, how, errno.ENOSPC)

    def _happened(self, kind: str) -> None:
        append(self.folder / "faults.log", kind)

    def _patch(self) -> None:
        opened, sampled, clock = loop.open_session, CocoDataset.sample, time.time

        def open_session(*args: Any, **rest: Any) -> Session:
            self.session = opened(*args, **rest)
            return self.session

        def sample(source: CocoDataset, epoch: int, index: int, repeat: int = 0) -> Any:
            self._in_worker()
            return self._bad_data(partial(sampled, repeat=repeat), source, epoch, index)

        loop.open_session = open_session
        Ranks.start = partial(Ranks.start, timeout=TOGETHER)
        setattr(CocoDataset, "sample", sample)  # noqa: B010 (to a type checker it is another function)
        time.time = lambda: clock() + self.offset
        session_module.build_loader = partial(session_module.build_loader, timeout=HANG)

    def _bad_data(self, sampled: Callable[..., Any], source: CocoDataset, epoch: int, index: int) -> Any:
        image_id = int(source.table.image_ids[index])
        if not source.train or epoch < 1:
            return sampled(source, epoch, index)
        if image_id == self.scenario.vanishing:
            (Path(source.table.image_root) / source.table.file_name(index)).unlink(missing_ok=True)
        image, target = sampled(source, epoch, index)
        if image_id == self.scenario.spoiled:
            target["boxes"][0, 0] = math.nan
        return image, target

    def _in_worker(self) -> None:
        if torch.utils.data.get_worker_info() is None or not self.armed.exists():
            return
        mine = self.armed.with_name(f"armed.{os.getpid()}")
        try:
            self.armed.rename(mine)
        except FileNotFoundError:  # another worker was faster
            return
        kind = mine.read_text()
        mine.unlink()
        self._happened(kind)
        if kind == "worker killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "worker hangs":
            time.sleep(60)
        if kind == "out of memory in a worker":
            raise MemoryError("no memory is left")


def state_digest(session: Session) -> str:
    """SHA-256 of all that the next steps depend on."""
    state = {
        "model": session.model.state_dict(),
        "optimizer": session.optimizer.state_dict(),
        "guard": session.guard.state_dict(),
        "lr_factors": session.progress.lr_factors,
        "quarantined": [session.plan.quarantined, [q["id"] for q in session.progress.quarantine_annotations]],
    }
    return hashlib.sha256((digest(state) + json.dumps(session.progress.step)).encode()).hexdigest()


def append(path: Path, line: str) -> None:
    """One line in one write: a kill leaves it whole or out."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(fd, line.encode() + b"\n")
    os.close(fd)


def wait(pid: int, deadline: float) -> int | None:
    """The exit code of a forked attempt; one that still runs at ``deadline`` is killed with its group, and has none."""
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def fork(attempt: Attempt, data: Path, *, epochs: int) -> int:
    """Run ``attempt`` in a process group of its own; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        os.environ.update(attempt.environment)
        log = os.open(attempt.folder / f"log{attempt.suffix}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        if attempt.deaf:
            reader, log = os.pipe()
            os.close(reader)
        os.dup2(log, 1)
        os.dup2(log, 2)
        torch.set_num_threads(1)
        code = attempt.run(data, epochs=epochs)
        sys.stderr.flush()
    except MaskRCNNError as e:
        print(f"error: {e.render()}", file=sys.stderr, flush=True)
        code = e.exit_code
    except KeyboardInterrupt as e:  # before the first step: as the command line answers it
        code = code_of(e)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)  # nothing of the parent's is run on the way out
