"""Boxes, labels and ids: whole columns at a time."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np

from maskrcnn_coco.data.audit.catalogue import Reporter
from maskrcnn_coco.data.coco.table import CocoTable

XYXY_SHARE = 0.2
"""Share of boxes that must leave the image as xywh before xyxy is suspected."""


BACKGROUND = frozenset({"background", "bg", "unlabeled", "unlabelled"})
"""What tools call the pixels that no object covers."""


def check_problems(table: CocoTable, report: Reporter) -> None:
    """What the reader noted. A size that was found in the image file is a warning, one that is nowhere an error."""
    for problem in table.problems:
        lost = False
        if problem.code == "IMAGE_SIZE_INVALID" and problem.image_id is not None:
            row = table.row_of(problem.image_id)
            lost = table.heights[row] <= 0 or table.widths[row] <= 0
        report.add_problem(problem, "error" if lost else None)


def sides_of(table: CocoTable) -> tuple[np.ndarray, np.ndarray]:
    """(widths, heights) of each annotation's image, float64 (A,), NaN where unknown."""
    known = table.ann_image >= 0
    widths, heights = (np.where(s > 0, s, np.nan).astype(np.float64) for s in (table.widths, table.heights))
    rows = np.where(known, table.ann_image, 0)
    return np.where(known, widths[rows], np.nan), np.where(known, heights[rows], np.nan)


def check_boxes(table: CocoTable, report: Reporter) -> None:
    """Inverted, empty, sub-pixel and outside boxes."""
    x, y, w, h = table.boxes.T
    width, height = sides_of(table)
    with np.errstate(over="ignore", invalid="ignore"):
        right, bottom = x + w, y + h
        inverted = (w < 0) | (h < 0)
        empty = ~inverted & ((w == 0) | (h == 0))
        fine = (w > 0) & (h > 0)
        outside = fine & ((x >= width) | (y >= height) | (right <= 0) | (bottom <= 0))
        far = fine & ~outside & ((x < -width) | (y < -height) | (right > 2 * width) | (bottom > 2 * height))
        over = np.maximum.reduce([-x, -y, right - width, bottom - height])
        partly = fine & ~outside & ~far & (over >= 1)
        tiny = fine & ~outside & ((w < 1) | (h < 1))
    for code, mask, text in (
        ("BOX_INVERTED", inverted, "the box has a negative side: {}"),
        ("BOX_EMPTY", empty, "the box has an empty side: {}"),
        ("BOX_OUTSIDE", outside, "the box lies outside the {}×{} image: {}"),
        ("BOX_FAR", far, "the box reaches more than its own size out of the {}×{} image: {}"),
        ("BOX_PARTLY_OUTSIDE", partly, "the box leaves the {}×{} image: {}"),
        ("BOX_TINY", tiny, "the box is thinner than a pixel: {}"),
    ):
        for ann in np.flatnonzero(mask).tolist():
            box = [float(f"{v:.6g}") for v in table.boxes[ann]]
            sizes = (f"{width[ann]:g}", f"{height[ann]:g}") if "×" in text else ()
            report.add(code, text.format(*sizes, box), ann=ann)


def xyxy_share(table: CocoTable) -> float | None:
    """Share of boxes that leave their image as xywh, where nearly all fit as xyxy and too many leave; else None."""
    x, y, w, h = table.boxes.T
    width, height = sides_of(table)
    with np.errstate(over="ignore", invalid="ignore"):
        usable = np.isfinite(table.boxes).all(axis=1) & np.isfinite(width)
        leaves = usable & ((x + w > width + 1) | (y + h > height + 1))
        as_corners = usable & (w > x) & (h > y) & (w <= width + 1) & (h <= height + 1)
    count = int(usable.sum())
    if count < 5 or as_corners.sum() < 0.99 * count or leaves.sum() < XYXY_SHARE * count:
        return None
    return float(leaves.sum() / count)


def check_corners(table: CocoTable, report: Reporter) -> None:
    """xyxy in place of xywh, where there are no masks to tell it from."""
    share = xyxy_share(table)
    if share is not None:
        report.add(
            "BOX_XYXY",
            f"{share:.0%} of the boxes leave their image if read as [x, y, width, height]; all fit as [x1, y1, x2, y2]",
        )


def check_labels(table: CocoTable, report: Reporter) -> None:
    """Labels out of range, gaps, ids from 0, unused and unbalanced categories."""
    noted = {p.annotation_id for p in table.problems if p.code == "LABEL_UNKNOWN"}
    for ann in np.flatnonzero(table.labels == 0).tolist():
        if int(table.ann_ids[ann]) not in noted:
            report.add("LABEL_UNKNOWN", f"category id {table.category_ids[ann]} is not in `categories`", ann=ann)
    ids = [c.id for c in table.categories]
    if ids[0] < 1:
        report.add(
            "CATEGORY_ZERO", f"the lowest category id is {ids[0]} ({table.categories[0].name!r}); it is label 1 here"
        )
    if ids[-1] - ids[0] + 1 != len(ids):
        report.add("CATEGORY_GAP", f"{len(ids)} category ids between {ids[0]} and {ids[-1]}")
    if table.dropped_category is not None:
        report.add("CATEGORY_PARENT", f"category {table.dropped_category.name!r} (id 0) stands above the others")
    names = [c.name for c in table.categories]
    for name, n in Counter(names).items():
        if n > 1:
            report.add("CATEGORY_NAME_DUPLICATE", f"{n} categories are called {name!r}")
    for alike in _alike(set(names)):
        report.add("CATEGORY_NAME_ALIKE", f"categories are called {', '.join(map(repr, alike))}")
    counts = np.bincount(table.labels, minlength=table.num_classes)[1:]
    for c, n in zip(table.categories, counts.tolist(), strict=True):
        if n and c.name.strip(" _").casefold() in BACKGROUND:
            report.add(
                "CATEGORY_BACKGROUND",
                f"category {c.name!r} (id {c.id}) has {n} annotations: each is trained as an object",
                count=n,
            )
        if n == 0 and len(table.ann_ids):
            report.add("CATEGORY_UNUSED", f"category {c.name!r} (id {c.id}) has no annotations")
    used = counts[counts > 0]
    if len(used) > 1 and used.max() >= 100 * used.min():
        most, least = int(counts.argmax()), int(np.flatnonzero(counts == used.min())[0])
        report.add("CLASS_IMBALANCE", f"{counts[most]} of {names[most]!r}, {counts[least]} of {names[least]!r}")


def _alike(names: set[str]) -> list[list[str]]:
    """Names that are one word but for case, blanks and hyphens. Single letters may be classes in both cases."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        plain = re.sub(r"(?<!\d)[\s_-]+|[\s_-]+(?!\d)", "", name)  # 1_0 and 10 are two
        groups[plain.casefold() if len(plain) > 2 else plain].append(name)
    return [group for plain, group in groups.items() if plain and len(group) > 1]


def check_ids(table: CocoTable, report: Reporter) -> None:
    """Duplicate ids, annotations without image, the same annotation twice, the same file twice."""
    noted = {p.annotation_id for p in table.problems if p.code in ("ANN_IMAGE_UNKNOWN", "ANN_ENTRY_BAD")}
    for ann in np.flatnonzero(table.ann_image < 0).tolist():
        if int(table.ann_ids[ann]) not in noted:
            report.add("ANN_IMAGE_UNKNOWN", "its image_id is not in `images`", ann=ann)
    _check_repeated_ids(table, report)
    for ann in repeated(table).tolist():
        report.add("ANN_DUPLICATE", f"the same category and box once more: {table.boxes[ann].tolist()}", ann=ann)
    seen: dict[str, int] = {}
    for row, name in enumerate(table.names.decoded()):
        if name and seen.setdefault(name, row) != row:
            report.add("IMAGE_NAME_DUPLICATE", f"image {table.image_ids[seen[name]]} names the same file", image=row)
    empty = len(table) - len(np.unique(table.ann_image[table.ann_image >= 0]))
    if not len(table.ann_ids):
        report.add("NO_ANNOTATIONS", f"{len(table)} images and no annotation")
    elif empty:
        report.add("IMAGES_EMPTY", f"{empty} of {len(table)} images have no annotations", count=empty)


def _check_repeated_ids(table: CocoTable, report: Reporter) -> None:
    """One finding an id; one for all of them where ids start again in each image, or are all the same."""
    _, first, counts = np.unique(table.given_ids, return_index=True, return_counts=True)
    first, counts = first[counts > 1], counts[counts > 1]
    if counts.sum() >= max(10, len(table.ann_ids) / 2):
        several = f"share {len(counts)} ids" if len(counts) > 1 else f"have the id {table.given_ids[first[0]]}"
        report.add(
            "ANN_ID_DUPLICATE", f"{counts.sum()} of {len(table.ann_ids)} annotations {several}", count=counts.sum()
        )
        return
    for ann, n in zip(first.tolist(), counts.tolist(), strict=True):
        report.add("ANN_ID_DUPLICATE", f"{n} annotations have this id", ann=ann, count=n)


def repeated(table: CocoTable) -> np.ndarray:
    """Rows of annotations that repeat an earlier one's image, category and finite box (and segmentation text)."""
    columns = [table.ann_image, table.labels, *table.boxes.T]
    key = np.zeros(len(table.ann_ids), np.uint64)
    for c in columns:  # equal annotations get equal keys: one sort by key instead of six columns
        key = key * np.uint64(0x9E3779B97F4A7C15) + np.ascontiguousarray(c).view(np.uint64)
    order = np.argsort(key, kind="stable")
    same = np.ones(max(len(order) - 1, 0), bool)
    for c in columns:
        same &= c[order][1:] == c[order][:-1]
    same &= table.ann_image[order][1:] >= 0
    found = [(int(order[i]), int(order[i + 1])) for i in np.flatnonzero(same)]
    return np.array(sorted(b for a, b in found if table.segmentation_raw(a) == table.segmentation_raw(b)), np.int64)


def check_sizes(
    table: CocoTable, report: Reporter, min_size: int, max_size: int, anchor: int, misread: np.ndarray
) -> None:
    """Objects that are smaller than the smallest anchor once the image has been resized for training.

    ``misread`` bool (A,): annotations whose boxes do not say how large they are.
    """
    width, height = sides_of(table)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scale = np.minimum(min_size / np.minimum(width, height), max_size / np.maximum(width, height))
        size = np.sqrt(table.boxes[:, 2] * table.boxes[:, 3]) * scale
        small = int((~misread & (size < anchor / 2)).sum())
    if small:
        share = small / len(table.ann_ids)
        report.add(
            "OBJECT_SMALL",
            f"{small} of {len(table.ann_ids)} objects ({share:.1%}) are smaller than half the smallest anchor, "
            f"{anchor} px, after resizing to {min_size}–{max_size} px",
            severity="warning" if share >= 0.1 else "info",
            count=small,
        )
