"""A trained model in use: three lines from a checkpoint, or an exported model, to objects. No torch in this file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from operator import index
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from maskrcnn_coco.data.bit_depth import BitRange
from maskrcnn_coco.data.tile_grid import OVERLAP, Rectangle, grid
from maskrcnn_coco.errors import ConfigError, DataError, MaskRCNNError
from maskrcnn_coco.inference.detections import Found
from maskrcnn_coco.inference.inputs import Picture, Pictures, one_line
from maskrcnn_coco.inference.metadata import Card
from maskrcnn_coco.inference.result import ImageResult, check_score
from maskrcnn_coco.inference.tiles import check_overlap, merge, tile_side
from maskrcnn_coco.wording import clean

_THIN = 32
"""Where a model fails on an image longer than this many times its width, that is why."""


class Engine(Protocol):
    """Something that finds objects on images: a torch model, or an exported one."""

    model: Any

    @property
    def batch_size(self) -> int: ...

    def run(self, images: Sequence[np.ndarray]) -> list[Found]:
        """What is found on images, uint8 (H, W, 3) each, in each image's own pixels."""
        ...


class Predictor:
    """A model, its classes, and `predict`. Made by `load`.

    Attributes:
        model: of a checkpoint, the plain ``nn.Module`` with torchvision's interface and parameter names; of an exported
            model, the session that runs it.
        classes: names from label 1 on. category_ids: the data's ids, in the same order.
    """

    def __init__(self, engine: Engine, card: Card) -> None:
        self.engine = engine
        self.card = card
        self.model = engine.model
        self.classes = list(card.classes)
        self.category_ids = list(card.category_ids)

    def __repr__(self) -> str:
        return f"<Predictor: {type(self.model).__name__}, {', '.join(map(clean, self.classes))}>"

    def predict(
        self,
        images: Any,
        score: float = 0.5,
        tile: int | str | None = None,
        *,
        overlap: float = OVERLAP,
        batch_size: int | None = None,
        bit_range: tuple[float, float] | str | None = None,
        progress: bool | Callable[[int, int | None], None] | None = None,
        on_unreadable: Callable[[str], None] | None = None,
    ) -> Predictions:
        """The objects on ``images``, image by image: nothing is computed before it is asked for.

        Args:
            images: a path, glob, folder (with the folders in it), video, array (H, W, 3), or a list of these. Arrays
                are RGB: uint8, uint16, or float in 0..1; tensors (3, H, W) and Pillow's images are taken, too.
            score: objects below are left out, 0..1.
            tile: cut large images into tiles of this side, pixels; "auto": the side of the images that the model was
                trained on. Objects are put together across seams.
            overlap: share of a tile that its neighbour sees, too, 0..0.75; objects larger than that are joined.
            batch_size: images (of one size) or tiles at a time; default 1 on a CPU, 8 on a GPU.
            bit_range: in files of more than 8 bits, the values that become black and white; default: as in training;
                "auto", or where training had no such files: one range that is found for all files of this call.
            progress: a bar, or a function of (images done, images in all); default: a bar in a terminal.
            on_unreadable: called with a sentence for each image that cannot be read; default: a warning. The rest
                goes on, and ``.failed`` lists them.

        Raises:
            ConfigError: a flag out of range. DataError: a path that does not exist, nothing to read there.
        """
        scale = self.card.bit_range if bit_range is None else None if bit_range == "auto" else _scale(bit_range)
        pictures = Pictures(images, self.card.reader, scale, as_stored=self.card.as_stored)
        side = tile_side(tile, self.card.usual_side)
        share = check_overlap(overlap)
        if batch_size is not None and not (isinstance(batch_size, (int, np.integer)) and batch_size >= 1):
            raise ConfigError("the batch size is no number of images", got=batch_size, expected="1 or more")
        options = _Options(check_score(score), side, share, batch_size or self.engine.batch_size)
        source = None if scale is None else "in training" if bit_range is None else "--bit-range says"
        depth = pictures.depth.sentence(source) if pictures.depth.scale is not None else None
        if on_unreadable is None:  # who takes the sentences of single images reads ``.notes``, too
            for note in pictures.notes:
                warnings.warn(note, stacklevel=2)
        return Predictions(self, pictures, options, progress, on_unreadable or _warn, depth)

    def find(self, images: Sequence[np.ndarray], tile: int | None, overlap: float, batch_size: int) -> list[Found]:
        """Everything found on images of one size, uint8 (H, W, 3), whatever its score; ``tile``: None, or pixels."""
        if tile is None:
            return self.engine.run(images)
        return [self._find_in_tiles(image, tile, overlap, batch_size) for image in images]

    def _find_in_tiles(self, image: np.ndarray, tile: int, overlap: float, batch_size: int) -> Found:
        height, width = image.shape[:2]
        places: list[Rectangle] = grid(height, width, tile, overlap)
        if len(places) == 1:
            return self.engine.run([image])[0]
        found: list[Found] = []
        for n in range(0, len(places), batch_size):
            parts = [np.ascontiguousarray(image[y0:y1, x0:x1]) for x0, y0, x1, y1 in places[n : n + batch_size]]
            found += self.engine.run(parts)
        return merge(places, found, height, width)


@dataclass(frozen=True)
class _Options:
    score: float
    tile: int | None
    overlap: float
    batch_size: int


class Predictions:
    """Results, one an image, in the order given. They are computed as they are asked for, and not kept.

    ``for r in predictions``, ``predictions[0]``, ``len(predictions)`` (not of videos). ``failed``: a sentence for each
    image that could not be read, in the last pass. ``depth``: how images of more than 8 bits are read, where there are.
    """

    def __init__(
        self,
        predictor: Predictor,
        pictures: Pictures,
        options: _Options,
        progress: bool | Callable[[int, int | None], None] | None,
        on_unreadable: Callable[[str], None],
        depth: str | None = None,
    ) -> None:
        self.depth = depth
        self._predictor, self._pictures, self._options = predictor, pictures, options
        self._progress, self._on_unreadable = progress, on_unreadable
        self.failed: list[str] = []

    @property
    def notes(self) -> list[str]:
        """What of what was given is not looked at: pages beyond the first, files of other kinds."""
        return self._pictures.notes

    @property
    def paths(self) -> list[Path]:
        """The files among what was given."""
        return self._pictures.paths

    def __len__(self) -> int:
        if self._pictures.count is None:
            raise TypeError("how many frames a video has is known when it was read to its end")
        return self._pictures.count

    def __repr__(self) -> str:
        count = "a video's" if self._pictures.count is None else str(self._pictures.count)
        return f"<Predictions: {count} images, computed as they are asked for>"

    def __getitem__(self, place: int) -> ImageResult:
        """The result of one image; ``list(predictions)`` gives all.

        Raises:
            IndexError: there are not so many. DataError: that image cannot be read.
        """
        place = index(place)
        if place < 0:
            place += len(self)
        for n, picture in enumerate(self._pictures):
            if n == place:
                ((_, pixels),) = self._pictures.only(picture).loaded()
                if isinstance(pixels, DataError):
                    raise pixels
                (found,) = self._found([(picture, pixels)])
                if isinstance(found, DataError):
                    raise found
                return self._result(picture, pixels, found)
        raise IndexError(f"there is no image {place}")

    def __iter__(self) -> Iterator[ImageResult]:
        from maskrcnn_coco.inference.progress import watched

        self.failed = []
        with watched(self._progress, self._pictures.count) as done:
            batch: list[tuple[Picture, np.ndarray]] = []
            for picture, pixels in self._pictures.loaded(ahead=2 * self._options.batch_size):
                if isinstance(pixels, DataError):
                    self._lost(one_line(pixels), done)
                    continue
                # Images of one size only: a model pads others to the largest, which changes its numbers a little.
                if batch and (len(batch) == self._options.batch_size or batch[0][1].shape != pixels.shape):
                    yield from self._results(batch, done)
                    batch = []
                batch.append((picture, pixels))
            yield from self._results(batch, done)

    def _results(self, batch: list[tuple[Picture, np.ndarray]], done: Callable[[], None]) -> Iterator[ImageResult]:
        for (picture, pixels), found in zip(batch, self._found(batch), strict=True):
            if isinstance(found, DataError):
                self._lost(one_line(found), done)
            else:
                done()
                yield self._result(picture, pixels, found)

    def _found(self, batch: list[tuple[Picture, np.ndarray]]) -> list[Found | DataError]:
        """What is found on each image; an image that the model cannot take costs that image alone."""
        if not batch:
            return []
        o = self._options
        try:
            return list(self._predictor.find([pixels for _, pixels in batch], o.tile, o.overlap, o.batch_size))
        except Exception as e:  # whatever a runtime raises: only the machine's own faults and ours end the work
            if isinstance(e, (MaskRCNNError, MemoryError)) or "out of memory" in str(e).lower():
                raise
            if len(batch) > 1:
                return [found for one in batch for found in self._found([one])]
            (picture, pixels), first = batch[0], clean((str(e).splitlines() or [type(e).__name__])[0])
            size = f"{pixels.shape[1]} × {pixels.shape[0]} pixels"
            if max(pixels.shape[:2]) > _THIN * min(pixels.shape[:2]):
                what = f"{clean(picture.name)} ({size}) is too thin: nothing is left of it at the model's size"
                return [DataError(what, fix="cut it into pieces")]
            return [DataError(f"{clean(picture.name)} ({size}): the model failed on it: {first}", fix="leave it out")]

    def _result(self, picture: Picture, pixels: np.ndarray, found: Found) -> ImageResult:
        card = self._predictor.card
        result = ImageResult(pixels, picture.name, picture.path, found, card.classes, card.category_ids, picture.number)
        return result.at_least(self._options.score)

    def _lost(self, sentence: str, done: Callable[[], None]) -> None:
        self.failed.append(sentence)
        self._on_unreadable(sentence)
        done()


def _scale(given: Any) -> BitRange:
    try:
        low, high = (float(v) for v in given)
    except (TypeError, ValueError):
        low, high = nan, nan
    if not (isfinite(low) and isfinite(high) and low < high):
        raise ConfigError(
            "bit_range is no range of values", got=given, expected='(low, high), low below high, or "auto"'
        )
    return BitRange(low, high)


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=4)
