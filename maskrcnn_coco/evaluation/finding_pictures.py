"""Pictures of a finding about the data: boxes and masks as they are, and beside them as they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_coco.data.audit.catalogue import Reporter
from maskrcnn_coco.data.audit.readings import READING_CODES, agreement
from maskrcnn_coco.data.audit.reread import reread
from maskrcnn_coco.data.audit.segmentations import measure
from maskrcnn_coco.data.batch import image_id
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.images import read_image
from maskrcnn_coco.data.masks import decode_mask
from maskrcnn_coco.data.user_data import UserData
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.evaluation.draw import ALARM, Shape, beside, colour_of, draw, encoded
from maskrcnn_coco.evaluation.evaluate import EvalResult
from maskrcnn_coco.evaluation.ground_truth import as_eval_set
from maskrcnn_coco.evaluation.pictures import pixels_of
from maskrcnn_coco.evaluation.readings import mates_of, readings_of
from maskrcnn_coco.findings.content import TURNS
from maskrcnn_coco.findings.extents import BOXES
from maskrcnn_coco.records import RunFinding
from maskrcnn_coco.system.files import write_bytes

SHOWN, OBJECTS = 3, 12
"""Images of a finding, and objects of an image: more of either hide what they are about."""
LOOKED = 64
"""Items of a data set of the caller's own that are opened to find the named ones."""
DRAWN = frozenset({"GEOMETRY", "PIXELS", "CLASSES", "NO_TARGETS", "MASKS_ELSEWHERE"})
"""Findings of which a picture shows more than the sentence."""
_LONGEST = 420
MASKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored left to right": lambda m: m[:, ::-1],
    "mirrored top to bottom": lambda m: m[::-1],
    "turned by half": lambda m: m[::-1, ::-1],
}
"""Reading → what a mask (H, W) is under it. Boxes go with it, unless the reading is of masks alone."""


@dataclass
class Sight:
    """One image, uint8 (H, W, 3), with boxes xyxy (N, 4) in its pixels and masks bool (N, H, W) or None each.

    ``annotated``: the masks of the same objects as annotated, where the others were predicted: drawn in red.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    masks: list[np.ndarray | None]
    annotated: list[np.ndarray] = field(default_factory=list)


@dataclass
class Evaluated:
    """An evaluation and the data that it was of: what a finding about predictions is drawn from."""

    source: Any
    result: EvalResult


def save_finding_images(logdir: str | Path, number: int, finding: RunFinding, source: Any) -> list[dict[str, str]]:
    """Draw up to `SHOWN` images of ``finding`` into ``logdir``/findings, and name the files with a caption each.

    Args:
        number: of the finding in its run; the files' names begin with it.
        source: a `CocoTable` as the file has it, `UserData`, or `Evaluated`.

    Raises:
        OSError: the folder cannot be written.
    """
    if finding.code not in DRAWN:
        return []
    looked = {CocoTable: _of_table, Evaluated: _of_evaluation}.get(type(source), _of_items)
    sights = looked(finding, source)
    drawn = []
    for named, as_is, read, reading in sights:
        picture = beside([_pane(s) for s in (as_is, read) if s is not None])
        file = f"findings/{number:02d}_{len(drawn) + 1}.jpg"
        write_bytes(Path(logdir) / file, encoded(picture, ".jpg"))
        caption = f"image {named}: as it is" if read is None else f"image {named}: left as it is, right {reading}"
        drawn.append({"file": file, "caption": caption})
        if len(drawn) == SHOWN:
            break
    return drawn


def _pane(sight: Sight) -> Image.Image:
    height, width = sight.pixels.shape[:2]
    shapes = []
    for n, (box, mask) in enumerate(zip(sight.boxes, sight.masks, strict=True)):
        if not np.isfinite(box).all():
            box = np.zeros(4)
        x0, x1 = (float(v) for v in np.clip(np.sort(box[[0, 2]]), 0, width - 1))
        y0, y1 = (float(v) for v in np.clip(np.sort(box[[1, 3]]), 0, height - 1))
        # A box of no width, or off the picture, is a line or a point where it should be a box: that is to be seen.
        shapes.append(Shape((x0, y0, max(x1 - x0, 1.0), max(y1 - y0, 1.0)), mask, "", colour_of(n)))
    for mask in sight.annotated:
        ys, xs = np.nonzero(mask)
        x, y = (float(v.min()) for v in (xs, ys))
        shapes.append(Shape((x, y, float(xs.max()) + 1 - x, float(ys.max()) + 1 - y), mask, "", ALARM))
    return draw(sight.pixels, shapes, longest=_LONGEST)


Pair = tuple[int, Sight, Sight | None, str]
"""Image id, the image as it is, as it is read under the finding's reading, and that reading's name."""


def _of_table(finding: RunFinding, table: CocoTable) -> Iterator[Pair]:
    kind = str(finding.detail.get("what", "")).split(" ")[0]
    found = agreement(table, measure(table, Reporter(table))) if kind in READING_CODES else None
    if found is not None:
        rows = np.unique(table.ann_image[found.explained & (table.ann_image >= 0)])[: 2 * SHOWN]
        within = np.isin(table.ann_image, rows)
        some = table.subset(rows)
        meant = reread(some, replace(found, rows=found.rows[within], explained=found.explained[within]))
    else:
        known = set(table.image_ids.tolist())
        ids = [i for i in finding.detail.get("image_ids", []) if i in known][: 2 * SHOWN]
        some, meant = table.subset(np.array([table.row_of(i) for i in ids], np.int64)), None
    reading = str(finding.detail.get("reading", ""))
    for row in range(len(some)):
        try:
            as_is = _sight(some, row)
        except DataError:
            continue
        if meant is not None and found is not None:
            yield int(some.image_ids[row]), as_is, _sight(meant, row), f"with {found.reading.text}"
        else:
            yield int(some.image_ids[row]), as_is, reread_sight(as_is, reading), reading


def _sight(table: CocoTable, row: int) -> Sight:
    size = table.size_of(row)
    pixels = read_image(table.image_root, table.file_name(row), table.bit_range, size, as_stored=table.as_stored)
    anns = table.annotations_of(row)[:OBJECTS]
    boxes = np.concatenate([table.boxes[anns][:, :2], table.boxes[anns][:, :2] + table.boxes[anns][:, 2:]], axis=1)
    masks: list[np.ndarray | None] = []
    for n in anns.tolist():
        try:
            masks.append(decode_mask(table.segmentation_raw(n), *pixels.shape[:2]) != 0)
        except DataError:
            masks.append(None)
    return Sight(np.ascontiguousarray(pixels), boxes, masks)


def _of_items(finding: RunFinding, source: UserData) -> Iterator[Pair]:
    wanted, reading = set(finding.detail.get("image_ids", [])), str(finding.detail.get("reading", ""))
    step = max(1, len(source) // LOOKED)
    for index in range(0, len(source), step):
        if not wanted:
            return
        try:
            image, target = source.sample(0, index)
            named = image_id(target, index)
            if named not in wanted:
                continue
            wanted.remove(named)
            as_is = _item(image, target)
            read = reread_sight(as_is, reading)
        except (DataError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, IndexError):
            continue  # an odd item of a stranger's: the finding's sentence has named it
        yield named, as_is, read, f"with {reading}" if reading.startswith(("boxes", "masks", "x and")) else reading


def _of_evaluation(finding: RunFinding, evaluated: Evaluated) -> Iterator[Pair]:
    """Predicted masks beside the annotated ones of the same objects, and as the finding's reading puts them there."""
    name, result = str(finding.detail.get("reading", "")), evaluated.result
    reading, data = readings_of(result).get(name), as_eval_set(evaluated.source)
    mates: dict[int, list[tuple[Any, Any]]] = {}
    for found, meant in mates_of(result) if reading is not None else ():
        if found.get("segmentation") and meant.get("segmentation"):
            mates.setdefault(meant["image_id"], []).append((found, meant))
    for row, pairs in mates.items():
        try:
            example = data.load(row)
            size = (example.height, example.width)
            masks = [[decode_mask(o["segmentation"], *size) for o in pair] for pair in pairs[:OBJECTS]]
        except DataError:
            continue
        assert reading is not None
        read = [np.ascontiguousarray(reading(m)) for m, _ in masks]
        if not any(_iou(r, t) >= 0.5 > _iou(m, t) for r, (m, t) in zip(read, masks, strict=True)):
            continue
        boxes = np.array([p["bbox"] for p, _ in pairs[:OBJECTS]], np.float64)
        boxes[:, 2:] += boxes[:, :2]
        truth = [t != 0 for _, t in masks if t.any()]
        as_is = Sight(pixels_of(example.image), boxes, [m != 0 for m, _ in masks], truth)
        named = f"the predicted masks {name}; red: as annotated"
        yield example.image_id, as_is, replace(as_is, masks=[m != 0 for m in read]), named


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(int((a | b).sum()), 1))


def _item(image: Any, target: Any) -> Sight:
    """An item, its brightness stretched over what it has: normalised or dark pixels are to be seen."""
    values = image.detach().float().cpu().numpy()[:3]
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if not (low >= 0 and 0.2 < high <= 1):
        values = (values - low) / max(high - low, 1e-12)
    pixels = np.nan_to_num(values.transpose(1, 2, 0) * 255).clip(0, 255).astype(np.uint8)
    boxes = target["boxes"].detach().cpu().double().numpy().reshape(-1, 4)[:OBJECTS]
    masks = target.get("masks")
    solid: list[np.ndarray | None] = [None] * len(boxes)
    if masks is not None and len(masks) and tuple(masks.shape[-2:]) == pixels.shape[:2]:
        solid = list(masks[: len(boxes)].detach().cpu().numpy() != 0)
    return Sight(np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))), boxes, solid)


def reread_sight(as_is: Sight, reading: str) -> Sight | None:
    """``as_is`` under the reading that a rule of `findings` names; None where it is no reading of boxes or masks."""
    height, width = as_is.pixels.shape[:2]
    if reading in BOXES:
        sides = np.tile(np.array([width, height], np.float64), (len(as_is.boxes), 2))
        return replace(as_is, boxes=BOXES[reading](as_is.boxes, sides))
    turn = reading.removeprefix("masks ")
    if turn in MASKS:
        masks = [None if m is None else MASKS[turn](m) for m in as_is.masks]
        boxes = as_is.boxes if turn != reading else _turned(as_is.boxes, TURNS[turn], width, height)
        return replace(as_is, boxes=boxes, masks=masks)
    return None


def _turned(boxes: np.ndarray, turn: Callable[[np.ndarray], np.ndarray], width: int, height: int) -> np.ndarray:
    sides = np.array([width, height])
    corners = (turn(boxes.reshape(-1, 2) / sides) * sides).reshape(-1, 2, 2)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
