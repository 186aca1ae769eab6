"""Arrays, tensors and pictures in memory as a person hands them over, as uint8 (H, W, 3). No torch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from maskrcnn_coco.data.images import FORMATS, MAX_PIXELS
from maskrcnn_coco.errors import DataError

_CHANNELS = (1, 3, 4)


def arrays_of(given: Any) -> list[np.ndarray] | None:
    """The pictures in an array, a tensor, a batch of either, or a Pillow image; None for anything else.

    Channels may come first or last; where both would do they are last. Four axes are a batch.
    """
    array = _array(given)
    if array is None:
        return None
    parts = list(array) if array.ndim == 4 else [array]
    return [channels_last(p) for p in parts]


def _array(given: Any) -> np.ndarray | None:
    if isinstance(given, np.ndarray):
        return np.asarray(given)
    if hasattr(given, "detach") and hasattr(given, "cpu"):
        tensor = given.detach().cpu()
        # NumPy has no bfloat16; float16 and float32 come through as they are.
        return np.asarray(tensor.float() if "bfloat16" in str(tensor.dtype) else tensor)
    if hasattr(given, "getexif") and hasattr(given, "convert"):
        return _of_pillow(given)
    return None


def _of_pillow(image: Any) -> np.ndarray:
    """Turned as its EXIF tag says, as files are; deep images keep their numbers."""
    turned = ImageOps.exif_transpose(image)
    image = image if turned is None else turned
    return np.asarray(image if str(image.mode).startswith("I;16") else image.convert("RGB"))


def channels_last(array: np.ndarray) -> np.ndarray:
    """(H, W, C) of (C, H, W); anything else as it is."""
    first = array.ndim == 3 and array.shape[0] in _CHANNELS and array.shape[2] not in _CHANNELS
    return np.moveaxis(array, 0, 2) if first else array


def decoded(given: Any) -> np.ndarray | None:
    """The picture in the bytes of an image file, or in a file that is open for reading; None where it is neither.

    Raises:
        DataError: bytes of no image.
    """
    read = getattr(given, "read", None)
    content = read() if callable(read) else given
    if not isinstance(content, (bytes, bytearray, memoryview)):
        return None
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} × {image.height} pixels")
            return _of_pillow(image)
    except Exception as e:  # Pillow raises many kinds on bytes that are no image
        what = f"{len(content)} bytes that are no image: {str(e)[:80]}"
        raise DataError(what, expected="a path, or the content of an image file: " + ", ".join(FORMATS)) from e


def pages(path: Path) -> int:
    """How many pages or frames an image file has; 1 where it cannot be told."""
    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            return int(getattr(image, "n_frames", 1))
    except Exception:  # whatever Pillow raises on damaged files: reading it will say so
        return 1


def check_pixels(pixels: np.ndarray, what: str) -> np.ndarray:
    """An array as a picture, uint8 (H, W, 3).

    Args:
        pixels: (H, W, 3), (H, W, 4), (H, W, 1) or (H, W); uint8, uint16 (65,535 is white), bool, other integers from
            0 to 255, or float in 0..1.

    Raises:
        DataError: another shape or kind of numbers, nothing in it, or numbers outside their range.
    """
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in _CHANNELS or 0 in pixels.shape:
        raise DataError(
            f"{what} is not a picture", got=f"an array of shape {pixels.shape}",
            expected="(H, W, 3) in RGB, or (H, W) grey", fix=_how(pixels.shape),
        )  # fmt: skip
    if pixels.dtype.kind == "f":
        pixels = _of_floats(pixels, what)
    elif pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        pixels = np.rint(pixels / 257.0)
    elif pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    elif pixels.dtype.kind in "iu" and pixels.dtype != np.uint8:
        low, high = int(pixels.min()), int(pixels.max())
        if low < 0 or high > 255:
            raise DataError(
                f"{what}: numbers of type {pixels.dtype} from {low} to {high}", expected="0 to 255",
                fix="scale them: (255.0 * (x - low) / (high - low)).astype('uint8'), one scale for all images",
            )  # fmt: skip
    elif pixels.dtype != np.uint8:
        raise DataError(f"{what}: numbers of type {pixels.dtype}", expected="uint8, uint16, bool, or float in 0..1")
    pixels = pixels.astype(np.uint8)
    pixels = np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels[:, :, :3]
    return np.ascontiguousarray(pixels)


def _of_floats(pixels: np.ndarray, what: str) -> np.ndarray:
    """Floats in 0..1 as 0..255. Resizing overshoots by a rounding error, which is no other range."""
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -1e-3 and high <= 1.0 + 1e-3):  # NaN fails, too
        if not (isfinite(low) and isfinite(high)):
            count = int((~np.isfinite(pixels)).sum())
            raise DataError(
                f"{what}: {count} of its {pixels.size} numbers are not finite", expected="floats in 0 to 1",
                fix="np.nan_to_num(x) makes them 0, if that is what they mean",
            )  # fmt: skip
        fix = "divide by 255, or hand over uint8" if 1.0 < high <= 255.0 and low >= 0 else "scale them to 0..1"
        raise DataError(f"{what}: floats from {low:g} to {high:g}", expected="0 to 1", fix=fix)
    return np.rint(np.clip(pixels.astype(np.float64), 0.0, 1.0) * 255.0)


def _how(shape: Sequence[int]) -> str | None:
    if len(shape) == 3 and shape[2] > 4:
        return f"choose three of its {shape[2]} channels: image[:, :, :3]"
    return "a batch of batches is given image by image" if len(shape) > 4 else None
