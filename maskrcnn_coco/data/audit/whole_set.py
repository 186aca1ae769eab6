"""What is wrong with (nearly) a whole data set, as facts for the rules of `findings`."""

from __future__ import annotations

from collections import Counter

import numpy as np

from maskrcnn_coco.data.audit.boxes import sides_of
from maskrcnn_coco.data.coco.table import CocoTable, shift_of
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.findings.facts import Audited, Facts, Labels, Stage, Targets
from maskrcnn_coco.records import DataFinding

GEOMETRY = frozenset(
    {
        *("BOX_XYXY", "BOX_CENTER", "BOX_SWAPPED", "BOX_UNIT", "BOX_SCALED", "ALL_UNIT", "ALL_SWAPPED"),
        *("MASK_SWAPPED", "MASK_ROW_MAJOR", "MASK_SIDES", "MASK_UNIT", "MASK_SCALED"),
        *("READINGS_TIE", "MASK_BOX_UNRELATED", "MASK_INVERTED"),
        *("SIZES_SWAPPED", "IMAGES_RESIZED", "IMAGES_CHANGED"),
    }
)
"""Findings of the audit, each about the whole set, that boxes, masks and images do not belong together."""
TARGETS = frozenset({"CROWD_SINGLE"})
"""Findings of the audit that many objects are lost on the way to the losses."""
WITHOUT = "writes a copy without"
"""Repairs that leave out what cannot be mended."""
HALF = 0.5
"""Share of the annotations from which on one kind of disagreement is the set's, not theirs."""


def facts_of(
    table: CocoTable,
    findings: list[DataFinding],
    *,
    min_size: int = 800,
    max_size: int = 1333,
    of: str = "training data",
) -> Facts:
    """Objects at each stage on the way to the losses, what the audit says about the set, labels and names.

    Args:
        findings: of the audit; what they say is an error is left out of training.
        min_size, max_size: sides of the resized image, pixels.
        of: what messages call the data.
    """
    facts = Facts(audited=_audited(table, findings, of))
    if not any(a.code == "GEOMETRY" for a in facts.audited):
        # Boxes that are read another way than they are written lose objects too; that is one fault, not two.
        facts.targets = [_targets(table, findings, min_size, max_size, of)]
    names = Counter(c.name for c in table.categories)
    counts = Counter(table.labels[table.labels > 0].tolist())
    twice = [n for n, c in names.items() if c > 1]
    facts.labels = Labels(dict(sorted(counts.items())), len(table), num_classes=table.num_classes, twice=twice)
    facts.labels.shift, facts.labels.unknown = category_shift(table), int((table.labels < 1).sum())
    return facts


def category_shift(table: CocoTable) -> int:
    """As `shift_of` the ids of annotated categories."""
    if table.dropped_category is not None and (table.category_ids == 0).any():
        return 0
    return shift_of(np.array([c.id for c in table.categories]), table.category_ids)


def silent_code(code: str) -> str:
    """The code of `findings` for a finding of the audit about the whole set, "" for others."""
    return "GEOMETRY" if code in GEOMETRY else "NO_TARGETS" if code in TARGETS else ""


def named(error: DataError, findings: list[DataFinding]) -> DataError:
    """``error``, that nothing of a set can be used, with the code that teaches it and what all of the set shares."""
    reading = next((f for f in findings if f.code in GEOMETRY), None)
    code = "GEOMETRY" if reading is not None else "NO_TARGETS"
    what = error.what if reading is None else f"{error.what}: {reading.message}"
    fix = error.fix if reading is None else reading.fix
    return DataError(
        f"{code}: {what}", got=error.got, expected=error.expected, fix=f"{fix}; maskrcnn-coco explain {code} tells more"
    )


def _audited(table: CocoTable, findings: list[DataFinding], of: str) -> list[Audited]:
    found = [Audited(silent_code(f.code), f.code, f.message, f.fix, of) for f in findings if silent_code(f.code)]
    alone = [f for f in findings if f.code == "MASK_BOX_DISAGREE"]
    if not any(a.code == "GEOMETRY" for a in found) and len(alone) >= max(4, HALF * len(table.ann_ids)):
        text = f"boxes and masks disagree in {len(alone)} of {len(table.ann_ids)} annotations: {alone[0].message}"
        found.append(Audited("GEOMETRY", alone[0].code, text, alone[0].fix, of))
    return found


def _targets(table: CocoTable, findings: list[DataFinding], min_size: int, max_size: int, of: str) -> Targets:
    errors = [f for f in findings if f.severity == "error"]
    bad_images = [f.image_id for f in errors if f.annotation_id is None and f.image_id is not None]
    empty = [f.annotation_id for f in errors if f.code == "MASK_EMPTY" and f.annotation_id is not None]
    others = [f.annotation_id for f in errors if f.code != "MASK_EMPTY" and f.annotation_id is not None]
    width, height = sides_of(table)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.minimum(min_size / np.minimum(width, height), max_size / np.maximum(width, height))
        small = (table.boxes[:, 2:] * np.where(np.isfinite(scale), scale, 1.0)[:, None] < 1).any(axis=1)
    left = table.ann_image >= 0
    stages = [Stage("annotated", len(left)), Stage("of an image in `images`", int(left.sum()))]
    image_of = table.image_ids[np.maximum(table.ann_image, 0)] if len(table) else np.zeros(0, np.int64)
    for name, bad in (
        ("mask not empty", np.isin(table.ann_ids, empty)),
        ("usable", np.isin(table.ann_ids, others) | np.isin(image_of, bad_images) | (table.labels < 1)),
        ("no crowd", table.iscrowd),
        ("large enough", small),
    ):
        lost = left & bad
        left = left & ~bad
        stages.append(Stage(name, int(left.sum()), list(dict.fromkeys(image_of[lost].tolist()))[:20]))
    kinds = Counter(f.code for f in errors if f.code != "MASK_EMPTY")
    if kinds:
        worst = next(f for f in errors if f.code == kinds.most_common(1)[0][0])
        stages[3].fix = worst.fix
        if not stages[3].count and WITHOUT in worst.fix:  # of such a copy nothing would be left
            stages[3].fix = f"export the set again, as polygons or RLE of COCO's form: {worst.code} is in all of it"
    return Targets(len(table), stages, of=of)
