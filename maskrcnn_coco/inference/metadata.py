"""What a model says of itself, also as plain data inside an exported file. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_coco.data.bit_depth import BitRange
from maskrcnn_coco.data.bit_range import saved_range
from maskrcnn_coco.data.orientation import saved_orientation
from maskrcnn_coco.errors import CheckpointError

KEY = "maskrcnn_coco"
"""The entry of a file's metadata that holds the card as JSON."""


@dataclass(frozen=True)
class Card:
    """What a model says of itself.

    Attributes:
        classes: names from label 1 on; ``category_ids`` likewise, the data's own ids.
        usual_side: side in pixels of the images it knows: what tiles are cut to with ``tile="auto"``.
        bit_range: the values that became black and white in training, in images of more than 8 bits.
        as_stored: images were not turned as their EXIF tags say.
        reader: how an image file becomes uint8 (H, W, 3); None: as any image.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    usual_side: int | None = None
    bit_range: BitRange | None = None
    reader: Callable[[Path], np.ndarray] | None = None
    as_stored: bool = False


def plain_card(card: Card) -> dict[str, Any]:
    """The card as JSON values; `card_of` takes them back."""
    return {
        "classes": list(card.classes),
        "category_ids": list(card.category_ids),
        "usual_side": card.usual_side,
        "bit_range": None if card.bit_range is None else list(card.bit_range),
        "as_stored": card.as_stored,
    }


def card_of(value: Any) -> Card:
    """A card from what `plain_card` gave.

    Raises:
        CheckpointError: it is none.
    """
    value = value if isinstance(value, dict) else {}
    classes: Any = value.get("classes")
    ids: Any = value.get("category_ids")
    sound = (
        isinstance(classes, list) and isinstance(ids, list) and len(classes) == len(ids)
        and all(isinstance(c, str) for c in classes) and all(type(i) is int for i in ids)
    )  # fmt: skip
    if not sound:
        raise CheckpointError(
            "the model file does not say which classes it tells apart",
            expected="a model exported by maskrcnn-coco export",
        )
    side = value.get("usual_side")
    side = side if type(side) is int and side >= 32 else None
    return Card(tuple(classes), tuple(ids), side, saved_range(value), as_stored=bool(saved_orientation(value)))
