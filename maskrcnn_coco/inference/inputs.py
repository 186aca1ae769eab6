"""What a person hands over, as pictures one by one: files, globs, folders, arrays, lists, videos. No torch."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_coco.data.bit_depth import BitRange
from maskrcnn_coco.data.bit_range import Depth, find_depth
from maskrcnn_coco.data.file_names import IMAGE_SUFFIXES
from maskrcnn_coco.data.images import read_image
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.inference.arrays import arrays_of, check_pixels, decoded, pages
from maskrcnn_coco.inference.folder import LIST
from maskrcnn_coco.wording import clean

_OTHERS = (
    *(
        ".heic",
        ".heif",
        ".avif",
        ".jp2",
        ".j2k",
        ".jxl",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".raw",
        ".psd",
        ".svg",
    ),
    *(
        ".dcm",
        ".nii",
        ".nd2",
        ".czi",
        ".lif",
        ".lsm",
        ".oif",
        ".vsi",
        ".svs",
        ".ndpi",
        ".mrxs",
        ".zarr",
        ".npy",
        ".npz",
    ),
    *(".exr", ".hdr", ".pdf", ".eps", ".ico", ".tga", ".fits"),
)
"""Pictures of kinds that are not read: in a folder they are counted and said, not passed over in silence."""
_PAGED = (".tif", ".tiff", ".gif", ".webp")
_LOOKED_AT = 500
"""Files that are opened to count their pages: a folder of a hundred thousand starts at once, too."""
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
    problem: DataError | None = None


@dataclass(frozen=True)
class _Place:
    """A file or an array that was given, not opened yet."""

    name: str
    path: Path | None = None
    array: np.ndarray | None = None
    video: bool = False
    problem: DataError | None = None


class Pictures:
    """The pictures of whatever was given, in order. ``count``: how many, None where a video is among them.

    ``depth``: what was found of images of more than 8 bits. They have one scale: ``bit_range``, else that of the set.
    ``notes``: what of it is passed over, in sentences.
    """

    def __init__(
        self,
        given: Any,
        read: Callable[[Path], np.ndarray] | None = None,
        bit_range: BitRange | None = None,
        *,
        as_stored: bool = False,
    ) -> None:
        self.notes: list[str] = []
        self._places = list(_places(given, self.notes))
        self.depth = Depth(None, 0, 0)
        if read is None:
            files = [p.resolve() for p in self.paths]
            self.notes += _pages(files)
            self.depth = find_depth(
                [(p.parent, p.name) for p in files if p.suffix.lower() in IMAGE_SUFFIXES], bit_range
            )
            read = partial(read_file, bit_range=self.depth.scale or bit_range, as_stored=as_stored)
        self._read = read
        self.count = None if any(p.video for p in self._places) else len(self._places)

    def __iter__(self) -> Iterator[Picture]:
        number = 0
        for place in self._places:
            if not place.video:
                number += 1
                yield Picture(place.name, place.path, number, place.array, place.problem)
                continue
            assert place.path is not None
            from maskrcnn_coco.inference.video import frames

            for n, frame in enumerate(frames(place.path), 1):
                number += 1
                yield Picture(f"{Path(place.name).with_suffix('')}_{n:06d}.png", None, number, frame)

    @property
    def paths(self) -> list[Path]:
        """The files among them, videos too."""
        return [p.path for p in self._places if p.path is not None and p.problem is None]

    def only(self, picture: Picture) -> Pictures:
        """One of these pictures alone."""
        one = Pictures([], self._read)
        one._places = [_Place(picture.name, picture.path, picture.pixels, problem=picture.problem)]
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
        if picture.problem is not None:
            return picture.problem
        try:
            if picture.pixels is not None:
                return check_pixels(picture.pixels, picture.name)
            assert picture.path is not None
            return self._read(picture.path)
        except DataError as e:
            return e


def one_line(problem: DataError) -> str:
    """What is wrong and what to do, in one line; a file that is no image is not to be replaced here, but left out."""
    parts = [problem.what, problem.got and f"got {problem.got}", problem.expected and f"expected {problem.expected}"]
    listed = problem.fix and ("its entry" in problem.fix or "the annotations" in problem.fix)
    parts.append(None if listed or (problem.fix and problem.fix in problem.what) else problem.fix)
    return "; ".join(p for p in parts if p)


def nothing_to_look_at(failed: Sequence[str]) -> DataError:
    """What is raised where all images failed, each with a sentence."""
    if not failed:
        return DataError("there is no image to look at", fix="name readable image files")
    first = failed[0]
    what = first if len(failed) == 1 else f"none of the {len(failed)} images can be looked at; the first: {first}"
    return DataError(what, fix="name readable image files")


def _pages(files: list[Path]) -> list[str]:
    """Files of several pages or frames, of which the first is taken."""
    paged = [p for p in files if p.suffix.lower() in _PAGED][:_LOOKED_AT]
    several = [(p, n) for p in paged if (n := pages(p)) > 1]
    if not several:
        return []
    (first, count), more = several[0], f", and {len(several) - 1} more such files" if several[1:] else ""
    return [f"{clean(first.name)} has {count} pages or frames: only the first is looked at{more}; save each as a file"]


def read_file(path: Path, bit_range: BitRange | None = None, *, as_stored: bool = False) -> np.ndarray:
    """An image file that a person named, uint8 (H, W, 3). A link is followed: it was meant. Raises DataError.

    ``as_stored``: it is not turned as its EXIF tag says, as the model's training images were not.
    """
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as e:
        raise _absent(path) from e
    return read_image(real.parent, real.name, bit_range, as_stored=as_stored)


def _absent(given: str | Path) -> DataError:
    text = str(given)
    if text.startswith(("http:", "https:", "ftp:", "s3:", "gs:")):
        return DataError(
            f"{clean(text)} is an address, and nothing is downloaded", fix="download the image, name the file"
        )
    if not text.strip():
        return DataError(
            "the name of an image is empty", fix="name an image file, a video, a glob or a folder of images"
        )
    fix = "name an image file, a video, a glob or a folder of images"
    other = text.removeprefix("file://").removeprefix("localhost").replace("\\", "/")
    if other != text and os.path.lexists(other):
        fix = f"here it is {other}"
    return DataError(f"the image {clean(text)} does not exist", fix=clean(fix))


def _places(given: Any, notes: list[str]) -> Iterator[_Place]:
    if isinstance(given, (str, Path)):
        yield from _files(given, notes)
    elif (arrays := arrays_of(given)) is not None:
        yield from (_Place(f"image {n}", array=a) for n, a in enumerate(arrays, 1))
    elif (array := decoded(given)) is not None:
        yield _Place("image 1", array=array)
    elif isinstance(given, Iterable) and not isinstance(given, (bytes, bytearray, Mapping)):
        yield from _several(given, notes)
    else:
        raise _strange(given)


def _several(given: Iterable[Any], notes: list[str]) -> Iterator[_Place]:
    """Each of a list. A file that is missing is one image that cannot be read, not the end: unless all of them are."""
    absent: list[_Place] = []
    found = 0
    for n, one in enumerate(given, 1):
        arrays = None if isinstance(one, (str, Path)) else arrays_of(one)
        if arrays is not None:
            names = [f"image {n}"] if len(arrays) == 1 else [f"image {n}.{k}" for k in range(1, len(arrays) + 1)]
            places = [_Place(name, array=a) for name, a in zip(names, arrays, strict=True)]
        elif isinstance(one, (str, Path)):
            try:
                places = list(_files(one, notes))
            except DataError as e:
                places = [_Place(str(one), Path(one), problem=e)]
                absent += places
        elif (array := decoded(one)) is not None:
            places = [_Place(f"image {n}", array=array)]
        else:
            raise _strange(one)
        found += len(places)
        yield from places
    if absent and found == len(absent):
        assert absent[0].problem is not None
        raise absent[0].problem


def _strange(given: Any) -> DataError:
    return DataError(
        "nothing that images can be read from",
        got=type(given).__name__,
        expected="a path, a glob, a folder, a video, an array (H, W, 3), or a list of these",
    )


def _files(given: str | Path, notes: list[str]) -> Iterator[_Place]:
    if not str(given).strip() or (isinstance(given, str) and not given):
        raise _absent(str(given))
    try:
        path = Path(given).expanduser()
        folder, there = path.is_dir(), path.exists()
    except (OSError, ValueError, RuntimeError) as e:  # too long, a NUL character, a home that nobody has
        raise _absent(str(given)[:200]) from e
    if folder:
        yield from _folder(path, notes)
    elif there:
        yield _Place(path.name, path, video=path.suffix.lower() in VIDEO_SUFFIXES)
    elif any(c in str(given) for c in "*?["):
        matches = sorted(Path(m) for m in glob.glob(str(path), recursive=True))
        found = [m for m in matches if m.is_file() and m.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES]
        if not found:
            fix = f"{len(matches)} files match, none is an image" if matches else "check the pattern; quote it: '*.png'"
            raise DataError(f"no image matches {clean(given)}", expected=", ".join(IMAGE_SUFFIXES), fix=fix)
        _passed_over([m for m in matches if m not in set(found)], str(given), notes)
        for match in found:
            yield _Place(match.name, match, video=match.suffix.lower() in VIDEO_SUFFIXES)
    else:
        raise _absent(given)


def _folder(folder: Path, notes: list[str]) -> Iterator[_Place]:
    # Pictures that an earlier run drew into a folder below are no images to look at.
    ours = [p.parent for p in folder.rglob(LIST) if p.parent != folder]
    inside = [
        p for p in folder.rglob("*")
        if not any(part.startswith(".") or part == "__MACOSX" for part in p.relative_to(folder).parts)
        and not any(p.is_relative_to(o) for o in ours)
    ]  # fmt: skip
    images = sorted(p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    said: list[str] = []
    _passed_over(inside, str(folder), said)
    if not images:
        what = f"the folder {clean(folder)} has no images"
        raise DataError(what, got=said[0] if said else None, expected=", ".join(IMAGE_SUFFIXES))
    notes += said
    for path in images:
        yield _Place(path.relative_to(folder).as_posix(), path)


def _passed_over(paths: list[Path], where: str, notes: list[str]) -> None:
    """What looks like pictures and is not looked at, counted by its ending."""
    kinds = Counter(s for p in paths if (s := p.suffix.lower()) in _OTHERS + VIDEO_SUFFIXES)
    if kinds:
        listed = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
        advice = "; name a video itself" if kinds.keys() & set(VIDEO_SUFFIXES) else "; convert them, to .png or .tif"
        notes.append(f"{clean(where)}: not looked at: {listed}{advice}")
