"""Main and device memory: how much there is, what a batch takes, and what to do when it runs out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

ROOM = 0.85
"""Share of a device that a run may fill: the largest images and the allocator's gaps come on top of what was seen."""
PHRASES = ("can't allocate memory", "out of memory", "not enough memory")
"""How torch's allocators and oneDNN say it where they raise a bare RuntimeError."""


def main_memory() -> dict[str, int | None]:
    """Bytes of main memory: in all, and free for a new process; the container's limit counts. None where unknown."""
    total, available = _from_proc()
    limit, used = _from_cgroup()
    if limit is not None and (total is None or limit < total):
        room = limit - (used or 0)
        return {"total": limit, "available": room if available is None else min(room, available)}
    return {"total": total, "available": available}


def _from_proc() -> tuple[int | None, int | None]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        names = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
        return None, None
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    return values.get("MemTotal"), values.get("MemAvailable")


def _from_cgroup() -> tuple[int | None, int | None]:
    def read(name: str) -> int | None:
        try:
            text = (Path("/sys/fs/cgroup") / name).read_text().strip()
        except OSError:
            return None
        return int(text) if text.isdigit() else None

    return read("memory.max"), read("memory.current")


def peak(device: torch.device) -> int:
    """Most bytes in use so far: of the device on CUDA, of the process elsewhere; 0 where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def held(device: torch.device) -> int:
    """Bytes in use now; on systems without /proc the most so far."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return peak(device)


def total(device: torch.device) -> int | None:
    """Bytes that the device has, for the CPU those of the machine or container; None: unknown."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else main_memory()["total"]


def batch_that_fits(batch: int, before: int, most: int, whole: int) -> int:
    """Largest batch size, at least 1, where ``batch`` images raised the use from ``before`` to ``most`` bytes."""
    return max(1, int(batch * (ROOM * whole - before) / max(1, most - before)))


def ran_out(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(p in str(error) for p in PHRASES)


def snapshot_budget() -> int:
    """Most bytes for in-memory snapshots: a quarter of the memory that is free now."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        free = 4 << 30  # not said by this system: enough for ResNet-50 three times over
    return free // 4
