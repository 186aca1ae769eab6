"""LabelMe: a json an image, with ``shapes``; the parts of an object share its ``group_id``."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_coco.data.convert.document import Document, Points, ellipse, rectangle
from maskrcnn_coco.data.convert.reading import read_json
from maskrcnn_coco.data.file_names import plain_name, tails


def is_labelme(value: Any) -> bool:
    """Whether a json is LabelMe's."""
    return isinstance(value, dict) and isinstance(value.get("shapes"), list) and "imagePath" in value


def convert_labelme(files: list[Path], root: Path, images: Path | None) -> Document:
    """All LabelMe files of ``files``; ``images``: where their images are, if not beside them."""
    document = Document(root)
    for path in files:
        value = read_json(path)
        if not is_labelme(value):
            continue
        height, width = value.get("imageHeight"), value.get("imageWidth")
        size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        image_id = document.add_image(_image(path, str(value["imagePath"]), images), size)
        if image_id is not None:
            _add_shapes(document, image_id, value["shapes"])
    return document


def _image(json_path: Path, written: str, images: Path | None) -> Path:
    """The image's file: as ``imagePath`` says, else by its name beside the json; else where it should be."""
    places = [images, json_path.parent] if images is not None else [json_path.parent]
    name = plain_name(written)
    for place in places:
        direct = (place / written.replace("\\", "/")).resolve()
        for candidate in (direct, *(place / tail for tail in tails(name))):
            if candidate.is_file():
                return candidate
    return places[0] / name.rpartition("/")[2]


def _add_shapes(document: Document, image_id: int, shapes: list[Any]) -> None:
    parts: defaultdict[tuple[str, Any], list[Points]] = defaultdict(list)
    for n, shape in enumerate(shapes):
        if not isinstance(shape, dict):
            document.skip("shapes that are no objects of JSON")
            continue
        label = str(shape.get("label", "object"))
        if shape.get("shape_type") == "mask":
            _add_mask(document, image_id, label, shape)
            continue
        outline = _outline(shape)
        if outline is None:
            document.skip("shapes without an area (points, lines)")
            continue
        group = shape.get("group_id") if isinstance(shape.get("group_id"), (int, str)) else None
        parts[label, ("alone", n) if group is None else group].append(outline)
    for (label, _), outlines in parts.items():
        document.add_polygons(image_id, label, outlines)


def _outline(shape: dict[str, Any]) -> Points | None:
    points = shape.get("points")
    kind = shape.get("shape_type", "polygon") or "polygon"
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) >= 2 for p in points):
        return None
    if not all(isinstance(v, (int, float)) for p in points for v in p[:2]):
        return None
    if kind == "polygon" or (kind in ("rectangle", "rotation", "oriented_rectangle") and len(points) == 4):
        return points
    if len(points) != 2:
        return None
    (x0, y0), (x1, y1) = (p[:2] for p in points)
    if kind == "rectangle":
        return rectangle(x0, y0, x1, y1)
    if kind == "circle":
        radius = math.hypot(x1 - x0, y1 - y0)
        return ellipse(x0, y0, radius, radius)
    return None


def _add_mask(document: Document, image_id: int, label: str, shape: dict[str, Any]) -> None:
    """A shape of pixels: a PNG of the box that ``points`` name, whose last corner belongs to it."""
    try:
        small = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=("PNG",)).convert("L")) != 0
        (x0, y0), _ = (tuple(round(float(v)) for v in p[:2]) for p in shape["points"])
        image = document.images[image_id - 1]
        mask = np.zeros((image["height"], image["width"]), bool)
        part = mask[y0 : y0 + small.shape[0], x0 : x0 + small.shape[1]]
        part[...] = small[: part.shape[0], : part.shape[1]]
    except (KeyError, TypeError, ValueError, OSError, binascii.Error, SyntaxError):
        document.skip("masks that cannot be read")
        return
    document.add_mask(image_id, label, mask)
