"""Images from a folder that is not trusted, into RGB arrays: paths confined, bombs refused, rotation applied."""

from __future__ import annotations

import math
import os
import re
import shlex
import stat
import struct
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from maskrcnn_coco.data.bit_depth import BitRange, auto_range, deep_values, is_deep, spread_of, to_bytes
from maskrcnn_coco.data.file_kinds import HEAD, kind_of
from maskrcnn_coco.data.jpeg import read_jpeg
from maskrcnn_coco.data.tiff import TiffFacts, tiff_facts
from maskrcnn_coco.data.views import views_of
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.system.files import READING
from maskrcnn_coco.wording import clean

MAX_PIXELS = 2**26
"""Largest image, pixels (8192 × 8192): beyond, decoding alone would take half a gigabyte."""
MAX_BYTES = 512 << 20
"""Largest image file, bytes."""
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""What is decoded. No format that starts another program or a script (EPS, PDF)."""
_SHALLOW = (".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".gif", ".webp")
"""Formats of 8 bits."""
_MOVING = ("GIF", "WEBP", "PNG")
"""Formats of animations; of the others that hold several pictures, a camera's JPEG has only another view."""
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


def too_thin(height: int, width: int, longest: int) -> DataError | None:
    """Why nothing is left of an image of these sides at a longest side of ``longest`` pixels; None where it is."""
    if min(height, width) < 1 or not is_thin(height, width, longest, longest):
        return None
    return DataError(
        f"it is too thin: nothing is left of {width}×{height} pixels at a longest side of {longest}",
        fix="cut it into pieces, or raise --max-size",
    )


def read_image(
    root: str | Path,
    file_name: str,
    bit_range: BitRange | None = None,
    size: tuple[int, int] | None = None,
    *,
    as_stored: bool = False,
) -> np.ndarray:
    """The image ``root``/``file_name`` as uint8 (H, W, 3) RGB, turned as its EXIF orientation says.

    Grey and palette images are spread to RGB, transparency is dropped (not blended), of animations and files of several
    pages the first is taken.

    Args:
        bit_range: the values that become 0 and 255 in images of more than 8 bits: one scale for a whole set. None: the
            image's own, which makes two images of one set differ (`data.bit_range` finds a set's).
        size: (height, width) that the annotations speak of: where only the stored image has it, it is not turned.
        as_stored: do not turn it, unless ``size`` is only that of the turned image.

    Raises:
        DataError: the name leaves ``root`` (``..``, absolute, through a symbolic link), no such file, not a regular
            file, not an image, truncated, more than `MAX_PIXELS`, bands or numbers that are not supported.
    """
    with open_inside(root, file_name) as file:
        return _decode(file, Path(root) / file_name, bit_range, size, as_stored)


def image_size(root: str | Path, file_name: str) -> tuple[int, int]:
    """(height, width) in pixels as stored, before EXIF rotation, from the header alone. Raises as `read_image`."""
    with open_inside(root, file_name) as file:
        image = _open(file, Path(root) / file_name)
        return image.height, image.width


@dataclass(frozen=True)
class Levels:
    """What is left of an image as bytes: ``low``, ``high`` of all channels; ``constant``: each channel is one value.

    For deep images also ``count`` different bytes of ``values`` different numbers, that go from ``first`` to ``last``.
    """

    low: int
    high: int
    constant: bool
    count: int = 0
    values: int = 0
    first: float = 0.0
    last: float = 0.0


@dataclass(frozen=True)
class ImageFacts:
    """What a file is: sizes in pixels as shown (after EXIF rotation) and as stored; ``levels`` only where decoded.

    ``deep``: more than 8 bits a channel. ``tiff``: pages and bands, where it is a TIFF. ``moving``: an animation.
    ``views``: as of `views_of`, where they were asked for.
    """

    height: int
    width: int
    stored_height: int
    stored_width: int
    orientation: int
    mode: str
    deep: bool
    bytes: int
    levels: Levels | None = None
    tiff: TiffFacts | None = None
    moving: bool = False
    views: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def turned(self) -> bool:
        """The EXIF tag turns or mirrors the image."""
        return self.orientation not in (0, 1)


def probe(
    root: str | Path, file_name: str, *, decode: bool, bit_range: BitRange | None = None, views: bool = False
) -> ImageFacts:
    """Look at a file's header and, with ``decode``, at all of its pixels. Raises DataError as `read_image`."""
    path = Path(root) / file_name
    with open_inside(root, file_name) as file:
        size = os.fstat(file.fileno()).st_size
        image = _open(file, path)
        stored = (image.height, image.width)
        tiff = tiff_facts(file) if image.format == "TIFF" else None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # For the tag of a PNG Pillow decodes all of it, because the tag may stand at the end: rare, and dear.
                header_only = image.format == "PNG" and not decode and "exif" not in image.info
                deep = is_deep(image)  # before the pixels are read: afterwards the tiles are gone
                moving = image.format in _MOVING and bool(getattr(image, "is_animated", False))
                levels, pixels = _levels(file, image, deep, bit_range) if decode else (None, image)
                orientation = 1 if header_only else image.getexif().get(0x0112, 1)
                orientation = orientation if orientation in range(1, 9) else 1
                small = views_of(pixels, orientation) if views and decode else None
        except (Image.DecompressionBombError, *_DECODE_ERRORS) as e:
            raise _damaged(path, e) from e
    height, width = stored[::-1] if orientation >= 5 else stored
    return ImageFacts(
        height, width, stored[0], stored[1], orientation, image.mode, deep, size, levels, tiff, moving, small
    )


def _levels(file: BinaryIO, image: Image.Image, deep: bool, bit_range: BitRange | None) -> tuple[Levels, Image.Image]:
    """What is left of an image as bytes, and these as a picture."""
    if not deep:
        image.load()
        pairs = np.array(image.convert("RGB").getextrema() if image.mode == "P" else image.getextrema(), np.float64)
        pairs = pairs.reshape(-1, 2)[:3]
        levels = Levels(int(pairs[:, 0].min()), int(pairs[:, 1].max()), bool((pairs[:, 0] == pairs[:, 1]).all()))
        return levels, image
    values = deep_values(file, image, FORMATS)
    shown = to_bytes(values, bit_range or _own_range(values))
    pixels = shown.reshape(-1, 3)
    few = values.reshape(-1)[:: max(1, values.size // 250_000)]
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    different = int(np.count_nonzero(np.bincount(pixels.reshape(-1), minlength=256)))
    numbers = np.unique(few[np.isfinite(few)])
    first, last = (float(numbers[0]), float(numbers[-1])) if len(numbers) else (math.nan, math.nan)
    constant = bool((low == high).all())
    levels = Levels(int(low.min()), int(high.max()), constant, different, len(numbers), first, last)
    return levels, Image.fromarray(shown)


def is_deep_file(root: str | Path, file_name: str) -> bool:
    """Whether an image has more than 8 bits a channel, from its first bytes. Raises DataError as `read_image`."""
    if file_name.lower().endswith(_SHALLOW):
        return False
    with open_inside(root, file_name) as file:
        head = file.read(26)
        if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 26:
            return head[24] == 16
        file.seek(0)
        return is_deep(_open(file, Path(root) / file_name))


def raw_values(root: str | Path, file_name: str) -> np.ndarray | None:
    """The numbers of an image of more than 8 bits, (H, W) or (H, W, 3); None for others. Raises as `read_image`."""
    path = Path(root) / file_name
    with open_inside(root, file_name) as file:
        image = _open(file, path)
        if not is_deep(image):
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return deep_values(file, image, FORMATS)
        except (Image.DecompressionBombError, *_DECODE_ERRORS) as e:
            raise _damaged(path, e) from e


def is_file_inside(root: Path, file_name: str) -> bool:
    """Whether a file is there; names that lead out of ``root`` are not looked at: reading refuses them and says why."""
    if not file_name or "\0" in file_name or file_name.startswith(("/", "\\")):
        return False
    if ".." in file_name and ".." in file_name.replace("\\", "/").split("/"):
        return False
    try:
        return os.path.isfile(f"{root}/{file_name}")
    except ValueError:
        return False


def open_inside(root: str | Path, file_name: str) -> BinaryIO:
    """``root``/``file_name`` opened for reading; a name that leads out of it is never opened. Raises DataError."""
    path = _confined(Path(root), file_name)
    try:
        # A FIFO does not wait for a writer; it is refused below.
        fd = os.open(path, READING | getattr(os, "O_NOFOLLOW", 0))
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


_DRIVE = re.compile(r".:" if os.name == "nt" else r"[A-Za-z]:[\\/]")
"""What begins on a drive of its own: ``C:\\…`` anywhere; on Windows ``C:name`` too. ``1:2.png`` is a name elsewhere."""


def _confined(root: Path, file_name: str) -> Path:
    parts = file_name.replace("\\", "/").split("/")
    problem = None
    if not file_name or "\0" in file_name:
        problem = "is empty" if not file_name else "holds a NUL character"
    elif file_name.startswith(("/", "\\")) or _DRIVE.match(file_name) or "://" in file_name:
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
        raise _unknown(file, path) from e
    except (Image.DecompressionBombError, *_DECODE_ERRORS) as e:
        raise _damaged(path, e) from e
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f"{image.width} × {image.height} pixels")
    return image


def _too_large(path: Path, got: str) -> DataError:
    fix = "make it smaller, or cut it into tiles"
    return DataError(f"the image {clean(path)} is too large", got=got, expected=f"at most {MAX_PIXELS} pixels", fix=fix)


def _unknown(file: BinaryIO, path: Path) -> DataError:
    """The error for what Pillow does not know: no image, or a TIFF with bands or numbers that it has no mode for."""
    tiff = tiff_facts(file)
    if tiff is None:
        file.seek(0)
        kind = kind_of(file.read(HEAD), path.name)
        what = "not an image" if kind is None or (kind.what.endswith(" image") and not kind.fix) else kind.what
        fix = (kind.fix if kind is not None else "") or "replace the file, or drop its entry"
        how = f"; {kind.fix}" if kind is not None and kind.fix else ""
        return DataError(f"{clean(path)} is {what}{how}", expected=", ".join(FORMATS), fix=fix)
    bands = "-b 1 -b 2 -b 3" if tiff.bands >= 3 else "-b 1"
    plain = tiff.kind == "unsigned" and tiff.bits in (8, 16)
    kind = "" if plain else " -ot Float32" if tiff.bands < 3 else " -ot UInt16 -scale"
    return DataError(
        f"{clean(path)} is a TIFF of {tiff}: that kind is not supported",
        expected="1, 3 or 4 bands of 8 or 16 bits, or one band of 32-bit floats",
        fix=f"convert it, for example: gdal_translate {bands}{kind} {clean(shlex.quote(str(path)))} OUT.tif",
    )


def _damaged(path: Path, error: BaseException) -> DataError:
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(path, str(error).split(" exceeds")[0])
    text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return DataError(f"the image {clean(path)} cannot be read: {text}", fix="replace the file, or drop its entry")


def _decode(
    file: BinaryIO, path: Path, bit_range: BitRange | None, size: tuple[int, int] | None, as_stored: bool
) -> np.ndarray:
    image = _open(file, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if is_deep(image):
                values = deep_values(file, image, FORMATS)
                return to_bytes(values, bit_range or _own_range(values))
            if _is_meant_as_stored(image, size, as_stored):
                image.load()
                return _rgb(image)
            pixels = read_jpeg(file, image)
            if pixels is not None:
                return pixels
            image.load()
            # Orientation is metadata about the camera; annotation tools draw on the turned image.
            return _rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, *_DECODE_ERRORS) as e:
        raise _damaged(path, e) from e


def _is_meant_as_stored(image: Image.Image, size: tuple[int, int] | None, as_stored: bool) -> bool:
    """The EXIF tag turns the image, and it was annotated before that: by the size of its entry, or as is known."""
    stored = (image.height, image.width)
    if as_stored and (size is None or size == stored or min(size) < 1):
        return True
    return size == stored and stored[0] != stored[1] and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)


def _own_range(values: np.ndarray) -> BitRange:
    spread = spread_of(values)
    return auto_range([] if spread is None else [spread])


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode in ("RGBA", "RGBX", "RGBa"):
        return np.ascontiguousarray(np.asarray(image)[:, :, :3])
    if image.mode == "LA":
        image = image.getchannel("L")
    return np.array(image.convert("RGB"))
