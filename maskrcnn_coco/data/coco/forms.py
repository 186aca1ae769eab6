"""Ways to write COCO's parts whose meaning is plain, put into COCO's own: boxes, segmentations, whole files.

Only what can be read in one way is read; everything else comes back as it is, for the audit to name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from maskrcnn_coco.data.coco.keys import named
from maskrcnn_coco.data.coco.other_outlines import of_geometry, of_runs, of_wkt, unpacked

LOOKED_AT = 200
"""So many segmentations, spread over the file, tell whether any is written in another form."""
_NUMBERS = re.compile(r"[\[(]?\s*-?\d[\d\s,.eE+-]*[\])]?")
_BYTES = re.compile(r"b(['\"])(.*)\1", re.DOTALL)
"""COCO's compressed RLE has neither blanks nor quotes nor commas, so that these cannot be mistaken for it."""
Size = tuple[int, int]


def plain_box(value: Any) -> list[Any] | None:
    """x, y, width, height out of a nested list, an object with these names, or text; None: its meaning is not plain."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        return _of_list(value)
    if isinstance(value, dict):
        for names in (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom")):
            if set(names) <= set(value):
                return _of_list([[value[names[0]], value[names[1]]], [value[names[2]], value[names[3]]]])
        for names in (("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height")):
            if set(names) <= set(value):
                return [value[n] for n in names]
        return None
    if isinstance(value, str):
        value = numbers_of(value)
    return value if isinstance(value, list) and len(value) == 4 else None


def _of_list(value: list[Any]) -> list[Any] | None:
    """Four numbers; two opposite corners; or four numbers and a score."""
    if len(value) == 2 and all(isinstance(p, list) and len(p) == 2 for p in value):
        flat = [v for p in value for v in p]
        if not all(isinstance(v, (int, float)) for v in flat):
            return None
        x0, x1, y0, y1 = *sorted(flat[0::2]), *sorted(flat[1::2])
        return [x0, y0, x1 - x0, y1 - y0]
    if len(value) == 5 and isinstance(value[4], float) and 0 <= value[4] <= 1:
        return value[:4]
    return value if len(value) == 4 else None


def numbers_of(text: str) -> list[float] | None:
    """The numbers of ``text``, separated by commas or blanks, in brackets or not; None where it holds anything else."""
    if not _NUMBERS.fullmatch(text.strip()):
        return None
    try:
        values = [float(v) for v in re.split(r"[\s,]+", text.strip().strip("[]()").strip())]
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None


def plain_segmentations(texts: Sequence[bytes], size: Callable[[int], Size]) -> tuple[list[bytes], int]:
    """Segmentations, JSON text each, in COCO's forms, and how many were changed.

    Read are: JSON inside a string; numbers in quotes; an RLE in a list; one whose counts are a list or bytes written as
    text, or packed; one without its size; the points of VGG Image Annotator; what `other_outlines` knows.

    Args:
        size: (height, width) of the n-th one's image, 0 where unknown.
    """
    step = max(1, len(texts) // LOOKED_AT)
    if not any(_plain(texts[n], size(n)) is not None for n in range(0, len(texts), step)):
        return list(texts), 0
    found, changed = [], 0
    for n, text in enumerate(texts):
        plain = _plain(text, size(n))
        changed += plain is not None
        found.append(text if plain is None else plain)
    return found, changed


def _plain(text: bytes, size: Size) -> bytes | None:
    """``text`` in COCO's form, None where it is that already, or is not read."""
    raw = bytes(text)
    head = raw[:24].replace(b" ", b"").replace(b"\n", b"")
    if not (head[:1] in (b'"', b"{") or head.startswith((b"[{", b'["', b'[["'))):
        return None
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    new = _value(value, size)
    return None if new is None or new == value else msgspec.json.encode(new)


def _value(value: Any, size: Size) -> Any:
    if isinstance(value, str):
        try:
            inner = json.loads(value)
        except (ValueError, RecursionError):
            other = of_runs(value, size) or of_wkt(value, size)
            if other is not None:
                return other
            numbers = numbers_of(value)
            return None if numbers is None or len(numbers) < 6 else [numbers]
        if not isinstance(inner, (list, dict)):
            return None
        plain = _value(inner, size)
        return inner if plain is None else plain
    if isinstance(value, dict):
        if "counts" in value:
            return _rle(value, size)
        return of_geometry(value, size) if "coordinates" in value else _points(value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and "counts" in value[0]:
        return _rle(value[0], size)
    if isinstance(value, list) and value:
        parts = [_without_quotes(v) for v in value]
        return parts if all(p is not None for p in parts) and parts != value else None
    return None


def _rle(value: dict[str, Any], size: Size) -> dict[str, Any]:
    counts, given = value.get("counts"), value.get("size")
    if given is None:
        sides = (value.get("height", value.get("h")), value.get("width", value.get("w")))
        given = list(sides) if all(isinstance(s, int) for s in sides) else [*size] if min(size) > 0 else None
    if isinstance(counts, str):
        written = _BYTES.fullmatch(counts)
        numbers = numbers_of(counts) if any(c in counts for c in ", [") else None
        if written:
            counts = written[2].encode().decode("unicode_escape", "replace")
        elif numbers is not None and all(v.is_integer() and v >= 0 for v in numbers):
            counts = [int(v) for v in numbers]
        else:
            counts = unpacked(counts) or counts
    return {"size": given, "counts": counts}


def _points(value: dict[str, Any]) -> list[list[Any]] | None:
    for a, b in (("all_points_x", "all_points_y"), ("x", "y"), ("xs", "ys")):
        xs, ys = value.get(a), value.get(b)
        if isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys) >= 3:
            return [[v for pair in zip(xs, ys, strict=True) for v in pair]]
    return None


def _without_quotes(part: Any) -> Any:
    """A part whose numbers stand in quotes, with plain numbers; other parts as they are; None: words."""
    if isinstance(part, list) and any(isinstance(v, str) for v in part):
        try:
            return [float(v) for v in part]
        except (TypeError, ValueError):
            return None
    return part


def as_lists(top: Any) -> tuple[dict[str, Any], list[str]] | None:
    """A whole file's value with COCO's three lists, and what was done to it; None where it has none to find.

    Read are: one level of wrapping; lists written as objects by id; classes as names, or id to name; the annotations
    of each image inside its entry.
    """
    notes = []
    wrapped = _inside(top)
    if wrapped is None:
        return None
    if wrapped is not top:
        notes.append("the COCO lists lie one level down")
    found = dict(wrapped)
    for name in ("images", "annotations"):
        if _by_id(found.get(name), _TELLING[name]):
            notes.append(f"`{name}` is an object by id")
            found[name] = [
                {"id": key, **v} if isinstance(v, dict) and "id" not in v else v for key, v in found[name].items()
            ]
    by_image = found.get("annotations")
    if isinstance(by_image, dict) and by_image and all(isinstance(v, list) for v in by_image.values()):
        notes.append("`annotations` is an object of lists by image")
        found["annotations"] = [
            {"image_id": int(key) if key.isdecimal() else key, **a} if isinstance(a, dict) else a
            for key, each in by_image.items()
            for a in each
        ]
    _classes(found, notes)
    _nested(found, notes)
    notes += named(found)
    return (found, notes) if notes else None


_TELLING = {
    "images": {"file_name", "path", "coco_url", "height"},
    "annotations": {"bbox", "segmentation", "category_id", "image_id"},
    "categories": {"name"},
}
"""Fields of which an entry has at least one: without them nothing says that an object's values are entries."""


def _by_id(value: Any, telling: set[str]) -> bool:
    return isinstance(value, dict) and any(isinstance(v, dict) and telling & v.keys() for v in value.values())


def _inside(top: Any) -> dict[str, Any] | None:
    if isinstance(top, dict) and "images" in top:
        return top
    parts = top if isinstance(top, list) and len(top) == 1 else list(top.values()) if isinstance(top, dict) else []
    inner = [v for v in parts if isinstance(v, dict) and "images" in v and "categories" in v]
    return inner[0] if len(inner) == 1 else None


def _classes(found: dict[str, Any], notes: list[str]) -> None:
    categories = found.get("categories")
    if isinstance(categories, dict) and categories:
        if all(isinstance(v, str) for v in categories.values()):
            found["categories"] = [{"id": k, "name": v} for k, v in categories.items()]
        elif all(isinstance(v, dict) for v in categories.values()) and _by_id(categories, _TELLING["categories"]):
            found["categories"] = [{"id": k, **v} for k, v in categories.items()]
        elif all(isinstance(v, int) for v in categories.values()):
            found["categories"] = [{"id": v, "name": k} for k, v in categories.items()]
        else:
            return
        notes.append("`categories` is an object")
    elif isinstance(categories, list) and categories and all(isinstance(v, str) for v in categories):
        # Whether ids count from 0 or from 1 the annotations say: where none is 0, and one is the count, from 1.
        used = {a.get("category_id") for a in found.get("annotations") or [] if isinstance(a, dict)}
        first = 1 if 0 not in used and len(categories) in used else 0
        found["categories"] = [{"id": n, "name": v} for n, v in enumerate(categories, first)]
        notes.append(f"`categories` are names, numbered from {first}")


def _nested(found: dict[str, Any], notes: list[str]) -> None:
    images = found.get("images")
    if found.get("annotations") or not isinstance(images, list):
        return
    inside = [
        {"image_id": i.get("id"), **a}
        for i in images
        if isinstance(i, dict) and isinstance(i.get("annotations"), list)
        for a in i["annotations"]
        if isinstance(a, dict)
    ]
    if inside:
        found["annotations"] = inside
        notes.append("annotations stand inside their images")


_TOOLS: tuple[tuple[str, frozenset[str]], ...] = (
    ("a V7 Darwin file", frozenset({"item", "annotations"})),
    ("a SuperAnnotate file", frozenset({"metadata", "instances"})),
    ("a FiftyOne data set", frozenset({"samples"})),
    ("an Encord export", frozenset({"label_hash"})),
    ("an Encord export", frozenset({"data_units"})),
    ("a Datumaro data set", frozenset({"categories", "items"})),
    ("a Cityscapes file", frozenset({"imgHeight", "objects"})),
    ("an export of Scale", frozenset({"task_id"})),
    ("an OpenLABEL file", frozenset({"openlabel"})),
    ("a DarkMark file", frozenset({"mark", "image"})),
    ("a Label Studio export", frozenset({"data", "annotations"})),
    ("a Label Studio export", frozenset({"data", "completions"})),
    ("a CreateML file", frozenset({"image", "annotations"})),
    ("a Labelbox export", frozenset({"data_row"})),
    ("a Labelbox export", frozenset({"Labeled Data"})),
    ("a Supervisely file", frozenset({"size", "objects"})),
    ("a Supervisely project", frozenset({"classes", "tags"})),
    ("a Supervisely project", frozenset({"classes", "projectType"})),
    ("detectron2's list of dicts", frozenset({"file_name", "annotations"})),
    ("a VoTT export", frozenset({"asset", "regions"})),
    ("a BDD100K file", frozenset({"labels", "poly2d"})),
    ("a LabelMe file", frozenset({"shapes", "imagePath"})),
    ("a file of VGG Image Annotator", frozenset({"regions", "shape_attributes"})),
)


def tool_of(head: bytes) -> str | None:
    """Which tool writes a file that begins like this, by the names of its first object; None: none that is known."""
    names = {m.decode("utf-8", "replace") for m in re.findall(rb'"([^"\\]{1,40})"\s*:', head)}
    if "images" in names:  # whatever else it has, it is COCO's, or near
        return None
    return next((tool for tool, needed in _TOOLS if needed <= names), None)
