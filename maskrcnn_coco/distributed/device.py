"""Which device this process computes on: one answer for every verb."""

from __future__ import annotations

import os

import torch

from maskrcnn_coco.errors import ConfigError


def resolve_device(name: str, world: int = 1, local_rank: int = 0) -> torch.device:
    """The device to train on; a CUDA device with a number becomes the current one, which libraries take unasked.

    Args:
        world: processes of the run. local_rank: the number of this one on its machine.

    Raises:
        ConfigError: a device this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world > 1:
        name = f"cuda:{local_rank}"
    device = named(name)
    count = torch.cuda.device_count()
    missing = (device.type == "cuda" and (device.index or 0) >= count) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ConfigError(
            f"--device {name}: this machine has no such device",
            got=f"{count} CUDA devices",
            fix="use --device cpu, or look at the driver with maskrcnn-coco doctor",
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def named(name: str) -> torch.device:
    """The device of a name; a bare number is a CUDA device's, as in many tools.

    Raises:
        ConfigError: no name of a device.
    """
    try:
        return torch.device(f"cuda:{name}" if name.isascii() and name.isdigit() else name)
    except RuntimeError as e:
        raise ConfigError(
            "--device is no device", got=name, expected="auto, cpu, cuda, cuda:1 or mps", fix="--device auto"
        ) from e


def _device(name: str, local_rank: int, world: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda:") and world > 1 and os.environ.get("LOCAL_WORLD_SIZE", str(world)) != "1":
        raise ConfigError(
            "all processes of this machine would share one GPU",
            got=f"--device {name}",
            fix="use --device cuda: each process takes a GPU of its own",
        )
    if name != "cuda" or world == 1:
        return named(name)
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU",
            got=f"{torch.cuda.device_count()} GPUs",
            fix="torchrun --nproc-per-node with at most as many processes as GPUs, or --device cpu",
        )
    return torch.device("cuda", local_rank)
