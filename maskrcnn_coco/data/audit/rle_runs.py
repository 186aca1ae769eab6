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
        codes = np.frombuffer(b"".join(texts), np.uint8) - np.uint8(48)  # below "0" it wraps round, above 63
        stops = np.cumsum(sizes)
        bad = np.flatnonzero(codes > 63)
        sound = sizes > 0
        sound[np.searchsorted(stops, bad, side="right")] = False
        sound[sound] &= (codes[stops[sound] - 1] & 32) == 0  # the last number must end
        if not sound.all():
            kept = RunLists.of_texts([t for t, ok in zip(texts, sound, strict=True) if ok], pixels[sound])
            return kept._among(sound)
        if not len(texts):
            return RunLists(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool))
        last = np.flatnonzero(codes < 32)
        values, long = _numbers(codes, last)
        lengths = np.diff(np.searchsorted(last, stops - 1, side="right"), prepend=0)
        fine = np.ones(len(texts), bool)
        fine[np.searchsorted(stops, last[long], side="right")] = False
        return _checked(_undo_differences(values, lengths), lengths, pixels, fine)

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
        count, starts = len(self.lengths), self.starts
        stops = np.cumsum(self.runs)
        zero = stops[starts] - self.runs[starts] if count else stops  # where each mask begins in that count
        pixels, extents = np.where(self.good, 0.0, np.nan), np.full((count, 4), np.nan)
        odd = np.zeros(len(self.runs) + 1, bool)
        odd[1::2] = True
        flipped = starts % 2 == 1  # a mask that begins at an odd place has its odd runs at even ones
        on = odd[:-1] ^ np.repeat(flipped, self.lengths)
        on &= self.runs > 0
        on = np.flatnonzero(on & np.repeat(self.good, self.lengths))
        if not len(on):
            return pixels, extents
        whose = np.searchsorted(starts, on, side="right") - 1
        at = np.flatnonzero(np.concatenate([[True], whose[1:] != whose[:-1]]))
        filled, height = whose[at], heights[whose]
        last = stops[on] - zero[whose]
        first = last - self.runs[on]
        last -= 1
        left, right = first // height, last // height
        top, bottom = first - left * height, last - right * height
        whole = np.flatnonzero(left != right)
        top[whole], bottom[whole] = 0, height[whole] - 1
        pixels[filled] = np.add.reduceat(self.runs[on], at)
        ends = np.append(at[1:], len(on)) - 1  # runs go from left to right
        low, high = np.minimum.reduceat(top, at), np.maximum.reduceat(bottom, at)
        extents[filled] = np.stack([left[at], low, right[ends] + 1, high + 1], axis=1)
        return pixels, extents


def _numbers(codes: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that end at ``last``, five bits a code, the lowest first, int64; and which exceed 35 bits."""
    first = np.concatenate([[0], last[:-1] + 1])
    digits = last - first + 1
    values = (codes[first] & 31).astype(np.int64)
    for n in range(1, min(int(digits.max()), 7)):
        more = np.flatnonzero(digits > n)
        values[more] |= (codes[first[more] + n] & 31).astype(np.int64) << (5 * n)
    below = np.flatnonzero(codes[last] & 16)
    values[below] -= np.int64(1) << (5 * np.minimum(digits[below], 7))
    return values, np.flatnonzero(digits > 7)


def _undo_differences(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """From the fourth run of a mask on, the difference to the run before the last is stored."""
    starts = np.cumsum(lengths) - lengths
    # Every mask starts at an even place of ``wide``, so that its odd runs are one column, its even ones another.
    room = lengths + lengths % 2
    begin = np.cumsum(room) - room
    at = np.arange(len(values)) + np.repeat(begin - starts, lengths)
    wide = np.zeros(int(room.sum()), np.int64)
    wide[at] = values
    pairs = wide.reshape(-1, 2)
    heads = begin // 2
    firsts = pairs[heads, 0].copy()
    pairs[heads, 0] = 0  # the first run stands for itself, the third begins the even ones
    total = np.cumsum(pairs, axis=0)
    total -= np.repeat(total[heads] - pairs[heads], room // 2, axis=0)
    total[heads, 0] = firsts
    return total.reshape(-1)[at]


def _checked(runs: np.ndarray, lengths: np.ndarray, pixels: np.ndarray, good: np.ndarray) -> RunLists:
    if not len(lengths):
        return RunLists(runs, lengths, good)
    starts = np.cumsum(lengths) - lengths
    low, high = np.minimum.reduceat(runs, starts), np.maximum.reduceat(runs, starts)
    good = good & (low >= 0) & (high <= pixels) & (np.add.reduceat(runs, starts) == pixels)
    return RunLists(runs, lengths, good)
