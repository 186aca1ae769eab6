"""Damage to saved files: each is a new content for one file, or two files exchanged; every one must be noticed."""

from __future__ import annotations

import io
import os
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from states import digest, state_at

from maskrcnn_coco.checkpoint.saver import Saver
from maskrcnn_coco.checkpoint.store import load, load_newest, newest_intact
from maskrcnn_coco.checkpoint.verification import verify
from maskrcnn_coco.errors import CheckpointError


class Damaged(NamedTuple):
    """One file's new content, and the kind of damage."""

    kind: str
    content: bytes


class Outcome(NamedTuple):
    """How many of each kind were tried and noticed, what plain torch.load took, and what went wrong."""

    tried: Counter[str]
    noticed: Counter[str]
    torch_tried: Counter[str]
    torch_took: Counter[str]
    failures: list[str]


def build(folder: Path) -> None:
    """epoch_001, epoch_002 (best), previous and last, all of them different."""
    saver = Saver(folder)
    for number in (1, 2):
        saver.save_epoch(number, state_at(10 * number), best=number == 2)
    saver.save_last(state_at(23))
    saver.save_last(state_at(27))
    assert saver.wait() == []


def damages(content: bytes, other: bytes, count: int, rng: random.Random) -> Iterator[Damaged]:
    """``count`` different damages of a file; ``other`` is an older file of the same run."""
    makers = (_flip, _flip, _flip_in_headers, _zero_page, _truncate, _garbage, _move, _insert, _torn)
    seen = {content, other}
    while count:
        made = rng.choice(makers)(content, other, rng)
        if made.content not in seen:  # a page that was zero before is no damage, an intact older file neither
            seen.add(made.content)
            count -= 1
            yield made


def _flip(content: bytes, other: bytes, rng: random.Random) -> Damaged:
    return Damaged("one bit flipped", _flipped(content, rng.randrange(len(content)), rng))


def _flip_in_headers(content: bytes, other: bytes, rng: random.Random) -> Damaged:
    """In the last two kilobytes (zip directory, digest) or in the first (zip header, pickle)."""
    at = rng.choice((rng.randrange(1024), len(content) - 1 - rng.randrange(2048)))
    return Damaged("one bit flipped in zip headers, pickle or digest", _flipped(content, at, rng))


def _flipped(content: bytes, at: int, rng: random.Random) -> bytes:
    data = bytearray(content)
    data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def _zero_page(content: bytes, other: bytes, rng: random.Random) -> Damaged:
    size = rng.choice((512, 4096))
    at = rng.randrange(0, len(content), size)
    data = content[:at] + b"\0" * len(content[at : at + size]) + content[at + size :]
    return Damaged(f"{size} bytes zeroed", data)


def _truncate(content: bytes, other: bytes, rng: random.Random) -> Damaged:
    if rng.random() < 0.2:
        return Damaged("bytes appended", content + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 200))))
    return Damaged("cut short", content[: rng.randrange(len(content))])


def _garbage(content: bytes, other: bytes, rng: random.Random) -> Damaged:
    at, size = rng.randrange(len(content)), rng.choice((1, 8, 512))
    return Damaged(
        "random bytes written over", content[:at] + rng.randbytes(len(content[at : at + size])) + content[at + size :]
    )


def _move(content: bytes, other: bytes, rng: random.Random) -> Damaged:
    pages = [content[i : i + 512] for i in range(0, len(content), 512)]
    a, b = rng.sample(range(len(pages) - 1), 2)
    pages[a], pages[b] = pages[b], pages[a]
    return Damaged("two sectors exchanged", b"".join(pages))


def _insert(content: bytes, other: bytes, rng: random.Random) -> Damaged:
    at = rng.randrange(len(content))
    if rng.random() < 0.5:
        return Damaged("a byte lost", content[:at] + content[at + 1 :])
    return Damaged("a byte inserted", content[:at] + rng.randbytes(1) + content[at:])


def _torn(content: bytes, other: bytes, rng: random.Random) -> Damaged:
    at = rng.randrange(1, len(content))
    return Damaged("new beginning, old end", content[:at] + other[at:])


def sweep(folder: Path, count: int, *, seed: int = 0, sample_torch: int = 0) -> Outcome:
    """Damage the files of ``folder`` in ``count`` ways, one at a time; each must be refused, and passed over."""
    rng = random.Random(seed)
    outcome = Outcome(Counter(), Counter(), Counter(), Counter(), [])
    names = ("last.pth", "epoch_001.pth", "epoch_002.pth", "previous.pth")
    originals = {name: (folder / name).read_bytes() for name in names}
    for i, name in enumerate(names):
        path, content = folder / name, originals[name]
        other = originals[names[(i + 1) % len(names)]]
        share = count // len(names) + (count % len(names) if i == 0 else 0)
        for number, damaged in enumerate(damages(content, other, share, rng)):
            path.write_bytes(damaged.content)
            outcome.tried[damaged.kind] += 1
            _try(path, damaged, outcome, whole=number % 40 == 0)
            if number < sample_torch:
                outcome.torch_tried[damaged.kind] += 1
                outcome.torch_took[damaged.kind] += _torch_takes(damaged.content)
        path.write_bytes(content)
        verify(path)
    return outcome


def _try(path: Path, damaged: Damaged, outcome: Outcome, *, whole: bool) -> None:
    try:
        (load if whole else verify)(path)
    except CheckpointError as e:
        outcome.noticed[damaged.kind] += 1
        if path.name not in e.what:
            outcome.failures.append(f"{damaged.kind}: the error does not name the file: {e.what}")
    else:
        outcome.failures.append(f"{path.name}: {damaged.kind} was not noticed")
    if whole and path.name == "last.pth":
        found, state, skipped = load_newest(path.parent)
        right = found is not None and state is not None and digest(state) == digest(state_at(23))
        if not right or [s.path.name for s in skipped] != ["last.pth"]:
            outcome.failures.append(f"{damaged.kind}: fell back to {found}, passing over {skipped}")


def _torch_takes(content: bytes) -> bool:
    """Whether plain torch.load reads the damaged file without a word; for comparison."""
    warnings.simplefilter("ignore")
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:
        return False
    return True


def exchanges(folder: Path) -> Outcome:
    """Every two files exchanged: one of them is refused by name, and the newest state is found all the same."""
    outcome = Outcome(Counter(), Counter(), Counter(), Counter(), [])
    names = ("best.pth", "epoch_001.pth", "epoch_002.pth", "last.pth", "previous.pth")
    newest = digest(state_at(27))
    for a in names:
        for b in names:
            if a >= b or (folder / a).samefile(folder / b):
                continue
            kind = "two files exchanged"
            outcome.tried[kind] += 1
            _exchange(folder / a, folder / b)
            refused = [n for n in (a, b) if _refused(folder / n)]
            path, _ = newest_intact(folder)
            harmless = {a, b} == {"last.pth", "previous.pth"}  # both were last.pth once: found by the count of saves
            if refused or harmless:
                outcome.noticed[kind] += 1
            else:
                outcome.failures.append(f"{a} ↔ {b} was not noticed")
            if "last.pth" in (a, b) and not harmless:
                pass  # the newest content may now be under a name that it never had
            elif path is None or digest(load(path)) != newest:
                outcome.failures.append(f"{a} ↔ {b}: the newest state was not found, but {path}")
            _exchange(folder / a, folder / b)
    return outcome


def _exchange(a: Path, b: Path) -> None:
    c = a.with_name("exchange")
    os.rename(a, c)
    os.rename(b, a)
    os.rename(c, b)


def _refused(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError:
        return True
    return False
