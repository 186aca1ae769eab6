"""A `Predictor` as what an evaluation asks: tiles, several views and exported models, in COCO's terms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskrcnn_coco.data.masks import encode_rle
from maskrcnn_coco.errors import DataError, MaskRCNNError
from maskrcnn_coco.evaluation.detect import Prediction
from maskrcnn_coco.evaluation.ground_truth import Example
from maskrcnn_coco.inference.detections import Found
from maskrcnn_coco.inference.predictor import Predictor


class EvalAdapter:
    """Called with examples, answers with one `Prediction` each, or with why an image could not be looked at.

    Args:
        predictor: whose engine looks. tile: side in pixels, or None. overlap: share of a tile.
    """

    def __init__(self, predictor: Predictor, tile: int | None, overlap: float) -> None:
        self._predictor, self._tile, self._overlap = predictor, tile, overlap

    def __call__(self, examples: Sequence[Example]) -> list[Prediction | DataError]:
        """The detections on each example, rows for image ids and labels for category ids."""
        return [self._one(e) for e in examples]

    def _one(self, example: Example) -> Prediction | DataError:
        pixels = np.rint(example.image.permute(1, 2, 0).numpy() * 255.0).astype(np.uint8)
        batch = self._predictor.engine.batch_size
        try:
            (found,) = self._predictor.find([pixels], self._tile, self._overlap, batch)
        except Exception as e:  # whatever a runtime raises: only the machine's own faults and ours end the work
            if isinstance(e, (MaskRCNNError, MemoryError)) or "out of memory" in str(e).lower():
                raise
            first = (str(e).splitlines() or [type(e).__name__])[0]
            return DataError(f"the model failed on it: {first}", fix="leave it out, or look at the model")
        return Prediction(_results(found, example), has_masks=True)


def _results(found: Found, example: Example) -> list[dict[str, object]]:
    out: list[dict[str, object]] = []
    for n, (x0, y0, x1, y1) in enumerate(found.boxes.astype(float).tolist()):
        out.append({
            "image_id": example.row, "category_id": int(found.labels[n]), "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": float(found.scores[n]),
            "segmentation": encode_rle(found.windows[n].full(example.height, example.width)),
        })  # fmt: skip
    return out
