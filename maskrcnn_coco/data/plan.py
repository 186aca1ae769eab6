"""Which images make step s: a pure function of (seed, step, quarantine), so that a run resumes anywhere at no cost."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from maskrcnn_coco.errors import DataError


class SampleKey(NamedTuple):
    """What a training sample is a function of, with the run's seed. ``index``: position in the data set."""

    epoch: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    image_id: int
    repeat: int = 0
    """How often the sample came before in this epoch, where `Plan` repeats samples: each time it is drawn anew."""

    def anew(self) -> SampleKey:
        """The same sample with other random numbers than it has anywhere else in the epoch."""
        return self._replace(repeat=self.repeat + ANEW)


ANEW = 1 << 20
"""Added to ``repeat`` for another draw: no sample comes so often in one epoch."""


def mix(*numbers: int) -> bytes:
    """32 bytes from a few integers, the same on every machine: the source of all counter-based random numbers here."""
    return hashlib.blake2b(":".join(map(str, numbers)).encode(), digest_size=32).digest()


def aspect_groups(ratios: np.ndarray, *, k: int = 3) -> np.ndarray:
    """Group of each image by its aspect ratio (width / height, (N,)), int64 (N,), as torchvision's reference does.

    The bins are 2k + 1 edges between 1/2 and 2, evenly spaced in the logarithm.
    """
    edges = 2.0 ** np.linspace(-1, 1, 2 * k + 1)
    return np.searchsorted(edges, ratios, side="right").astype(np.int64)


def times_before(rows: np.ndarray) -> np.ndarray:
    """How often each of ``rows``, int64 (N,), stands before its place, int64 (N,)."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    before = np.empty_like(rows)
    before[order] = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    return before


class Plan:
    """The training images in order, for one rank.

    Each epoch is a permutation of all images, cut into micro-batches of images of similar aspect ratio. Its last step
    is filled from the start of the same permutation, so each image is seen at least once an epoch and every step, on
    every rank, has the same number of images. Ranks get disjoint parts of the same global batch.

    Args:
        seed: of the run.
        image_ids: int64 (N,), one a sample; an image that is cut into tiles has several. Key ``index`` is the position.
        batch_size: images of one micro-batch of one rank. accumulate: micro-batches of one step.
        rank, world: this process among how many.
        aspect_ratios: width / height, (N,); None puts all images together.
        repeats: how often each image comes an epoch, (N,), 1 or more; 2.3 is twice, in three epochs of ten three
            times. None: once.

    Raises:
        DataError: no images.
    """

    def __init__(
        self,
        seed: int,
        image_ids: Sequence[int] | np.ndarray,
        batch_size: int,
        accumulate: int = 1,
        *,
        rank: int = 0,
        world: int = 1,
        aspect_ratios: np.ndarray | None = None,
        repeats: np.ndarray | None = None,
    ) -> None:
        self.image_ids = np.array(image_ids, np.int64)
        if len(self.image_ids) == 0:
            raise DataError("there are no images to train on", fix="check --data")
        if not (batch_size >= 1 and accumulate >= 1 and 0 <= rank < world):
            raise ValueError(f"batch_size {batch_size}, accumulate {accumulate}, rank {rank} of {world}")
        self.seed, self.batch_size, self.accumulate, self.rank, self.world = seed, batch_size, accumulate, rank, world
        self.groups = aspect_groups(np.ones(len(self.image_ids)) if aspect_ratios is None else aspect_ratios)
        self.repeats = None if repeats is None else np.maximum(np.asarray(repeats, np.float64), 1.0)
        images = len(self.image_ids) if self.repeats is None else round(float(self.repeats.sum()))
        self.images_per_epoch = images
        """Samples an epoch, before the last step is filled."""
        self.steps_per_epoch = math.ceil(images / (batch_size * accumulate * world))
        self._bad = np.zeros(len(self.image_ids), bool)
        self._unknown: set[int] = set()
        self._redrawn: set[tuple[int, int, int]] = set()
        self._index = {int(i): n for n, i in enumerate(self.image_ids)}
        self._named: np.ndarray | None = None
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.image_ids)

    def step(self, step: int) -> tuple[int, list[list[SampleKey]]]:
        """Epoch, and this rank's micro-batches, of planned step ``step`` (from 0, over all epochs)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        micros = self._order(epoch)[within, :, self.rank].tolist()
        return epoch, [[self._key(epoch, row, repeat) for row, repeat in micro] for micro in micros]

    def _order(self, epoch: int) -> np.ndarray:
        """Image rows of an epoch before quarantine and which time it is, int64 (steps, accumulate, world, batch, 2)."""
        if epoch not in self._orders:
            if len(self._orders) >= 2:
                self._orders.clear()
            rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            shape = (self.steps_per_epoch, self.accumulate, self.world, self.batch_size)
            filled = np.resize(self._drawn(rng), math.prod(shape))
            # A stable sort by group keeps the shuffled order within a group; only batches on a border are mixed.
            # Without repeats, what fills the last step comes as it came before: runs of today keep their bits.
            repeat = np.zeros_like(filled) if self.repeats is None else times_before(filled)
            ordered = np.stack([filled, repeat], axis=1)[np.argsort(self.groups[filled], kind="stable")]
            batches = ordered.reshape(-1, self.batch_size, 2)
            self._orders[epoch] = batches[rng.permutation(len(batches))].reshape(*shape, 2)
        return self._orders[epoch]

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        """Image rows of one epoch in random order; with ``repeats`` each comes its whole part, or once more by lot.

        The lot is systematic (one random offset for all), so that every epoch has the same number of samples.
        """
        if self.repeats is None:
            return rng.permutation(len(self.image_ids))
        ends = np.cumsum(self.repeats) * (self.images_per_epoch / self.repeats.sum())
        ends[-1] = self.images_per_epoch
        times = np.diff(np.floor(ends + rng.random()), prepend=0).astype(np.int64)
        times[-1] += self.images_per_epoch - times.sum()
        return rng.permutation(np.repeat(np.arange(len(times)), times))

    def _key(self, epoch: int, row: int, repeat: int) -> SampleKey:
        if self._bad[row]:
            row = self._substitute(epoch, row)
        key = SampleKey(epoch, row, int(self.image_ids[row]), repeat)
        while (epoch, row, key.repeat) in self._redrawn:
            key = key.anew()
        return key

    def redraw(self, draws: Iterable[Sequence[int]]) -> None:
        """From now on other random numbers take the place of these ``(epoch, index, repeat)``."""
        self._redrawn.update((int(epoch), int(index), int(repeat)) for epoch, index, repeat in draws)

    def _substitute(self, epoch: int, row: int) -> int:
        """A healthy image for a quarantined one, of the same group where there is one.

        The first healthy one in a random order that depends on (seed, epoch, row) alone: what else is in quarantine,
        and since when, changes nothing as long as the substitute itself is healthy.
        """
        same = np.flatnonzero(self.groups == self.groups[row])
        candidates = same if not self._bad[same].all() else np.arange(len(self.image_ids))
        draw = np.frombuffer(mix(self.seed, epoch, row, 1), np.uint64)[:2]
        order = np.random.Generator(np.random.Philox(key=draw)).permutation(candidates)
        return int(order[~self._bad[order]][0])

    @property
    def quarantined(self) -> list[int]:
        """Image ids that are left out, sorted."""
        return sorted({*self.image_ids[self._bad].tolist(), *self._unknown})

    def quarantine(self, image_ids: Iterable[int]) -> None:
        """Leave these images out from now on; deterministic substitutes take their places, so no step changes its size.

        Ids that are not in the plan are remembered, for `rename`.

        Raises:
            DataError: no image would be left.
        """
        bad = self._bad.copy()
        unknown = set(self._unknown)
        for image_id in image_ids:
            row = self._index.get(int(image_id))
            if row is None:
                unknown.add(int(image_id))
            elif len(self._index) == len(self.image_ids):
                bad[row] = True
            else:
                bad |= self.image_ids == int(image_id)  # all tiles of that image
        self._set_bad(bad)
        self._unknown = unknown

    def quarantine_at(self, index: int) -> None:
        """Leave out what is at ``index``: a user's image that cannot be read has not told its id.

        Raises:
            DataError: no image would be left.
        """
        self.expect_names()
        bad = self._bad.copy()
        bad[index] = True
        self._set_bad(bad)

    def _set_bad(self, bad: np.ndarray) -> None:
        if bad.all():
            raise DataError(
                f"no training image is left: all {len(bad)} are in quarantine",
                fix="see quarantine.json for the reasons; maskrcnn-coco check --fix repairs what can be repaired",
            )
        self._bad = bad

    def expect_names(self) -> None:
        """From now on the ids are only placeholders until `rename` tells the true ones: a user's data set.

        Ids in quarantine were true ones (from an earlier part of the run, or a file) and wait for their images.
        """
        if self._named is None:
            self._named = np.zeros(len(self.image_ids), bool)
            self._unknown |= set(self.image_ids[self._bad].tolist())
            self._bad[:] = False
            self._index.clear()

    def rename(self, index: int, image_id: int) -> bool:
        """Learn the id of the image at ``index``, which a user's data set tells only when the image is read.

        Returns:
            True where that id was waiting in quarantine: the image is now left out, and its step must be planned again.
        """
        if self._named is None or self._named[index]:
            return False
        self._named[index] = True
        self.image_ids[index] = image_id
        self._index.setdefault(image_id, index)
        if image_id not in self._unknown:
            return False
        self._unknown.discard(image_id)
        self.quarantine([image_id])
        return True
