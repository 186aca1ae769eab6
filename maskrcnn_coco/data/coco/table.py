"""COCO annotations in columns: one array a field, the segmentation kept as raw JSON until somebody needs the mask.

Reading is patient: what is wrong with one annotation never fails the load, it is noted in `CocoTable.problems` for the
audit (bad numbers are NaN in the columns, unknown categories label 0). What is wrong with the file is a DataError.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_coco.data.bit_depth import BitRange
from maskrcnn_coco.data.classes import Classes, match_classes
from maskrcnn_coco.data.coco.entries import UNKNOWN, AnnotationEntry, CategoryEntry, Entries, ImageEntry, Problem
from maskrcnn_coco.data.coco.file import SHAPE, read_text
from maskrcnn_coco.data.coco.forms import plain_segmentations
from maskrcnn_coco.data.coco.parse import parse
from maskrcnn_coco.data.coco.shared_arrays import SharedArrays, Texts
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.system.garbage import without_garbage_collection
from maskrcnn_coco.wording import clean, data_flags


@dataclass(frozen=True)
class Category:
    """A class of the data set: the id and the name the file gives it."""

    id: int
    name: str


@dataclass(frozen=True)
class CocoTable:
    """A COCO file in columns; I images, A annotations. Never changed after `load_coco`; a row is a place in a column.

    Attributes:
        image_ids: int64 (I,), unique. heights, widths: int32 (I,), pixels as the file says, 0 where it does not.
        ann_ids: int64 (A,), unique: the file's id where it names one annotation, else, where ids are missing, below 0
            or used again, the place in the file: -(n + 1) for its n-th annotation, from 0. What targets, findings
            and the quarantine go by. given_ids: int64 (A,), as the file says; -(n + 1) where the n-th has none.
        ann_image: int64 (A,), image row, -1 unknown.
        boxes: float64 (A, 4), COCO xywh in pixels; NaN where the file has no finite number.
        labels: int64 (A,), 1..K-1 by sorted category id, 0 where the category is unknown.
        iscrowd: bool (A,). area: float64 (A,), as given, NaN where not.
        category_ids: int64 (A,), as the file says. categories: sorted by id; label n is categories[n - 1].
        bit_range: the values that become black and white in images of more than 8 bits; None: none is known to be.
        as_stored: images are not turned as their EXIF tags say: `data.orientation` found that they are annotated so.
        given: how the caller named it, as flags of ``check``; "" where he did not: see `flags`.
        problems: what did not fit while reading. origin: stands for the file's content; None where it was just read.
    """

    json_path: Path
    image_root: Path
    image_ids: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    ann_ids: np.ndarray
    given_ids: np.ndarray
    ann_image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    iscrowd: np.ndarray
    area: np.ndarray
    category_ids: np.ndarray
    categories: tuple[Category, ...]
    names: Texts
    segmentations: Texts
    problems: tuple[Problem, ...] = field(default=(), repr=False)
    dropped_category: Category | None = None
    origin: str | None = None
    bit_range: BitRange | None = None
    as_stored: bool = False
    given: str = ""

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def flags(self) -> str:
        """What ``check`` is called with for this set, quoted for the shell."""
        return self.given or data_flags(self.json_path, self.image_root)

    @property
    def class_names(self) -> tuple[str, ...]:
        """("background", first category, …): the name of each label."""
        return ("background", *(c.name for c in self.categories))

    @property
    def num_classes(self) -> int:
        """Classes with background."""
        return 1 + len(self.categories)

    @cached_property
    def shared(self) -> SharedArrays:
        """All columns by name, the texts as ``names.data``, ``names.spans`` and so on; see `restored`."""
        arrays = {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), np.ndarray)}
        for name in ("names", "segmentations"):
            texts: Texts = getattr(self, name)
            arrays |= {f"{name}.data": texts.data, f"{name}.spans": texts.spans}
        return SharedArrays(arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        """Worker processes that are spawned map one file of the columns instead of getting a copy each."""
        if (mapped := self.shared.spill()) is not None:
            # From here on this process uses the same pages: the values are equal, the copy in its memory is freed.
            self.__dict__.update({name: a for name, a in mapped.items() if "." not in name})
            for name in ("names", "segmentations"):
                self.__dict__[name] = Texts(mapped[f"{name}.data"], mapped[f"{name}.spans"])
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.shared.arrays}
        del rest["names"], rest["segmentations"]
        return restored, (rest, self.shared)

    def file_name(self, row: int) -> str:
        """The file name of an image, relative to ``image_root``, as the file says: not checked, `images` does that."""
        return self.names[row].decode("utf-8", "replace")

    def size_of(self, row: int) -> tuple[int, int]:
        """(height, width) of an image as the file says, 0 where it does not."""
        return int(self.heights[row]), int(self.widths[row])

    def segmentation_raw(self, ann_row: int) -> bytes:
        """The annotation's ``segmentation`` as JSON text; empty where it has none. For `masks.decode_mask`."""
        return self.segmentations[ann_row]

    @cached_property
    def _by_image(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.ann_image, kind="stable")
        starts = np.searchsorted(self.ann_image[order], np.arange(len(self) + 1))
        return order, starts

    def annotations_of(self, image_row: int) -> np.ndarray:
        """Annotation rows of an image, int64, in the file's order."""
        order, starts = self._by_image
        return order[starts[image_row] : starts[image_row + 1]]

    @cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.image_ids, kind="stable")
        return self.image_ids[order], order

    def row_of(self, image_id: int) -> int:
        """The row of an image id. Raises KeyError where the file has no such image."""
        ids, order = self._rows
        at = int(np.searchsorted(ids, image_id))
        if at == len(ids) or ids[at] != image_id:
            raise KeyError(image_id)
        return int(order[at])

    @cached_property
    def _ann_rows(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.ann_ids, kind="stable")
        return self.ann_ids[order], order

    def row_of_annotation(self, annotation_id: int) -> int:
        """The row of an entry of ``ann_ids``. Raises KeyError where there is none."""
        ids, order = self._ann_rows
        at = int(np.searchsorted(ids, annotation_id))
        if at == len(ids) or ids[at] != annotation_id:
            raise KeyError(annotation_id)
        return int(order[at])

    def subset(self, image_rows: np.ndarray) -> CocoTable:
        """The images in ``image_rows`` (int64, in that order) with their annotations, in the file's order."""
        rows = np.asarray(image_rows, np.int64)
        new_row = np.full(len(self) + 1, -1, np.int64)  # the last entry stays -1: for annotations without an image
        new_row[rows] = np.arange(len(rows))
        left = self._with_annotations(np.flatnonzero(new_row[self.ann_image] >= 0))
        return replace(
            left,
            image_ids=self.image_ids[rows],
            heights=self.heights[rows],
            widths=self.widths[rows],
            names=Texts(self.names.data, self.names.spans[rows]),
            ann_image=new_row[left.ann_image],
            problems=self._problems_of(set(self.image_ids[rows].tolist())),
        )

    def without(self, image_ids: Iterable[int], annotation_ids: Iterable[int]) -> CocoTable:
        """This table without these images, and these annotations, named as in ``ann_ids``."""
        left = self.subset(np.flatnonzero(~np.isin(self.image_ids, list(image_ids))))
        return left._with_annotations(np.flatnonzero(~np.isin(left.ann_ids, list(annotation_ids))))

    def _with_annotations(self, keep: np.ndarray) -> CocoTable:
        names = ("ann_ids", "given_ids", "ann_image", "boxes", "labels", "iscrowd", "area", "category_ids")
        texts = Texts(self.segmentations.data, self.segmentations.spans[keep])
        return replace(self, segmentations=texts, **{n: getattr(self, n)[keep] for n in names})

    def _problems_of(self, image_ids: set[int]) -> tuple[Problem, ...]:
        return tuple(p for p in self.problems if p.image_id is None or p.image_id in image_ids)

    def with_categories(self, categories: tuple[Category, ...]) -> CocoTable:
        """This table with the labels of another one's ``categories``, matched by name: a validation set's labels.

        Raises:
            DataError: an annotated category is not among ``categories``, or its name stands for several of them.
        """
        used = np.unique(self.labels[self.labels > 0]).tolist()
        match = match_classes(Classes.of(self.categories), Classes.of(categories), used)
        if match.unknown or match.repeated:
            why = (
                "that the training data does not have" if match.unknown else "whose name it uses twice, with other ids"
            )
            raise DataError(
                f"{self.json_path} has annotations of categories {why}",
                got=clean(", ".join(match.unknown or match.repeated)),
                expected=clean(", ".join(c.name for c in categories)),
                fix="use the same category names in both files",
            )
        table = np.array([0, *match.labels], np.int64)
        return replace(self, labels=table[self.labels], categories=categories)


def restored(rest: dict[str, Any], shared: SharedArrays) -> CocoTable:
    """The table of the columns in ``shared`` and its other fields, ``rest``."""
    arrays: dict[str, Any] = dict(shared.arrays)
    for name in ("names", "segmentations"):
        rest[name] = Texts(arrays.pop(f"{name}.data"), arrays.pop(f"{name}.spans"))
    return CocoTable(**rest, **arrays)


def load_coco(json_path: str | Path, image_root: str | Path) -> CocoTable:
    """Read a COCO annotation file (plain or gzip, BOM or not) whose ``file_name`` are relative to ``image_root``.

    Raises:
        DataError: no such file, not a regular file, not JSON, not COCO, no `images`, no `categories`, no image at all.
    """
    path = Path(json_path)
    text = read_text(path)
    with without_garbage_collection():
        try:
            return _table(parse(text, path), path, Path(image_root))
        except OverflowError:  # an id beyond 64 bits: rare, so it is not looked for before
            return _table(parse(text, path, patient=True), path, Path(image_root))


def _table(entries: Entries, path: Path, root: Path) -> CocoTable:
    problems = list(entries.problems)
    images = _unique_images(entries.images, problems)
    if not images:
        bad = next((p.text for p in problems if p.code.startswith("IMAGE_")), None)
        if bad is not None:
            raise DataError(
                f"no entry of `images` in {path} can be read", got=bad, expected=SHAPE, fix="give each an id of its own"
            )
        raise DataError(f"{path} has no images", expected=SHAPE, fix="name a file whose `images` list has entries")
    image_ids = np.array([i.id for i in images], np.int64)
    columns: dict[str, Any] = _columns(entries.annotations)
    columns["ann_ids"] = _unique_ids(columns["given_ids"])
    category_ids = columns["category_ids"]
    flags = columns["iscrowd"]
    for n in np.flatnonzero((flags != 0) & (flags != 1)).tolist():
        image_id = entries.annotations[n].image_id
        problems.append(Problem("ISCROWD_BAD", image_id, -(n + 1), f"annotations[{n}].iscrowd is {flags[n]}"))
    columns["iscrowd"] = flags == 1
    heights, widths = ([getattr(i, n) for i in images] for n in ("height", "width"))
    of_images = columns.pop("image_ids")
    rows = _rows_in(image_ids, of_images)
    problems += _shifted_images(image_ids, of_images[of_images != UNKNOWN]) if (rows < 0).any() else []
    sizes = [*zip(heights, widths, strict=True), (0, 0)]  # the last one stands for no image
    texts = list(map(attrgetter("segmentation"), entries.annotations))
    texts, forms = plain_segmentations(texts, lambda n: sizes[rows[n]])
    if forms:
        said = f"{forms} of {len(texts)} segmentations are text, or name their parts otherwise, and are read"
        problems.append(Problem("SEGMENTATION_FORM", None, None, said))
    categories, dropped = _categories(entries.categories, category_ids, path, problems)
    return CocoTable(
        json_path=path,
        image_root=root,
        image_ids=image_ids,
        heights=np.array(heights, np.int32),
        widths=np.array(widths, np.int32),
        ann_image=rows,
        labels=_rows_in(np.array([c.id for c in categories], np.int64), category_ids) + 1,
        categories=tuple(Category(c.id, c.name) for c in categories),
        names=Texts.of([i.name.encode("utf-8", "replace") for i in images]),
        segmentations=Texts.of(texts),
        problems=tuple(_settled(p, columns["ann_ids"]) for p in problems),
        dropped_category=dropped,
        **columns,
    )


def shift_of(known: np.ndarray, used: np.ndarray) -> int:
    """1 or -1 where all ``used`` ids, some of which are not ``known``, become known by it and then run from end to end
    as the known ones do; 0 where they do not."""
    used = np.unique(used)
    if not len(used) or np.isin(used, known).all():
        return 0
    ends = (int(known.min()), int(known.max()))
    shifts = (s for s in (1, -1) if (int(used[0]) + s, int(used[-1]) + s) == ends)
    return next((s for s in shifts if np.isin(used + s, known).all()), 0)


def _shifted_images(image_ids: np.ndarray, of_images: np.ndarray) -> list[Problem]:
    shift = shift_of(image_ids, of_images) if len(image_ids) > 2 else 0
    if not shift:
        return []
    ends = [f"{min(ids)} to {max(ids)}" for ids in (of_images.tolist(), image_ids.tolist())]
    text = f"image_id of the annotations goes from {ends[0]}, id of the images from {ends[1]}: each object is on a"
    return [
        Problem("IMAGE_ID_SHIFT", None, None, f"{text} neighbour of its image, and those of one image are left out")
    ]


def _columns(entries: list[AnnotationEntry]) -> dict[str, Any]:
    """The numbers of the annotations, a column each. map and attrgetter keep a million calls out of the interpreter."""
    n = len(entries)
    numbers = (("given_ids", "id"), ("image_ids", "image_id"), ("category_ids", "category_id"), ("area", "area"))
    columns = {
        name: np.fromiter(map(attrgetter(attr), entries), np.float64 if attr == "area" else np.int64, n)
        for name, attr in numbers
    }
    boxes = chain.from_iterable(map(attrgetter("bbox"), entries))
    columns["boxes"] = np.fromiter(boxes, np.float64, 4 * n).reshape(n, 4)
    columns["iscrowd"] = np.fromiter(map(attrgetter("iscrowd"), entries), np.int64, n)
    return columns


def _unique_ids(given: np.ndarray) -> np.ndarray:
    """A name for each annotation that no other has, int64 (A,); see `CocoTable.ann_ids`."""
    order = np.argsort(given, kind="stable")
    again = given[order][1:] == given[order][:-1]
    shared = given < 0
    shared[order[1:][again]] = shared[order[:-1][again]] = True
    return np.where(shared, -1 - np.arange(len(given)), given)


def _settled(problem: Problem, ann_ids: np.ndarray) -> Problem:
    """``problem`` with the annotation's name in place of where it stands."""
    place = problem.annotation_id
    return problem if place is None else replace(problem, annotation_id=int(ann_ids[-1 - place]))


def _unique_images(images: list[ImageEntry], problems: list[Problem]) -> list[ImageEntry]:
    """The first entry of each id: annotations name images by id, so that a second one could not be told apart."""
    first: dict[int, ImageEntry] = {}
    for image in images:
        kept = first.setdefault(image.id, image)
        if kept is not image and kept == image:
            problems.append(
                Problem("IMAGE_ENTRY_REPEATED", image.id, None, "the same entry is there again; it is read once")
            )
        elif kept is not image:
            text = f"the id is used again, for {image.file_name!r}; the first, {kept.file_name!r}, is kept"
            problems.append(Problem("IMAGE_ID_DUPLICATE", image.id, None, text))
    return list(first.values())


def _categories(
    entries: list[CategoryEntry], used: np.ndarray, path: Path, problems: list[Problem]
) -> tuple[list[CategoryEntry], Category | None]:
    """Categories by id, without repeats and without the one Roboflow adds: id 0, above all others, never annotated."""
    by_id: dict[int, CategoryEntry] = {}
    for c in entries:
        if by_id.setdefault(c.id, c) is not c:
            text = f"category id {c.id} is used again, for {c.name!r}; the first, {by_id[c.id].name!r}, is kept"
            problems.append(Problem("CATEGORY_ID_DUPLICATE", None, None, text))
    found = [by_id[i] for i in sorted(by_id)]
    if not found:
        raise DataError(
            f"{path} has no categories",
            expected='"categories": [{"id": 1, "name": "..."}, ...]',
            fix="add the list of categories: labels are numbered by it",
        )
    head = found[0]
    is_parent = head.supercategory in (None, "none") and any(c.supercategory == head.name for c in found[1:])
    if head.id == 0 and is_parent and not np.any(used == 0):
        return found[1:], Category(0, head.name)
    return found, None


def _rows_in(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The position of each of ``wanted`` in ``ids`` (unique), -1 where it is not there. int64."""
    low, high = int(ids.min()), int(ids.max())
    if high - low < 16 * len(ids) + 1_000_000:
        # Dense ids, as COCO's: a table is five times as fast as a search.
        table = np.full(high - low + 2, -1, np.int64)  # the last entry stays -1
        table[ids - low] = np.arange(len(ids))
        return table[np.where((wanted >= low) & (wanted <= high), wanted - low, -1)]
    order = np.argsort(ids, kind="stable")
    at = np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)
    return np.where(ids[order][at] == wanted, order[at], -1)
