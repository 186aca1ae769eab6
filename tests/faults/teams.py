"""Runs of several gloo processes that are killed, stopped and resumed: ``python teams.py FOLDER WORLD [PART…]``; JSON.

The processes are forked from this one, which has imported everything, and find each other as torchrun's do. Parts:
"resume": killed and interrupted several times, the run ends in the bits of an undisturbed one. "bad data": the same,
with an image that one process alone cannot read, and one whose box is NaN. "lost": one process alone is killed, or
stopped; the others must end with a sentence.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import select
import signal
import socket
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from chains import put_back
from endings import first_difference, lines_of, result
from soaking import Attempt, Scenario, fork, wait

from maskrcnn_coco.data.builtin_shapes import write_shapes

PATIENCE = 90.0


class Team:
    """One run of ``world`` processes below ``folder``."""

    def __init__(self, folder: Path, data: Path, scenario: Scenario, world: int) -> None:
        self.folder, self.data, self.scenario, self.world = folder, data, scenario, world
        folder.mkdir(parents=True)

    def start(self, after: int | None = None, number: int = 0, ranks: tuple[int, ...] = ()) -> list[int]:
        """Run; once process 0 has told step ``after``, send ``ranks`` the signal ``number``. Exit codes by rank."""
        put_back(self.data)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = str(s.getsockname()[1])
        reader, writer = os.pipe()
        pids = []
        for rank in range(self.world):
            names = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.world)}
            names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            pids.append(fork(Attempt(self.folder, self.scenario, [], writer, names), self.data, epochs=2))
        os.close(writer)
        deadline = time.monotonic() + PATIENCE
        if after is not None and self._told(reader, after, deadline):
            # All at the same instant: one that is left a moment longer may miss the others, and end with its sentence.
            for rank in ranks if number == signal.SIGKILL else ():
                os.kill(pids[rank], signal.SIGSTOP)
            for rank in ranks:
                os.kill(pids[rank], number)
        stopped = ranks if number == signal.SIGSTOP else ()
        codes = {rank: _wait(pid, deadline) for rank, pid in enumerate(pids) if rank not in stopped}
        for rank in stopped:
            os.kill(pids[rank], signal.SIGKILL)
            codes[rank] = _wait(pids[rank], deadline)
        os.close(reader)
        return [codes[rank] for rank in range(self.world)]

    def _told(self, reader: int, step: int, deadline: float) -> bool:
        while time.monotonic() < deadline:
            if select.select([reader], [], [], 0.1)[0]:
                told = os.read(reader, 4)
                if not told:
                    return False
                if int.from_bytes(told, "little") >= step:
                    return True
        return False

    def steps(self, rank: int = 0) -> list[dict[str, Any]]:
        """What process ``rank`` wrote after each of its steps, over all starts."""
        return lines_of(self.folder / f"digests{'' if rank == 0 else f'_{rank}'}.jsonl")

    def log(self, rank: int) -> str:
        """What process ``rank`` said."""
        return (self.folder / f"log{'' if rank == 0 else f'_{rank}'}.txt").read_text(errors="replace")


def _wait(pid: int, deadline: float) -> int:
    code = wait(pid, deadline)
    return -999 if code is None else code


def resume(folder: Path, data: Path, world: int, scenario: Scenario) -> dict[str, Any]:
    """An undisturbed run, and one that is killed, interrupted, killed; what differs between them."""
    rng = random.Random(world)
    whole, parts = (Team(folder / name, data, scenario, world) for name in ("whole", "parts"))
    codes = [whole.start()]
    want = {(d["step"], d["applied"]): d["digest"] for d in whole.steps()}
    total = max(step for step, _ in want) + 1
    everyone = tuple(range(world))
    codes.append(parts.start(total // 4, signal.SIGKILL, everyone))
    codes.append(parts.start(total // 2, signal.SIGTERM, (rng.randrange(world),)))
    codes.append(parts.start(3 * total // 4, signal.SIGKILL, everyone))
    codes.append(parts.start())
    wrong = [
        f"process {rank}, step {d['step']}: another state"
        for rank in everyone
        for d in parts.steps(rank)
        if want.get((d["step"], d["applied"])) != d["digest"]
    ]
    a, b = result(whole.folder), result(parts.folder)
    wrong += [f"{name}: {first_difference(a[name], b[name])}" for name in a if a[name] != b[name]]
    return {"codes": codes, "steps": total, "wrong": wrong, "incidents": a["incidents"], "images": _images(whole)}


def _images(team: Team) -> list[list[list[int]]]:
    """Image ids by process and step that was taken."""
    return [[d["images"] for d in team.steps(rank) if d["applied"]] for rank in range(team.world)]


def lost_to(number: signal.Signals, folder: Path, data: Path, world: int) -> dict[str, Any]:
    """The last process is hit alone; exit codes, seconds and last words of the others, and how it goes on."""
    team = Team(folder / number.name, data, Scenario("lost", {"checkpoint_every": "1", "batch_size": 2}), world)
    began = time.monotonic()
    codes = team.start(1, number, (world - 1,))
    words = [team.log(rank).strip().splitlines()[-4:] for rank in range(world - 1)]
    found = {"codes": codes, "words": words, "seconds": time.monotonic() - began}
    return found | {"after": team.start()}


def lost(folder: Path, data: Path, world: int) -> dict[str, Any]:
    """The last process is killed in one team, and stopped in another that waits at the same time; see `lost_to`."""
    numbers = (signal.SIGKILL, signal.SIGSTOP)
    with ProcessPoolExecutor(len(numbers), multiprocessing.get_context("fork")) as pool:
        begun = {number.name: pool.submit(lost_to, number, folder, data, world) for number in numbers}
        return {name: answer.result() for name, answer in begun.items()}


def main() -> int:
    folder, world, parts = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    torch.set_num_threads(1)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    data = folder / "data" / "set"
    write_shapes(data, train=24, val=4, size=64)
    found: dict[str, Any] = {}
    small = {"checkpoint_every": "1", "batch_size": 2}
    if "resume" in parts:
        found["resume"] = resume(folder / "resume", data, world, Scenario("resume", small))
    if "bad data" in parts:
        bad = Scenario("bad data", {**small, "workers": 1}, vanishing=7, spoiled=12)
        found["bad data"] = resume(folder / "bad", data, world, bad)
    if "lost" in parts:
        found["lost"] = lost(folder / "lost", data, world)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
