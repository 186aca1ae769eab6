"""Augmentation beyond the light one: which operations, how often and how far; and what was drawn for one image.

A `Policy` is settings (a preset, or a file of the user's); a `Change` is what it drew for one image: a pure function of
(seed, epoch, image id), so that any batch can be made again. The pixels and objects that follow it are in
`augment_pixels` and `augment_objects`. All of it acts on the image that `transforms` has resized.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np

from maskrcnn_coco.data.plan import mix

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Above0 = Annotated[float, msgspec.Meta(gt=0.0)]
Flip = Literal["none", "horizontal", "vertical", "both"]

SMALLEST_OBJECT = 8.0
"""Pixels: the 10 % quantile of the objects' sides is not shrunk below this by a scale that jitters downwards."""


class _Op(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``p``: probability that an image gets the operation."""

    p: Share = 1.0


class Scale(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The shorter side is ``low`` to ``high`` times min_size; what is then larger than at 1 is cropped at random."""

    low: Above0 = 1.0
    high: Above0 = 1.0
    steps: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    """So many evenly spaced scales; 0: any scale between."""


class Amount(_Op, frozen=True):
    """Times 1 ± ``amount`` at most (hue: turned by ± ``amount`` of a full circle)."""

    amount: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0


class Spread(_Op, frozen=True):
    """``sigma``: from, to. Blur in pixels, noise in grey levels of 255."""

    sigma: tuple[Above0, Above0] = (0.1, 1.0)


class Jpeg(_Op, frozen=True):
    """``quality``: from, to, in 1..100."""

    quality: tuple[int, int] = (50, 95)


class Rotate(_Op, frozen=True):
    """By ± ``degrees`` at most, around the middle; the corners are filled with the image's mean."""

    degrees: Annotated[float, msgspec.Meta(ge=0.0, le=180.0)] = 0.0


class Cutout(_Op, frozen=True):
    """Up to ``holes`` rectangles, each side up to ``size`` of the image's, filled with the image's mean."""

    holes: Annotated[int, msgspec.Meta(ge=1, le=64)] = 3
    size: Share = 0.15


class CopyPaste(_Op, frozen=True):
    """Up to ``objects`` objects of another training image are pasted (Ghiasi et al. 2021)."""

    p: Share = 0.0
    objects: Annotated[int, msgspec.Meta(ge=1, le=500)] = 20


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every operation with its probability and range; what is left out is off."""

    flip: Flip = "none"
    """Each with probability 1/2. Off where text, or left and right, are what is learned."""
    scale: Scale = Scale()
    brightness: Amount = Amount(p=0.0)
    contrast: Amount = Amount(p=0.0)
    saturation: Amount = Amount(p=0.0)
    hue: Amount = Amount(p=0.0)
    grey: _Op = _Op(p=0.0)
    """Colours are taken out."""
    rot90: _Op = _Op(p=0.0)
    """A quarter, half or three quarters of a turn: for pictures without up and down."""
    rotate: Rotate = Rotate(p=0.0)
    blur: Spread = Spread(p=0.0)
    noise: Spread = Spread(p=0.0, sigma=(1.0, 8.0))
    jpeg: Jpeg = Jpeg(p=0.0)
    cutout: Cutout = Cutout(p=0.0)
    copy_paste: CopyPaste = CopyPaste()

    @property
    def plain(self) -> bool:
        """Nothing but what `transforms` does by itself: horizontal flip, scales up to 1, brightness and contrast."""
        ops = (self.saturation, self.hue, self.grey, self.rot90, self.rotate, self.blur, self.noise, self.jpeg)
        rare = any(op.p > 0 for op in (*ops, self.cutout)) or self.flip in ("vertical", "both")
        return not rare and self.scale.high <= 1.0


NONE = Policy()
LIGHT = Policy(
    flip="horizontal",
    # 0.8, 0.85, … 1 as in torchvision's and detectron2's recipes (640 to 800 of 800). Never above 1, so that memory
    # stays what min_size promises.
    scale=Scale(low=0.8, high=1.0, steps=5),
    brightness=Amount(amount=0.2),
    contrast=Amount(amount=0.2),
)
MEDIUM = Policy(
    flip="horizontal",
    scale=Scale(low=0.5, high=1.5),
    brightness=Amount(amount=0.3),
    contrast=Amount(amount=0.3),
    saturation=Amount(p=0.5, amount=0.3),
    hue=Amount(p=0.5, amount=0.02),
    grey=_Op(p=0.05),
    blur=Spread(p=0.1, sigma=(0.3, 1.2)),
)
HEAVY = Policy(
    flip="horizontal",
    scale=Scale(low=0.4, high=1.8),
    brightness=Amount(amount=0.4),
    contrast=Amount(amount=0.4),
    saturation=Amount(p=0.7, amount=0.5),
    hue=Amount(p=0.5, amount=0.04),
    grey=_Op(p=0.1),
    rotate=Rotate(p=0.3, degrees=10.0),
    blur=Spread(p=0.2, sigma=(0.3, 1.8)),
    noise=Spread(p=0.2, sigma=(1.0, 8.0)),
    jpeg=Jpeg(p=0.2, quality=(40, 95)),
    cutout=Cutout(p=0.2, holes=3, size=0.15),
    copy_paste=CopyPaste(p=0.3),
)
PRESETS = {"none": NONE, "light": LIGHT, "medium": MEDIUM, "heavy": HEAVY}


class Change(NamedTuple):
    """What is done to one resized image, in this order. The defaults change nothing."""

    vertical: bool = False
    quarters: int = 0
    """Quarter turns counter-clockwise, 0 to 3."""
    degrees: float = 0.0
    """Counter-clockwise."""
    crop: tuple[int, int, int, int] | None = None
    """top, left, height, width, pixels of the turned image."""
    saturation: float = 1.0
    hue: float = 0.0
    grey: bool = False
    blur: float = 0.0
    noise: float = 0.0
    jpeg: int = 0
    holes: tuple[tuple[int, int, int, int], ...] = ()
    """top, left, height, width of each, pixels of the cropped image."""
    seed: int = 0
    """Of the noise."""


UNCHANGED = Change()


def generator(*numbers: int) -> np.random.Generator:
    """Random numbers that are a pure function of ``numbers``, the same on every machine."""
    return np.random.Generator(np.random.Philox(key=np.frombuffer(mix(*numbers), np.uint64)[:2]))


def draw_scale(policy: Policy, rng: np.random.Generator, least: float) -> float:
    """Any scale of ``policy`` that is not below ``least``."""
    scale = policy.scale
    bottom = min(max(scale.low, least), scale.high)
    # Even in the logarithm: as many images are halved as doubled.
    return float(np.exp(rng.uniform(np.log(bottom), np.log(scale.high))))


def draw_change(policy: Policy, rng: np.random.Generator, size: tuple[int, int], limit: tuple[int, int]) -> Change:
    """What ``policy`` does to an image of ``size`` (height, width) that may be ``limit`` large.

    Every number is drawn whether it is used or not, so that one operation more changes nothing in the others.
    """
    u = rng.random(16)
    a, b = rng.random(2), rng.random((policy.cutout.holes, 4))
    quarters = int(rng.integers(1, 4))
    vertical = policy.flip in ("vertical", "both") and u[0] < 0.5
    quarters = quarters if u[1] < policy.rot90.p else 0
    degrees = policy.rotate.degrees * (2 * u[3] - 1) if u[2] < policy.rotate.p else 0.0
    height, width = size if quarters % 2 == 0 else (size[1], size[0])
    most = limit if quarters % 2 == 0 else (limit[1], limit[0])
    crop = None
    if height > most[0] or width > most[1]:
        h, w = min(height, most[0]), min(width, most[1])
        crop = (int(a[0] * (height - h + 1)), int(a[1] * (width - w + 1)), h, w)
        height, width = h, w
    holes = ()
    if u[4] < policy.cutout.p:
        count = 1 + int(u[5] * policy.cutout.holes)
        holes = tuple(_hole(row, height, width, policy.cutout.size) for row in b[:count])
    noise = _between(policy.noise, u[12], float(rng.random()))
    return Change(
        vertical=bool(vertical),
        quarters=quarters,
        degrees=float(degrees),
        crop=crop,
        saturation=_factor(policy.saturation, u[6], u[7]),
        hue=policy.hue.amount * (2 * u[9] - 1) if u[8] < policy.hue.p else 0.0,
        grey=bool(u[10] < policy.grey.p),
        blur=_between(policy.blur, u[11], float(rng.random())),
        noise=noise,
        jpeg=_quality(policy.jpeg, u[13], float(rng.random())),
        holes=holes,
        seed=int(rng.integers(2**62)) if noise else 0,
    )


def _factor(op: Amount, chance: float, place: float) -> float:
    return 1.0 + op.amount * (2 * place - 1) if chance < op.p else 1.0


def _between(op: Spread, chance: float, place: float) -> float:
    low, high = op.sigma
    return low + place * (high - low) if chance < op.p else 0.0


def _quality(op: Jpeg, chance: float, place: float) -> int:
    low, high = op.quality
    return low + int(place * (high - low + 1)) if chance < op.p else 0


def _hole(u: Any, height: int, width: int, size: float) -> tuple[int, int, int, int]:
    h, w = max(1, int(u[0] * size * height)), max(1, int(u[1] * size * width))
    return int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1)), h, w
