"""Segmentations as other standards write them (WKT, GeoJSON, runs of competitions, packed RLE), in COCO's form."""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from typing import Any

import numpy as np

from maskrcnn_coco.data.masks import decode_mask, encode_rle
from maskrcnn_coco.errors import DataError

Size = tuple[int, int]
_WKT = re.compile(r"\s*(?:SRID=\d+;\s*)?(MULTI)?POLYGON\s*(?:Z|M|ZM)?\s*(\(.*\))\s*", re.IGNORECASE | re.DOTALL)
_POINT = r"-?\d[\d.eE+-]*(?:\s+-?\d[\d.eE+-]*){1,3}"
_RING = re.compile(rf"\(\s*({_POINT}(?:\s*,\s*{_POINT})*)\s*\)")
_RUNS = re.compile(r"\s*\d+\s+\d+(?:\s+\d+\s+\d+)*\s*")
_PACKED = re.compile(r"[A-Za-z0-9+/]{8,}={0,2}")
_LARGEST = 1 << 24
"""Bytes that a packed RLE may unpack to."""
Rings = list[list[list[float]]]
"""The rings of one polygon: the outer one, and holes; points (x, y, …)."""


def of_wkt(text: str, size: Size) -> Any:
    """``POLYGON ((x y, …))`` of Shapely and PostGIS, and ``MULTIPOLYGON``, in COCO's form."""
    found = _WKT.fullmatch(text)
    if found is None:
        return None
    groups = re.split(r"\)\s*\)\s*,\s*\(\s*\(", found[2]) if found[1] else [found[2]]
    polygons: list[Rings] = []
    for group in groups:
        rings = [m[1] for m in _RING.finditer(f"({group.strip('() ')})")]
        try:
            polygons.append([[[float(v) for v in p.split()] for p in ring.split(",")] for ring in rings])
        except ValueError:
            return None
    return _joined(polygons, size)


def of_geometry(value: dict[str, Any], size: Size) -> Any:
    """``{"type": "Polygon", "coordinates": …}`` of GeoJSON, and ``MultiPolygon``, in COCO's form."""
    kind, found = value.get("type"), value.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon") or not isinstance(found, list):
        return None
    return _joined([found] if kind == "Polygon" else found, size)


def _joined(polygons: list[Any], size: Size) -> Any:
    """Outlines as polygons; where something is cut out of one, all of them as RLE: COCO's polygons have no holes."""
    try:
        rings = [[[float(v) for p in ring for v in p[:2]] for ring in polygon] for polygon in polygons]
    except (TypeError, ValueError, OverflowError):
        return None
    if not rings or not all(rings) or any(len(p) < 6 or len(p) % 2 for polygon in rings for p in polygon):
        return None
    if all(len(polygon) == 1 for polygon in rings):
        return [polygon[0] for polygon in rings]
    try:
        drawn = np.zeros(size, bool)
        for outer, *holes in rings:
            part = decode_mask([outer], *size) != 0
            drawn |= part & (decode_mask(holes, *size) == 0) if holes else part
    except DataError:
        return None
    return encode_rle(drawn)


def of_runs(text: str, size: Size) -> dict[str, Any] | None:
    """Runs of a competition, "start length start length …" down the columns and from 1, as RLE.

    Only what can be no outline: each run begins behind the one before, and they reach far beyond the image's sides.
    """
    pixels = size[0] * size[1]
    if pixels <= 0 or not _RUNS.fullmatch(text):
        return None
    try:
        numbers = np.array(text.split(), np.int64)
    except (OverflowError, ValueError):
        return None
    starts, ends = numbers[0::2] - 1, numbers[0::2] - 1 + numbers[1::2]
    inside = starts[0] >= 0 and ends[-1] <= pixels and (numbers[1::2] > 0).all()
    if not inside or (starts[1:] < ends[:-1]).any() or starts[-1] <= 2 * max(size):
        return None
    edges = np.stack([starts, ends], axis=1).ravel()
    return {"size": [*size], "counts": np.diff(edges, prepend=0, append=pixels).tolist()}


def unpacked(counts: str) -> str | None:
    """COCO's compressed RLE out of zlib and base64, as some competitions pack it; None where it is not packed."""
    if not counts.startswith("e") or len(counts) % 4 or not _PACKED.fullmatch(counts):
        return None
    try:
        stream = zlib.decompressobj()
        text = stream.decompress(base64.b64decode(counts, validate=True), _LARGEST)
    except (binascii.Error, zlib.error):
        return None
    return text.decode("ascii") if stream.eof and text and all(48 <= c < 112 for c in text) else None
