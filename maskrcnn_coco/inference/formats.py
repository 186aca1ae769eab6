"""Results as files: COCO, CSV, LabelMe, GeoJSON, label images, drawn pictures. No torch."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.evaluation.draw import colour_of, encoded
from maskrcnn_coco.inference.result import COLUMNS, ImageResult
from maskrcnn_coco.records import to_json

FORMATS = ("coco", "csv", "polygons", "labels", "png")
"""What `predict --format` takes."""
_BY_ENDING = {
    ".png": "png", ".jpg": "png", ".jpeg": "png", ".webp": "png", ".bmp": "png",
    ".csv": "csv", ".geojson": "geojson", ".json": "coco", ".tif": "labels", ".tiff": "labels",
}  # fmt: skip


def contents_of(result: ImageResult, path: Path, format: str | None = None) -> bytes:
    """The bytes of a file named ``path`` for ``result``; see `ImageResult.save`.

    Raises:
        ConfigError: neither the ending nor ``format`` says what to write.
    """
    kind = format.lower() if format else _BY_ENDING.get(path.suffix.lower(), "")
    if kind == "png":
        return encoded(result.draw(), path.suffix)
    if kind == "csv":
        return table(result.rows())
    if kind == "geojson":
        return to_json(geojson(result)).encode()
    if kind == "labelme":
        return to_json(labelme(result, path.parent), indent=1).encode()
    if kind == "coco":
        return to_json(result.to_coco()).encode()
    if kind == "labels":
        return label_picture(result.label_image(), path.suffix)
    known = ", ".join(sorted({*_BY_ENDING.values(), "labelme"}))
    raise ConfigError(f"{path.name}: what to write?", got=format or path.suffix, expected=known, fix='format="png"')


def table(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as CSV in UTF-8, with a header; text that a spreadsheet would run as a formula is quoted with ``'``."""
    file = io.StringIO(newline="")
    writer: csv.DictWriter[str] = csv.DictWriter(file, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: _harmless(v) for k, v in row.items()})
    return file.getvalue().encode("utf-8", "replace")


def _harmless(value: Any) -> Any:
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def labelme(result: ImageResult, folder: Path) -> dict[str, Any]:
    """LabelMe's file for one image: a polygon for each part of each object, parts joined by ``group_id``.

    Args:
        folder: where the file will lie; ``imagePath`` is relative to it.
    """
    shapes = []
    for n, (name, score, parts) in enumerate(
        zip(result.names, result.scores.tolist(), result.polygons(), strict=True), 1
    ):
        for part in parts:
            shapes.append({  # noqa: PERF401
                "label": name, "points": part.tolist(), "group_id": n if len(parts) > 1 else None,
                "description": f"score {score:.4f}", "shape_type": "polygon", "flags": {}, "mask": None,
            })  # fmt: skip
    where = result.name if result.path is None else os.path.relpath(result.path, folder).replace(os.sep, "/")
    return {
        "version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": where, "imageData": None,
        "imageHeight": result.height, "imageWidth": result.width,
    }  # fmt: skip


def geojson(result: ImageResult) -> dict[str, Any]:
    """A FeatureCollection with one feature an object, in pixels, y down, as QuPath and napari read it."""
    features = []
    for n, polygons in enumerate(result.polygons_with_holes()):
        if not polygons:  # a mask without a pixel
            continue
        rings = [[[*ring.tolist(), ring[0].tolist()] for ring in polygon] for polygon in polygons]
        label = int(result.labels[n])
        features.append({
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": rings[0]}
            if len(rings) == 1
            else {"type": "MultiPolygon", "coordinates": rings},
            "properties": {
                "objectType": "detection", "object": n + 1, "score": round(float(result.scores[n]), 6),
                "classification": {"name": result.names[n], "color": list(colour_of(label - 1))},
                "measurements": {"score": round(float(result.scores[n]), 6)},
            },
        })  # fmt: skip
    return {"type": "FeatureCollection", "features": features}


def label_picture(labels: np.ndarray, suffix: str) -> bytes:
    """A label image as a file, 16 bits a pixel.

    Raises:
        ConfigError: more objects than 16 bits can number.
    """
    if labels.dtype != np.uint16:
        raise ConfigError("more than 65,535 objects on one image: a 16-bit label image cannot hold them", fix="--tile")
    file = io.BytesIO()
    Image.fromarray(labels).save(file, "TIFF" if suffix.lower() in (".tif", ".tiff") else "PNG")
    return file.getvalue()
