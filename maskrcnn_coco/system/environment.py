"""What the bits of a run depend on besides its settings; where this changes, a resumed run is inexact."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy
import torch
import torchvision

_NAMES = {
    "torch": "PyTorch",
    "torchvision": "torchvision",
    "numpy": "NumPy",
    "pillow": "Pillow",
    "python": "Python",
    "machine": "processor type",
    "device": "device",
    "cuda": "CUDA",
    "cudnn": "cuDNN",
    "world": "number of processes",
    "threads": "threads per process",
    "cpu_capability": "instruction set of the kernels",
    "onednn_isa": "ONEDNN_MAX_CPU_ISA",
    "deterministic": "deterministic algorithms",
    "benchmark": "cuDNN benchmark mode",
    "tf32": "TF32 matrix products",
    "cudnn_tf32": "TF32 convolutions",
    "cudnn_deterministic": "cuDNN's deterministic mode",
    "driver": "CUDA driver",
    "cublas_workspace": "CUBLAS_WORKSPACE_CONFIG",
    "nccl_algorithm": "NCCL_ALGO",
}


def fingerprint(world: int = 1, *, device: str | torch.device | None = None) -> dict[str, Any]:
    """Versions, device, processes, threads, instruction set and determinism flags, as plain data.

    Args:
        world: number of processes.
        device: where the run computes; None: the first CUDA device if there is one, else the CPU.
    """
    import PIL

    cuda = torch.cuda.is_available()
    where = torch.device(device) if device is not None else torch.device("cuda" if cuda else "cpu")
    return {
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" and cuda else where.type,
        "cuda": torch.version.cuda if where.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if where.type == "cuda" else None,
        "world": world,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn_isa": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "tf32": _tf32(torch.backends.cuda.matmul),
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "nccl_algorithm": os.environ.get("NCCL_ALGO"),
        **(_of_cuda() if where.type == "cuda" and cuda else {}),
    }


def _of_cuda() -> dict[str, Any]:
    """What matters on CUDA only; TF32 convolutions are torch's default there."""
    return {
        "cudnn_tf32": _tf32(getattr(torch.backends.cudnn, "conv", torch.backends.cudnn)),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "driver": getattr(torch._C, "_cuda_getDriverVersion", lambda: None)(),
    }


def _tf32(switch: Any) -> bool:
    """Whether ``switch`` of `torch.backends` is on. Its old name raises once somebody has used the new one."""
    precision = getattr(switch, "fp32_precision", None)
    return bool(switch.allow_tf32) if precision is None else precision == "tf32"


def differs(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One sentence for each thing that changed and can change the last bits; empty where a resume is exact."""
    return [
        f"{_NAMES.get(key, key)} was {_shown(before.get(key))} and is now {_shown(now.get(key))}"
        for key in sorted(before.keys() | now.keys(), key=_order)
        if before.get(key) != now.get(key)
    ]


def _order(key: str) -> tuple[int, str]:
    known = list(_NAMES)
    return (known.index(key) if key in known else len(known), key)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not set" if value is None else str(value)
