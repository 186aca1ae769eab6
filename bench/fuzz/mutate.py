"""Seeded mutations: of JSON values, of bytes, of segmentations. The same seed gives the same case on every machine."""

from __future__ import annotations

import copy
import json
import math
from random import Random
from typing import Any

HOSTILE: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        0.5,
        -0.0,
        1e-320,
        255,
        256,
        65535,
        65536,
        2**31 - 1,
        2**31,
        2**32,
        2**53 + 1,
        2**63,
        2**64,
    ),
    *(-(2**31), -(2**63), 1e9, -1e9, 1e38, 1e308, -1e308, math.inf, -math.inf, math.nan, 10**400),
    *(
        "",
        "0",
        "1",
        "nan",
        "1e400",
        "NaN",
        "../x",
        "/dev/zero",
        "a\0b",
        "\ud800",
        "\x1b[2J",
        "<script>",
        "é",
        "0" * 300,
        "o" * 40,
    ),
    *(
        [],
        [[]],
        [[[]]],
        {},
        {"a": 1},
        [None],
        [1],
        [1, 2, 3, 4],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        {"size": [24, 32], "counts": "x"},
    ),
]
_TOKENS = [
    b"NaN",
    b"Infinity",
    b"1e400",
    b"null",
    b"[[[[",
    b"]]",
    b"{}",
    b'"',
    b"\\",
    b"\\ud800",
    b"\xff",
    b"\x00",
    b"-",
    b",",
    b":",
    b"9" * 30,
]


def mutated_json(rng: Random, document: dict[str, Any]) -> bytes:
    """The document with one to six values replaced, removed, repeated or moved."""
    doc = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        places: list[tuple[Any, Any]] = []
        _places(doc, places)
        if not places:
            break
        holder, key = rng.choice(places)
        action = rng.random()
        if action < 0.7:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE)) if rng.random() < 0.7 else _near(rng, holder[key])
        elif action < 0.85:
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
        else:
            other, other_key = rng.choice(places)
            holder[key] = copy.deepcopy(other[other_key])
    return json.dumps(doc).encode()


def _places(value: Any, found: list[tuple[Any, Any]]) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        found.append((value, key))
        if isinstance(inner, (dict, list)):
            _places(inner, found)


def _near(rng: Random, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if (isinstance(value, float) and not math.isfinite(value)) or abs(value) > 1e300:
        return 0
    return rng.choice(
        (value + 1, value - 1, -value, value * 2, value / 3, value + rng.uniform(-40, 40), str(value), [value])
    )


def mutated_bytes(rng: Random, data: bytes) -> bytes:
    """The bytes with some flipped, removed, repeated, or replaced by tokens."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 12))):
        if not out:
            break
        at = rng.randrange(len(out))
        action = rng.random()
        if action < 0.4:
            out[at] ^= 1 << rng.randrange(8)
        elif action < 0.55:
            out[at] = rng.randrange(256)
        elif action < 0.7:
            del out[at : at + rng.choice((1, 2, 8, 64))]
        elif action < 0.85:
            out[at:at] = rng.choice(_TOKENS)
        elif action < 0.95:
            out[at:at] = out[at : at + rng.choice((2, 16, 100))]
        else:
            del out[at:]
    return bytes(out)


def segmentation(rng: Random, height: int, width: int) -> Any:
    """A random segmentation for an image of this size: often nearly right, sometimes not at all."""
    kind = rng.random()
    if kind < 0.45:
        reach = rng.choice((1.0, 1.0, 1.2, 4.0, 100.0))
        parts = [
            [
                rng.uniform(-0.2, reach) * (width if i % 2 == 0 else height)
                for i in range(rng.choice((2, 4, 5, 6, 6, 8, 8, 12, 40)))
            ]
            for _ in range(rng.choice((0, 1, 1, 1, 2, 5)))
        ]
        if rng.random() < 0.3 and parts and parts[0]:
            parts[0][rng.randrange(len(parts[0]))] = rng.choice(HOSTILE)
        return parts
    if kind < 0.75:
        counts: list[Any] = []
        left = height * width
        while left > 0 and len(counts) < 200:
            counts.append(rng.randint(0, max(left // rng.choice((1, 2, 8)), 1)))
            left -= counts[-1]
        if rng.random() < 0.4:
            counts[rng.randrange(len(counts))] = rng.choice(HOSTILE)
        size: Any = [height, width] if rng.random() < 0.9 else rng.choice(HOSTILE)
        return {"size": size, "counts": counts}
    if kind < 0.95:
        alphabet = range(48, 112) if rng.random() < 0.8 else range(1, 256)
        text = "".join(chr(rng.choice(alphabet)) for _ in range(rng.choice((0, 1, 2, 5, 9, 30))))
        return {"size": [height, width], "counts": text}
    return rng.choice(HOSTILE)
