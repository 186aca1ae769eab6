"""Tools that write one json an image: V7 Darwin, SuperAnnotate, Supervisely, Cityscapes, SAM, GeoJSON of QuPath."""

from __future__ import annotations

import base64
import binascii
import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_coco.data.convert.document import Document, Points, ellipse
from maskrcnn_coco.data.convert.images_of import Images
from maskrcnn_coco.data.convert.reading import as_dict, as_list, read_json
from maskrcnn_coco.data.masks import decode_mask
from maskrcnn_coco.errors import DataError

BOXES = "boxes, which are no masks"
OTHERS = "things without an area (points, lines, tags)"
STUFF = frozenset(
    {
        *("road", "sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel"),
        *("pole", "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "static", "dynamic"),
        *("ground", "ego vehicle", "out of roi", "rectification border"),
    }
)
"""Regions of Cityscapes that are no single objects; names that end in "group" are several."""


@dataclass(frozen=True)
class Tool:
    """``of``: whether a json is this tool's. ``image``: its name and (height, width), if any. ``add``: its objects."""

    title: str
    of: Callable[[Any], bool]
    image: Callable[[Any, Path], tuple[str, tuple[int, int] | None]]
    add: Callable[[Document, int, Any], None]


def tool_for(value: Any) -> Tool | None:
    """The tool that writes a json like ``value``; None: none of these."""
    return next((t for t in TOOLS if isinstance(value, dict) and t.of(value)), None)


def convert_per_image(files: Sequence[Path], root: Path, images: Path | None) -> Document:
    """All files of these tools among ``files``."""
    document, found = Document(images or root), Images(root, images)
    for path in files:
        value = read_json(path)
        tool = tool_for(value)
        if tool is None:
            continue
        name, size = tool.image(value, path)
        near = [path.parent, path.parent.parent / "img", path.parent.parent / "images", path.parent.parent]
        file = found.find(name, near)
        if not file.is_file():  # under the name of the annotations
            beside = found.find(path.name.partition("_gt")[0].removesuffix(".json").removesuffix(".geojson"), near)
            file = beside if beside.is_file() else file
        image_id = document.add_image(file, size)
        if image_id is not None:
            tool.add(document, image_id, value)
    return document


def _size(height: Any, width: Any) -> tuple[int, int] | None:
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _with_holes(document: Document, image_id: int, name: str, outer: Sequence[Points], holes: Sequence[Points]) -> None:
    """Outlines, and what is cut out of them: then as pixels, because COCO's polygons have no holes."""
    if not holes:
        document.add_polygons(image_id, name, outer)
        return
    image = document.images[image_id - 1]
    height, width = image["height"], image["width"]

    def drawn(outlines: Sequence[Points]) -> np.ndarray:
        parts = [[float(v) for p in o for v in p[:2]] for o in outlines if len(o) >= 3]
        return decode_mask(parts, height, width) != 0 if parts else np.zeros((height, width), bool)

    document.add_mask(image_id, name, drawn(outer) & ~drawn(holes))


# --- V7 Darwin


def _darwin_image(value: Any, path: Path) -> tuple[str, tuple[int, int] | None]:
    item = as_dict(value.get("item") or value.get("image"))
    slot = as_dict(next(iter(as_list(item.get("slots"))), None)) or item
    name = item.get("name") or item.get("original_filename") or item.get("filename") or path.stem
    return str(name), _size(slot.get("height"), slot.get("width"))


def _darwin(document: Document, image_id: int, value: Any) -> None:
    for annotation in map(as_dict, as_list(value["annotations"])):
        polygon = as_dict(annotation.get("polygon"))
        paths = as_list(polygon.get("paths")) or [
            p for p in (polygon.get("path"), *as_list(polygon.get("additional_paths"))) if p
        ]
        if not paths:
            document.skip(BOXES if "bounding_box" in annotation else OTHERS)
            continue
        outlines: list[Any] = [[(p.get("x"), p.get("y")) for p in map(as_dict, as_list(path))] for path in paths]
        document.add_polygons(image_id, str(annotation.get("name", "object")), outlines)


# --- SuperAnnotate


def _super_image(value: Any, path: Path) -> tuple[str, tuple[int, int] | None]:
    about = as_dict(value["metadata"])
    return str(about.get("name") or path.name.partition("___")[0]), _size(about.get("height"), about.get("width"))


def _super(document: Document, image_id: int, value: Any) -> None:
    for instance in map(as_dict, as_list(value["instances"])):
        name, points = str(instance.get("className") or instance.get("classId") or "object"), instance.get("points")
        if instance.get("type") == "polygon" and isinstance(points, list):
            document.add_polygons(image_id, name, [list(zip(points[0::2], points[1::2], strict=False))])
        elif instance.get("type") == "ellipse":
            cx, cy, rx, ry = (float(instance[k]) for k in ("cx", "cy", "rx", "ry"))
            turned = float(instance.get("angle", 0)) * np.pi / 180
            document.add_polygons(image_id, name, [ellipse(cx, cy, rx, ry, turned)])
        else:
            document.skip(BOXES if "box" in str(instance.get("type")) else OTHERS)


# --- Supervisely


def _supervisely_image(value: Any, path: Path) -> tuple[str, tuple[int, int] | None]:
    size = as_dict(value["size"])
    return path.name.removesuffix(".json"), _size(size.get("height"), size.get("width"))


def _supervisely(document: Document, image_id: int, value: Any) -> None:
    for thing in map(as_dict, as_list(value["objects"])):
        name, points, bitmap = str(thing.get("classTitle", "object")), as_dict(thing.get("points")), thing.get("bitmap")
        if isinstance(bitmap, dict):
            _add_bitmap(document, image_id, name, bitmap)
        elif thing.get("geometryType") == "polygon" or len(as_list(points.get("exterior"))) > 2:
            _with_holes(document, image_id, name, [as_list(points.get("exterior"))], as_list(points.get("interior")))
        else:
            document.skip(BOXES if thing.get("geometryType") == "rectangle" else OTHERS)


def _add_bitmap(document: Document, image_id: int, name: str, bitmap: dict[str, Any]) -> None:
    """A compressed picture of the part of the image that begins at ``origin``."""
    try:
        packed = zlib.decompressobj().decompress(base64.b64decode(bitmap["data"]), 64 << 20)
        picture = Image.open(io.BytesIO(packed), formats=("PNG",))
        small = np.asarray(picture.convert("RGBA"))[:, :, 3] != 0
        if small.all():
            small = np.asarray(picture.convert("L")) != 0
        x, y = (int(v) for v in bitmap["origin"])
        image = document.images[image_id - 1]
        mask = np.zeros((image["height"], image["width"]), bool)
        part = mask[y : y + small.shape[0], x : x + small.shape[1]]
        part[...] = small[: part.shape[0], : part.shape[1]]
    except (KeyError, TypeError, ValueError, OSError, binascii.Error, zlib.error, SyntaxError):
        document.skip("masks that cannot be read")
        return
    document.add_mask(image_id, name, mask)


# --- Cityscapes


def _city_image(value: Any, path: Path) -> tuple[str, tuple[int, int] | None]:
    stem = path.name.removesuffix(".json").removesuffix("_polygons")
    stem = stem.removesuffix("_gtFine").removesuffix("_gtCoarse")
    name = f"{stem}_leftImg8bit" if stem != path.name.removesuffix(".json") else stem
    return name, _size(value.get("imgHeight"), value.get("imgWidth"))


def _city(document: Document, image_id: int, value: Any) -> None:
    for thing in map(as_dict, as_list(value["objects"])):
        name = str(thing.get("label", "object"))
        if name in STUFF or name.endswith("group"):
            document.skip("regions that are no single objects (road, sky, groups)")
        else:
            document.add_polygons(image_id, name, [as_list(thing.get("polygon"))])


# --- Segment Anything


def _is_sam(value: dict[str, Any]) -> bool:
    first = as_dict(next(iter(as_list(value.get("annotations"))), None))
    return "file_name" in as_dict(value.get("image")) and "counts" in as_dict(first.get("segmentation"))


def _sam_image(value: Any, path: Path) -> tuple[str, tuple[int, int] | None]:
    about = as_dict(value["image"])
    return str(about["file_name"]), _size(about.get("height"), about.get("width"))


def _sam(document: Document, image_id: int, value: Any) -> None:
    image = document.images[image_id - 1]
    for thing in map(as_dict, as_list(value["annotations"])):
        try:
            mask = decode_mask(thing.get("segmentation"), image["height"], image["width"])
        except DataError:
            document.skip("masks that cannot be read")
            continue
        document.add_mask(image_id, str(thing.get("category") or thing.get("label") or "object"), mask)


# --- GeoJSON


def _geo_image(value: Any, path: Path) -> tuple[str, tuple[int, int] | None]:
    return path.stem, None


def _geo(document: Document, image_id: int, value: Any) -> None:
    for feature in map(as_dict, as_list(value["features"])):
        about, geometry = as_dict(feature.get("properties")), as_dict(feature.get("geometry"))
        named = about.get("classification")
        name = str(as_dict(named).get("name") or about.get("name") or about.get("label") or "object")
        rings = as_list(geometry.get("coordinates"))
        polygons = {"Polygon": [rings], "MultiPolygon": rings}.get(str(geometry.get("type")), [])
        if not polygons:
            document.skip(OTHERS)
            continue
        outer = [as_list(p)[0] for p in polygons if as_list(p)]
        if _on_a_map(document.images[image_id - 1], outer):
            document.skip("outlines in the coordinates of a map, not in pixels: rasterio.features makes masks of them")
            continue
        _with_holes(document, image_id, name, outer, [h for p in polygons for h in as_list(p)[1:]])


def _on_a_map(image: dict[str, Any], outlines: Sequence[Any]) -> bool:
    """No point has an x near the image: metres of a projection, or degrees far west."""
    reach = 2 * max(image["height"], image["width"])
    points = [p for o in outlines for p in as_list(o) if isinstance(p, list) and len(p) >= 2]
    return bool(points) and all(not -reach <= float(p[0]) <= 2 * reach for p in points)


TOOLS = (
    Tool("masks of Segment Anything (SA-1B)", _is_sam, _sam_image, _sam),
    Tool("V7 Darwin annotations", lambda v: "annotations" in v and _is_darwin(v), _darwin_image, _darwin),
    Tool("SuperAnnotate annotations", lambda v: {"metadata", "instances"} <= v.keys(), _super_image, _super),
    Tool("a Supervisely project", lambda v: {"size", "objects"} <= v.keys(), _supervisely_image, _supervisely),
    Tool("Cityscapes polygons", lambda v: {"imgHeight", "objects"} <= v.keys(), _city_image, _city),
    Tool("GeoJSON (QuPath)", lambda v: v.get("type") == "FeatureCollection", _geo_image, _geo),
)


def _is_darwin(value: dict[str, Any]) -> bool:
    about = as_dict(value.get("item") or value.get("image"))
    return isinstance(value["annotations"], list) and ("slots" in about or "name" in about or "filename" in about)
