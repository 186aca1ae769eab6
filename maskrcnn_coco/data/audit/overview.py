"""What a data set is: how much of what, how large, how deep. The first thing that `check` says."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.images import probe
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.wording import clean, listed

PROBED = 200
"""So many files are opened to tell how deep images are."""
CLASSES = 12
"""Classes that are shown by name."""
Spread = tuple[float, float, float]
"""Smallest, median, largest."""


@dataclass(frozen=True)
class Overview:
    """Counts and sizes of a set.

    Attributes:
        images, empty_images, objects, crowds: counts; objects with crowds.
        classes: name → objects, in the order of labels.
        sizes: (width, height) → images, the most frequent first, at most ten. widths, heights: pixels.
        objects_per_image: of images that have any. object_sides: square root of box areas, pixels.
        small, medium, large: objects by COCO's bounds, 32² and 96² pixels.
        depths: how pixels are stored → files, of those opened; empty where none was.
    """

    images: int
    empty_images: int
    objects: int
    crowds: int
    classes: dict[str, int]
    sizes: dict[str, int]
    widths: Spread | None
    heights: Spread | None
    objects_per_image: Spread | None
    object_sides: Spread | None
    small: int
    medium: int
    large: int
    depths: dict[str, int]


def overview(table: CocoTable, *, files: bool = True) -> Overview:
    """What ``table`` holds; with ``files`` some images are opened. Never raises because of the data."""
    known = (table.heights > 0) & (table.widths > 0)
    shapes, counts = np.unique(
        np.stack([table.widths[known], table.heights[known]], axis=1), axis=0, return_counts=True
    )
    most = np.argsort(-counts, kind="stable")[:10]
    per_image = np.bincount(table.ann_image[table.ann_image >= 0], minlength=len(table))
    labels = np.bincount(table.labels, minlength=table.num_classes)
    with np.errstate(invalid="ignore", over="ignore"):
        areas = table.boxes[:, 2] * table.boxes[:, 3]
    areas = areas[np.isfinite(areas) & (areas > 0)]
    small, medium = int((areas < 32**2).sum()), int(((areas >= 32**2) & (areas < 96**2)).sum())
    return Overview(
        images=len(table),
        empty_images=int((per_image == 0).sum()),
        objects=len(table.ann_ids),
        crowds=int(table.iscrowd.sum()),
        classes=_by_name(table, labels),
        sizes={f"{w}×{h}": int(counts[i]) for i, (w, h) in zip(most.tolist(), shapes[most].tolist(), strict=True)},
        widths=_spread(table.widths[known]),
        heights=_spread(table.heights[known]),
        objects_per_image=_spread(per_image[per_image > 0]),
        object_sides=_spread(np.sqrt(areas)),
        small=small,
        medium=medium,
        large=len(areas) - small - medium,
        depths=_depths(table) if files else {},
    )


def _by_name(table: CocoTable, labels: np.ndarray) -> dict[str, int]:
    found: Counter[str] = Counter()
    for n, name in enumerate(table.class_names[1:], 1):
        found[name] += int(labels[n])
    return dict(found)


def _spread(values: np.ndarray) -> Spread | None:
    if not len(values):
        return None
    return float(values.min()), float(np.median(values)), float(values.max())


def _depths(table: CocoTable) -> dict[str, int]:
    rows = np.unique(np.linspace(0, len(table) - 1, min(PROBED, len(table))).astype(int)).tolist()
    found: Counter[str] = Counter()
    for row in rows:
        try:
            facts = probe(table.image_root, table.file_name(row), decode=False)
        except DataError:
            continue
        found[_stored(facts.mode, facts.deep)] += 1
    return dict(found.most_common())


def _stored(mode: str, deep: bool) -> str:
    """A mode of Pillow's in words."""
    if mode == "1":
        return "1 bit"
    if mode == "F":
        return "float grey"
    bits = "32 bit" if mode == "I" else "16 bit" if deep else "8 bit"
    kind = {
        "RGB": "RGB",
        "RGBA": "RGB with transparency",
        "LA": "grey with transparency",
        "P": "palette",
        "CMYK": "CMYK",
    }
    return f"{bits} {'grey' if mode[:1] in ('L', 'I') and mode not in kind else kind.get(mode, mode)}"


def overview_lines(found: Overview) -> list[str]:
    """A few lines for people."""
    lines = [
        f"{_n(found.images, 'image')}, {_n(found.objects, 'object')}, {_n(len(found.classes), 'class', 'classes')}"
    ]
    if found.empty_images:
        lines[0] += f"; {found.empty_images} images have no object"
    if found.crowds:
        lines[0] += f"; {found.crowds} are crowds, which training leaves out"
    shown = sorted(found.classes.items(), key=lambda c: -c[1])
    names = [f"{clean(name, 40)} {count}" for name, count in shown]
    lines.append(f"  classes: {listed(names, CLASSES)}")
    if found.widths and found.heights:
        if len(found.sizes) == 1:
            lines.append(f"  images: all {next(iter(found.sizes))} pixels")
        else:
            (w1, w, w2), (h1, h, h2) = found.widths, found.heights
            lines.append(
                f"  images: {w1:.0f} to {w2:.0f} wide, {h1:.0f} to {h2:.0f} high, in the middle {w:.0f}×{h:.0f}"
            )
    if found.objects_per_image:
        low, middle, high = found.objects_per_image
        lines.append(f"  objects an image: {low:.0f} to {high:.0f}, in the middle {middle:g}")
    if found.object_sides:
        low, middle, high = found.object_sides
        parts = f"{found.small} small, {found.medium} medium, {found.large} large by COCO's bounds"
        lines.append(f"  object size: {low:.3g} to {high:.4g} pixels, in the middle {middle:.3g}; {parts}")
    if found.depths:
        lines.append(
            f"  pixels: {', '.join(f'{name} in {n}' for name, n in found.depths.items())} of the files looked at"
        )
    return lines


def _n(count: int, one: str, several: str | None = None) -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"
