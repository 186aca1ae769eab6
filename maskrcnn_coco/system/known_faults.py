"""Versions of packages that are known to compute wrongly on a device, and which version to take. Imports no torch."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownFault:
    """``package`` below ``fixed`` computes wrongly on devices of the type ``device``; ``what`` finishes "its …"."""

    device: str
    package: str
    fixed: tuple[int, ...]
    what: str
    hint: str


FAULTS: tuple[KnownFault, ...] = (
    # pytorch/vision#9510, merged in July 2026: stable 0.28 fails, the nightly builds of 0.29 do not.
    KnownFault(
        "mps",
        "torchvision",
        (0, 29),
        "RoIAlign counts gradients several times over in the backward pass, the more boxes the more often: training of "
        "detectors goes to NaN, or hangs",
        "torchvision#9510",
    ),
)


def known_faults(device: str) -> list[str]:
    """What is known to be wrong on ``device`` (torch's device type) with the packages installed here, as sentences.

    A version that cannot be read is none that is known to be wrong.
    """
    return [_sentence(f, found) for f in FAULTS if f.device == device and (found := _faulty(f)) is not None]


def _faulty(fault: KnownFault) -> str | None:
    """The installed version where it is one with the fault."""
    try:
        found = importlib.metadata.version(fault.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    numbers = re.match(r"\d+(\.\d+)*", found)
    if numbers is None:
        return None
    release = tuple(int(n) for n in numbers.group().split("."))
    return found if release[: len(fault.fixed)] < fault.fixed else None


def _sentence(fault: KnownFault, found: str) -> str:
    least = ".".join(map(str, fault.fixed))
    return (
        f"{fault.package} {found} is wrong on {fault.device}: its {fault.what} ({fault.hint}); take {fault.package} "
        f"{least} or newer with the torch of its release, or --device cpu"
    )
