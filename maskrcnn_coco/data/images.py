"""Images from a folder that is not trusted, into RGB arrays: paths confined, bombs refused, rotation applied."""

from __future__ import annotations

import os
import stat
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from maskrcnn_coco.errors import DataError
from maskrcnn_coco.wording import clean

MAX_PIXELS = 2**26
"""Largest image, pixels (8192 × 8192): beyond, decoding alone would take half a gigabyte."""
MAX_BYTES = 512 << 20
"""Largest image file, bytes."""
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""What is decoded. No format that starts another program or a script (EPS, PDF)."""
_DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    struct.error,
)
_DECODE_ERRORS += (OverflowError, MemoryError, ZeroDivisionError, RuntimeError, AssertionError)
"""What Pillow raises on damaged files, as its fuzzers found."""


def is_thin(height: int, width: int, min_size: int, max_size: int) -> bool:
    """Whether a side of an image is less than a pixel once it is resized for the model: nothing of it is left."""
    short, long = min(height, width), max(height, width)
    return short * min(min_size / short, max_size / long) < 1


def read_image(root: str | Path, file_name: str) -> np.ndarray:
    """The image ``root``/``file_name`` as uint8 (H, W, 3) RGB, turned as its EXIF orientation says.

    Grey and palette images are spread to RGB, transparency is dropped (not blended), 16-bit images are scaled to 8
    bits, of animations the first frame is taken.

    Raises:
        DataError: the name leaves ``root`` (``..``, absolute, through a symbolic link), no such file, not a regular
            file, not an image, truncated, more than `MAX_PIXELS`.
    """
    with open_inside(root, file_name) as file:
        return _decode(file, Path(root) / file_name)


def image_size(root: str | Path, file_name: str) -> tuple[int, int]:
    """(height, width) in pixels as stored, before EXIF rotation, from the header alone. Raises as `read_image`."""
    with open_inside(root, file_name) as file:
        image = _open(file, Path(root) / file_name)
        return image.height, image.width


@dataclass(frozen=True)
class ImageFacts:
    """What a file is: sizes in pixels as shown (after EXIF rotation) and as stored; ``constant`` only where decoded."""

    height: int
    width: int
    stored_height: int
    stored_width: int
    orientation: int
    mode: str
    deep: bool
    constant: bool
    bytes: int

    @property
    def turned(self) -> bool:
        """The EXIF tag turns or mirrors the image."""
        return self.orientation not in (0, 1)


def probe(root: str | Path, file_name: str, *, decode: bool) -> ImageFacts:
    """Look at a file's header and, with ``decode``, at all of its pixels. Raises DataError as `read_image`."""
    path = Path(root) / file_name
    with open_inside(root, file_name) as file:
        size = os.fstat(file.fileno()).st_size
        image = _open(file, path)
        constant = False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # For the tag of a PNG Pillow decodes all of it, because the tag may stand at the end: rare, and dear.
                header_only = image.format == "PNG" and not decode and "exif" not in image.info
                orientation = 1 if header_only else image.getexif().get(0x0112, 1)
                if decode:
                    image.load()
                    pairs = np.array(image.getextrema(), np.float64).reshape(-1, 2)[:3]
                    constant = image.mode != "P" and bool((pairs[:, 0] == pairs[:, 1]).all())
        except (Image.DecompressionBombError, *_DECODE_ERRORS) as e:
            raise _damaged(path, e) from e
    orientation = orientation if orientation in range(1, 9) else 1
    height, width = (image.width, image.height) if orientation >= 5 else (image.height, image.width)
    deep = image.mode.startswith("I") or image.mode == "F" or _png_is_deep(image)
    return ImageFacts(height, width, image.height, image.width, orientation, image.mode, deep, constant, size)


def _png_is_deep(image: Image.Image) -> bool:
    """16-bit RGB PNG: Pillow hands it out as 8-bit RGB, only the tile's raw mode tells."""
    return any("16" in str(tile[-1]) for tile in getattr(image, "tile", ()) or ())


def open_inside(root: str | Path, file_name: str) -> BinaryIO:
    """``root``/``file_name`` opened for reading; a name that leads out of it is never opened. Raises DataError."""
    path = _confined(Path(root), file_name)
    try:
        # O_NONBLOCK: a FIFO must not wait for a writer; it is refused below.
        fd = os.open(
            path,
            os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0),
        )
    except FileNotFoundError as e:
        raise DataError(
            f"the image {clean(path)} does not exist", fix="check the image folder (--images), or check --fix"
        ) from e
    except OSError as e:
        raise DataError(
            f"cannot open the image {clean(path)}: {e.strerror}", fix="check the file and its permissions"
        ) from e
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_BYTES:
        os.close(fd)
        if stat.S_ISREG(info.st_mode):
            raise DataError(
                f"the image file {clean(path)} is too large",
                got=f"{info.st_size} bytes",
                expected=f"at most {MAX_BYTES}",
            )
        raise DataError(
            f"{clean(path)} is not a regular file", expected="an image file", fix="remove it from the annotations"
        )
    return os.fdopen(fd, "rb")


def _confined(root: Path, file_name: str) -> Path:
    parts = file_name.replace("\\", "/").split("/")
    problem = None
    if not file_name or "\0" in file_name:
        problem = "is empty" if not file_name else "holds a NUL character"
    elif file_name.startswith(("/", "\\")) or (len(file_name) > 1 and file_name[1] == ":") or "://" in file_name:
        problem = "is absolute"
    elif ".." in parts:
        problem = "leaves the image folder"
    if problem is None:
        if not _has_link(root, parts):
            return root / file_name
        try:
            real_root = root.resolve(strict=True)
            real = (root / file_name).resolve()
        except (OSError, RuntimeError, ValueError) as e:
            raise DataError(
                f"cannot find the image {clean(repr(file_name))} in {root}: {e}", fix="check the image folder"
            ) from e
        if real.is_relative_to(real_root):
            return real
        problem = "leads out of the image folder through a symbolic link"
    raise DataError(
        f"the file name {clean(repr(file_name))} {problem}, so it is not opened",
        expected=f"a path inside {root}",
        fix="write file names relative to the image folder, and copy linked images into it",
    )


def _has_link(root: Path, parts: list[str]) -> bool:
    """Whether a folder or file below ``root`` is a symbolic link: without one, a path without ``..`` stays inside."""
    path = str(root)
    for part in parts:
        path = os.path.join(path, part)
        if os.path.islink(path):
            return True
    return False


def _open(file: BinaryIO, path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as e:
        raise DataError(
            f"{clean(path)} is not an image", expected=", ".join(FORMATS), fix="replace the file, or drop its entry"
        ) from e
    except (Image.DecompressionBombError, *_DECODE_ERRORS) as e:
        raise _damaged(path, e) from e
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"the image {clean(path)} is too large",
            got=f"{image.width} × {image.height} pixels",
            expected=f"at most {MAX_PIXELS} pixels",
            fix="make it smaller, or cut it into tiles",
        )
    return image


def _damaged(path: Path, error: BaseException) -> DataError:
    text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return DataError(f"the image {clean(path)} cannot be read: {text}", fix="replace the file, or drop its entry")


def _decode(file: BinaryIO, path: Path) -> np.ndarray:
    image = _open(file, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            # Orientation is metadata about the camera; annotation tools draw on the turned image.
            return _rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, *_DECODE_ERRORS) as e:
        raise _damaged(path, e) from e


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(np.asarray(image))
    if image.mode in ("RGBA", "RGBX", "RGBa"):
        return np.ascontiguousarray(np.asarray(image)[:, :, :3])
    if image.mode == "LA":
        image = image.getchannel("L")
    return np.array(image.convert("RGB"))


def _from_deep(values: np.ndarray) -> np.ndarray:
    """16- and 32-bit greys → 8 bits: whole numbers by their upper byte, floats in 0..1 by 255."""
    data = values.astype(np.float64)
    data = np.nan_to_num(data, nan=0.0, posinf=0.0, neginf=0.0)
    top = float(data.max(initial=0.0))
    if values.dtype.kind == "f" and top <= 1.0:
        data = data * 255.0
    elif top > 255.0:
        data = data / 257.0
    grey = np.clip(np.rint(data), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
