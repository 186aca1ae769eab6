"""The sides of a resized image as torchvision's eager code finds them in float64, in whole numbers and float32.

OpenVINO computes float64 in float32. ``floor(side * (limit / side))`` then is the limit on other sides than in float64:
at a limit of 256 on one side in four, 427 pixels for example, where 255.99998 comes out. Images would be resized to
one pixel less than the checkpoint resizes them to, and boxes would move by most of a pixel.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

KNOWN = 1 << 15
"""Sides up to this many pixels come out as in float64; of a larger one the exact quotient is rounded down."""


def resized(height: Tensor, width: Tensor, shortest: int, longest: int) -> tuple[Tensor, Tensor]:
    """``floor(side * min(shortest / short, longest / long))`` of both sides, as float64 has it.

    Args:
        height, width: int64 of one shape, pixels.
        shortest, longest: pixels to which the shorter side is brought, or the longer one where it would become longer.
    """
    short, long = torch.minimum(height, width), torch.maximum(height, width)
    by_long = longest * short - shortest * long < 0
    limit = torch.where(by_long, torch.full_like(long, longest), torch.full_like(short, shortest))
    shortfalls = [
        torch.tensor(_shortfalls(one))[side.clamp(max=KNOWN)] for one, side in ((longest, long), (shortest, short))
    ]
    shortfall, side = torch.where(by_long, *shortfalls), torch.where(by_long, long, short)
    gaps = torch.tensor(_gaps(longest))
    new = []
    for given in (height, width):
        product = given * limit
        whole = torch.div(product, side, rounding_mode="trunc")
        rest = product - whole * side
        whole = whole + (rest >= side).to(torch.int64) - (rest < 0).to(torch.int64)  # some runtimes divide in float32
        exact = product - whole * side == 0
        gap = gaps[whole.clamp(max=longest)]
        new.append(whole - (exact & (shortfall * whole.to(torch.float32) > gap)).to(torch.int64))
    return new[0], new[1]


@lru_cache(maxsize=8)
def _shortfalls(limit: int) -> list[float]:
    """By which share ``limit / side`` is too small in float64, in units of 2 ** -53; for each side to `KNOWN`."""
    out = [0.0]
    for side in range(1, KNOWN + 1):
        numerator, denominator = (limit / side).as_integer_ratio()
        out.append((limit * denominator - numerator * side) / (limit * denominator) * 2.0**53)
    return out


def _gaps(most: int) -> list[float]:
    """Half of the way from a whole number down to the next number of float64, in units of 2 ** -53; for 0 to ``most``.

    What is nearer to the number than that is rounded to it.
    """
    powers = [1 << (n.bit_length() - 1) for n in range(1, most + 1)]
    return [1.0, *(p / 2 if p == n else float(p) for n, p in enumerate(powers, 1))]
