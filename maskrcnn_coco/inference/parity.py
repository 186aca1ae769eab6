"""Does an exported model find what its checkpoint finds? Pictures to try, and where the two part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from maskrcnn_coco.errors import ExportError
from maskrcnn_coco.inference.detections import Found, Window

BOX, SCORE, IOU = 0.01, 1e-4, 0.999
"""The most that boxes (pixels) and scores may differ, and the least that masks must overlap.

A mask may differ in one pixel: below 1000 pixels no overlap between 0.999 and 1 exists.
"""
_SAME_BOX, _IN_PLACE = 1.0, 0.3
"""Pixels within which two boxes may be of one object; overlap of boxes from which one may have stood in for another."""


@dataclass(frozen=True)
class Case:
    """One comparison: the picture's size in pixels, and the objects that the checkpoint finds on it.

    ``name``: of a picture of the user's own.
    """

    width: int
    height: int
    objects: int
    name: str | None = None

    def __str__(self) -> str:
        return f"{self.width} × {self.height} pixels" + ("" if self.name is None else f" ({self.name})")


@dataclass(frozen=True)
class Gap:
    """The largest differences: ``box`` in pixels, ``score``; ``iou``: the smallest overlap of two masks."""

    box: float = 0.0
    score: float = 0.0
    iou: float = 1.0

    def worst(self, other: Gap) -> Gap:
        """The worse of each."""
        return Gap(max(self.box, other.box), max(self.score, other.score), min(self.iou, other.iou))

    def within(self) -> bool:
        """Whether all three are inside the tolerance."""
        return self.box <= BOX and self.score <= SCORE and self.iou >= IOU


@dataclass(frozen=True)
class Answer:
    """What the checkpoint finds on an image.

    ``most`` and ``least``: each object's mask where a pixel counted from a probability a little lower than one half,
    and a little higher: where the two differ, rounding decides.
    """

    found: Found
    most: list[Window]
    least: list[Window]


@dataclass(frozen=True)
class Loose:
    """``objects`` of an answer that rounding moves or takes away; ``others``: the answers to the shaken images."""

    objects: set[int]
    others: list[Found]


class _Engine(Protocol):
    def run(self, images: Sequence[np.ndarray]) -> list[Found]: ...


def pictures(side: int) -> list[np.ndarray]:
    """Pictures of six sizes around ``side``, uint8 (H, W, 3): blobs on a ground, noise, and one without anything.

    One is long: the longest side decides its scale.
    """
    side = max(64, min(side, 640))
    sizes = (
        (side, side),
        (side * 3 // 4, side * 5 // 4),
        (side * 4 // 3 + 1, side * 2 // 3 + 3),
        (side * 3 // 8, side * 5 // 4),
    )
    drawn = [_blobs(height, width, seed) for seed, (height, width) in enumerate(sizes)]
    noise = np.random.default_rng(9).integers(0, 256, (side, side + 32, 3)).astype(np.uint8)
    return [*drawn, noise, np.full((side // 2 + 5, side // 2 + 9, 3), 127, np.uint8)]


def _blobs(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    image = 90 + 30 * np.sin(x[..., None] / 17 + np.arange(3)) + rng.normal(0, 6, (height, width, 3))
    for n in range(14):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        r = rng.uniform(0.04, 0.16) * min(height, width)
        inside = (abs(y - cy) < r) & (abs(x - cx) < r) if n % 2 else (y - cy) ** 2 + (x - cx) ** 2 < r * r
        image[inside] = rng.uniform(0, 255, 3)
    return image.clip(0, 255).astype(np.uint8)


def thresholds(engine: _Engine, model: Any, images: Sequence[np.ndarray]) -> tuple[int, dict[int, float]]:
    """A picture, by its place, and objects wanted (0, 1, and 2 for many) → a threshold with which so many are found.

    The picture is the one whose best object stands out most: equal scores are told apart by rounding alone.
    """
    usual = model.roi_heads.score_thresh
    model.roi_heads.score_thresh = 0.0
    scores = [engine.run([image])[0].scores.astype(float) for image in images]
    model.roi_heads.score_thresh = usual
    place = max(range(len(images)), key=lambda n: float(scores[n][0] - scores[n][1]) if len(scores[n]) > 1 else -1.0)
    best = scores[place]
    wanted = {0: 1.01}
    if len(best) > 1 and best[0] - best[1] > 4 * SCORE:
        wanted |= {1: float(best[0] + best[1]) / 2}
    if len(best) > 1:
        wanted |= {2: float(best[-1]) / 2}
    return place, wanted


def unsettled(wanted: Answer, shaken: Sequence[Found]) -> Loose | None:
    """What changes between answers to the same image, shaken by no more than rounding; None: nothing does."""
    objects: set[int] = set()
    for other in shaken:
        free = set(range(len(other)))
        for n in range(len(wanted.found)):
            m, gap = _nearest(wanted, n, other, free)
            if m is None or not gap.within():
                objects.add(n)
            if m is not None:
                free.discard(m)
    changed = bool(objects) or any(len(o) != len(wanted.found) for o in shaken)
    return Loose(objects, list(shaken)) if changed else None


def compare(
    wanted: Answer, found: Found, classes: Sequence[str], case: Case, threshold: float, limit: int, format: str,
    loose: Loose | None = None,
) -> Gap:  # fmt: skip
    """The differences of what an exported model found from what the checkpoint found.

    Objects are matched by class and box, whatever their order: equal scores may come in any. An object whose score is
    within the tolerance of the threshold, or of the last of ``limit`` that are kept, may be missing on either side; so
    may one that is ``loose``, and what may stand in its place.

    Raises:
        ExportError: they part by more than `BOX`, `SCORE` or `IOU`, or one finds an object that the other does not.
    """
    where = f"the exported {format} model parts from the checkpoint at {case}"
    free, total, ours = set(range(len(found))), Gap(), wanted.found
    for n in range(len(ours)):
        name = f"object {n + 1} ({_name(classes, int(ours.labels[n]))}, score {ours.scores[n]:.4f})"
        near, gap = _nearest(wanted, n, found, free)
        free.discard(-1 if near is None else near)
        if near is not None and gap.within():
            total = total.worst(gap)
        elif loose is not None and n in loose.objects:
            continue
        elif near is not None:
            what = f"box by {gap.box:.4g} px, score by {gap.score:.3g}, masks overlap by {gap.iou:.5f}"
            raise ExportError(f"{where}, in {name}: {what}", expected=f"{BOX} px, {SCORE}, {IOU}")
        elif not _on_the_edge(float(ours.scores[n]), ours, threshold, limit):
            raise ExportError(f"{where}: it does not find {name} of {case.objects}")
    for m in sorted(free):
        score, label = float(found.scores[m]), int(found.labels[m])
        if not _on_the_edge(score, found, threshold, limit) and not (loose and _may_appear(found, m, ours, loose)):
            name = _name(classes, label)
            raise ExportError(f"{where}: it finds a {name} of score {score:.4f} that the checkpoint does not find")
    return total


def _nearest(a: Answer, n: int, b: Found, free: set[int]) -> tuple[int | None, Gap]:
    """Object ``n`` of the answer in ``b``: of its class, and within a pixel; and how far the two are apart."""
    same = [m for m in free if b.labels[m] == a.found.labels[n]]
    m = min(same, key=lambda m: float(np.abs(b.boxes[m] - a.found.boxes[n]).max()), default=None)
    if m is None or (box := float(np.abs(a.found.boxes[n] - b.boxes[m]).max())) > _SAME_BOX:
        return None, Gap()
    return m, Gap(box, abs(float(a.found.scores[n] - b.scores[m])), _overlap(a, n, b.windows[m]))


def _overlap(a: Answer, n: int, theirs: Window) -> float:
    """Of two masks, 0..1; pixels that stand at one half, within the tolerance of scores, are of either."""
    windows = (a.found.windows[n], a.most[n], a.least[n], theirs)
    corners = np.array([w.rectangle for w in windows])
    around = (*corners[:, :2].min(0).tolist(), *corners[:, 2:].max(0).tolist())
    ours, most, least, other = (w.part(*around) for w in windows)
    wrong, either = int(((other & ~most) | (least & ~other)).sum()), int((ours | other).sum())
    return 1.0 if wrong <= 1 else 1.0 - wrong / max(either, wrong)


def _may_appear(found: Found, m: int, ours: Found, loose: Loose) -> bool:
    """Whether an object more is one that a shaken image has, too, or stands where a loose object stood."""
    box, label = found.boxes[m], found.labels[m]
    for other in loose.others:
        alike = other.boxes[other.labels == label]
        if len(alike) and np.abs(alike - box).max(1).min() <= _SAME_BOX:
            return True
    return any(ours.labels[n] == label and _box_overlap(ours.boxes[n], box) > _IN_PLACE for n in loose.objects)


def _box_overlap(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    common = float(sides.prod())
    return common / max(float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - common, 1e-9)


def _on_the_edge(score: float, found: Found, threshold: float, limit: int) -> bool:
    last = float(found.scores[-1]) if len(found) >= limit else threshold
    return min(abs(score - threshold), abs(score - last)) <= SCORE


def _name(classes: Sequence[str], label: int) -> str:
    return classes[label - 1] if 1 <= label <= len(classes) else f"class {label}"
