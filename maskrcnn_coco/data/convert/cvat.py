"""CVAT for images: one XML file, ``annotations`` with an ``image`` for each picture."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from maskrcnn_coco.data.convert.document import Document, Points, ellipse
from maskrcnn_coco.data.convert.images_of import Images
from maskrcnn_coco.data.convert.reading import read_text
from maskrcnn_coco.errors import DataError


def cvat_root(path: Path) -> ElementTree.Element | None:
    """The root of a CVAT file; None where ``path`` is none. One that declares entities is none of CVAT's."""
    text = read_text(path)
    if "<annotations" not in text[:4096] or "<!ENTITY" in text:
        return None
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return None
    known = root.tag == "annotations" and (root.find("image") is not None or root.find("track") is not None)
    return root if known else None


def convert_cvat(path: Path, root: Path, images: Path | None) -> Document:
    """The objects of a CVAT file; shapes of one group and label are one object.

    Raises:
        DataError: it is of a video.
    """
    document, found = Document(images or root), Images(root, images)
    tree = cvat_root(path)
    if tree is not None and tree.find("image") is None:
        raise DataError(
            f"{path} is CVAT for video: tracks through frames, without the files of these",
            expected="CVAT for images, or COCO",
            fix="export the task again as “CVAT for images 1.1” or “COCO 1.0”, with its images",
        )
    for image in tree.iter("image") if tree is not None else ():
        size = (int(float(image.get("height", 0))), int(float(image.get("width", 0))))
        near = [path.parent, path.parent / "images"]
        image_id = document.add_image(found.find(image.get("name", ""), near), size if min(size) > 0 else None)
        if image_id is not None:
            _add(document, image_id, image)
    return document


def _add(document: Document, image_id: int, image: ElementTree.Element) -> None:
    parts: defaultdict[tuple[str, object], list[Points]] = defaultdict(list)
    for n, shape in enumerate(image):
        label, group = shape.get("label", "object"), shape.get("group_id", "0")
        if shape.tag == "polygon":
            points = [tuple(float(v) for v in pair.split(",")[:2]) for pair in shape.get("points", "").split(";")]
            parts[label, group if group not in ("0", "") else ("alone", n)].append(points)
        elif shape.tag == "ellipse":
            cx, cy, rx, ry = (float(shape.get(k, "nan")) for k in ("cx", "cy", "rx", "ry"))
            turned = float(shape.get("rotation", 0)) * np.pi / 180
            parts[label, ("alone", n)].append(ellipse(cx, cy, rx, ry, turned))
        elif shape.tag == "mask":
            _add_mask(document, image_id, label, shape)
        else:
            document.skip("boxes, which are no masks" if shape.tag == "box" else "shapes without an area")
    for (label, _), outlines in parts.items():
        document.add_polygons(image_id, label, outlines)


def _add_mask(document: Document, image_id: int, label: str, shape: ElementTree.Element) -> None:
    """Runs along the rows of a part of the image, background first."""
    counts = np.array([int(v) for v in shape.get("rle", "").split(",")])
    left, top, width, height = (int(float(shape.get(k, 0))) for k in ("left", "top", "width", "height"))
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, np.maximum(counts, 0))
    image = document.images[image_id - 1]
    mask = np.zeros((image["height"], image["width"]), bool)
    part = mask[max(top, 0) : top + height, max(left, 0) : left + width]
    if len(flat) > width * height or part.shape != (height, width):
        document.skip("masks that leave their image")
        return
    part[...] = np.pad(flat, (0, width * height - len(flat))).reshape(height, width)
    document.add_mask(image_id, label, mask)
