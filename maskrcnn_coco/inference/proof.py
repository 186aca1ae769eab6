"""An exported file run beside its checkpoint: what the checkpoint finds, and how far that is decided by rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from maskrcnn_coco.errors import ExportError
from maskrcnn_coco.evaluation.detect import detections
from maskrcnn_coco.inference.detections import THRESHOLD, Found
from maskrcnn_coco.inference.parity import SCORE, Answer, Case, Gap, compare, thresholds, unsettled
from maskrcnn_coco.inference.torch_engine import as_tensor, found_in
from maskrcnn_coco.wording import clean

_SHAKES, _SHAKE = 3, 3e-6
"""Times that an image is shaken where the two part, and by how much at most, of values in 0..1: a few times the
rounding of a runtime that adds in another order, a thousandth of a step of an 8-bit image."""


class Runtime(Protocol):
    """Whatever runs the exported file."""

    def run(self, images: Sequence[np.ndarray]) -> list[Found]:
        """What is found on images, uint8 (H, W, 3) each."""
        ...


class Checkpoint:
    """The checkpoint's own model, float32, on the CPU."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model.eval()

    def run(self, images: Sequence[np.ndarray]) -> list[Found]:
        """What is found on images, uint8 (H, W, 3) each."""
        return [self.answer(image).found for image in images]

    def answer(self, image: np.ndarray, shake: int | None = None) -> Answer:
        """What is found on an image, uint8 (H, W, 3); ``shake``: seed of a change as small as rounding."""
        tensor = as_tensor(image)
        if shake is not None:
            noise = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(shake))
            tensor = tensor + (noise * 2 - 1) * _SHAKE
        (output,) = detections(self.model, [tensor], device="cpu")
        found, most, least = (
            found_in(dict(output), image.shape[0], image.shape[1], at)
            for at in (THRESHOLD, THRESHOLD - SCORE, THRESHOLD + SCORE)
        )
        return Answer(found, most.windows, least.windows)


def prove(
    model: Any, usual: Runtime, twin: Callable[[float], Runtime] | None, images: Sequence[np.ndarray],
    classes: Sequence[str], format: str, own: Iterable[tuple[str, np.ndarray]] = (),
) -> tuple[list[Case], Gap]:  # fmt: skip
    """Compare on every image; then, where no, one or many objects were not among them, twins with other thresholds.

    Args:
        model: the checkpoint's, float32.
        usual: the exported file, running.
        twin: the file exported anew with another score threshold, running; None: it knows no threshold.
        images: uint8 (H, W, 3) each.
        own: names and pixels of further images, of the user's; asked for one by one.

    Raises:
        ExportError: the two part somewhere, or the file fails.
    """
    reference, kept = Checkpoint(model), float(model.roi_heads.score_thresh)
    named = [(None, image) for image in images]
    cases, gap = _compared(reference, usual, chain(own, named), classes, format)
    seen = {min(c.objects, 2) for c in cases}
    if twin is None or seen == {0, 1, 2}:
        return cases, gap
    place, wanted = thresholds(reference, model, images)
    try:
        for count, threshold in wanted.items():
            if count in seen:
                continue
            model.roi_heads.score_thresh = threshold
            more, worse = _compared(reference, twin(threshold), [named[place]], classes, format)
            cases, gap = cases + more, gap.worst(worse)
    finally:
        model.roi_heads.score_thresh = kept
    return cases, gap


def _compared(
    reference: Checkpoint, exported: Runtime, images: Iterable[tuple[str | None, np.ndarray]], classes: Sequence[str],
    format: str,
) -> tuple[list[Case], Gap]:  # fmt: skip
    heads = reference.model.roi_heads
    threshold, limit, cases, gap = float(heads.score_thresh), int(heads.detections_per_img), [], Gap()
    for name, image in images:
        wanted = reference.answer(image)
        case = Case(image.shape[1], image.shape[0], len(wanted.found), name)
        try:
            found = exported.run([image])[0]
        except Exception as e:  # a runtime's own errors
            where = f"{case}, {case.objects} objects"
            raise ExportError(f"the exported {format} model fails at {where}", got=first_line(e)) from e
        try:
            gap = gap.worst(compare(wanted, found, classes, case, threshold, limit, format))
        except ExportError:
            # Rounding may decide here: which of two boxes that overlap by a half, or of two equal scores, comes first.
            shaken = [reference.answer(image, seed).found for seed in range(_SHAKES)]
            loose = unsettled(wanted, shaken)
            if loose is None:
                raise
            gap = gap.worst(compare(wanted, found, classes, case, threshold, limit, format, loose))
        cases.append(case)
    return cases, gap


def first_line(error: Exception) -> str:
    """What an exporter or a runtime says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return clean(lines[0] if lines else type(error).__name__)
