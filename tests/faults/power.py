"""Power loss: every state that a file system may legally leave behind while a checkpoint is saved.

A save's operations are recorded; then the machine "loses power" after each of them. What was not fsynced may be there,
half there, zeros, or gone; of the changes to names since the folder's last fsync any subset may have reached the disk.
(The model of Pillai et al., OSDI 2014, at its weakest: no file system in use leaves more.)
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saving import SCENARIOS, Scenario, do, prepare
from states import digest, state_at

from maskrcnn_coco.checkpoint.saver import Saver
from maskrcnn_coco.checkpoint.store import load_newest

Op = tuple[Any, ...]  # ("write", inode, bytes) | ("sync", inode) | ("names", {name: inode | None}) | ("sync names",)
Disk = dict[str, bytes]


@dataclass
class Recording:
    """What was on the disk before, what was then done, and after how many operations which step was acknowledged."""

    names: dict[str, int]
    data: dict[int, bytes]
    ops: list[Op] = field(default_factory=list)
    acknowledged: list[tuple[int, int]] = field(default_factory=list)


@contextmanager
def recorded(folder: Path) -> Iterator[Recording]:
    """Note every operation on ``folder`` that changes it, while they are done for real."""
    files = list(folder.iterdir())
    record = Recording({p.name: p.stat().st_ino for p in files}, {p.stat().st_ino: p.read_bytes() for p in files})
    real = {name: getattr(os, name) for name in ("open", "write", "fsync", "replace", "link", "unlink")}

    def inode(path: Any) -> int:
        return os.stat(path).st_ino

    def names(**changes: Any) -> None:
        record.ops.append(("names", changes))

    def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        fd = real["open"](path, flags, *rest, **more)
        if flags & os.O_CREAT:
            names(**{Path(path).name: os.fstat(fd).st_ino})
        return fd

    def write(fd: int, data: Any) -> int:
        done = real["write"](fd, data)
        record.ops.append(("write", os.fstat(fd).st_ino, bytes(data[:done])))
        return done

    def fsync(fd: int) -> None:
        real["fsync"](fd)
        number = os.fstat(fd).st_ino
        record.ops.append(("sync names",) if number == inode(folder) else ("sync", number))

    def replace(a: Any, b: Any) -> None:
        number = inode(a)
        real["replace"](a, b)
        names(**{Path(a).name: None, Path(b).name: number})

    def link(a: Any, b: Any) -> None:
        real["link"](a, b)
        names(**{Path(b).name: inode(a)})

    def unlink(a: Any, **more: Any) -> None:
        real["unlink"](a, **more)
        names(**{Path(a).name: None})

    fakes: dict[str, Callable[..., Any]] = {
        "open": opened, "write": write, "fsync": fsync, "replace": replace, "link": link, "unlink": unlink,
    }  # fmt: skip
    for name, fake in fakes.items():
        setattr(os, name, fake)
    try:
        yield record
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def record_scenario(folder: Path, scenario: Scenario) -> Recording:
    prepare(folder, scenario)
    saver = Saver(folder, keep_epochs=2)
    with recorded(folder) as record:
        for act in scenario.acts:
            assert do(saver, act) == []
            record.acknowledged.append((len(record.ops), act[1]))
    return record


def disks_after(record: Recording, count: int) -> Iterator[Disk]:
    """Every disk that may be found after a power loss behind operation ``count``."""
    data, pending = dict(record.data), {}
    names, changes = dict(record.names), []
    for op in record.ops[:count]:
        if op[0] == "write":
            pending[op[1]] = pending.get(op[1], b"") + op[2]
        elif op[0] == "sync":
            data[op[1]] = data.get(op[1], b"") + pending.pop(op[1], b"")
        elif op[0] == "names":
            changes.append(op[1])
        else:
            for change in changes:
                names.update(change)
            changes = []
    losses = [[(i, tail) for tail in _partly(lost)] for i, lost in pending.items()]
    for kept in itertools.product((False, True), repeat=len(changes)):
        found = dict(names)
        for change, there in zip(changes, kept, strict=True):
            if there:
                found.update(change)
        for tails in itertools.product(*losses):
            contents = {**data, **{i: data.get(i, b"") + tail for i, tail in tails}}
            yield {name: contents.get(i, b"") for name, i in found.items() if i is not None}


def _partly(lost: bytes) -> list[bytes]:
    return [b"", lost[: len(lost) // 2], bytes(len(lost)), lost]


def sweep(root: Path, names: list[str] | None = None, *, every: int = 1) -> tuple[dict[str, int], list[str]]:
    """Recover from every ``every``-th disk of each scenario; how many there were, and what went wrong."""
    counts: dict[str, int] = {}
    failures: list[str] = []
    digests = {digest(state_at(step)): step for step in range(100)}
    for name in names or [n for n, s in SCENARIOS.items() if not (s.no_links or s.start or s.damage)]:
        scenario = SCENARIOS[name]
        record = record_scenario(root / name, scenario)
        old = max((s for _, s in scenario.before), default=0)
        seen: set[tuple[int, int]] = set()
        for count in range(len(record.ops) + 1):
            least = max([old, *(step for at, step in record.acknowledged if at <= count)])
            for disk in disks_after(record, count):
                key = (least, hash(tuple(sorted(disk.items()))))
                if key in seen:
                    continue
                seen.add(key)
                if len(seen) % every == 0:
                    counts[name] = counts.get(name, 0) + 1
                    failures += _recover(root / "disk", disk, least, scenario, digests, f"{name}, after {count}")
    return counts, failures


def _recover(
    folder: Path, disk: Disk, least: int, scenario: Scenario, digests: dict[str, int], where: str
) -> list[str]:
    folder.mkdir()
    for name, content in disk.items():
        (folder / name).write_bytes(content)
    path, state, skipped = load_newest(folder)
    shutil.rmtree(folder)
    step = 0 if state is None else digests.get(digest(state), -1)
    allowed = {least, *(s for _, s in scenario.acts if s >= least)}
    if step in allowed and not skipped:
        return []
    return [f"{where}: step {step} from {path}, expected one of {sorted(allowed)}; passed over {skipped}"]
