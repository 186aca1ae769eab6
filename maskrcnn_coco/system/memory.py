"""Main and device memory: how much there is, what a batch takes, and what to do when it runs out."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sys
import traceback
from pathlib import Path

import torch

from maskrcnn_coco.errors import said_by

try:
    import resource
except ImportError:  # Windows
    resource = None

ROOM = 0.85
"""Share of a device that a run may fill: the largest images and the allocator's gaps come on top of what was seen."""
PHRASES = (
    "out of memory",  # CUDA's, HIP's, XPU's and MPS's allocators
    "can't allocate memory",  # torch's on the CPU
    "cannot allocate memory",  # the operating system, errno 12: fork, mmap
    "not enough memory",  # torch's on Windows, oneDNN
    "unable to allocate",  # NumPy
    "failed to allocate",
    "std::bad_alloc",
    "bad allocation",
    "can't start new thread",  # Python: there is no room for one more stack, or the limit of processes is reached
    "alloc_failed",  # CUBLAS_STATUS_, CUDNN_STATUS_, CUSPARSE_STATUS_ …
    "allocation_failed",  # CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED and its kin
    "unable to find an engine",  # cuDNN, where no engine's workspace fits any more
    "unable to find a valid cudnn algorithm",
)
"""What running out of memory says, in lower case, where it comes as a bare RuntimeError or OSError."""
PERHAPS = ("could not create a primitive", "could not create a memory")
"""oneDNN's words for memory that it did not get, and for other refusals too."""


def main_memory() -> dict[str, int | None]:
    """Bytes of main memory: in all, and free for this process; the limits of its container and its own (``ulimit -v``,
    ``-d``) count. None where unknown.
    """
    total, available = _from_proc()
    for limit, used in (_from_cgroup(), *_own_limits()):
        if limit is not None and (total is None or limit < total):
            room = max(0, limit - used)
            total, available = limit, room if available is None else min(room, available)
    return {"total": total, "available": available}


def _own_limits() -> list[tuple[int, int]]:
    """(limit, used) of this process's address space and of its private memory, where they are limited."""
    if resource is None:
        return []
    try:
        pages = [int(n) for n in Path("/proc/self/statm").read_text().split()]
    except OSError:
        return []
    used = {resource.RLIMIT_AS: pages[0], resource.RLIMIT_DATA: pages[5]}
    soft = {kind: resource.getrlimit(kind)[0] for kind in used}
    return [(soft[k], used[k] * resource.getpagesize()) for k in used if soft[k] != resource.RLIM_INFINITY]


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


def _from_cgroup(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> tuple[int | None, int]:
    """(limit, used) of the tightest of this process's control groups, of version 2 or 1; pages of files do not count
    as used, they are given back when somebody asks.
    """
    found = [(limit, used) for folder in _groups(root, own) for limit, used in _limits(folder)]
    return min(found, key=lambda pair: pair[0] - pair[1], default=(None, 0))


def _groups(root: Path, own: Path) -> list[Path]:
    """The folders of this process's memory groups, each with those above it. Inside a container its own is the root."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    folders = [root, root / "memory"]
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        base = root if controllers == "" else root / "memory" if "memory" in controllers.split(",") else None
        parts = [p for p in path.split("/") if p not in ("", "..")]
        if base is not None:
            folders += [base.joinpath(*parts[:depth]) for depth in range(len(parts), 0, -1)]
    return folders


_UNLIMITED = 1 << 60
"""Version 1 says "no limit" by the largest number of whole pages."""


def _limits(folder: Path) -> list[tuple[int, int]]:
    for limit_file, used_file in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        limit, used = _number(folder / limit_file), _number(folder / used_file) or 0
        if limit is not None and limit < _UNLIMITED:
            return [(limit, max(0, used - _files_in_memory(folder)))]
    return []


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _files_in_memory(folder: Path) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = {k: v for k, _, v in (line.partition(" ") for line in lines)}
    text = values.get("total_inactive_file", values.get("inactive_file", "0"))
    return int(text) if text.isdigit() else 0


def peak(device: torch.device) -> int:
    """Most bytes in use since the start or `reset_peak`: of the device on CUDA, else of the process; 0: not known."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, ValueError, IndexError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak(device: torch.device) -> None:
    """Let `peak` speak of what comes from now on; where the system cannot, it goes on speaking of all."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def release(device: torch.device) -> None:
    """Give back what nobody holds any more, after memory ran out; what a caught error's traceback held among it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


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


def free(device: torch.device) -> int | None:
    """Bytes that this process could still take; None: unknown. What torch holds in reserve on CUDA is free to it."""
    if device.type != "cuda":
        return main_memory()["available"]
    spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + max(0, spare)


def usable(device: torch.device) -> int | None:
    """Bytes that this process has or could have: what others hold does not count. None: unknown."""
    left = free(device)
    return total(device) if left is None else left + held(device)


def batch_that_fits(batch: int, before: int, most: int, whole: int) -> int:
    """Largest batch size, at least 1, where ``batch`` images raised the use from ``before`` to ``most`` bytes."""
    return max(1, int(batch * (ROOM * whole - before) / max(1, most - before)))


def ran_out(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out: the one place that knows the words (`PHRASES`)."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    said = said_by(error).lower()
    return any(p in said for p in PHRASES) or (any(p in said for p in PERHAPS) and _is_nearly_full())


def _is_nearly_full() -> bool:
    memory = main_memory()
    return None not in memory.values() and (memory["available"] or 0) < (memory["total"] or 0) / 8


def let_go(error: BaseException | None) -> None:
    """Drop what the functions that ``error`` left still hold: of a step that did not fit, its activations.

    The lines of the traceback stay.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


UNKNOWN_FREE = 4 << 30
"""Taken to be free where the system does not say: enough for ResNet-50 three times over."""


def snapshot_budget(device: torch.device | None = None) -> int:
    """Most bytes for in-memory snapshots: a quarter of what is free now, in main memory (the container's limit counts)
    and on ``device``, where they lie.
    """
    places = [torch.device("cpu"), *([device] if device is not None and device.type == "cuda" else [])]
    return min(UNKNOWN_FREE if (left := free(place)) is None else left for place in places) // 4


def is_short(device: torch.device, wanted: int) -> bool:
    """Whether ``wanted`` more bytes would leave little room on a CUDA ``device``: less than as many again."""
    left = free(device) if device.type == "cuda" else None
    return left is not None and left < 2 * wanted
