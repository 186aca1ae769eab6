"""Samples: the data set of an annotation file; `user_data` holds the wrapper around one that a user brings.

A training sample is a pure function of (seed, epoch, image id, repeat). The data set resizes to the final size itself
(multi-scale), so that the model's own transform has only to normalise and pad (`Batch.resized`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskrcnn_coco.data.audit.targets import MIN_SIDE
from maskrcnn_coco.data.augment import LIGHT, Policy, draw_change, generator
from maskrcnn_coco.data.augmented import Sample, changed, pasted, smallest_scale
from maskrcnn_coco.data.batch import Target
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.images import read_image
from maskrcnn_coco.data.kept_images import KeptImages
from maskrcnn_coco.data.masks import checked_polygons, checked_runs
from maskrcnn_coco.data.outlines import Outline, Outlines, Runs, draw_masks, move_outlines
from maskrcnn_coco.data.plan import mix
from maskrcnn_coco.data.tile_grid import Rectangle, Tiles
from maskrcnn_coco.data.tile_objects import Seen, cut, near
from maskrcnn_coco.data.transforms import Recipe, change_boxes, change_image, draw_recipe, output_size
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.wording import annotation_words

Transform = Callable[[Tensor, Target], tuple[Tensor, Target]]


class CocoDataset(Dataset):
    """Images and targets of an annotation table; also a torchvision data set: ``image, target = ds[i]``.

    Args:
        table: the annotations.
        train: augmented by ``policy``; crowd regions are no targets. Otherwise images come as they are, and crowd
            regions have ``iscrowd`` 1.
        seed: of the run.
        min_size, max_size: of the resized image, pixels, as the model's; training draws the shorter side from
            the policy's scales times min_size.
        policy: what augmentation does, see `augment.Policy`.
        transform: your own augmentation, after this one's, on (image uint8 (3, H, W), target); it may draw from
            torch's, numpy's and Python's global generators, which are seeded for each sample.
        masks: False leaves ``masks`` out, where only boxes are needed.
        tiles: a sample is a tile of an image, see `tile_grid.Tiles`; None: images are not cut.
        kept: images that are cut stay in memory there, for their other tiles; None: each tile decodes its image.

    Attributes:
        outlines: training targets carry `Outlines` as ``outlines`` in place of ``masks``; for models that take them
            (`model.fast.accelerate.takes_outlines`). Never with a ``transform``, which expects masks.
    """

    provisional = False

    def __init__(
        self,
        table: CocoTable,
        *,
        train: bool,
        seed: int = 0,
        min_size: int = 800,
        max_size: int = 1333,
        policy: Policy = LIGHT,
        transform: Transform | None = None,
        masks: bool = True,
        tiles: Tiles | None = None,
        kept: KeptImages | None = None,
    ) -> None:
        self.table, self.train, self.seed, self.policy, self.tiles = table, train, seed, policy, tiles
        self.min_size, self.max_size = min_size, max_size
        self.least_scale = smallest_scale(table, min_size, max_size, tiles) if train and not policy.plain else 0.0
        self.transform, self.masks, self.outlines, self.kept = transform, masks, False, kept
        self.resized = train
        self.epoch = 0
        self._left_out = np.zeros(0, np.int64)
        if len(table):
            table.annotations_of(0)  # its index is made once here, and shared by the workers that are forked later

    def __len__(self) -> int:
        return len(self.table) if self.tiles is None else len(self.tiles)

    @property
    def image_ids(self) -> np.ndarray:
        """int64 (N,); with tiles, an image's id stands once for each."""
        return self.table.image_ids if self.tiles is None else self.table.image_ids[self.tiles.rows]

    @property
    def aspect_ratios(self) -> np.ndarray:
        """Width / height as the file says, float64 (N,); 1 where it does not."""
        height, width = self.table.heights.astype(np.float64), self.table.widths.astype(np.float64)
        if self.tiles is not None:
            left, top, right, bottom = self.tiles.rectangles.T
            cut = right > 0
            height = np.where(cut, bottom - top, height[self.tiles.rows])
            width = np.where(cut, right - left, width[self.tiles.rows])
        known = (height > 0) & (width > 0)
        return np.where(known, width, 1.0) / np.where(known, height, 1.0)

    def quarantine(self, annotation_ids: Iterable[int], image_ids: Iterable[int] | None = None) -> None:
        """Leave these annotations out of all targets from now on; running loaders must be started anew.

        ``image_ids``: the images that they were met in; an id names one annotation of the table without them.
        """
        del image_ids
        self._left_out = np.union1d(self._left_out, np.array(list(annotation_ids), np.int64))

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Image float32 (3, H, W) in 0..1, and its target."""
        image, target = self.sample(self.epoch, index)
        return image / 255, target

    def sample(self, epoch: int, index: int, repeat: int = 0) -> tuple[Tensor, Target]:
        """Image uint8 (3, H, W) and target (see `Batch`): a pure function of (seed, epoch, image id, repeat).

        Raises:
            DataError: the image cannot be read, or a segmentation is broken; names file and annotation.
        """
        number = self._number(index, repeat)
        packed = self.outlines and self.train and self.transform is None
        if not self.train or (self.policy.plain and not self.policy.copy_paste.p):
            image, target = self._resized(epoch, index, number, packed=packed)
        else:
            image, target = self._augmented(epoch, index, number)
            if not packed:
                outlines = target.pop("outlines")
                target |= {"masks": outlines.masks()} if self.masks else {}
        if self.transform is None:
            return image, target
        with seeded(self.seed, epoch, number, 2):
            return self.transform(image, target)

    def _row(self, index: int) -> int:
        """The image that sample ``index`` is of."""
        return index if self.tiles is None else int(self.tiles.rows[index])

    def _number(self, index: int, repeat: int = 0) -> int:
        """What a sample's random numbers follow from: the image's id, the tile after the first, the repeat if any."""
        image_id, tile = int(self.table.image_ids[self._row(index)]), 0
        if self.tiles is not None:
            tile = int(self.tiles.numbers[index])
        if not (tile or repeat):
            return image_id
        return int.from_bytes(mix(image_id, tile, 8, *((repeat,) if repeat else ()))[:7], "little")

    def _augmented(self, epoch: int, index: int, number: int) -> Sample:
        """The sample after the whole policy; the objects pasted into it come from an image that a counter picks."""
        paste = self.policy.copy_paste
        image, target = self._changed(epoch, index, number, 0)
        rng = generator(self.seed, epoch, number, 6)
        if rng.random() >= paste.p or len(self) < 2:
            return image, target
        other = int(rng.integers(len(self) - 1))
        other += other >= index
        try:
            source = self._changed(epoch, other, self._number(other), 1 + number)
        except DataError:
            return image, target  # the other image's fault is told when its own turn comes
        return pasted(image, target, source, paste, rng)

    def _changed(self, epoch: int, index: int, number: int, salt: int) -> Sample:
        image, target = self._resized(epoch, index, number, packed=True, salt=salt)
        # The budget of pixels is that of scale 1, whatever the scale that was drawn.
        size = (image.shape[-2], image.shape[-1])
        limit = output_size(*size, self.min_size, self.max_size)
        rng = generator(self.seed, epoch, number, 7, salt)
        return changed(image, target, draw_change(self.policy, rng, size, limit))

    def _resized(self, epoch: int, index: int, number: int, *, packed: bool, salt: int = 0) -> Sample:
        """The sample at its size, flipped and with the light of the policy; ``packed``: with outlines."""
        row = self._row(index)
        tile = None if self.tiles is None else self.tiles.rectangle(index)
        kept = None if tile is None else self.kept
        pixels = self._pixels(row) if kept is None else kept.of(row, lambda: self._pixels(row))
        whole = (pixels.shape[0], pixels.shape[1])
        if tile is not None:
            pixels = pixels[tile[1] : tile[3], tile[0] : tile[2]].copy()
        size = (pixels.shape[0], pixels.shape[1])
        recipe = Recipe(*size)
        if self.train:
            args = (self.seed, epoch, number, size, self.min_size, self.max_size, self.policy)
            recipe = draw_recipe(*args, least=self.least_scale, salt=salt)
        return change_image(pixels, recipe), self._target(row, whole, tile, recipe, packed=packed)

    def _pixels(self, row: int) -> np.ndarray:
        table = self.table
        size, name = table.size_of(row), table.file_name(row)
        pixels = read_image(table.image_root, name, table.bit_range, size, as_stored=table.as_stored)
        if self.train and min(size) > 0 and pixels.shape[:2] != size:
            # The audit lets no such image through: the file is another one since.
            raise DataError(
                f"{name} has another size than its entry, and its boxes and masks are no longer where they were",
                got=f"{pixels.shape[1]}×{pixels.shape[0]} pixels",
                expected=f"{size[1]}×{size[0]}",
                fix="put the picture back that was annotated; a file must not be changed while it is trained on",
            )
        return pixels

    def _target(
        self, index: int, whole: tuple[int, int], tile: Rectangle | None, recipe: Recipe, *, packed: bool
    ) -> Target:
        """The target of image ``index`` of size ``whole`` (height, width), or of one ``tile`` of it."""
        table = self.table
        rows = table.annotations_of(index)
        rows = rows[(table.labels[rows] > 0) & ~np.isin(table.ann_ids[rows], self._left_out)]
        if self.train:
            rows = rows[~table.iscrowd[rows]]
        size, given, seen_in = whole, table.boxes[rows], None
        crowd, area = table.iscrowd[rows], table.area[rows]
        if tile is not None:
            size = (tile[3] - tile[1], tile[2] - tile[0])
            seen_in, rows = self._cut(index, rows, whole, tile)
            given, crowd = seen_in.boxes, table.iscrowd[rows] | ~seen_in.whole
            area = table.area[rows] * seen_in.share
        boxes = change_boxes(given, size, recipe)
        # Written so that a NaN stays in: it is refused by name later, not dropped here.
        large = np.atleast_1d(~((boxes[:, 2:] - boxes[:, :2]) < MIN_SIDE).any(axis=1))
        gone = self._shrunk(given[~large], size, recipe)
        rows, boxes, crowd, area = rows[large], boxes[large], crowd[large], area[large]
        drawn: Target = {}
        if self.masks:
            if seen_in is None:
                outlines = [self._outline(index, row, size) for row in rows]
            else:
                outlines = [o for o, fits in zip(seen_in.outlines, large, strict=True) if fits]
            if packed:
                moved, seen = move_outlines(outlines, size, recipe)
                drawn = {"outlines": Outlines.of(moved, (recipe.height, recipe.width))}
            else:
                masks, seen = draw_masks(outlines, size, recipe)
                drawn = {"masks": masks if seen.all() else masks[torch.from_numpy(seen)]}
            rows, boxes, crowd, area = rows[seen], boxes[seen], crowd[seen], area[seen]
        elif packed:
            drawn = {"outlines": Outlines.of([_rectangle(b) for b in boxes], (recipe.height, recipe.width))}
        factor = (recipe.height * recipe.width) / (size[0] * size[1])
        return {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.from_numpy(table.labels[rows].astype(np.int64)),
            "image_id": int(table.image_ids[index]),
            "annotation_ids": torch.from_numpy(table.ann_ids[rows]),
            "iscrowd": torch.from_numpy(crowd.astype(np.int64)),
            "area": torch.from_numpy((area * factor).astype(np.float32)),
            **drawn,
            **({"vanished": gone} if gone else {}),
        }

    def _cut(self, index: int, rows: np.ndarray, whole: tuple[int, int], tile: Rectangle) -> tuple[Seen, np.ndarray]:
        """What ``tile`` shows of the annotations ``rows``, and which those are.

        In training, what is cut off too far is no target, as in a crop; in evaluation it is a region to be ignored.
        """
        rows = rows[near(self.table.boxes[rows], tile)]
        boxes = self.table.boxes[rows]
        if self.masks:
            outlines = [self._outline(index, row, whole) for row in rows]
        else:
            corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
            outlines = [_rectangle(c) for c in corners]
        seen = cut(outlines, boxes, whole, tile)
        if self.train:
            keep = seen.whole
            kept_outlines = [o for o, k in zip(seen.outlines, keep, strict=True) if k]
            seen = Seen(kept_outlines, seen.boxes[keep], seen.kept[keep], seen.share[keep], seen.whole[keep])
        return seen, rows[seen.kept]

    def _shrunk(self, given: np.ndarray, size: tuple[int, int], recipe: Recipe) -> int:
        """How many objects of boxes ``given``, too small to be targets now, a scale below 1 made so."""
        full = output_size(*size, self.min_size, self.max_size)
        if not self.train or len(given) == 0 or (recipe.height, recipe.width) == full:
            return 0
        boxes = change_boxes(given, size, Recipe(*full))
        return int(((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(axis=1).sum())

    def _outline(self, index: int, row: int, size: tuple[int, int]) -> Outline:
        raw = self.table.segmentation_raw(row)
        try:
            value = msgspec.json.decode(raw) if raw else None
            if isinstance(value, dict):
                return Runs(checked_runs(value, *size), size)
            if isinstance(value, list):
                return checked_polygons(value, *size)
            problem = (
                "it has no segmentation" if value is None else f"its segmentation is of type {type(value).__name__}"
            )
            got = expected = None
        except msgspec.DecodeError as e:
            problem, got, expected = f"its segmentation is not JSON: {e}", None, None
        except DataError as e:
            problem, got, expected = e.what, e.got, e.expected
        command = f"maskrcnn-coco check {self.table.flags}"
        raise DataError(
            f"{annotation_words([int(self.table.ann_ids[row])])} of image {int(self.table.image_ids[index])} "
            f"({self.table.file_name(index)}): {problem}",
            got=got,
            expected=expected or "polygons or RLE",
            fix=f"{command} lists such annotations; --fix OUT.json leaves them out of a copy",
        )


def _rectangle(box: np.ndarray) -> list[np.ndarray]:
    x0, y0, x1, y1 = np.nan_to_num(box.astype(np.float64))
    return [np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])]


class seeded:  # noqa: N801
    """The global generators of torch, numpy and Python, seeded from ``numbers`` inside, as before after."""

    def __init__(self, *numbers: int) -> None:
        self.seed = int.from_bytes(mix(*numbers)[:8], "little") >> 1

    def __enter__(self) -> None:
        self._before = torch.get_rng_state(), np.random.get_state(), random.getstate()
        torch.manual_seed(self.seed)
        np.random.seed(self.seed % 2**32)
        random.seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch_state, numpy_state, python_state = self._before
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
