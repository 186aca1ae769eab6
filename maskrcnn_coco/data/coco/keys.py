"""COCO's fields under other names, as scripts and tools write them: given their own, where that is plain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

Entry = dict[str, Any]
FIELDS: dict[str, tuple[str, ...]] = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox", "segmentation", "area", "iscrowd"),
    "categories": ("id", "name"),
}
OTHERS: dict[str, dict[str, tuple[str, ...]]] = {
    "images": {"file_name": ("filename", "path", "image", "name"), "id": ("image_id",)},
    "annotations": {
        "image_id": ("imageid", "img_id", "image", "file_name", "filename", "image_name"),
        "category_id": (
            "categoryid",
            "category",
            "category_name",
            "class",
            "class_name",
            "label",
            "class_id",
            "label_id",
        ),
        "bbox": ("box", "bounding_box", "boundingbox", "bndbox"),
        "segmentation": (
            "segmentations",
            "polygons",
            "polygon",
            "rle",
            "mask_rle",
            "segment",
            "contours",
            "contour",
            "mask",
        ),
    },
    "categories": {
        "id": ("category_id", "class_id"),
        "name": ("category_name", "class_name", "title", "label", "class"),
    },
}
"""List → field → names that stand for it where the field itself is missing or empty, the likeliest first."""


def needs_names(first: dict[str, Entry]) -> bool:
    """Whether one of the three lists' ``first`` entries lacks a field that it has under another name."""
    entries = {kind: entry for kind, entry in first.items() if isinstance(entry, dict)}
    category = entries.get("categories", {})
    above = _empty(category.get("name")) and isinstance(category.get("supercategory"), str)
    return above or any(_renamed(kind, dict(entry), Counter()) for kind, entry in entries.items())


def named(found: dict[str, Any]) -> list[str]:
    """Rename the fields of all entries in ``found`` in place; what was done, a sentence for each name."""
    done: Counter[tuple[str, str, str]] = Counter()
    for kind in FIELDS:
        entries = found.get(kind)
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict):
                _renamed(kind, entry, done)
    categories = _dicts(found.get("categories"))
    above = {c["supercategory"] for c in categories if isinstance(c.get("supercategory"), str) and c["supercategory"]}
    if all(_empty(c.get("name")) for c in categories) and len(above) == len(list(categories)):
        for category in categories:
            category["name"] = category["supercategory"]
            done["categories", "name", "supercategory"] += 1
    known = {c.get("id") for c in _dicts(found.get("categories"))}
    _as_ids(found, known)
    return [f"`{field}` of {kind} is written `{name}` ({count} times)" for (kind, field, name), count in done.items()]


def _dicts(value: Any) -> Iterable[Entry]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _renamed(kind: str, entry: Entry, done: Counter[tuple[str, str, str]]) -> bool:
    folded = {str(k).lower(): k for k in entry}
    changed = False
    for field in FIELDS[kind]:
        if not _empty(entry.get(field)):
            continue
        for name in (field, *OTHERS[kind].get(field, ())):
            key = folded.get(name)
            if key is not None and key != field and not _empty(entry[key]) and _fits(field)(entry[key]):
                entry[field] = entry.pop(key)
                done[kind, field, key] += 1
                changed = True
                break
    return changed


def _empty(value: Any) -> bool:
    return value is None or value in ([], {}, "")


def _fits(field: str) -> Callable[[Any], bool]:
    """Whether a value may be what ``field`` holds: an outline is no number, a class is no list."""
    if field == "segmentation":
        return lambda v: isinstance(v, (list, dict)) or (isinstance(v, str) and len(v) > 8)
    if field == "bbox":
        return lambda v: isinstance(v, (list, dict))
    return lambda v: isinstance(v, (int, float, str, dict)) and not isinstance(v, bool)


def _as_ids(found: dict[str, Any], known: set[Any]) -> None:
    """Of classes and images that stand as objects in an annotation, the id or the name."""
    for annotation in _dicts(found.get("annotations")):
        for field, names in (("category_id", ("id", "name")), ("image_id", ("id", "file_name"))):
            value = annotation.get(field)
            if isinstance(value, dict):
                ids = [value[n] for n in names if n in value]
                fitting = [v for v in ids if field == "image_id" or v in known or isinstance(v, str)]
                annotation[field] = next(iter(fitting or ids), None)
