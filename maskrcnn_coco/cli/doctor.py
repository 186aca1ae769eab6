"""What this machine can do, and whether the checkpoints in a folder can be used."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from maskrcnn_coco.checkpoint import store
from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.system.known_faults import known_faults
from maskrcnn_coco.system.memory import main_memory
from maskrcnn_coco.system.precision import bf16_is_native, fp16_is_native, resolve_amp
from maskrcnn_coco.wording import size

_PACKAGES = ("maskrcnn-coco", "torch", "torchvision", "numpy", "pillow", "hotcoco", "msgspec", "tensorboard", "rich")
_PARAMETERS = {
    "maskrcnn_resnet50_fpn_v2": 46.4e6,
    "maskrcnn_resnet50_fpn": 44.4e6,
    "maskrcnn_resnet18_fpn": 31.4e6,
    "maskrcnn_mobilenet_v2_fpn": 22.6e6,
    "maskrcnn_resnet101_fpn": 63.4e6,
    "maskrcnn_resnext50_32x4d_fpn": 43.9e6,
    "maskrcnn_resnext101_64x4d_fpn": 102.4e6,
    "maskrcnn_convnext_tiny_fpn": 48.2e6,
    "maskrcnn_convnext_small_fpn": 69.8e6,
    "maskrcnn_swin_t_fpn": 47.8e6,
    "maskrcnn_swin_s_fpn": 69.2e6,
}
"""Parameters with 91 classes, for the estimate of what a snapshot takes."""


def examine(checkpoint_dir: str | Path = "checkpoints") -> dict[str, Any]:
    """Versions, devices, memory, disk and checkpoints, as plain data; ``problems`` lists what needs a person.

    Args:
        checkpoint_dir: every checkpoint in it is read whole and verified.
    """
    folder = Path(checkpoint_dir)
    health: dict[str, Any] = {
        "versions": _versions(),
        "system": {"platform": platform.platform(), "python": platform.python_version(), "executable": sys.executable},
        "devices": devices(),
        "threads": _threads(),
        "memory": main_memory(),
        "disk": _disk(folder),
        "snapshots": _snapshots(),
        "checkpoints": scan(folder),
    }
    health["problems"] = _problems(health)
    return health


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def devices() -> list[dict[str, Any]]:
    """Each device: name, memory in bytes, the precisions it computes by itself, and what ``--amp auto`` takes there."""
    found = [_device("cpu", platform.processor() or platform.machine(), main_memory()["total"])]
    for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(n)
        found.append(_device(f"cuda:{n}", properties.name, int(properties.total_memory)))
    if torch.backends.mps.is_available():
        found.append(_device("mps", "Apple GPU", main_memory()["total"]))
    return found


def _device(device: str, name: str, total: int | None) -> dict[str, Any]:
    bf16 = bf16_is_native(device)
    return {
        "device": device,
        "name": name,
        "memory": total,
        "bf16": "native" if bf16 else "emulated" if device == "cpu" else "none",
        "fp16": "native" if fp16_is_native(device) else "none",
        "amp_auto": resolve_amp("auto", device),
    }


def _threads() -> dict[str, Any]:
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cores": os.cpu_count(),
        "usable_cores": len(affinity(0)) if affinity is not None else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": torch.backends.mkldnn.is_available(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }


def _disk(folder: Path) -> dict[str, Any]:
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    usage = shutil.disk_usage(place)
    return {"path": str(place), "free": usage.free, "total": usage.total, "writable": os.access(place, os.W_OK)}


def _snapshots() -> list[dict[str, Any]]:
    """What one in-memory snapshot takes: weights and SGD momentum in fp32; AdamW keeps two moments."""
    return [
        {"model": name, "sgd": round(parameters * 4 * 2), "adamw": round(parameters * 4 * 3)}
        for name, parameters in _PARAMETERS.items()
    ]


def scan(folder: str | Path) -> dict[str, Any]:
    """Each checkpoint of ``folder`` read whole: intact and finite or why not, and which one ``--resume auto`` takes."""
    entries = []
    for path in store.checkpoints(folder):
        entry: dict[str, Any] = {"file": path.name, "bytes": path.stat().st_size, "ok": True, "why": None}
        try:
            header = store.peek(path)
            entry |= {"step": header.step, "epoch": header.epoch}
            store.load(path)
        except CheckpointError as e:
            entry |= {"ok": False, "why": e.what}
        entries.append(entry)
    newest, _ = store.newest_intact(folder)
    return {"folder": str(folder), "files": entries, "resume": newest.name if newest is not None else None}


def _problems(health: Mapping[str, Any]) -> list[str]:
    found = [f"{name} is not installed" for name, number in health["versions"].items() if number is None]
    found += [f"{f['file']}: {f['why']}" for f in health["checkpoints"]["files"] if not f["ok"]]
    if health["checkpoints"]["files"] and health["checkpoints"]["resume"] is None:
        found.append(f"no checkpoint in {health['checkpoints']['folder']} can be used")
    disk, threads = health["disk"], health["threads"]
    if not disk["writable"]:
        found.append(f"{disk['path']} is not writable: name another folder with --checkpoint-dir")
    if disk["free"] < 2 << 30:
        found.append(f"only {size(disk['free'])} are free in {disk['path']}: a checkpoint takes up to 400 MiB")
    if threads["torch_threads"] > (threads["usable_cores"] or 1):
        found.append(f"{threads['torch_threads']} threads on {threads['usable_cores']} cores: set OMP_NUM_THREADS")
    found += [sentence for d in health["devices"] for sentence in known_faults(str(d["device"]))]
    if torch.version.cuda is not None and not torch.cuda.is_available() and Path("/dev/nvidia0").exists():
        found.append("there is an NVIDIA card, but PyTorch cannot use it: the driver is missing or too old")
    return found


def print_health(health: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what `examine` found."""
    console = console or Console()
    system, threads = health["system"], health["threads"]
    console.note(" · ".join(f"{n} {v or 'missing'}" for n, v in health["versions"].items()))
    console.note(f"Python {system['python']} on {system['platform']}")
    console.note(
        f"{threads['usable_cores']} of {threads['cores']} cores, {threads['torch_threads']} threads, "
        f"kernels for {threads['cpu_capability']}"
    )
    room, disk = health["memory"], health["disk"]
    console.note(f"memory: {_bytes(room['available'])} free of {_bytes(room['total'])}")
    console.note(f"disk: {_bytes(disk['free'])} free of {_bytes(disk['total'])} at {disk['path']}")
    rows = [
        [d["device"], d["name"], _bytes(d["memory"]), d["bf16"], d["fp16"], d["amp_auto"]] for d in health["devices"]
    ]
    console.table("devices", rows, ["device", "name", "memory", "bf16", "fp16", "--amp auto"])
    rows = [[s["model"], _bytes(s["sgd"]), _bytes(s["adamw"])] for s in health["snapshots"]]
    console.table("one snapshot in memory, about", rows, ["model", "sgd", "adamw"])
    _print_checkpoints(health["checkpoints"], console)
    for problem in health["problems"]:
        console.warn(problem)
    if not health["problems"]:
        console.note("no problems found")


def _print_checkpoints(found: Mapping[str, Any], console: Console) -> None:
    if not found["files"]:
        console.note(f"no checkpoints in {found['folder']}")
        return
    rows = [
        [f["file"], _bytes(f["bytes"]), str(f.get("step", "–")), "intact, finite" if f["ok"] else "cannot be used"]
        for f in found["files"]
    ]
    console.table(f"checkpoints in {found['folder']}", rows, ["file", "size", "step", "state"])
    console.note(f"--resume auto would take: {found['resume'] or 'none of them'}")


def _bytes(number: int | None) -> str:
    return size(number) if number is not None else "unknown"
