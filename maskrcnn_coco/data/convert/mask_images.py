"""Folders of mask images: a file an object, a file of numbered objects, or a file of classes; each beside its image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskrcnn_coco.data.convert.document import Document
from maskrcnn_coco.data.convert.reading import shown
from maskrcnn_coco.data.convert.regions import read_map, regions
from maskrcnn_coco.data.file_names import IMAGE_SUFFIXES
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.wording import count

Meaning = Literal["objects", "classes"]
IMAGES = ("images", "image", "imgs", "img", "pngimages", "jpegimages", "photos", "raw")
MASKS = ("masks", "mask", "pedmasks", "labels", "annotations", "gt", "segmentations", "instances")
_ENDINGS = (
    *("_cp_masks", "_mask", "-mask", "_masks", ".mask", "_label", "_labels"),
    *("_instances", "_instance", "_seg", "_gt"),
)
_LOSSLESS = (".png", ".tif", ".tiff", ".bmp", ".gif")
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
        return _beside(folder)
    files: defaultdict[Path, list[tuple[Path, str]]] = defaultdict(list)
    stems: defaultdict[str, list[Path]] = defaultdict(list)
    for path in _pictures(images):
        stems[path.stem].append(path)
    drawn = _pictures(masks)  # beside masks there may be JPEGs of how they look
    drawn = [p for p in drawn if p.suffix.lower() in _LOSSLESS] or drawn
    for path in drawn:
        found = _image_of(path, masks, stems)
        if found is None:
            continue
        place = path.parent.relative_to(masks)
        # Frames of several films are all called 00000: then the folders tell which one is meant.
        alike = [p for p in stems[found[0]] if p.parent.relative_to(images) == place]
        image = (alike or stems[found[0]])[0]
        if alike or len(stems[found[0]]) == 1:
            files[image].append((path, "object" if alike else found[1]))
    return [Pair(image, tuple(found)) for image, found in sorted(files.items())]


def _beside(folder: Path) -> list[Pair]:
    """Masks in the folder of their images, as Cellpose leaves them: cell.tif and cell_cp_masks.tif."""
    pictures = shown(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    stems = {p.stem: p for p in pictures}
    found = [
        Pair(stems[stem], ((path, "object"),))
        for path in pictures
        for ending in _ENDINGS
        if path.stem.endswith(ending) and (stem := path.stem.removesuffix(ending)) in stems
    ]
    return found if {p.masks[0][0] for p in found}.isdisjoint(p.image for p in found) else []


def _folders(folder: Path) -> list[Path]:
    return shown(p for p in folder.iterdir() if p.is_dir())


def _named(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((p for n in names for p in _folders(folder) if p.name.lower() == n), None)


def _pictures(folder: Path) -> list[Path]:
    return shown(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)


def _single(images: Path, masks: Path) -> list[Pair]:
    """A folder of one image and a folder of its masks, a file an object."""
    found = _pictures(images)
    return [Pair(found[0], tuple((m, "object") for m in _pictures(masks)))] if len(found) == 1 else []


def _image_of(mask: Path, masks: Path, stems: Mapping[str, Any]) -> tuple[str, str] | None:
    """The stem of the image that a mask belongs to, and its class: by name, then by folder, then by beginning."""
    plain = mask.stem
    for ending in ("", *_ENDINGS):
        if plain.endswith(ending) and plain[: len(plain) - len(ending)] in stems:
            inside = mask.parent.relative_to(masks).parts
            return plain[: len(plain) - len(ending)], inside[0] if inside and inside[0] != TRIMAPS else "object"
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
            found = _without_background(found, path)
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
    differ = len({frozenset(v) for v in values}) > 1
    how = (
        "the values differ from mask to mask" if differ else f"each mask has the same {len(every)} values, in one piece"
    )
    return "objects", f"{how}: they number the objects", len(every)


def _map(path: Path, soft: set[Path] | None = None) -> np.ndarray | None:
    """The label map of a file, None where it is none; ``soft`` grows by files of soft edges, whose halves are taken."""
    try:
        values = read_map(path)
    except DataError:
        return None
    hard = hardened(values, lossy=path.suffix.lower() not in _LOSSLESS)
    if hard is None:
        return values if path.suffix.lower() in _LOSSLESS else None
    if soft is not None:
        soft.add(path)
    return hard


def hardened(values: np.ndarray, *, lossy: bool) -> np.ndarray | None:
    """A mask in black and white whose edges are soft, or blurred by JPEG, as 0 and 1; None where it is no such mask.

    Numbers of objects fill areas of one value each; shades of an edge have other shades beside them.
    """
    if values.min() < 0 or not 223 <= values.max() <= 255:
        return None
    between, white = (values > 32) & (values < 223), values >= 223
    if lossy:
        return (values >= 128).astype(np.int64) if between.mean() <= 0.1 else None
    flat = (values[:-1, :-1] == values[1:, :-1]) & (values[:-1, :-1] == values[:-1, 1:]) & between[:-1, :-1]
    shades = len(np.unique(values[between]))
    edges = shades >= 8 and flat.sum() < 0.3 * between.sum() and white.sum() >= 0.6 * (values > 32).sum()
    return (values >= 128).astype(np.int64) if edges else None


TRIMAPS = "trimaps"
"""The folder of masks of 1 (object), 2 (background) and 3 (not known), as the pets of Oxford have them."""


def _without_background(found: np.ndarray, path: Path) -> np.ndarray:
    return np.where(found == 1, 1, 0) if TRIMAPS in path.parts and found.max() <= 3 else found


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
    document, soft, whole, full = Document(folder), set[Path](), 0, 0
    outside = 0
    for pair in pairs:
        image_id = document.add_image(pair.image)
        if image_id is None:
            continue
        for path, name in pair.masks:
            found = _map(path, soft)
            if found is None:
                lossy = path.suffix.lower() not in _LOSSLESS
                document.skip("masks whose values JPEG has changed: save them as PNG" if lossy else _UNREADABLE)
                continue
            found = _without_background(found, path)
            whole, full = whole + 1, full + bool((found != 0).all())
            outside += _is_outside(found)
            if len(pair.masks) > 1 and meaning is None:
                document.add_mask(image_id, name, found != 0)
            else:
                _add(document, image_id, found, name, chosen, number <= 1)
    said = [f"{why}; --masks-are objects|classes says otherwise"] if meaning is None else []
    if soft:
        said.append(f"{count(len(soft), 'mask')} in black and white have soft edges: from half white on is the object")
    if whole and full == whole:
        said.append("no mask has a background, the value 0: every pixel is of an object")
    elif whole >= 3 and outside == whole:
        said.append("what is white goes all around each image: white may be the background, then invert the masks")
    document.said = "; ".join(said) or None
    return document


_UNREADABLE = "masks that cannot be read"


def _is_outside(found: np.ndarray) -> bool:
    """One value takes all four corners and most of the mask, and it is not 0: that looks like a background."""
    corners = {int(found[y, x]) for y in (0, -1) for x in (0, -1)}
    value = next(iter(corners))
    return len(corners) == 1 and value != 0 and float((found == value).mean()) > 0.5


def _add(document: Document, image_id: int, found: np.ndarray, name: str, meaning: Meaning, one_value: bool) -> None:
    for value in (v for v in np.unique(found).tolist() if v != 0):
        mask = found == value
        if meaning == "objects":
            document.add_mask(image_id, name, mask)
            continue
        kind = name if name != "object" or one_value else f"class {value}"
        for part in regions(mask):
            document.add_mask(image_id, kind, part)
