"""VGG Image Annotator: projects and exports of version 2 (json and csv), projects of version 3."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskrcnn_coco.data.convert.document import Document, Points, ellipse, rectangle
from maskrcnn_coco.data.convert.reading import as_dict, as_list, read_json, read_text
from maskrcnn_coco.data.file_names import FileIndex, plain_name

_USUAL = ("class", "label", "name", "type", "category", "object")
"""Names of the attribute that holds the class, where regions have several."""
_SHAPES = {2: "rect", 3: "circle", 4: "ellipse", 7: "polygon"}
"""Of version 3, by number; the others have no area."""


@dataclass(frozen=True)
class _Region:
    file_name: str
    shape: Mapping[str, Any]
    attributes: Mapping[str, Any]


def is_via(value: Any) -> bool:
    """Whether a json is VIA's: a project, or its exported annotations."""
    if not isinstance(value, dict) or not value:
        return False
    if "_via_img_metadata" in value:
        return True
    if {"project", "metadata", "file", "attribute"} <= value.keys():
        return True
    return all(isinstance(v, dict) and "filename" in v and "regions" in v for v in value.values())


def is_via_csv(text: str) -> bool:
    """Whether a csv is VIA's."""
    return "region_shape_attributes" in text.partition("\n")[0]


def convert_via(path: Path, root: Path, images: Path | None) -> Document:
    """One VIA file; ``images``: the folder of its images, if it is not the file's own."""
    if path.suffix.lower() == ".csv":
        names, regions = _from_csv(read_text(path))
    else:
        value = read_json(path)
        third = isinstance(value, dict) and "metadata" in value and "file" in value
        names, regions = _from_third(value) if third else _from_second(value)
    document = Document(root)
    key = _class_attribute(regions)
    index = FileIndex(images or path.parent)
    ids: dict[str, int | None] = {}
    for name in names:
        if name not in ids:
            found = index.answer(name).files
            where = found[0] if len(found) == 1 else plain_name(name)
            ids[name] = document.add_image(index.root / where)
    for region in regions:
        image_id = ids.get(region.file_name)
        if image_id is None:
            continue
        outline = _outline(region.shape)
        if outline is None:
            document.skip("shapes without an area (points, lines)")
        else:
            document.add_polygons(image_id, _class_of(region.attributes, key), [outline])
    return document


def _from_second(value: Any) -> tuple[list[str], list[_Region]]:
    entries = as_dict(value.get("_via_img_metadata", value))
    names: list[str] = []
    regions: list[_Region] = []
    for entry in map(as_dict, entries.values()):
        name, given = str(entry.get("filename", "")), entry.get("regions")
        names.append(name)
        inside = given.values() if isinstance(given, dict) else as_list(given)  # version 1 numbers them
        regions += [
            _Region(name, as_dict(r.get("shape_attributes")), as_dict(r.get("region_attributes")))
            for r in map(as_dict, inside)
        ]
    return names, regions


def _from_csv(text: str) -> tuple[list[str], list[_Region]]:
    names, regions = [], []
    lines = text.lstrip("#").splitlines(keepends=True)
    for row in csv.DictReader(io.StringIO("".join(lines))):
        names.append(row.get("filename") or "")
        shape, attributes = _cell(row.get("region_shape_attributes")), _cell(row.get("region_attributes"))
        if shape:
            regions.append(_Region(names[-1], shape, attributes))
    return names, regions


def _cell(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _from_third(value: dict[str, Any]) -> tuple[list[str], list[_Region]]:
    files = {fid: str(as_dict(f).get("fname", "")) for fid, f in as_dict(value["file"]).items()}
    lists = {vid: as_list(as_dict(view).get("fid_list")) for vid, view in as_dict(value.get("view")).items()}
    attributes = as_dict(value.get("attribute"))
    regions = []
    for entry in map(as_dict, as_dict(value["metadata"]).values()):
        view = str(entry.get("vid"))
        file = files.get(str((lists.get(view) or [view])[0]), "")
        shape = _third_shape(as_list(entry.get("xy")))
        if shape is None:
            continue
        chosen = {}
        for number, answer in as_dict(entry.get("av")).items():
            kind = as_dict(attributes.get(number))
            chosen[str(kind.get("aname", number))] = as_dict(kind.get("options")).get(str(answer), answer)
        regions.append(_Region(file, shape, chosen))
    return list(files.values()), regions


def _third_shape(xy: list[float]) -> dict[str, Any] | None:
    if not xy or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in xy):
        return None
    kind, rest = _SHAPES.get(int(xy[0]), "line"), list(xy[1:])
    if kind == "rect" and len(rest) >= 4:
        return {"name": kind, "x": rest[0], "y": rest[1], "width": rest[2], "height": rest[3]}
    if kind == "circle" and len(rest) >= 3:
        return {"name": kind, "cx": rest[0], "cy": rest[1], "r": rest[2]}
    if kind == "ellipse" and len(rest) >= 4:
        return {"name": kind, "cx": rest[0], "cy": rest[1], "rx": rest[2], "ry": rest[3]}
    return {"name": kind, "all_points_x": rest[0::2], "all_points_y": rest[1::2]}


def _outline(shape: Mapping[str, Any]) -> Points | None:
    try:
        kind = shape.get("name")
        if kind == "polygon":
            return list(zip(shape["all_points_x"], shape["all_points_y"], strict=False))
        if kind == "rect":
            x, y = float(shape["x"]), float(shape["y"])
            return rectangle(x, y, x + float(shape["width"]), y + float(shape["height"]))
        if kind == "circle":
            return ellipse(float(shape["cx"]), float(shape["cy"]), float(shape["r"]), float(shape["r"]))
        if kind == "ellipse":
            centre = float(shape["cx"]), float(shape["cy"])
            return ellipse(*centre, float(shape["rx"]), float(shape["ry"]), float(shape.get("theta", 0.0)))
    except (KeyError, TypeError, ValueError):
        return None
    return None


def _class_attribute(regions: Iterable[_Region]) -> str | None:
    """The attribute that holds the class: the only one, else the one of a usual name, else the first."""
    seen = list(dict.fromkeys(key for region in regions for key in region.attributes))
    return next((key for usual in _USUAL for key in seen if key.lower() == usual), seen[0] if seen else None)


def _class_of(attributes: Mapping[str, Any], key: str | None) -> str:
    value = attributes.get(key) if key is not None else None
    if isinstance(value, dict):  # check boxes: the names of those that are ticked
        return " ".join(_ticked(value)) or "object"
    return str(value).strip() if value not in (None, "") else "object"


def _ticked(value: dict[str, Any]) -> Iterator[str]:
    return (str(name) for name, on in value.items() if on in (True, "true", "1", 1))
