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

A mask may differ in one pixel that stands at one half: below 1000 pixels no overlap between 0.999 and 1 exists.
"""


@dataclass(frozen=True)
class Case:
    """One comparison: the picture's size in pixels, and the objects that the checkpoint finds on it."""

    width: int
    height: int
    objects: int


@dataclass(frozen=True)
class Gap:
    """The largest differences: ``box`` in pixels, ``score``; ``iou``: the smallest overlap of two masks."""

    box: float = 0.0
    score: float = 0.0
    iou: float = 1.0

    def worst(self, other: Gap) -> Gap:
        """The worse of each."""
        return Gap(max(self.box, other.box), max(self.score, other.score), min(self.iou, other.iou))


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


def compare(
    wanted: Found, found: Found, classes: Sequence[str], case: Case, threshold: float, limit: int, format: str
) -> Gap:
    """The differences of what an exported model found from what the checkpoint found.

    Objects are matched by class and box, whatever their order: equal scores may come in any. An object whose score is
    within the tolerance of the threshold, or of the last of ``limit`` that are kept, may be missing on either side.

    Raises:
        ExportError: they part by more than `BOX`, `SCORE` or `IOU`, or one finds an object that the other does not.
    """
    where = f"the exported {format} model parts from the checkpoint at {case.width} × {case.height} pixels"
    free, gap = set(range(len(found))), Gap()
    for n in range(len(wanted)):
        same = [m for m in free if found.labels[m] == wanted.labels[n]]
        name = f"object {n + 1} ({_name(classes, int(wanted.labels[n]))}, score {wanted.scores[n]:.4f})"
        near = min(same, key=lambda m: float(np.abs(found.boxes[m] - wanted.boxes[n]).max()), default=None)
        if near is None or (one := _gap(wanted, n, found, near)).box > 1.0:
            if _on_the_edge(float(wanted.scores[n]), wanted, threshold, limit):
                continue
            raise ExportError(f"{where}: it does not find {name} of {case.objects}")
        free.remove(near)
        if one.box > BOX or one.score > SCORE or one.iou < IOU:
            what = f"box by {one.box:.4g} px, score by {one.score:.3g}, masks overlap by {one.iou:.5f}"
            raise ExportError(f"{where}, in {name}: {what}", expected=f"{BOX} px, {SCORE}, {IOU}")
        gap = gap.worst(one)
    extra = [m for m in free if not _on_the_edge(float(found.scores[m]), found, threshold, limit)]
    if extra:
        score = float(found.scores[extra[0]])
        name = _name(classes, int(found.labels[extra[0]]))
        raise ExportError(f"{where}: it finds a {name} of score {score:.4f} that the checkpoint does not find")
    return gap


def _gap(a: Found, n: int, b: Found, m: int) -> Gap:
    box = float(np.abs(a.boxes[n] - b.boxes[m]).max())
    return Gap(box, abs(float(a.scores[n] - b.scores[m])), _iou(a.windows[n], b.windows[m]))


def _iou(a: Window, b: Window) -> float:
    (x0, y0, x1, y1), (u0, v0, u1, v1) = a.rectangle, b.rectangle
    around = (min(x0, u0), min(y0, v0), max(x1, u1), max(y1, v1))
    ours, theirs = a.part(*around), b.part(*around)
    either = int((ours | theirs).sum())
    return 1.0 if int((ours ^ theirs).sum()) <= 1 else float((ours & theirs).sum()) / either


def _on_the_edge(score: float, found: Found, threshold: float, limit: int) -> bool:
    last = float(found.scores[-1]) if len(found) >= limit else threshold
    return min(abs(score - threshold), abs(score - last)) <= SCORE


def _name(classes: Sequence[str], label: int) -> str:
    return classes[label - 1] if 1 <= label <= len(classes) else f"class {label}"
