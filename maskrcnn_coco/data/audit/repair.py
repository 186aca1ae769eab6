"""A repaired copy of an annotation file, and the list of what was changed. The source is never touched."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from maskrcnn_coco.data.audit.boxes import repeated
from maskrcnn_coco.data.audit.catalogue import Reporter
from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.audit.clip import clip_polygon
from maskrcnn_coco.data.audit.quarantine import annotation_of
from maskrcnn_coco.data.audit.readings import READING_CODES, Agreement, Reading, agreement
from maskrcnn_coco.data.audit.reread import reread
from maskrcnn_coco.data.audit.segmentations import measure
from maskrcnn_coco.data.audit.sizes import SIZE_CODES, at_size_of_files
from maskrcnn_coco.data.audit.whole_set import category_shift
from maskrcnn_coco.data.coco.file import read_text
from maskrcnn_coco.data.coco.loose_reader import LooseReader
from maskrcnn_coco.data.coco.parse import arranged, mended
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.masks import decode_mask, plain_polygons
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.records import DataFinding, to_json
from maskrcnn_coco.system.files import write_bytes

BOX_FROM_MASK = frozenset(
    {
        *("BOX_MISSING", "BOX_MALFORMED", "BOX_NONFINITE", "BOX_INVERTED", "BOX_EMPTY", "BOX_OUTSIDE", "BOX_FAR"),
        "MASK_BOX_DISAGREE",
    }
)
AREA_FROM_MASK = frozenset({"AREA_BAD", "MASK_AREA_DISAGREE"})
SIZES = ("IMAGES_RESIZED", "boxes and masks in the pixels of the files")
FORMS = frozenset({"FILE_FORM", "BOX_FORM", "SEGMENTATION_FORM", "IMAGE_ID_NAME"})
"""Findings about all of the file whose parts are written in another form, and read."""
KEPT_ERRORS = frozenset({"NO_MASKS", "NO_ANNOTATIONS"})
_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass
class Change:
    """One change of the copy: ``what`` is "removed" or the name of the field, ``codes`` the findings behind it."""

    image_id: int | None
    annotation_id: int | None
    what: str
    before: Any
    after: Any
    codes: list[str]


def repair(table: CocoTable, findings: list[DataFinding], out_json: str | Path) -> list[Change]:
    """Write a copy of the table's file without its errors, and OUT.changes.json beside it.

    Args:
        table: as `load_coco` read it, not a subset. findings: of `audit`.
        out_json: the copy; must not exist. Fields that need no repair, known or not, are copied as they are.

    Raises:
        DataError: OUT exists, is the source, or cannot be written; the source has changed since it was read.
    """
    out = Path(out_json)
    if out.exists() or out.is_symlink():
        raise DataError(f"{out} exists already, and nothing is overwritten", fix="name a new file: --fix OUT.json")
    shifted = next((f for f in findings if f.code == "IMAGE_ID_SHIFT"), None)
    if shifted is not None:
        raise DataError(f"nothing was written: {shifted.message}", fix=shifted.fix)
    top, changes = _copy(table, findings)
    _write(out, msgspec.json.encode(top))
    _write(changes_file(out), to_json(changes, indent=1).encode("utf-8", "replace"))
    return changes


def can_repair(table: CocoTable, findings: list[DataFinding]) -> bool:
    """Whether a copy that `repair` writes would hold anything."""
    with contextlib.suppress(DataError):
        return bool(_copy(table, findings))
    return False


def _copy(table: CocoTable, findings: list[DataFinding]) -> tuple[dict[str, msgspec.Raw], list[Change]]:
    """The repaired file's object, and what was changed. Raises DataError as `repair`."""
    top, images, annotations = _entries(table)
    work = _as_meant(table, findings)
    ids = [None if entry is None else entry.id for entry in LooseReader().images(images)]
    kept = [r for raw, image_id in zip(images, ids, strict=True) if (r := work.image(raw, image_id)) is not None]
    objects = [r for n, raw in enumerate(annotations) if (r := work.annotation(n, raw)) is not None]
    _require_rest(table, kept, objects, work.changes)
    top["images"], top["annotations"] = _raw(kept), _raw(objects)
    if {"CATEGORY_ID_TEXT", "FILE_FORM"} & work.whole:
        top["categories"] = _raw(work.categories(msgspec.json.decode(top["categories"], type=list[msgspec.Raw])))
    return top, work.changes


def changes_file(out_json: str | Path) -> Path:
    """Where `repair` lists what it changed."""
    out = Path(out_json)
    return out.with_name(out.name.removesuffix(".json") + ".changes.json")


def _entries(table: CocoTable) -> tuple[dict[str, msgspec.Raw], list[msgspec.Raw], list[msgspec.Raw]]:
    """The file's object, and its images and annotations. Raises DataError as `repair`."""
    try:
        top = _raw_object.decode(arranged(mended(read_text(table.json_path)))[0])
        annotations = (
            msgspec.json.decode(top.get("annotations", msgspec.Raw(b"[]")), type=list[msgspec.Raw] | None) or []
        )
        images = msgspec.json.decode(top["images"], type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, RecursionError) as e:
        raise DataError(f"{table.json_path} cannot be repaired: {e}", fix="export it again") from e
    if len(annotations) != len(table.ann_ids):
        raise DataError(f"{table.json_path} has changed since it was checked", fix="check it again")
    return top, images, annotations


def _as_meant(table: CocoTable, findings: list[DataFinding]) -> _Repair:
    """The repair of the table, read as it was meant where a finding says so: faults are those that then remain."""
    whole = {f.code for f in findings if f.image_id is None}
    if whole & SIZE_CODES:
        meant = at_size_of_files(table, swapped="SIZES_SWAPPED" in whole)
        rows = np.ones(len(table.ann_ids), bool)
        reading = Reading(*SIZES, boxes=lambda v, _: v) if "IMAGES_RESIZED" in whole else Reading(*SIZES)
        rest = [f for f in findings if f.image_id is not None and f.annotation_id is None]
        rest = [f for f in rest if f.code != "IMAGE_SIZE_WRONG"] + [f for f in findings if f.code in SIZE_CODES]
        return _Repair(meant, rest + audit(meant, images=False), (table, Agreement(0, 0, 1, reading, rows, rows)))
    if whole & READING_CODES:
        found = agreement(table, measure(table, Reporter(table)))
        if found is not None and not found.others:
            meant = reread(table, found)
            of_images = [f for f in findings if f.image_id is not None and f.annotation_id is None]
            rest = [f for f in audit(meant, images=False) if f not in of_images]
            return _Repair(meant, of_images + rest, (table, found))
    return _Repair(table, findings)


def _require_rest(table: CocoTable, images: list[Any], annotations: list[Any], changes: list[Change]) -> None:
    """Refuse to write a file of which nothing is left.

    Raises:
        DataError: there were images, or annotations, and the copy would have none.
    """
    for what, kept, before in (("image", images, len(table)), ("annotation", annotations, len(table.ann_ids))):
        if before and not kept:
            codes = Counter(c for change in changes if change.what == "removed" for c in change.codes)
            raise DataError(
                f"nothing was written: no {what} of {table.json_path} can be repaired",
                got=f"{before} {what}s, with {', '.join(f'{code} ({n})' for code, n in codes.most_common(4))}",
                fix="mend what these name by hand, or export the set again",
            )


def _write(path: Path, data: bytes) -> None:
    try:
        write_bytes(path, data)
    except OSError as e:
        raise DataError(f"cannot write {path}: {e.strerror}", fix="choose a folder that can be written") from e


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _merged(table: CocoTable, of_image: dict[int, dict[str, str]]) -> dict[int, int]:
    """Image → the first one of the same file and size, where both are sound: its annotations go there."""
    first: dict[tuple[str, int, int], int] = {}
    found: dict[int, int] = {}
    for row in range(len(table) if any("IMAGE_NAME_DUPLICATE" in codes for codes in of_image.values()) else 0):
        image = int(table.image_ids[row])
        if "error" not in of_image.get(image, {}).values():
            kept = first.setdefault((table.file_name(row), *table.size_of(row)), image)
            if kept != image:
                found[image] = kept
    return found


class _Repair:
    def __init__(
        self, table: CocoTable, findings: list[DataFinding], read_anew: tuple[CocoTable, Agreement] | None = None
    ) -> None:
        self.table = table
        self.read_anew = read_anew
        self.changes: list[Change] = []
        self.whole = {f.code for f in findings if f.image_id is None and f.annotation_id is None}
        self.of_image: defaultdict[int, dict[str, str]] = defaultdict(dict)
        self.of_annotation: defaultdict[int, dict[str, str]] = defaultdict(dict)
        for f in findings:
            if (annotation := annotation_of(f)) is not None:
                self.of_annotation[annotation][f.code] = f.severity
            elif f.image_id is not None:
                self.of_image[f.image_id][f.code] = f.severity
        self.xyxy = "BOX_XYXY" in self.whole
        self.next_id = int(max(table.given_ids.max(initial=0), 0)) + 1
        self.repeated = set(repeated(table).tolist())
        self.used_ids: set[int] = set()
        self.used_images: set[int] = set()
        self.shift = category_shift(table)
        self.merged = _merged(table, self.of_image)

    def categories(self, entries: list[msgspec.Raw]) -> list[msgspec.Raw]:
        """The categories under the ids that stand for their words."""
        kept = []
        for raw, entry in zip(entries, LooseReader().categories(entries), strict=True):
            if entry is not None:
                kept.append(
                    self._edit(_raw_object.decode(raw), {"id": entry.id}, (None, None), {"CATEGORY_ID_TEXT": ""})
                )
        return kept

    def image(self, raw: msgspec.Raw, image_id: int | None) -> msgspec.Raw | None:
        """The entry as it goes into the copy, None where it is left out; ``image_id`` as it was read."""
        if image_id is None:
            shown = bytes(raw)[:200].decode("utf-8", "replace")
            self._change(None, None, "removed", shown, None, ["IMAGE_ID_BAD"])
            return None
        row = self.table.row_of(image_id)
        codes = self.of_image[image_id]
        if image_id in self.merged:
            self._change(image_id, None, "removed", self.table.file_name(row), self.merged[image_id], list(codes))
            return None
        if any(s == "error" for s in codes.values()) or image_id in self.used_images:
            self._change(image_id, None, "removed", self.table.file_name(row), None, list(codes))
            return None
        self.used_images.add(image_id)
        if SIZE_CODES & self.whole:
            codes = {**codes, **dict.fromkeys(SIZE_CODES & self.whole, "warning")}
        elif {"IMAGE_ID_TEXT", "FILE_FORM"} & self.whole:
            codes = {**codes, **dict.fromkeys({"IMAGE_ID_TEXT", "FILE_FORM"} & self.whole, "warning")}
        elif not {"IMAGE_SIZE_INVALID", "ID_STRING"} & set(codes):
            return raw
        fields = _raw_object.decode(raw)
        height, width = int(self.table.heights[row]), int(self.table.widths[row])
        return self._edit(fields, {"id": image_id, "height": height, "width": width}, (image_id, None), codes)

    def annotation(self, n: int, raw: msgspec.Raw) -> msgspec.Raw | None:
        """The entry as it goes into the copy, None where it is left out."""
        t, own = self.table, int(self.table.given_ids[n])
        row = int(t.ann_image[n])
        image_id = int(t.image_ids[row]) if row >= 0 else None
        image_id = self.merged.get(image_id, image_id) if image_id is not None else None
        codes = dict(self.of_annotation[int(t.ann_ids[n])])
        wrong = (
            {c for c, s in codes.items() if s == "error"}
            - ({"LABEL_UNKNOWN"} if self.shift else set())
            - (BOX_FROM_MASK if not self.whole & KEPT_ERRORS else set())
        )
        if image_id not in self.used_images or wrong or n in self.repeated:
            self._change(image_id, own, "removed", t.boxes[n].tolist(), None, sorted(wrong) or list(codes))
            return None
        values = self._values(n, codes)
        if values is None:
            self._change(image_id, own, "removed", t.boxes[n].tolist(), None, list(codes))
            return None
        return self._edit(_raw_object.decode(raw), values, (image_id, own), codes) if values else raw

    def _values(self, n: int, codes: dict[str, str]) -> dict[str, Any] | None:
        """New values of fields by name; None where the annotation cannot be saved."""
        t, values = self.table, {}
        own = int(t.given_ids[n])
        if own < 0 or own in self.used_ids:
            codes.setdefault("ANN_ID_BAD" if own < 0 else "ANN_ID_DUPLICATE", "warning")
            own, self.next_id = self.next_id, self.next_id + 1
            values["id"] = own
        self.used_ids.add(own)
        image_id = int(t.image_ids[t.ann_image[n]])
        if image_id in self.merged:
            codes.setdefault("IMAGE_NAME_DUPLICATE", "warning")
            values["image_id"] = self.merged[image_id]
        if "ID_STRING" in codes or {"IMAGE_ID_TEXT", "CATEGORY_ID_TEXT"} & self.whole:
            plain = {"image_id": self.merged.get(image_id, image_id), "category_id": int(t.category_ids[n])}
            values |= {"id": own} | plain
        if FORMS & self.whole:
            values |= self._plain(n) | values
        if self.shift:
            codes.setdefault("LABEL_UNKNOWN", "error")
            values["category_id"] = int(t.category_ids[n]) + self.shift
        if "ISCROWD_BAD" in codes or (t.iscrowd[n] and {"CROWD_ALL", "CROWD_SINGLE"} & self.whole):
            values["iscrowd"] = 0
        values |= self._as_meant(n, codes)
        segmentation = self._segmentation(n, codes)
        if segmentation is not None:
            if not segmentation:
                return None
            values["segmentation"] = segmentation
        box = self._box(n, codes, segmentation)
        if box == []:
            return None
        if box is not None:
            values["bbox"] = box
        area = self._area(n, codes, segmentation)
        return values | ({"area": area} if area is not None else {})

    def _plain(self, n: int) -> dict[str, Any]:
        """Fields that were written in another form, as they were read."""
        t = self.table
        ids = {"id": int(t.given_ids[n]), "image_id": int(t.image_ids[t.ann_image[n]])}
        values: dict[str, Any] = ids | {"category_id": int(t.category_ids[n])}
        if "BOX_FORM" in self.whole and np.isfinite(t.boxes[n]).all():
            values["bbox"] = t.boxes[n].tolist()
        if "SEGMENTATION_FORM" in self.whole and (raw := t.segmentation_raw(n)):
            values["segmentation"] = msgspec.json.decode(raw)
        return values

    def _as_meant(self, n: int, codes: dict[str, str]) -> dict[str, Any]:
        """Box and mask under the reading that holds for the whole set."""
        if self.read_anew is None or not self.read_anew[1].rows[n]:
            return {}
        before, found = self.read_anew
        values: dict[str, Any] = {}
        if found.reading.boxes is not None:
            values["bbox"] = self.table.boxes[n].tolist()
        if SIZE_CODES & self.whole and np.isfinite(self.table.area[n]):
            values["area"] = float(self.table.area[n])
        if self.table.segmentation_raw(n) != before.segmentation_raw(n):
            values["segmentation"] = msgspec.json.decode(self.table.segmentation_raw(n))
        if values:
            codes[found.reading.code] = "warning"
        return values

    def _mask(self, n: int, segmentation: Any) -> np.ndarray | None:
        row = int(self.table.ann_image[n])
        source = segmentation if segmentation is not None else self.table.segmentation_raw(n)
        try:
            return decode_mask(source, int(self.table.heights[row]), int(self.table.widths[row]))
        except DataError:
            return None

    def _segmentation(self, n: int, codes: dict[str, str]) -> list[list[float]] | None:
        odd = "POLYGON_FORM" in self.whole
        if not odd and not {"POLYGON_OUTSIDE", "POLYGON_PART_SHORT"} & set(codes):
            return None
        row = int(self.table.ann_image[n])
        value = msgspec.json.decode(self.table.segmentation_raw(n) or b"null")
        if not isinstance(value, list):
            return None
        plain = plain_polygons(value)
        if odd and plain is value and not {"POLYGON_OUTSIDE", "POLYGON_PART_SHORT"} & set(codes):
            return None
        parts = [p for p in plain if len(p) >= 6]
        if "POLYGON_OUTSIDE" in codes:
            parts = [clip_polygon(p, int(self.table.widths[row]), int(self.table.heights[row])) for p in parts]
        return [p for p in parts if len(p) >= 6]

    def _box(self, n: int, codes: dict[str, str], segmentation: Any) -> list[float] | None:
        """The new box, xywh; None where the old one stays, [] where there is none."""
        x, y, w, h = self.table.boxes[n].tolist()
        if self.xyxy and np.isfinite([x, y, w, h]).all():
            return [x, y, w - x, h - y]
        if BOX_FROM_MASK & set(codes):
            mask = self._mask(n, segmentation)
            if mask is None or not mask.any():
                return []
            ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            return [float(v) for v in (xs[0], ys[0], xs[-1] - xs[0] + 1, ys[-1] - ys[0] + 1)]
        if "BOX_PARTLY_OUTSIDE" in codes:
            row = int(self.table.ann_image[n])
            right, bottom = min(x + w, float(self.table.widths[row])), min(y + h, float(self.table.heights[row]))
            return [max(x, 0.0), max(y, 0.0), right - max(x, 0.0), bottom - max(y, 0.0)]
        return [x, y, w, h] if "BOX_STRING" in codes else None

    def _area(self, n: int, codes: dict[str, str], segmentation: Any) -> float | None:
        stale = {"AREA_IS_BOX", "AREA_MISSING"} & self.whole
        if not (AREA_FROM_MASK & set(codes) or stale or segmentation is not None):
            return None
        mask = self._mask(n, segmentation)
        if mask is None:
            return None
        pixels, given = float(mask.sum()), float(self.table.area[n])
        # A polygon's own area differs from its mask's by its outline: that is no reason for a change.
        return None if np.isfinite(given) and abs(pixels - given) <= 0.1 * max(pixels, 20.0) else pixels

    def _edit(
        self,
        fields: dict[str, msgspec.Raw],
        values: dict[str, Any],
        who: tuple[int | None, int | None],
        codes: dict[str, str],
    ) -> msgspec.Raw:
        for name, value in values.items():
            before = bytes(fields[name]) if name in fields else None
            after = msgspec.json.encode(value)
            if before != after:
                shown = None if before is None else before[:200].decode("utf-8", "replace")
                self._change(*who, name, shown, after[:200].decode(), list(codes) or sorted(self.whole))
                fields[name] = msgspec.Raw(after)
        return _raw(fields)

    def _change(self, image: int | None, ann: int | None, what: str, before: Any, after: Any, codes: list[str]) -> None:
        self.changes.append(Change(image, ann, what, before, after, codes))
