"""What augmentation did to the batches of a run: objects that it took out of sight, and whose objects it pasted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from maskrcnn_coco.records import Evidence


def objects_in(batches: Sequence[Any]) -> tuple[int, int]:
    """(objects that are targets, objects that augmentation took out of sight) in the micro-batches of a step."""
    targets = [t for batch in batches for t in batch.targets if isinstance(t, dict)]
    return sum(_length(t.get("boxes")) for t in targets), sum(int(t.get("vanished", 0)) for t in targets)


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0


def pasted_evidence(batches: Sequence[Any], image_ids: Sequence[int]) -> list[Evidence]:
    """For each of ``image_ids`` into which objects of other images were pasted, a row that names those images."""
    rows = []
    for batch in batches:
        for key, target in zip(batch.keys, batch.targets, strict=True):
            held = target.get("source_image_ids") if isinstance(target, dict) else None
            if held is None or key.image_id not in image_ids:
                continue
            others = sorted({int(i) for i in held.tolist()} - {key.image_id})
            if others:
                named = ", ".join(map(str, others))
                rows.append(Evidence(f"copy-paste: image {key.image_id}", f"has objects of image {named}"))
    return rows
