"""Whether an evaluation that scores little would score with classes renamed, or with masks read otherwise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from maskrcnn_coco.data.masks import decode_mask, encode_rle
from maskrcnn_coco.evaluation.evaluate import EvalResult
from maskrcnn_coco.evaluation.metrics import GroundTruth, coco_metrics
from maskrcnn_coco.findings.facts import MaskReadings, Matching

LOW, FEW = 0.5, 5
"""AP50 of boxes from which on classes are not doubted; objects that a pair of classes needs to be matched."""
SCORES, IMAGES, RESULTS, MASKS = 0.1, 30, 50, 300
"""AP50 of boxes from which on masks are doubted; images, and results in each, whose masks are read otherwise; masks of
the truth that are measured."""
BEHIND = 1 / 3


def matching_of(result: EvalResult, names: dict[int, str]) -> Matching | None:
    """AP50 of boxes as named, with classes left aside, and renamed; None where that is not in question.

    Args:
        names: label → class name.
    """
    ap = result.metrics.get("bbox/AP50", -1.0)
    if len(names) < 2 or not 0 <= ap < LOW or not result.found:
        return None
    one = GroundTruth(result.truth.images, [{"id": 1, "name": "object"}], [_as(a, 1) for a in result.truth.annotations])
    agnostic = _ap50(one, [_as(r, 1) for r in result.found], result.max_dets)
    found = Matching(ap, agnostic, ap, objects=len(result.truth.annotations))
    mapping = _assignment(_votes(result), list(names))
    if agnostic > ap and any(a != b for a, b in mapping.items()):
        renamed = [_as(r, mapping.get(label, label)) for r in result.found for label in (int(r["category_id"]),)]
        found.renamed = _ap50(result.truth, renamed, result.max_dets)
        found.mapping = {names[a]: names[b] for a, b in mapping.items() if a != b and a in names and b in names}
    return found


def _as(item: dict[str, Any], label: int) -> dict[str, Any]:
    return item | {"category_id": label}


def _ap50(truth: GroundTruth, results: list[dict[str, Any]], max_dets: int) -> float:
    return coco_metrics(truth, results, "bbox", max_dets).metrics["AP50"]


def mates_of(result: EvalResult) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(prediction, object) of boxes that overlap by half or more, each object with its best-scored prediction."""
    truth: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for a in result.truth.annotations:
        if not a["iscrowd"]:
            truth[a["image_id"]].append(a)
    found: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for r in result.found:
        found[r["image_id"]].append(r)
    for image, objects in truth.items():
        results = sorted(found.get(image, []), key=lambda r: -r["score"])
        if not results:
            continue
        iou = _iou(np.array([r["bbox"] for r in results]), np.array([a["bbox"] for a in objects]))
        for n, a in enumerate(objects):
            hits = np.flatnonzero(iou[:, n] >= 0.5)
            if len(hits):
                yield results[int(hits[0])], a


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    inside = np.clip(high - low, 0, None).prod(axis=2)
    union = a[:, 2:].prod(axis=1)[:, None] + b[:, 2:].prod(axis=1)[None] - inside
    return np.where(union > 0, inside / np.where(union > 0, union, 1), 0.0)


def _votes(result: EvalResult) -> dict[tuple[int, int], int]:
    votes: defaultdict[tuple[int, int], int] = defaultdict(int)
    for r, a in mates_of(result):
        votes[r["category_id"], a["category_id"]] += 1
    return votes


def _assignment(votes: dict[tuple[int, int], int], labels: list[int]) -> dict[int, int]:
    """Predicted label → label of the truth, one to one, the surest pairs first; what is left keeps its name."""
    mapping: dict[int, int] = {}
    for (a, b), count in sorted(votes.items(), key=lambda v: -v[1]):
        if count >= FEW and a not in mapping and b not in mapping.values():
            mapping[a] = b
    free = [b for b in labels if b not in mapping.values()]
    for a in labels:
        if a not in mapping:
            mapping[a] = a if a in free else free[0]
            free.remove(mapping[a])
    return mapping


def mask_readings(result: EvalResult) -> MaskReadings | None:
    """AP50 of masks read otherwise; None where they are not far behind their boxes."""
    boxes, masks = result.metrics.get("bbox/AP50", -1.0), result.metrics.get("segm/AP50", -1.0)
    if boxes < SCORES or not 0 <= masks < BEHIND * boxes:
        return None
    images = sorted({a["image_id"] for a in result.truth.annotations})[:IMAGES]
    truth = _part(result.truth, set(images))
    results = _best(result.found, set(images))
    found = MaskReadings(boxes, masks, objects=len(truth.annotations), fill=_fill(truth))
    solid = [decode_mask(r["segmentation"], *r["segmentation"]["size"]) for r in results]
    for name, reading in readings_of(result).items():
        given = [
            {**{k: r[k] for k in ("image_id", "category_id", "score")}, "segmentation": encode_rle(reading(m))}
            for r, m in zip(results, solid, strict=True)
        ]
        found.readings[name] = coco_metrics(truth, given, "segm", result.max_dets).metrics["AP50"]
    return found


def _fill(truth: GroundTruth) -> float:
    """The share of its box that a mask of the truth covers, in the middle of some."""
    sides = {i["id"]: (i["height"], i["width"]) for i in truth.images}
    shares = []
    for a in truth.annotations[:: 1 + len(truth.annotations) // MASKS]:
        box = a["bbox"][2] * a["bbox"][3]
        if box > 0 and not a.get("iscrowd"):
            shares.append(float(decode_mask(a["segmentation"], *sides[a["image_id"]]).sum()) / box)
    return float(np.median(shares)) if shares else 1.0


def _part(truth: GroundTruth, images: set[int]) -> GroundTruth:
    kept = [a for a in truth.annotations if a["image_id"] in images]
    return GroundTruth([i for i in truth.images if i["id"] in images], truth.categories, kept)


def _best(results: list[dict[str, Any]], images: set[int]) -> list[dict[str, Any]]:
    seen: defaultdict[int, int] = defaultdict(int)
    kept = []
    for r in sorted(results, key=lambda r: -r["score"]):
        if r["image_id"] in images and seen[r["image_id"]] < RESULTS:
            seen[r["image_id"]] += 1
            kept.append(r)
    return kept


Reading = Callable[[np.ndarray], np.ndarray]


def readings_of(result: EvalResult) -> dict[str, Reading]:
    """Name → what it makes of a mask (H, W); of moved and rescaled ones the numbers are the pairs' medians."""
    found: dict[str, Reading] = {
        "transposed": lambda m: _fitted(m.T, m.shape),
        "mirrored left to right": lambda m: m[:, ::-1],
        "mirrored top to bottom": lambda m: m[::-1],
    }
    extents = [(e, t) for r, a in mates_of(result) if (e := _extent(r)) is not None and (t := _extent(a)) is not None]
    if len(extents) >= FEW:
        mine, theirs = (np.array(v) for v in zip(*extents, strict=True))
        centres = [(v[:, :2] + v[:, 2:]) / 2 for v in (mine, theirs)]
        dx, dy = (round(float(v)) for v in np.median(centres[1] - centres[0], axis=0))
        sx, sy = (float(v) for v in np.median((theirs[:, 2:] - theirs[:, :2]) / (mine[:, 2:] - mine[:, :2]), axis=0))
        if (dx, dy) != (0, 0):
            found[f"moved by {dx}, {dy} pixels"] = lambda m: _moved(m, dx, dy)
        if min(sx, sy) > 0 and max(abs(np.log(sx)), abs(np.log(sy))) > 0.15:
            found[f"rescaled by {sx:.3g} × {sy:.3g}"] = lambda m: _rescaled(m, sx, sy)
    return found


def _extent(item: dict[str, Any]) -> np.ndarray | None:
    value = item.get("segmentation")
    if isinstance(value, list):
        points = np.concatenate([np.asarray(p, np.float64).reshape(-1, 2) for p in value])
        found = np.concatenate([points.min(axis=0), points.max(axis=0)])
    elif value is not None:
        solid = decode_mask(value, *value["size"])
        rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
        if not len(rows):
            return None
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
    else:
        return None
    return found if (found[2:] > found[:2]).all() else None


def _fitted(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(shape, mask.dtype)
    part = mask[: shape[0], : shape[1]]
    out[: part.shape[0], : part.shape[1]] = part
    return out


def _moved(mask: np.ndarray, dx: int, dy: int) -> np.ndarray:
    out = np.zeros_like(mask)
    height, width = mask.shape
    if abs(dx) < width and abs(dy) < height:
        out[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = mask[
            max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
        ]
    return out


def _rescaled(mask: np.ndarray, sx: float, sy: float) -> np.ndarray:
    """Each pixel from where it was before the scaling about the image's corner."""
    rows = ((np.arange(mask.shape[0]) + 0.5) / sy).astype(np.int64)
    columns = ((np.arange(mask.shape[1]) + 0.5) / sx).astype(np.int64)
    inside = (rows < mask.shape[0])[:, None] & (columns < mask.shape[1])[None]
    taken = mask[np.minimum(rows, mask.shape[0] - 1)[:, None], np.minimum(columns, mask.shape[1] - 1)[None]]
    return np.where(inside, taken, 0).astype(mask.dtype)
