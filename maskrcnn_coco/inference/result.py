"""The objects found on one image, as a person takes them further. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_coco.data.masks import encode_rle
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.evaluation.draw import Shape, colour_of, draw
from maskrcnn_coco.inference.detections import Found
from maskrcnn_coco.inference.outlines import Ring, polygons_of
from maskrcnn_coco.wording import clean


@dataclass
class ImageResult:
    """What was found on one image, best first; N objects.

    Attributes:
        image: uint8 (H, W, 3) RGB, the picture as the model saw it.
        name: the file's name (with its folders below the one that was named), or ``image 1`` … of an array.
        path: the file, None where an array was given.
        found: boxes, scores, labels and windows of the masks.
        classes: names from label 1 on; ``category_ids`` likewise, the data's own ids.
        number: place in what was given, from 1; ``to_coco`` takes it for an image id unless told otherwise.
    """

    image: np.ndarray
    name: str
    path: Path | None
    found: Found
    classes: Sequence[str]
    category_ids: Sequence[int]
    number: int = 1
    _masks: np.ndarray | None = field(default=None, repr=False)

    @property
    def height(self) -> int:
        """Pixels."""
        return self.image.shape[0]

    @property
    def width(self) -> int:
        """Pixels."""
        return self.image.shape[1]

    @property
    def boxes(self) -> np.ndarray:
        """float32 (N, 4), xyxy, pixels of the image."""
        return self.found.boxes

    @property
    def scores(self) -> np.ndarray:
        """float32 (N,), 0..1, falling."""
        return self.found.scores

    @property
    def labels(self) -> np.ndarray:
        """int64 (N,), 1 is the first class."""
        return self.found.labels

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self._name(label) for label in self.labels.tolist()]

    @property
    def masks(self) -> np.ndarray:
        """bool (N, H, W). Made when first asked for: many objects on a large image take N · H · W bytes."""
        if self._masks is None:
            self._masks = np.zeros((len(self), self.height, self.width), bool)
            for out, w in zip(self._masks, self.found.windows, strict=True):
                x0, y0, x1, y1 = w.rectangle
                out[y0:y1, x0:x1] = w.mask
        return self._masks

    def __len__(self) -> int:
        return len(self.found)

    def __repr__(self) -> str:
        counts = ", ".join(f"{clean(n)} {c}" for n, c in Counter(self.names).most_common())
        return f"<{clean(self.name)}: {len(self)} objects{f' ({counts})' if counts else ''}>"

    def at_least(self, score: float) -> ImageResult:
        """The same image with the objects of at least this score."""
        kept = self.found.at(np.flatnonzero(self.scores >= score))
        return ImageResult(self.image, self.name, self.path, kept, self.classes, self.category_ids, self.number)

    def areas(self) -> np.ndarray:
        """int64 (N,): pixels of each mask."""
        return np.array([int(w.mask.sum()) for w in self.found.windows], np.int64)

    def polygons(self, tolerance: float = 0.5) -> list[list[Ring]]:
        """The outer outlines of each object: float64 (points, 2) arrays, x and y in pixels, largest first.

        Args:
            tolerance: how far an outline may leave the edges of the pixels, pixels; 0 follows them exactly.
        """
        return [[p[0] for p in polygons] for polygons in self.polygons_with_holes(tolerance)]

    def polygons_with_holes(self, tolerance: float = 0.5) -> list[list[list[Ring]]]:
        """The polygons of each object, each ``[outer ring, holes …]``, as in GeoJSON."""
        return [polygons_of(w.mask, w.x, w.y, tolerance=tolerance) for w in self.found.windows]

    def label_image(self) -> np.ndarray:
        """(H, W), 0 for the background, n for object n (from 1, in the order of ``scores``): ImageJ, napari, QuPath.

        uint16, uint32 beyond 65,535 objects. Where objects overlap, the better one is in front.
        """
        out = np.zeros((self.height, self.width), np.uint16 if len(self) < 2**16 else np.uint32)
        for n in range(len(self) - 1, -1, -1):
            w = self.found.windows[n]
            x0, y0, x1, y1 = w.rectangle
            out[y0:y1, x0:x1][w.mask] = n + 1
        return out

    def to_coco(self, image_id: int | None = None) -> list[dict[str, Any]]:
        """COCO results: image_id, category_id (the data's), bbox xywh, score, segmentation (RLE); names beside."""
        number = self.number if image_id is None else image_id
        out = []
        for n, (x0, y0, x1, y1) in enumerate(self.boxes.astype(float).tolist()):
            out.append({
                "image_id": number, "category_id": self._category(int(self.labels[n])),
                "bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(self.scores[n]),
                "segmentation": encode_rle(self.found.windows[n].full(self.height, self.width)),
                "category_name": self._name(int(self.labels[n])), "file_name": self.name,
            })  # fmt: skip
        return out

    def rows(self) -> list[dict[str, Any]]:
        """One row an object: file_name, object (from 1), class, category_id, score, box, area and centre in pixels."""
        out = []
        for n, w in enumerate(self.found.windows):
            x0, y0, x1, y1 = self.boxes[n].astype(float).tolist()
            ys, xs = np.nonzero(w.mask)
            middle = (w.x + xs.mean() + 0.5, w.y + ys.mean() + 0.5) if len(xs) else ((x0 + x1) / 2, (y0 + y1) / 2)
            out.append({
                "file_name": self.name, "image_id": self.number, "object": n + 1,
                "class": self._name(int(self.labels[n])), "category_id": self._category(int(self.labels[n])),
                "score": round(float(self.scores[n]), 6), "x": round(x0, 3), "y": round(y0, 3),
                "width": round(x1 - x0, 3), "height": round(y1 - y0, 3), "area": len(xs),
                "center_x": round(float(middle[0]), 3), "center_y": round(float(middle[1]), 3),
            })  # fmt: skip
        return out

    def to_pandas(self) -> Any:
        """`rows` as a pandas DataFrame."""
        pandas = _extra("pandas", "to_pandas")
        return pandas.DataFrame(self.rows(), columns=list(COLUMNS))

    def to_supervision(self) -> Any:
        """A ``supervision.Detections``: class_id is the label (1 is the first class), class names in its data."""
        supervision = _extra("supervision", "to_supervision")
        data = {"class_name": np.array(self.names, dtype=str)}
        return supervision.Detections(
            xyxy=self.boxes, mask=self.masks, confidence=self.scores, class_id=self.labels, data=data
        )

    def draw(self, *, longest: int | None = None) -> Image.Image:
        """The picture with its objects on it; ``longest``: shrink it to this longest side, pixels."""
        shapes = []
        for n, w in enumerate(self.found.windows):
            x0, y0, x1, y1 = self.boxes[n].astype(float).tolist()
            label, score = int(self.labels[n]), f"{self.scores[n]:.2f}"
            text = score if len(self.classes) == 1 else f"{self._name(label)} {score}"
            colour = colour_of(n if len(self.classes) == 1 else label - 1)
            shapes.append(Shape((x0, y0, x1 - x0, y1 - y0), w.mask, text, colour, corner=(w.x, w.y)))
        return draw(self.image, shapes, longest=longest)

    def save(self, path: str | Path, format: str | None = None) -> Path:
        """Write one file: drawn picture, table, outlines, results or labels, by the name's ending or by ``format``.

        ``.png`` and ``.jpg``: drawn (format "png"); ``.csv``; ``.geojson``; ``.json``: COCO results (format "coco") or
        LabelMe (format "labelme"); ``.tif``, or any name with format "labels": the label image.

        Raises:
            ConfigError: an ending that says nothing. OSError: it cannot be written.
        """
        from maskrcnn_coco.inference.formats import contents_of
        from maskrcnn_coco.system.files import write_bytes

        path = Path(path)
        write_bytes(path, contents_of(self, path, format))
        return path

    def _name(self, label: int) -> str:
        return self.classes[label - 1] if 1 <= label <= len(self.classes) else f"class {label}"

    def _category(self, label: int) -> int:
        return self.category_ids[label - 1] if 1 <= label <= len(self.category_ids) else label


COLUMNS = (
    "file_name", "image_id", "object", "class", "category_id", "score", "x", "y", "width", "height", "area",
    "center_x", "center_y",
)  # fmt: skip
"""The columns of tables."""


def _extra(package: str, what: str) -> Any:
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as e:
        raise ConfigError(f"{what} needs the package {package}", got=e, fix=f"pip install {package}") from e


def check_score(score: Any) -> float:
    """The score as it is.

    Raises:
        ConfigError: not a number in 0..1.
    """
    number = share_of(score)
    if number is None or not 0.0 <= number <= 1.0:
        raise ConfigError("--score is not a share", got=score, expected="a number from 0 to 1", fix="--score 0.5")
    return number


def share_of(value: Any) -> float | None:
    """A number of any library's kind as a float; None for text, truth values and anything else."""
    if isinstance(value, (str, bytes, bool, np.bool_)) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
