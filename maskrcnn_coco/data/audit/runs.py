"""The runs of many RLE masks at once. What does not fit is left to `masks.checked_runs`, which says what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np


@dataclass(frozen=True)
class RunLists:
    """The runs of R masks one after another: ``runs`` int64, background first, in column order; ``lengths`` int64 (R,),
    runs of each mask, at least 1; ``good`` bool (R,): they fill the image, none is negative."""

    runs: np.ndarray
    lengths: np.ndarray
    good: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """int64 (R,): where the runs of each mask begin."""
        return np.cumsum(self.lengths) - self.lengths

    @staticmethod
    def of_texts(texts: Sequence[bytes], pixels: np.ndarray) -> RunLists:
        """From COCO's compressed counts; ``pixels`` int64 (R,) of each image. See `masks.checked_runs` for the code.

        A damaged text has one run, -1.
        """
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        codes = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - 48
        stops = np.cumsum(sizes)
        bad = np.zeros(len(codes) + 1, np.int64)
        np.cumsum((codes < 0) | (codes > 63), out=bad[1:])
        sound = (sizes > 0) & (bad[stops] == bad[stops - sizes])
        sound[sound] &= (codes[stops[sound] - 1] & 32) == 0  # the last number must end
        if not sound.all():
            kept = RunLists.of_texts([t for t, ok in zip(texts, sound, strict=True) if ok], pixels[sound])
            return kept._among(sound)
        if not len(texts):
            return RunLists(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool))
        last = np.flatnonzero((codes & 32) == 0)
        first = np.concatenate([[0], last[:-1] + 1])
        digits = last - first + 1
        place = np.minimum(np.arange(len(codes)) - np.repeat(first, digits), 11)
        values = np.add.reduceat((codes & 31) << (5 * place), first)
        values -= np.where(codes[last] & 16, np.int64(1) << (5 * np.minimum(digits, 11)), 0)
        lengths = np.diff(np.searchsorted(last, stops - 1, side="right"), prepend=0)
        long = np.zeros(len(last) + 1, np.int64)
        np.cumsum(digits > 7, out=long[1:])
        ends = np.cumsum(lengths)
        return _checked(_undo_differences(values, lengths), lengths, pixels, long[ends] == long[ends - lengths])

    @staticmethod
    def of_lists(counts: Sequence[Sequence[int]], pixels: np.ndarray) -> RunLists:
        """From uncompressed counts, each with at least one run."""
        lengths = np.fromiter(map(len, counts), np.int64, len(counts))
        runs = np.fromiter(chain.from_iterable(counts), np.int64, int(lengths.sum()))
        return _checked(runs, lengths, pixels, np.ones(len(counts), bool))

    def _among(self, there: np.ndarray) -> RunLists:
        """These, at the places where ``there``; one run of -1 at the others."""
        lengths = np.ones(len(there), np.int64)
        lengths[there] = self.lengths
        runs = np.full(int(lengths.sum()), -1, np.int64)
        runs[np.repeat(there, lengths)] = self.runs
        good = np.zeros(len(there), bool)
        good[there] = self.good
        return RunLists(runs, lengths, good)

    def extents(self, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(pixels (R,), x1, y1, x2, y2 (R, 4)), float64, in images ``heights`` int64 (R,) pixels high.

        Extents are NaN where nothing is filled, or the mask is not ``good``. With the widths as ``heights``, the mask
        is read along rows, and x and y of the result change places.
        """
        count = len(self.lengths)
        owner = np.repeat(np.arange(count), self.lengths)
        stops = np.cumsum(self.runs)
        starts = stops - self.runs
        stops -= np.repeat(starts[self.starts], self.lengths)
        starts = stops - self.runs
        odd = (np.arange(len(self.runs)) - np.repeat(self.starts, self.lengths)) % 2 == 1
        on = np.flatnonzero(odd & (self.runs > 0) & self.good[owner])
        pixels, extents = np.zeros(count), np.full((count, 4), np.nan)
        pixels[~self.good] = np.nan
        if not len(on):
            return pixels, extents
        whose = owner[on]
        at = np.flatnonzero(np.concatenate([[True], whose[1:] != whose[:-1]]))
        filled, height = whose[at], heights[whose]
        first, last = starts[on], stops[on] - 1
        left, top = np.divmod(first, height)
        right, bottom = np.divmod(last, height)
        whole = left != right
        top[whole], bottom[whole] = 0, height[whole] - 1
        pixels[filled] = np.add.reduceat(self.runs[on], at)
        low, high = np.minimum.reduceat, np.maximum.reduceat
        extents[filled] = np.stack([low(left, at), low(top, at), high(right, at) + 1, high(bottom, at) + 1], axis=1)
        return pixels, extents


def _undo_differences(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """From the fourth run of a mask on, the difference to the run before the last is stored."""
    place = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    runs = values.copy()
    for parity, begin in ((1, 1), (0, 2)):
        rows = np.flatnonzero((place % 2 == parity) & (place >= begin))
        if not len(rows):
            continue
        total = np.cumsum(values[rows])
        opening = place[rows] == begin
        before = np.where(opening, total - values[rows], 0)
        runs[rows] = total - np.repeat(before[opening], np.diff(np.append(np.flatnonzero(opening), len(rows))))
    return runs


def _checked(runs: np.ndarray, lengths: np.ndarray, pixels: np.ndarray, good: np.ndarray) -> RunLists:
    if not len(lengths):
        return RunLists(runs, lengths, good)
    starts = np.cumsum(lengths) - lengths
    low, high = np.minimum.reduceat(runs, starts), np.maximum.reduceat(runs, starts)
    good = good & (low >= 0) & (high <= pixels) & (np.add.reduceat(runs, starts) == pixels)
    return RunLists(runs, lengths, good)
