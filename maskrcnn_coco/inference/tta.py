"""Test-time augmentation: an image is looked at several times, mirrored and at other sizes, and the views vote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.inference.detections import Found, Window, found_of, nothing
from maskrcnn_coco.inference.predictor import Engine

WAYS = ("flip", "scale")
SCALES = (0.8, 1.25)
"""The other sizes at which ``scale`` looks, times the model's own."""
_SAME = 0.5
"""Objects of two views are one where their masks overlap by more than this."""


def parse_ways(text: str | None) -> tuple[str, ...]:
    """The ways of ``--tta``, in the order of `WAYS`; none for None.

    Raises:
        ConfigError: an unknown one.
    """
    if text is None:
        return ()
    words = [w.strip().lower() for w in text.split(",") if w.strip()]
    if not words or set(words) - set(WAYS):
        raise ConfigError("--tta is not known", got=text, expected=", ".join(WAYS), fix="--tta flip,scale")
    return tuple(w for w in WAYS if w in words)


class TtaEngine:
    """An engine that asks another one several times and joins what it says.

    Args:
        engine: the one that looks.
        ways: of `WAYS`. "scale" changes the size to which the model resizes, which exported models have built in.

    Raises:
        ConfigError: "scale" of a model without torchvision's own resizing.
    """

    def __init__(self, engine: Engine, ways: Sequence[str]) -> None:
        self.engine, self.ways, self.model = engine, tuple(ways), engine.model
        self._transform: Any = getattr(engine.model, "transform", None)
        if "scale" in ways and not hasattr(self._transform, "min_size"):
            raise ConfigError(
                "--tta scale needs a model that resizes images itself, as checkpoints' models do", fix="--tta flip"
            )

    @property
    def batch_size(self) -> int:
        """Images at a time."""
        return self.engine.batch_size

    @property
    def views(self) -> int:
        """How often each image is looked at."""
        return (1 + len(SCALES) * ("scale" in self.ways)) * (1 + ("flip" in self.ways))

    def run(self, images: Sequence[np.ndarray]) -> list[Found]:
        """What is found on images, uint8 (H, W, 3) each, in each image's own pixels."""
        seen: list[list[Found]] = [[] for _ in images]
        for scale in (1.0, *SCALES) if "scale" in self.ways else (1.0,):
            with self._at(scale):
                self._look(images, seen)
        return [vote(views) for views in seen]

    def _look(self, images: Sequence[np.ndarray], seen: list[list[Found]]) -> None:
        for views, found in zip(seen, self.engine.run(images), strict=True):
            views.append(found)
        if "flip" in self.ways:
            turned = self.engine.run([np.ascontiguousarray(i[:, ::-1]) for i in images])
            for views, found, image in zip(seen, turned, images, strict=True):
                views.append(mirrored(found, image.shape[1]))

    @contextmanager
    def _at(self, scale: float) -> Iterator[None]:
        if scale == 1.0:
            yield
            return
        smallest, largest = self._transform.min_size, self._transform.max_size
        self._transform.min_size = tuple(max(32, round(s * scale)) for s in smallest)
        self._transform.max_size = max(32, round(largest * scale))
        try:
            yield
        finally:
            self._transform.min_size, self._transform.max_size = smallest, largest


def mirrored(found: Found, width: int) -> Found:
    """Objects of an image of ``width`` pixels, left and right exchanged."""
    boxes = found.boxes.copy()
    boxes[:, 0], boxes[:, 2] = width - found.boxes[:, 2], width - found.boxes[:, 0]
    windows = [Window(width - w.x - w.mask.shape[1], w.y, w.mask[:, ::-1]) for w in found.windows]
    return Found(boxes, found.scores, found.labels, windows)


@dataclass
class _Group:
    """Views of one object: (view, place in it), the best first."""

    label: int
    lead: Window
    members: list[tuple[int, int]] = field(default_factory=list)


def vote(views: Sequence[Found]) -> Found:
    """The objects of several views of one image.

    An object's score is the mean over all views, one that does not see it counting as 0; its box is the mean of those
    that see it, and a pixel belongs to it where most of them say so, each weighted by its score.
    """
    order = sorted(((float(s), v, n) for v, f in enumerate(views) for n, s in enumerate(f.scores)), reverse=True)
    groups: list[_Group] = []
    for _, view, n in order:
        label, window = int(views[view].labels[n]), views[view].windows[n]
        group = next((g for g in groups if _fits(g, label, view, window)), None)
        if group is None:
            group = _Group(label, window)
            groups.append(group)
        group.members.append((view, n))
    if not groups:
        return nothing()
    joined = [_join(g, views) for g in groups]
    boxes, scores, windows = (list(part) for part in zip(*joined, strict=True))
    return found_of(boxes, scores, [g.label for g in groups], windows)


def _fits(group: _Group, label: int, view: int, window: Window) -> bool:
    return label == group.label and all(v != view for v, _ in group.members) and overlap(group.lead, window) > _SAME


def overlap(a: Window, b: Window) -> float:
    """Intersection over union of two masks, 0 where both are empty."""
    (x0, y0, x1, y1), (u0, v0, u1, v1) = a.rectangle, b.rectangle
    left, top, right, bottom = max(x0, u0), max(y0, v0), min(x1, u1), min(y1, v1)
    if left >= right or top >= bottom:
        return 0.0
    common = int((a.part(left, top, right, bottom) & b.part(left, top, right, bottom)).sum())
    either = int(a.mask.sum()) + int(b.mask.sum()) - common
    return common / either if either else 0.0


def _join(group: _Group, views: Sequence[Found]) -> tuple[np.ndarray, float, Window]:
    scores = np.array([float(views[v].scores[n]) for v, n in group.members])
    boxes = np.array([views[v].boxes[n] for v, n in group.members], np.float64)
    weights = scores / scores.sum() if scores.sum() > 0 else np.full(len(scores), 1 / len(scores))
    windows = [views[v].windows[n] for v, n in group.members]
    corners = np.array([w.rectangle for w in windows])
    (x0, y0), (x1, y1) = corners[:, :2].min(0), corners[:, 2:].max(0)
    share = sum(w * window.part(x0, y0, x1, y1) for w, window in zip(weights, windows, strict=True))
    mask = Window(int(x0), int(y0), np.asarray(share) >= 0.5 - 1e-9).trimmed()
    return weights @ boxes, float(scores.sum()) / len(views), mask
