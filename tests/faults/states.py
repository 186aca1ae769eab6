"""Small states that tell their step by their bits, and the digest that an oracle compares."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch


def state_at(step: int, *, rows: int = 24) -> dict[str, Any]:
    """A full state before step ``step``: every tensor depends on it."""
    g = torch.Generator().manual_seed(step)
    weights = {f"layer{i}.weight": torch.randn(rows, 16, generator=g) for i in range(4)}
    return {
        "model": {
            **weights,
            "bn.num_batches_tracked": torch.tensor(step),
            "bn.running_mean": torch.randn(8, generator=g),
        },
        "optimizer": {
            "state": {i: {"momentum_buffer": torch.randn(rows, 16, generator=g)} for i in range(4)},
            "param_groups": [{"lr": 0.01 / (1 + step), "betas": (0.9, 0.999), "params": [0, 1, 2, 3]}],
        },
        "scaler": {"scale": 65536.0, "_growth_tracker": step},
        "guard": {"window": [float(step)] * 5},
        "loop": {"step": step, "epoch": step // 10, "best": float("-inf"), "quarantine": [step]},
        "config": {"lr": 0.01, "name": "ü"},
        "classes": ["background", "circle"],
        "environment": {"torch": str(torch.__version__)},
    }


def digest(state: dict[str, Any]) -> str:
    """SHA-256 over every tensor's bits and all plain data, without what the file adds."""
    sha = hashlib.sha256()

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                walk(value[key], f"{name}/{key}")
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                walk(item, f"{name}/{i}")
        elif isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            sha.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode() + flat.numpy().tobytes())
        else:
            sha.update(f"{name}={json.dumps(value)}".encode())

    walk({k: v for k, v in state.items() if k not in ("format", "names", "serial", "digests")}, "")
    return sha.hexdigest()
