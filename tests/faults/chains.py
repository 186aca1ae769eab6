"""A run that is hit, started again, hit again, until it ends; and whether it ended as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from endings import first_difference, lines_of, result
from soaking import IN_WORKERS, INNER, Attempt, Inner, Scenario, fork, wait

from maskrcnn_coco.checkpoint.store import checkpoints, load, newest_intact
from maskrcnn_coco.errors import CheckpointError

EPOCHS = 3
PATIENCE = 60.0
"""Seconds that an attempt may take; a longer one hangs."""
CTRL_C = "Ctrl-C, nobody reads stdout and stderr"
HANGUP = "terminal closed (SIGHUP), stdout and stderr gone"
TWICE = "SIGTERM, and again a moment later"
SIGNALS = {"SIGTERM": signal.SIGTERM, TWICE: signal.SIGTERM, CTRL_C: signal.SIGINT, HANGUP: signal.SIGHUP}
ENDING = ("SIGKILL at a random moment", "killed after a step", *SIGNALS)
DAMAGE = ("newest checkpoint: one bit", "newest checkpoint: cut short")


@dataclass
class Clean:
    """What an undisturbed run leaves."""

    digests: dict[tuple[int, bool], str]
    result: dict[str, Any]
    steps: int


@dataclass
class Outcome:
    """What hit one run, and what was wrong with it afterwards."""

    scenario: str
    happened: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    restarts: list[float] = field(default_factory=list)
    """Seconds from a start to the first step that it took."""
    failures: list[str] = field(default_factory=list)


class Chain:
    """One run below ``folder``, on the data set in ``data``, until it ends."""

    def __init__(self, folder: Path, data: Path, scenario: Scenario, rng: random.Random) -> None:
        self.folder, self.data, self.scenario, self.rng = folder, data, scenario, rng
        self.outcome = Outcome(scenario.name)
        folder.mkdir(parents=True)

    @property
    def checkpoints(self) -> Path:
        """The run's checkpoint folder."""
        return self.folder / "out" / "checkpoints"

    def clean(self) -> Clean:
        """The undisturbed run."""
        if self._attempt([], None) != 0:
            raise AssertionError(f"the undisturbed run failed: {self._log()}")
        digests = {(d["step"], d["applied"]): d["digest"] for d in self._digests()}
        return Clean(digests, result(self.folder), 1 + max(step for step, _ in digests))

    def hit(self, clean: Clean, count: int) -> Outcome:
        """About ``count`` random faults, over as many starts as they need, then to the end; compared with ``clean``."""
        ends = False
        while not ends and not self.outcome.failures:
            left = count - sum(self.outcome.happened.values())
            ends = self._finished(self._attempt(self._inner(clean, left), self._ending(clean) if left > 0 else None))
        self._compare(clean)
        return self.outcome

    def kill_after_each_step(self, clean: Clean) -> Outcome:
        """Killed after step 0, then after step 1, … : each start must take the run at least one step further."""
        for step in range(clean.steps):
            if self._finished(self._attempt([], ("killed after a step", step, 0.0))):
                self.outcome.failures.append(f"step {step} was never reached")
                return self.outcome
        while not self._finished(self._attempt([], None)) and not self.outcome.failures:
            pass
        self._compare(clean)
        return self.outcome

    def _inner(self, clean: Clean, left: int) -> list[Inner]:
        kinds = (*INNER, *IN_WORKERS) if self.scenario.workers else tuple(k for k in INNER if k not in IN_WORKERS)
        first = self._last_step() + 1
        if left <= 0 or first >= clean.steps:
            return []
        steps = self.rng.sample(soon := range(first, min(first + 5, clean.steps)), min(2, len(soon)))
        return [Inner(self.rng.choice(kinds), s, self.rng.randrange(10**6)) for s in steps if self.rng.random() < 0.8]

    def _ending(self, clean: Clean) -> tuple[str, int, float]:
        """Kind, the step after which (-1: while it starts), and how many seconds after it."""
        kind = self.rng.choice(ENDING)
        first = self._last_step()
        # The last step is chosen more often: evaluation, last checkpoint and report follow it.
        step = self.rng.choice([-1, *range(first, min(first + 6, clean.steps)), clean.steps - 1])
        return kind, step, self.rng.uniform(0.0, 0.4 if step in (-1, clean.steps - 1) else 0.12)

    def _attempt(self, inner: list[Inner], ending: tuple[str, int, float] | None) -> int | None:
        """Start the run once; its exit code, None if it was killed on purpose."""
        (self.folder / "armed").unlink(missing_ok=True)
        put_back(self.data)
        reader, writer = os.pipe()
        attempt = Attempt(self.folder, self.scenario, inner, writer)
        if ending is not None and ending[0] == "killed after a step":
            attempt.die_after = ending[1]
        attempt.deaf = ending is not None and ending[0] in (CTRL_C, HANGUP)
        before = self._happened()
        began = time.monotonic()
        pid = fork(attempt, self.data, epochs=EPOCHS)
        os.close(writer)
        self.outcome.attempts += 1
        sent = self._watch(pid, reader, ending, began)
        os.close(reader)
        code = self._wait(pid, began)
        self._clear_group(pid)
        self.outcome.happened += self._happened() - before
        if sent is not None:
            self.outcome.happened[sent] += 1
        if code == -signal.SIGKILL and ending is not None and ending[0] not in ("SIGTERM", TWICE):
            self._damage()
            return None
        return code

    def _watch(self, pid: int, reader: int, ending: tuple[str, int, float] | None, began: float) -> str | None:
        """Follow the steps; stop and continue now and then; send the signal when its moment has come."""
        stop_after = self.rng.randrange(0, 40) if ending is not None else -1
        if ending is not None and ending[1] == -1 and ending[0] != "killed after a step":
            time.sleep(ending[2])
            return self._send(pid, ending[0])
        first = True
        while time.monotonic() - began < PATIENCE:
            if not select.select([reader], [], [], 0.02)[0]:
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                    return None  # its loader processes may hold the pipe for some seconds more
                continue
            told = os.read(reader, 4)
            if not told:
                return None
            if first:
                self.outcome.restarts.append(time.monotonic() - began)
                first = False
            step = int.from_bytes(told, "little")
            if step == stop_after:
                self._stop_and_continue(pid)
            if ending is not None and step >= ending[1] and ending[0] != "killed after a step":
                time.sleep(ending[2])
                return self._send(pid, ending[0])
        return None

    def _send(self, pid: int, kind: str) -> str | None:
        """Send the signal; None where the process had ended by itself."""
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return None
        os.kill(pid, SIGNALS.get(kind, signal.SIGKILL))
        if kind == TWICE:
            time.sleep(self.rng.uniform(0.0, 0.1))
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return "SIGTERM"
            os.kill(pid, signal.SIGTERM)
        return kind

    def _stop_and_continue(self, pid: int) -> None:
        os.killpg(pid, signal.SIGSTOP)
        time.sleep(self.rng.uniform(0.01, 0.5))
        os.killpg(pid, signal.SIGCONT)
        self.outcome.happened["stopped and continued"] += 1

    def _wait(self, pid: int, began: float) -> int:
        code = wait(pid, began + PATIENCE)
        if code is None:
            self.outcome.failures.append(f"hangs: {self._log()}")
        return 1 if code is None else code

    def _clear_group(self, pid: int) -> None:
        """Loader processes that a killed run leaves end by themselves within seconds; the next start does not wait."""
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def _finished(self, code: int | None) -> bool:
        if code is None or code in {n for s in SIGNALS.values() for n in (128 + s, -s)}:
            return False
        if code == 5 and _code_in(self.folder / "out" / "run" / "result.json") == 5:
            return False  # the disk was full at the very end, and the run said so
        if code != 0:
            self.outcome.failures.append(f"exit code {code}: {self._log()}")
            return True
        newest, _ = newest_intact(self.checkpoints)
        # The disk may have been full at the very end: then the run says so, and a new start makes up for it.
        answer = self.folder / "out" / "run" / "result.json"
        return newest is not None and answer.exists() and load(newest)["loop"]["step"] == _steps_of(answer)

    def _damage(self) -> None:
        """Sometimes damage the newest checkpoint; only where an older intact state is left."""
        if self.rng.random() > 0.35 or not self.checkpoints.is_dir():
            return
        newest, _ = newest_intact(self.checkpoints)
        same = [] if newest is None else [p for p in checkpoints(self.checkpoints) if p.samefile(newest)]
        others = [p for p in checkpoints(self.checkpoints) if p not in same]
        if newest is None or not any(_intact(p) for p in others):
            return
        kind = self.rng.choice(DAMAGE)
        raw = bytearray(newest.read_bytes())
        at = self.rng.randrange(len(raw))
        if kind.endswith("bit"):
            raw[at] ^= 1 << self.rng.randrange(8)
        else:
            del raw[at:]
        with newest.open("r+b") as file:  # in place: every name of the file has the damage
            file.write(raw)
            file.truncate()
        self.outcome.happened[kind] += 1

    def _compare(self, clean: Clean) -> None:
        for d in self._digests():
            key = (d["step"], d["applied"])
            if clean.digests.get(key) != d["digest"]:
                self.outcome.failures.append(f"another state after step {d['step']}")
                break
        if self.outcome.failures:
            return
        mine = result(self.folder)
        self.outcome.failures += [
            f"{name} differs: {first_difference(clean.result[name], mine[name])}"
            for name in mine
            if mine[name] != clean.result[name]
        ]

    def _digests(self) -> list[dict[str, Any]]:
        return lines_of(self.folder / "digests.jsonl")

    def _last_step(self) -> int:
        digests = self._digests()
        return digests[-1]["step"] if digests else 0

    def _happened(self) -> Counter[str]:
        path = self.folder / "faults.log"
        return Counter(path.read_text().splitlines()) if path.exists() else Counter()

    def _log(self) -> str:
        path = self.folder / "log.txt"
        return path.read_text(errors="replace")[-1500:] if path.exists() else "(no output)"


def _code_in(answer: Path) -> int | None:
    return json.loads(answer.read_text())["exit_code"] if answer.exists() else None


def _steps_of(answer: Path) -> int:
    return json.loads(answer.read_text())["steps"]


def _intact(path: Path) -> bool:
    try:
        load(path)
    except CheckpointError:
        return False
    return True


def put_back(data: Path) -> None:
    """Files of the data set that a run has deleted, from a copy beside it."""
    keep = data.with_name("kept")
    if not keep.exists():
        shutil.copytree(data, keep)
    for path in keep.rglob("*"):
        there = data / path.relative_to(keep)
        if path.is_file() and not there.exists():
            shutil.copy2(path, there)
