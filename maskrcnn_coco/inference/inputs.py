"""What a person hands over, as pictures one by one: files, globs, folders, arrays, lists, videos. No torch."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_coco.data.bit_depth import BitRange
from maskrcnn_coco.data.bit_range import Depth, find_depth
from maskrcnn_coco.data.images import read_image
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.inference.folder import LIST
from maskrcnn_coco.inference.result import check_pixels
from maskrcnn_coco.wording import clean

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jfif")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True)
class Picture:
    """One image to look at; ``name`` keeps the folders below the one that was named, with "/" between them.

    ``pixels``: an array that was given, or a frame; None: the file ``path`` is read when its turn comes.
    """

    name: str
    path: Path | None
    number: int
    pixels: np.ndarray | None = None


@dataclass(frozen=True)
class _Place:
    """A file or an array that was given, not opened yet."""

    name: str
    path: Path | None = None
    array: np.ndarray | None = None
    video: bool = False


class Pictures:
    """The pictures of whatever was given, in order. ``count``: how many, None where a video is among them.

    ``depth``: what was found of images of more than 8 bits. They have one scale: ``bit_range``, else that of the set.
    """

    def __init__(
        self, given: Any, read: Callable[[Path], np.ndarray] | None = None, bit_range: BitRange | None = None
    ) -> None:
        self._places = list(_places(given))
        self.depth = Depth(None, 0, 0)
        if read is None:
            files = [p.resolve() for p in self.paths]
            self.depth = find_depth(
                [(p.parent, p.name) for p in files if p.suffix.lower() in IMAGE_SUFFIXES], bit_range
            )
            read = partial(read_file, bit_range=self.depth.scale or bit_range)
        self._read = read
        self.count = None if any(p.video for p in self._places) else len(self._places)

    def __iter__(self) -> Iterator[Picture]:
        number = 0
        for place in self._places:
            if not place.video:
                number += 1
                yield Picture(place.name, place.path, number, place.array)
                continue
            assert place.path is not None
            from maskrcnn_coco.inference.video import frames

            for n, frame in enumerate(frames(place.path), 1):
                number += 1
                yield Picture(f"{Path(place.name).with_suffix('')}_{n:06d}.png", None, number, frame)

    @property
    def paths(self) -> list[Path]:
        """The files among them, videos too."""
        return [p.path for p in self._places if p.path is not None]

    def only(self, picture: Picture) -> Pictures:
        """One of these pictures alone."""
        one = Pictures([], self._read)
        one._places = [_Place(picture.name, picture.path, picture.pixels)]
        return one

    def loaded(self, ahead: int = 4) -> Iterator[tuple[Picture, np.ndarray | DataError]]:
        """Each picture with its pixels, uint8 (H, W, 3), or with why it has none; files are read ahead."""
        coming: list[tuple[Picture, Any]] = []
        with ThreadPoolExecutor(2, "pictures") as pool:
            try:
                for picture in self:
                    coming.append((picture, pool.submit(self._pixels, picture)))
                    if len(coming) > ahead:
                        first, pixels = coming.pop(0)
                        yield first, pixels.result()
                for first, pixels in coming:
                    yield first, pixels.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _pixels(self, picture: Picture) -> np.ndarray | DataError:
        try:
            if picture.pixels is not None:
                return check_pixels(picture.pixels, picture.name)
            assert picture.path is not None
            return self._read(picture.path)
        except DataError as e:
            return e


def read_file(path: Path, bit_range: BitRange | None = None) -> np.ndarray:
    """An image file that a person named, uint8 (H, W, 3). A link is followed: it was meant. Raises DataError."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as e:
        raise DataError(f"the image {clean(path)} does not exist", fix="name an image file or a folder") from e
    return read_image(real.parent, real.name, bit_range)


def _places(given: Any) -> Iterator[_Place]:
    if isinstance(given, (str, Path)):
        yield from _files(given)
    elif (array := _array(given)) is not None:
        yield _Place("image 1", array=array)
    elif isinstance(given, Iterable) and not isinstance(given, (bytes, bytearray)):
        for n, one in enumerate(given, 1):
            array = None if isinstance(one, (str, Path)) else _array(one)
            if array is not None:
                yield _Place(f"image {n}", array=array)
            elif isinstance(one, (str, Path)):
                yield from _files(one)
            else:
                raise _strange(one)
    else:
        raise _strange(given)


def _strange(given: Any) -> DataError:
    return DataError(
        "nothing that images can be read from",
        got=type(given).__name__,
        expected="a path, a glob, a folder, a video, an array (H, W, 3), or a list of these",
    )


def _array(given: Any) -> np.ndarray | None:
    """Arrays, tensors (3, H, W) or (H, W, 3), and Pillow's images, as arrays; None for anything else."""
    if isinstance(given, np.ndarray):
        return given
    if hasattr(given, "detach") and hasattr(given, "cpu"):
        array = np.asarray(given.detach().cpu())
        channels_first = array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3, 4)
        return np.moveaxis(array, 0, 2) if channels_first else array
    if hasattr(given, "getexif") and hasattr(given, "convert"):
        return np.asarray(given if str(given.mode).startswith("I;16") else given.convert("RGB"))
    return None


def _files(given: str | Path) -> Iterator[_Place]:
    path = Path(given).expanduser()
    if path.is_dir():
        yield from _folder(path)
    elif path.exists():
        yield _Place(path.name, path, video=path.suffix.lower() in VIDEO_SUFFIXES)
    elif any(c in str(given) for c in "*?["):
        matches = sorted(Path(m) for m in glob.glob(str(path), recursive=True))
        found = [m for m in matches if m.is_file() and m.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES]
        if not found:
            raise DataError(f"nothing matches {clean(given)}", expected=", ".join(IMAGE_SUFFIXES))
        for match in found:
            yield _Place(match.name, match, video=match.suffix.lower() in VIDEO_SUFFIXES)
    else:
        raise DataError(
            f"the image {clean(given)} does not exist", fix="name an image file, a video, a glob or a folder of images"
        )


def _folder(folder: Path) -> Iterator[_Place]:
    # Pictures that an earlier run drew into a folder below are no images to look at.
    ours = [p.parent for p in folder.rglob(LIST) if p.parent != folder]
    inside = sorted(
        p for p in folder.rglob("*")
        if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
        and not any(p.is_relative_to(o) for o in ours)
    )  # fmt: skip
    if not inside:
        raise DataError(f"the folder {clean(folder)} has no images", expected=", ".join(IMAGE_SUFFIXES))
    for path in inside:
        yield _Place(path.relative_to(folder).as_posix(), path)
