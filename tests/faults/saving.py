"""Faults at every I/O call of a save. Under LD_PRELOAD=shim.so: ``python saving.py FOLDER [--every N]``; prints JSON.

For each scenario, call and kind of fault a child process saves and is hit. Then: nothing visible is damaged, the newest
checkpoint is the last acknowledged one or a later one (by digest), at least two intact states are there if there were,
and saving goes on: in the same process after an error, in a new one after a kill, with nothing left over.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from states import digest, state_at

from maskrcnn_coco.checkpoint.lock import run_lock
from maskrcnn_coco.checkpoint.saver import Saver
from maskrcnn_coco.checkpoint.store import checkpoints, load, load_newest
from maskrcnn_coco.errors import MaskRCNNError
from maskrcnn_coco.system import files

COUNT, KILL_BEFORE, KILL_AFTER, TORN, FAIL_ONCE, FAIL_ON, SHORT = range(7)
SPACE_CALLS = "wpsRlmto"  # what a full disk can refuse; of the opens only those that create
FAULTS = {
    "killed before the call": (KILL_BEFORE, 0),
    "killed after the call": (KILL_AFTER, 0),
    "killed half way through a write": (TORN, 0),
    "short read or write": (SHORT, 0),
    "ENOSPC once": (FAIL_ONCE, errno.ENOSPC),
    "ENOSPC from there on": (FAIL_ON, errno.ENOSPC),
    "EIO once": (FAIL_ONCE, errno.EIO),
    "EIO from there on": (FAIL_ON, errno.EIO),
    "EROFS from there on": (FAIL_ON, errno.EROFS),
    "EDQUOT from there on": (FAIL_ON, errno.EDQUOT),
}
Act = tuple[str, int]  # ("last" | "epoch" | "epoch+best", step)


class Scenario(NamedTuple):
    """What was saved before, and what is being saved when the fault comes."""

    before: list[Act]
    acts: list[Act]
    no_links: bool = False
    start: bool = False  # also take the lock and clear leftovers inside the faulty part
    damage: str = ""  # a file that is already damaged


SCENARIOS = {
    "first save of all": Scenario([], [("last", 1)]),
    "last over last": Scenario([("last", 1), ("last", 2)], [("last", 3)]),
    "epoch with best, pruned": Scenario(
        [("epoch", 10), ("epoch", 20), ("last", 25), ("epoch", 30)], [("epoch+best", 40)]
    ),
    "best": Scenario([("epoch+best", 10), ("last", 12)], [("epoch+best", 20)]),
    "three in a row": Scenario([("epoch", 10)], [("last", 12), ("epoch", 20), ("last", 22)]),
    "no hard links": Scenario([("epoch", 10), ("last", 12)], [("epoch+best", 20), ("last", 22)], no_links=True),
    "over a damaged last": Scenario([("last", 1), ("last", 2), ("last", 3)], [("last", 4)], damage="last.pth"),
    "start after a kill": Scenario([("epoch", 10), ("last", 12)], [("last", 13)], start=True),
}


class Point(NamedTuple):
    """One fault at one call."""

    scenario: str
    fault: str
    call: int
    kind: str


def do(saver: Saver, act: Act) -> list[str]:
    """One save, waited for; returns its warnings."""
    kind, step = act
    state = state_at(step)
    if kind == "last":
        saver.save_last(state)
    else:
        saver.save_epoch(step // 10, state, best=kind.endswith("best"))
    return saver.wait()


def prepare(folder: Path, scenario: Scenario) -> None:
    folder.mkdir(parents=True)
    saver = Saver(folder, keep_epochs=2)
    for act in scenario.before:
        assert not do(saver, act)
    if scenario.damage:
        path = folder / scenario.damage
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    if scenario.start:
        (folder / ".last.pth.999999.7.tmp").write_bytes(b"half a file")
        (folder / ".epoch_002.pth.999999.8.tmp").write_bytes(b"")


def clone(source: Path, target: Path) -> None:
    """A copy of a folder, hard links kept."""
    target.mkdir()
    first: dict[int, Path] = {}
    for path in source.iterdir():
        inode = path.stat().st_ino
        if inode in first:
            os.link(first[inode], target / path.name)
        else:
            shutil.copy2(path, target / path.name)
            first[inode] = target / path.name


class Sweep:
    """The shim, the templates, and what went wrong."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self.shim.shim_kinds.restype = ctypes.c_char_p
        self.failures: list[str] = []
        self.digests = {digest(state_at(step)): step for step in range(100)}
        self.intact: dict[str, int] = {}
        self.counts: Counter[tuple[str, str]] = Counter()

    def points(self, name: str) -> Iterator[Point]:
        """Every call that the scenario makes, with every fault that means something for this kind of call."""
        prepare(self.root / name, SCENARIOS[name])
        kinds = self._trace(name)
        for fault, (mode, error) in FAULTS.items():
            for call, kind in enumerate(kinds, 1):
                space = error in (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
                writes = mode in (TORN, SHORT)
                if (
                    (writes and kind not in "wr")
                    or (mode == TORN and kind == "r")
                    or (space and kind not in SPACE_CALLS)
                ):
                    continue
                yield Point(name, fault, call, kind)

    def _trace(self, name: str) -> str:
        read, write = os.pipe()
        folder = self.root / "trace"
        clone(self.root / name, folder)
        if os.fork() == 0:
            self._child(folder, SCENARIOS[name], 0, COUNT, 0, write)
        os.wait()
        os.close(write)
        with os.fdopen(read) as f:
            lines = [json.loads(line) for line in f]
        assert lines[-1].get("next"), lines
        shutil.rmtree(folder)
        return next(line["kinds"] for line in lines if "kinds" in line)

    def hit(self, point: Point) -> None:
        """One fault, and all that must hold after it."""
        scenario = SCENARIOS[point.scenario]
        folder = self.root / "point"
        clone(self.root / point.scenario, folder)
        mode, error = FAULTS[point.fault]
        if point.scenario not in self.intact:
            self.intact[point.scenario] = len(self._intact(folder))
        intact = self.intact[point.scenario]
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            self._child(folder, scenario, point.call, mode, error, write)
        os.close(write)
        with os.fdopen(read) as f:
            lines = [json.loads(line) for line in f]
        _, status = os.waitpid(child, 0)
        try:
            self._judge(folder, scenario, mode, status, lines, intact)
        except (AssertionError, MaskRCNNError, OSError) as e:
            self.failures.append(f"{point}: {type(e).__name__}: {e}")
        self.counts[point.scenario, point.fault] += 1
        shutil.rmtree(folder)

    def _child(self, folder: Path, scenario: Scenario, call: int, mode: int, error: int, pipe: int) -> None:
        code = 1
        try:
            self.shim.shim_arm(str(folder).encode() + b"/", call, mode, error, int(scenario.no_links))
            saver = Saver(folder, keep_epochs=2)
            try:
                with run_lock(folder) if scenario.start else nullcontext():
                    for act in scenario.acts:
                        warnings = do(saver, act)
                        _tell(pipe, {"step": act[1], "warnings": warnings})
            except OSError as e:  # the start itself may fail: the command ends with this error
                assert scenario.start, e
                _tell(pipe, {"step": -1, "warnings": [str(e)]})
            _tell(pipe, {"kinds": self.shim.shim_kinds()[: self.shim.shim_calls()].decode()})
            self.shim.shim_disarm()
            _tell(pipe, {"next": not do(saver, ("last", 90))})
            code = 0
        finally:
            os._exit(code)

    def _judge(self, folder: Path, scenario: Scenario, mode: int, status: int, lines: list[dict], intact: int) -> None:
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert killed == (mode in (KILL_BEFORE, KILL_AFTER, TORN)), f"ended with status {status}, {lines}"
        assert killed or os.WEXITSTATUS(status) == 0, f"exit {os.WEXITSTATUS(status)}, {lines}"
        done = [line["step"] for line in lines if line.get("warnings") == []]
        old = max((s for _, s in scenario.before), default=0)
        if scenario.damage:
            old = 2
        least = 90 if lines and lines[-1].get("next") else max([old, *done])
        assert killed or lines[-1].get("next") is True, f"the next save failed: {lines}"
        _, state, skipped = load_newest(folder)
        step = 0 if state is None else self.digests.get(digest(state), -1)
        allowed = {least, *(s for _, s in scenario.acts if s >= least)}
        assert step in allowed, f"recovered step {step}, expected one of {sorted(allowed)}: {skipped}"
        assert not skipped or scenario.damage, f"a damaged file is visible: {skipped}"
        assert len(self._intact(folder)) >= min(2, intact), "fewer than two intact states are left"
        with run_lock(folder):
            left = [p.name for p in folder.iterdir() if p.name.endswith(".tmp")]
            assert not left, f"left over: {left}"
            saver = Saver(folder, keep_epochs=2)
            assert not do(saver, ("last", 95))
        state = load_newest(folder)[1]
        assert state is not None and self.digests[digest(state)] == 95

    def _intact(self, folder: Path) -> set[str]:
        found = set()
        for path in checkpoints(folder):
            try:
                found.add(digest(load(path)))
            except MaskRCNNError:
                continue
        return found


def _tell(pipe: int, line: dict) -> None:
    os.write(pipe, json.dumps(line).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="only every N-th point")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files._BUFFER = 4096  # many writes from small states
    sweep = Sweep(arguments.folder)
    began = time.monotonic()
    number = 0
    for name in SCENARIOS:
        for point in sweep.points(name):
            number += 1
            if number % arguments.every == 0:
                sweep.hit(point)
    counts = {scenario: {f: n for (s, f), n in sweep.counts.items() if s == scenario} for scenario in SCENARIOS}
    total = sum(sweep.counts.values())
    json.dump(
        {"points": total, "failures": sweep.failures, "counts": counts, "seconds": time.monotonic() - began}, sys.stdout
    )


if __name__ == "__main__":
    main()
