"""Pascal VOC with masks: SegmentationObject says which object a pixel belongs to, SegmentationClass of which class."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from maskrcnn_coco.data.convert.document import Document
from maskrcnn_coco.data.convert.reading import read_text, shown
from maskrcnn_coco.data.convert.regions import read_map, regions
from maskrcnn_coco.data.file_names import IMAGE_SUFFIXES
from maskrcnn_coco.errors import DataError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Of the challenge, in the order of their palette numbers, from 1."""
_VOID = (255, (224 << 16) + (224 << 8) + 192)
"""Borders and difficult objects: by palette number, and by colour."""
_BACKGROUND = ("background", "_background_", "__ignore__")


def voc_root(folder: Path) -> Path | None:
    """The folder that holds ``Annotations``, ``SegmentationObject`` or ``SegmentationClass``: ``folder`` or one in it
    (VOCdevkit/VOC2012)."""
    for place in (folder, *shown(p for p in folder.glob("*") if p.is_dir()), *sorted(folder.glob("*/VOC*"))):
        if _objects(place) or _kinds(place) or any((place / "Annotations").glob("*.xml")):
            return place
    return None


def _objects(root: Path) -> Path | None:
    return next((root / n for n in ("SegmentationObject", "SegmentationObjectPNG") if (root / n).is_dir()), None)


def _kinds(root: Path) -> Path | None:
    return next((root / n for n in ("SegmentationClass", "SegmentationClassPNG") if (root / n).is_dir()), None)


def convert_voc(folder: Path) -> dict[str, Document]:
    """Part ("train", "val", or "" where there are no lists of images) → its document.

    Raises:
        DataError: the set has boxes only.
    """
    root = voc_root(folder) or folder
    objects, kinds = _objects(root), _kinds(root)
    if objects is None and kinds is None:
        raise DataError(
            f"{root} has boxes only: Pascal VOC keeps masks in SegmentationObject",
            expected="SegmentationObject/*.png beside JPEGImages",
            fix="add masks (for example with SAM), or train a box detector",
        )
    names, images = _names(root), _images(root)
    stems = {p.stem for p in shown((objects or kinds or root).iterdir()) if p.suffix.lower() == ".png"}
    documents: dict[str, Document] = {}
    for part, listed in _parts(root, stems).items():
        document = documents.setdefault(part, Document(folder, list(names.values()) if names else None))
        document.said = _CLASSES_ONLY if objects is None else None
        if objects is None and names is None:
            document.said = f"{_CLASSES_ONLY}; no labelmap.txt names the classes: they are those of the challenge"
        for stem in listed:
            if stem not in images:
                document.skip("masks without an image")
                continue
            kind = kinds / f"{stem}.png" if kinds is not None else None
            if objects is None:
                _add_regions(document, images[stem], kind or root, names)
                continue
            _add(document, images[stem], objects / f"{stem}.png", kind, names, _from_xml(root, stem))
    return documents


_CLASSES_ONLY = "SegmentationClass tells the class of a pixel, not its object: each region of a class is one object"


def _images(root: Path) -> dict[str, Path]:
    place = next((root / n for n in ("JPEGImages", "Images", "images") if (root / n).is_dir()), root)
    return {p.stem: p for p in shown(place.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES}


def _parts(root: Path, stems: set[str]) -> dict[str, list[str]]:
    lists = root / "ImageSets" / "Segmentation"
    found = {
        part: [s for line in read_text(lists / f"{part}.txt").splitlines() if (s := line.strip()) in stems]
        for part in ("train", "val", "test")
        if (lists / f"{part}.txt").is_file()
    }
    return {part: listed for part, listed in found.items() if listed} or {"": sorted(stems)}


def _names(root: Path) -> dict[int, str] | None:
    """Value in SegmentationClass → name: from labelmap.txt (colours) or class_names.txt (numbers); None: neither."""
    if (root / "labelmap.txt").is_file():
        names = {}
        for line in read_text(root / "labelmap.txt").splitlines():
            found = re.match(r"\s*([^#:][^:]*):\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)", line)
            if found and found[1].strip().lower() not in _BACKGROUND:
                red, green, blue = (int(found[n]) for n in (2, 3, 4))
                names[(red << 16) + (green << 8) + blue] = found[1].strip()
        return names
    if (root / "class_names.txt").is_file():
        lines = [line.strip() for line in read_text(root / "class_names.txt").splitlines() if line.strip()]
        lines = [line for line in lines if line != "__ignore__"]
        return {n: name for n, name in enumerate(lines) if name.lower() not in _BACKGROUND}
    return None


def _from_xml(root: Path, stem: str) -> list[str]:
    """Names of the objects, in the order of their numbers in SegmentationObject; empty where there is no xml."""
    path = root / "Annotations" / f"{stem}.xml"
    if not path.is_file():
        return []
    text = read_text(path)
    if "<!ENTITY" in text:  # entities can make a small file huge
        return []
    try:
        return [str(o.findtext("name") or "object") for o in ElementTree.fromstring(text).iter("object")]
    except ElementTree.ParseError:
        return []


def _add(
    document: Document, image: Path, objects: Path, kinds: Path | None, names: dict[int, str] | None, listed: list[str]
) -> None:
    try:
        numbers = read_map(objects)
        classes = read_map(kinds) if kinds is not None and kinds.is_file() else None
    except DataError as e:
        document.skip(f"masks that cannot be read (the first: {e.what})")
        return
    image_id = document.add_image(image)
    if image_id is None:
        return
    for place, value in enumerate(v for v in np.unique(numbers).tolist() if v != 0 and v not in _VOID):
        mask = numbers == value
        name = listed[value - 1] if value <= len(listed) else listed[place] if place < len(listed) else "object"
        if classes is not None and classes.shape == numbers.shape:
            inside = classes[mask]
            inside = inside[(inside != 0) & ~np.isin(inside, _VOID)]
            if len(inside):
                found, often = np.unique(inside, return_counts=True)
                name = _name(int(found[often.argmax()]), names, name)
        document.add_mask(image_id, name, mask)


def _add_regions(document: Document, image: Path, kinds: Path, names: dict[int, str] | None) -> None:
    try:
        classes = read_map(kinds)
    except DataError as e:
        document.skip(f"masks that cannot be read (the first: {e.what})")
        return
    image_id = document.add_image(image)
    for value in [] if image_id is None else np.unique(classes).tolist():
        if value != 0 and value not in _VOID:
            for part in regions(classes == value):
                document.add_mask(image_id or 0, _name(value, names, "object"), part)


def _name(value: int, names: dict[int, str] | None, listed: str) -> str:
    if names is not None:
        return names.get(value, f"class {value}")
    if listed != "object":
        return listed
    return CLASSES[value - 1] if 1 <= value <= len(CLASSES) else f"class {value}"
