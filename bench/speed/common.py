"""Side-by-side timing: variants take turns within each round, and only ratios within a round are compared."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torchvision

RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass
class Times:
    """Wall and process-CPU seconds of one variant, one entry a round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Ratio:
    """Median and quartiles of a variant's time over the reference's in the same round."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def take_turns(variants: Mapping[str, Callable[[int], object]], rounds: int, warm: int = 2) -> dict[str, Times]:
    """Run every variant once a round, in an order that rotates and reverses, so that none always goes first.

    Args:
        variants: name → function of the round's number; the same number must mean the same work.
        warm: rounds before the clock counts.
    """
    times = {name: Times() for name in variants}
    names = list(variants)
    for round_ in range(-warm, rounds):
        turn = names[round_ % len(names) :] + names[: round_ % len(names)]
        for name in turn if round_ % 2 == 0 else reversed(turn):
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            variants[name](round_)
            if round_ >= 0:
                times[name].wall.append(time.perf_counter() - wall)
                times[name].cpu.append(time.process_time() - cpu)
    return times


def ratio(times: Sequence[float], reference: Sequence[float]) -> Ratio:
    """The paired ratio of two lists of seconds from the same rounds (at least 2)."""
    quotients = [a / b for a, b in zip(times, reference, strict=True)]
    low, median, high = statistics.quantiles(quotients, n=4, method="inclusive")
    return Ratio(median, low, high)


def table(times: Mapping[str, Times], reference: str) -> str:
    """Markdown: seconds and paired ratios, by wall clock and by process CPU time."""
    lines = [
        "| variant | wall s | wall ratio (quartiles) | CPU s | CPU ratio (quartiles) |",
        "|---|---|---|---|---|",
    ]
    base = times[reference]
    for name, t in times.items():
        wall, cpu = ratio(t.wall, base.wall), ratio(t.cpu, base.cpu)
        row = (name, f"{statistics.median(t.wall):.3f}", wall, f"{statistics.median(t.cpu):.3f}", cpu)
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def machine() -> str:
    """One line: processor, cores, instruction set, versions, and the load when asked."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        models = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (
        f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, native bf16: {bool(bf16)}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}; "
        f"load average {os.getloadavg()[0]:.1f} when written"
    )


def write(name: str, title: str, parts: Sequence[str]) -> Path:
    """Write ``bench/results/<name>.md``: title, machine, then the parts, with a blank line between them."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.md"
    path.write_text("\n\n".join([f"# {title}", f"Machine: {machine()}.", *parts]) + "\n", encoding="utf-8")
    return path
