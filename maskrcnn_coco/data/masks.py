"""Segmentations ↔ masks. Every number is checked before anything is allocated or handed to native code."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from maskrcnn_coco.data import native_masks
from maskrcnn_coco.errors import DataError

MAX_PIXELS = 2**26
"""Largest mask or image, pixels (8192 × 8192)."""
MAX_WALK = 20_000_000
"""Longest outline of one annotation, pixels: the rasteriser walks it in fifths of a pixel."""
_FIX = "maskrcnn-coco check --data PATH lists such annotations; --fix OUT.json leaves them out of a copy"


def decode_mask(segmentation: object, height: int, width: int) -> np.ndarray:
    """The mask of one annotation: COCO's rasterisation (that of pycocotools).

    Args:
        segmentation: JSON text (bytes or str that starts with ``[`` or ``{``) or the decoded value: a list of polygons
            ``[[x1, y1, x2, y2, …], …]`` in pixels (other forms: `plain_polygons`), or RLE
            ``{"size": [height, width], "counts": [ints] or text}``.
            Parts with fewer than 3 points are left out where other parts remain.
        height, width: of the image, pixels.

    Returns:
        uint8 (height, width), 0 or 1.

    Raises:
        DataError: no segmentation, a number that is not finite or far outside the image, an odd number of coordinates,
            RLE of another size or with another sum, more pixels than `MAX_PIXELS`.
    """
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise DataError(
            "the image size cannot be right", got=f"{width} × {height}", expected=f"1 to {MAX_PIXELS} pixels"
        )
    value = _decoded(segmentation)
    if isinstance(value, dict):
        runs = checked_runs(value, height, width)
        bits = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        return np.ascontiguousarray(bits.reshape(width, height).T).view(np.uint8)
    if isinstance(value, list):
        return _rasterise(checked_polygons(value, height, width), height, width)
    raise _bad("it is missing" if value is None else f"it is of type {type(value).__name__}", "polygons or RLE")


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed RLE of a mask, (H, W) bool or 0/1: ``{"size": [H, W], "counts": str}``."""
    rle = native_masks.encode(np.asfortranarray(np.asarray(mask) != 0).view(np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def _bad(what: str, expected: str | None = None) -> DataError:
    return DataError(f"the segmentation cannot be used: {what}", expected=expected, fix=_FIX)


def _decoded(segmentation: object) -> object:
    if isinstance(segmentation, (bytes, memoryview, msgspec.Raw, str)):
        text = segmentation.encode("utf-8", "replace") if isinstance(segmentation, str) else bytes(segmentation)
        if not text:
            return None
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise _bad(str(e), "finite numbers") from e
    return segmentation


def plain_polygons(value: list[Any]) -> list[Any]:
    """Polygons as ``[[x1, y1, x2, y2, …], …]`` where their meaning is plain; ``value`` itself where they are that.

    Converters also write one flat list ``[x1, y1, …]``, points ``[[x1, y1], [x2, y2], …]``, both nested deeper, and
    points ``{"x": …, "y": …}``; a third number of a point (a height, whether it is seen) is left out. What is none of
    these comes back as it is.
    """
    head = value[0] if value else None
    if isinstance(head, list) and len(head) == 3 and (ring := _ring(value)) is not None:
        return [ring]
    if isinstance(head, list) and len(head) > 2 and type(head[0]) in (float, int):
        nested = any(isinstance(p, list) and p and isinstance(p[0], (list, dict)) for p in value)
        return value if not nested else [q for p in value for q in _rings(p)]
    found = _rings(value)
    return value if found == value else found


def _rings(value: Any, depth: int = 0) -> list[Any]:
    if not isinstance(value, list) or not value or depth > 8:
        return [value] if depth else value
    if (ring := _ring(value)) is not None:
        return [ring]
    if all(isinstance(v, list) for v in value):
        return [q for v in value for q in _rings(v, depth + 1)]
    numbers = all(type(v) is float or type(v) is int for v in value)
    return [value] if depth or (numbers and len(value) >= 6) else value


def _ring(value: list[Any]) -> list[Any] | None:
    """One outline out of points of two numbers each, or of three; None where it is none."""
    for read in (_point, _flat):
        points = [p for v in value if (p := read(v)) is not None]
        if len(points) == len(value) >= 3:
            return [v for p in points for v in p]
    return None


def _flat(value: Any) -> tuple[Any, Any] | None:
    """The first two of three numbers: never a polygon, which has an even number of them."""
    numbers = isinstance(value, list) and len(value) == 3 and all(type(v) is float or type(v) is int for v in value)
    return (value[0], value[1]) if numbers else None


def _point(value: Any) -> tuple[Any, Any] | None:
    if isinstance(value, dict):
        value = [value[k] for k in "xy"] if set(value) >= {"x", "y"} else None
    numbers = isinstance(value, list) and len(value) == 2 and all(type(v) is float or type(v) is int for v in value)
    return (value[0], value[1]) if numbers else None


def checked_polygons(value: list[Any], height: int, width: int) -> list[np.ndarray]:
    """The parts as float64 (points, 2) arrays, safe to rasterise. Raises DataError as `decode_mask` does."""
    if not value:
        raise _bad("it is an empty list", "at least one polygon")
    parts = [_part(p) for p in plain_polygons(value)]
    kept = [p for p in parts if len(p) >= 3]
    if not kept:
        raise _bad(f"no part has 3 points (the largest has {max(len(p) for p in parts)})", "3 points or more")
    reach = 100 + 4 * (height + width)
    for p in kept:
        if not (p.min() >= -reach and p.max() <= reach):
            raise _bad(f"a coordinate is {p.flat[np.abs(p).argmax()]:g}", f"inside the {width} × {height} image")
    walk = sum(float(np.abs(np.diff(p, axis=0, append=p[:1])).max(axis=1).sum()) for p in kept)
    if walk > MAX_WALK:
        raise _bad(f"its outline is {walk:.3g} pixels long", f"at most {MAX_WALK:g}")
    return kept


def _part(part: Any) -> np.ndarray:
    if not isinstance(part, (list, tuple)):
        raise _bad(f"a polygon is of type {type(part).__name__}", "[[x1, y1, x2, y2, ...], ...]")
    if len(part) % 2:
        raise _bad(f"a polygon has {len(part)} coordinates", "an even number: x and y of each point")
    if not all(type(v) is float or type(v) is int for v in part):
        raise _bad("a polygon holds something other than numbers", "finite numbers")
    try:
        points = np.array(part, np.float64).reshape(-1, 2)
    except (OverflowError, ValueError) as e:
        raise _bad("a coordinate is too large", "finite numbers") from e
    if not np.isfinite(points).all():
        raise _bad("a coordinate is not finite", "finite numbers")
    return points


def _rasterise(parts: list[np.ndarray], height: int, width: int) -> np.ndarray:
    rles = native_masks.fr_py_objects([p.ravel().tolist() for p in parts], height, width)
    return np.ascontiguousarray(native_masks.decode(native_masks.merge(rles)))


def checked_runs(rle: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Run lengths of an RLE, int64, background first, in column order; they add up to height × width.

    Raises:
        DataError: as `decode_mask`.
    """
    if "counts" not in rle:
        raise _bad(f"it is an object of {', '.join(map(repr, sorted(rle)[:5])) or 'nothing'}, without `counts`", "RLE")
    size, counts = rle.get("size"), rle.get("counts")
    if size is None or list(size if isinstance(size, (list, tuple)) else []) != [height, width]:
        raise _bad(f"the RLE has size {str(size)[:40]}", f"[{height}, {width}], height and width of the image")
    pixels = height * width
    if isinstance(counts, (str, bytes)):
        text = counts.encode("utf-8", "replace") if isinstance(counts, str) else counts
        runs = _runs_of_text(text, pixels)
    elif isinstance(counts, list):
        runs = _runs_of_list(counts, pixels)
    else:
        raise _bad(f"the RLE's counts are of type {type(counts).__name__}", "a list of whole numbers, or text")
    if len(runs) == 0 or runs.min() < 0 or runs.max() > pixels or runs.sum() != pixels:
        raise _bad(f"the RLE's runs add up to {runs.sum()}", f"{pixels} = {width} × {height}, none negative")
    return runs


def _runs_of_list(counts: list[Any], pixels: int) -> np.ndarray:
    if len(counts) > pixels + 2:
        raise _bad(f"the RLE has {len(counts)} runs", f"at most {pixels + 1}")
    if not all(
        (type(c) is int and 0 <= c <= pixels) or (type(c) is float and c.is_integer() and 0 <= c <= pixels)
        for c in counts
    ):
        raise _bad("a run of the RLE is not a whole number in range", f"0 to {pixels}")
    return np.array(counts, np.int64)


def _runs_of_text(text: bytes, pixels: int) -> np.ndarray:
    """COCO's own LEB128: 5 bits a byte from character 48 on, bit 5 goes on, bit 4 of the last is the sign, and from the
    fourth run on the difference to the run before the last is stored."""
    if len(text) > 8 * (pixels + 2):
        raise _bad(f"the RLE's text is {len(text)} characters long", f"at most {8 * (pixels + 2)}")
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise _bad("the RLE's text is damaged", "COCO's compressed RLE")
    last = np.flatnonzero((codes & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 7:
        raise _bad("the RLE's text is damaged: a run of more than 35 bits", "COCO's compressed RLE")
    place = np.arange(len(codes)) - np.repeat(first, lengths)
    values = np.add.reduceat((codes & 31) << (5 * place), first)
    values -= np.where(codes[last] & 16, np.int64(1) << (5 * lengths), 0)
    runs = values
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    return runs
