"""Folders of mask images: a file an object, a file of numbered objects, or a file of classes; each beside its image."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from maskrcnn_coco.data.convert.document import Document
from maskrcnn_coco.data.convert.regions import read_map, regions
from maskrcnn_coco.data.file_names import IMAGE_SUFFIXES
from maskrcnn_coco.errors import DataError

Meaning = Literal["objects", "classes"]
IMAGES = ("images", "image", "imgs", "img", "pngimages", "jpegimages", "photos", "raw")
MASKS = ("masks", "mask", "pedmasks", "labels", "annotations", "gt", "segmentations", "instances")
_ENDINGS = ("_mask", "-mask", "_masks", "_label", "_labels", "_instances", "_instance", "_seg", "_gt", ".mask")
_LOOKED_AT = 40
_FEW_CLASSES = 32


@dataclass(frozen=True)
class Pair:
    """An image, and its mask files with the name of their class ("object" where nothing says it)."""

    image: Path
    masks: tuple[tuple[Path, str], ...]


def find_pairs(folder: Path) -> list[Pair]:
    """Images with their masks: folders beside each other, or a folder an image (as in the nuclei challenge)."""
    lone = [p for d in _folders(folder) if (i := _named(d, IMAGES)) and (m := _named(d, MASKS)) for p in _single(i, m)]
    if lone:
        return lone
    images, masks = _named(folder, IMAGES), _named(folder, MASKS)
    if images is None or masks is None:
        return []
    files: defaultdict[str, list[tuple[Path, str]]] = defaultdict(list)
    stems = {p.stem: p for p in _pictures(images)}
    for path in sorted(p for p in masks.rglob("*") if p.suffix.lower() in (".png", ".tif", ".tiff", ".bmp", ".gif")):
        if (found := _image_of(path, masks, stems)) is not None:
            stem, name = found
            files[stem].append((path, name))
    return [Pair(stems[stem], tuple(found)) for stem, found in sorted(files.items())]


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir())


def _named(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((p for n in names for p in _folders(folder) if p.name.lower() == n), None)


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)


def _single(images: Path, masks: Path) -> list[Pair]:
    """A folder of one image and a folder of its masks, a file an object."""
    found = _pictures(images)
    return [Pair(found[0], tuple((m, "object") for m in _pictures(masks)))] if len(found) == 1 else []


def _image_of(mask: Path, masks: Path, stems: dict[str, Path]) -> tuple[str, str] | None:
    """The stem of the image that a mask belongs to, and its class: by name, then by folder, then by beginning."""
    plain = mask.stem
    for ending in ("", *_ENDINGS):
        if plain.endswith(ending) and plain[: len(plain) - len(ending)] in stems:
            inside = mask.parent.relative_to(masks).parts
            return plain[: len(plain) - len(ending)], inside[0] if inside else "object"
    if mask.parent.name in stems:
        return mask.parent.name, "object"
    parts = plain
    while (cut := max(parts.rfind("_"), parts.rfind("-"))) > 0:
        parts = parts[:cut]
        if parts in stems:
            return parts, "object"
    return None


def meaning_of(pairs: list[Pair]) -> tuple[Meaning, str, int]:
    """What the values of the masks stand for, why it looks so, and how many values there are.

    Objects are numbered anew in each image, and each is one piece; classes are the same few everywhere, in pieces.
    """
    values: list[set[int]] = []
    pieces = regions_of_values = 0
    for pair in pairs[:: max(1, len(pairs) // _LOOKED_AT)]:
        for path, _ in pair.masks[:4]:
            found = _map(path)
            if found is None:
                continue
            present = [v for v in np.unique(found).tolist() if v != 0]
            values.append(set(present))
            for value in present[:_FEW_CLASSES]:
                regions_of_values += 1
                pieces += sum(1 for _ in regions(found == value))
    every: set[int] = set().union(*values)
    if any(len(pair.masks) > 1 for pair in pairs):
        return "objects", "there are several mask files to an image: each is one object", len(every)
    if len(every) <= 1:
        return "classes", "the masks have one value: each region of it is one object", len(every)
    numbered = all(v == set(range(1, len(v) + 1)) for v in values if v)
    if numbered and len({len(v) for v in values}) > 1:
        return "objects", "the values of each mask run from 1 on: they number its objects", len(every)
    if len(every) <= _FEW_CLASSES and pieces > 1.5 * max(regions_of_values, 1):
        return "classes", f"the masks share {len(every)} values, in many pieces: they are classes", len(every)
    return "objects", "the values differ from mask to mask: they number the objects", len(every)


def _map(path: Path) -> np.ndarray | None:
    try:
        return read_map(path)
    except DataError:
        return None


def convert_masks(folder: Path, meaning: Meaning | None = None) -> Document:
    """The document of a folder of mask images; ``meaning`` of their values, None: as it looks.

    Raises:
        DataError: no image has a mask.
    """
    pairs = find_pairs(folder)
    if not pairs:
        raise DataError(f"no image in {folder} has a mask beside it", expected="images/ and masks/ with like names")
    seen, why, number = meaning_of(pairs)
    chosen = meaning or seen
    document = Document(folder)
    if meaning is None:
        document.said = f"{why}; --masks-are objects|classes says otherwise"
    for pair in pairs:
        image_id = document.add_image(pair.image)
        if image_id is None:
            continue
        for path, name in pair.masks:
            found = _map(path)
            if found is None:
                document.skip("masks that cannot be read")
            elif len(pair.masks) > 1 and meaning is None:
                document.add_mask(image_id, name, found != 0)
            else:
                _add(document, image_id, found, name, chosen, number <= 1)
    return document


def _add(document: Document, image_id: int, found: np.ndarray, name: str, meaning: Meaning, one_value: bool) -> None:
    for value in (v for v in np.unique(found).tolist() if v != 0):
        mask = found == value
        if meaning == "objects":
            document.add_mask(image_id, name, mask)
            continue
        kind = name if name != "object" or one_value else f"class {value}"
        for part in regions(mask):
            document.add_mask(image_id, kind, part)
