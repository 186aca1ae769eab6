"""The patient reader of a COCO file's entries, for those that do not fit: one at a time."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from maskrcnn_coco.data.coco.entries import (
    ABSENT,
    INT_LIMIT,
    NO_BOX,
    SIDE_LIMIT,
    UNKNOWN,
    AnnotationEntry,
    Box,
    CategoryEntry,
    ImageEntry,
    Problem,
)
from maskrcnn_coco.data.coco.forms import plain_box


class _RawImage(msgspec.Struct, gc=False):
    id: msgspec.Raw = ABSENT
    file_name: msgspec.Raw = ABSENT
    height: msgspec.Raw = ABSENT
    width: msgspec.Raw = ABSENT
    coco_url: msgspec.Raw = ABSENT
    filename: msgspec.Raw = ABSENT
    path: msgspec.Raw = ABSENT


class _RawAnnotation(msgspec.Struct, gc=False):
    id: msgspec.Raw = ABSENT
    image_id: msgspec.Raw = ABSENT
    category_id: msgspec.Raw = ABSENT
    bbox: msgspec.Raw = ABSENT
    segmentation: msgspec.Raw = ABSENT
    area: msgspec.Raw = ABSENT
    iscrowd: msgspec.Raw = ABSENT


class _RawCategory(msgspec.Struct, gc=False):
    id: msgspec.Raw = ABSENT
    name: msgspec.Raw = ABSENT
    supercategory: msgspec.Raw = ABSENT


_image, _raw_image = msgspec.json.Decoder(ImageEntry), msgspec.json.Decoder(_RawImage)
_annotation, _raw_annotation = msgspec.json.Decoder(AnnotationEntry), msgspec.json.Decoder(_RawAnnotation)
_raw_category = msgspec.json.Decoder(_RawCategory)
_WHOLE = re.compile(r"\s*-?\d{1,18}(\.0+)?\s*")
"""A whole number written as text. Not 12e4, which is a piece of a hash as likely as a number."""
_IMAGE_TEXT = re.compile(rb'"image_id"\s*:\s*"([^"\\]*)"')
_BAD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class LooseReader:
    """Decodes one entry at a time; what does not fit is mended where its meaning is plain, and noted."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._image_words: dict[str, int] = {}
        self._category_words: dict[str, int] = {}
        self._names: dict[str, int] = {}
        self._classes: dict[str, int] = {}
        self.other_boxes = 0
        """Boxes that were written in another form whose meaning is plain."""
        self.listed_ids = 0
        """Ids that stand in a list of their own."""

    def images(self, entries: Sequence[msgspec.Raw]) -> list[ImageEntry | None]:
        """All of ``images``, None where one has no usable id. Ids that are words, or too large, become numbers."""
        found = [self.image(n, raw) for n, raw in enumerate(entries)]
        self._number_words([i for i in found if i is not None], self._image_words, "IMAGE_ID_TEXT", "image")
        return found

    def categories(self, entries: Sequence[msgspec.Raw]) -> list[CategoryEntry | None]:
        """All of ``categories``, as `images`."""
        found = [self.category(n, raw) for n, raw in enumerate(entries)]
        kept = [c for c in found if c is not None]
        self._number_words(kept, self._category_words, "CATEGORY_ID_TEXT", "category")
        names = Counter(c.name for c in kept)
        # A name that is a number would be an id; one that two categories have stands for neither.
        self._classes = {c.name: c.id for c in kept if names[c.name] == 1 and not _WHOLE.fullmatch(c.name)}
        return found

    def _number_words(
        self, entries: Sequence[ImageEntry | CategoryEntry], words: dict[str, int], code: str, what: str
    ) -> None:
        """Number the words in the file's order, above the ids that are numbers, in place of what stood for them."""
        if not words:
            return
        first = max((e.id for e in entries if e.id > 0), default=0) + 1
        given = {stand_in: first + n for n, stand_in in enumerate(words.values())}
        shown = next(iter(words))
        for word, stand_in in words.items():
            words[word] = given[stand_in]
        for entry in entries:
            entry.id = given.get(entry.id, entry.id)
        if what == "image":
            self.problems = [
                p if p.image_id not in given else replace(p, image_id=given[p.image_id]) for p in self.problems
            ]
        text = f"{len(given)} {what} ids are no whole numbers, as {shown[:60]!r}: here they are"
        self._note(code, None, None, f"{text} {first} to {first + len(given) - 1}, in the file's order")

    def learn_names(self, images: Sequence[ImageEntry], annotations: Sequence[msgspec.Raw]) -> None:
        """Where annotations name their images by file name, with or without suffix, read them so.

        Digits that are written as a number would be may be ids: names they are only where others, as 0017, cannot be.
        """
        if self._image_words:
            return
        names: dict[str, list[int]] = {}
        for image in images:
            plain = image.name.replace("\\", "/").rpartition("/")[2]
            for name in {image.name, plain, plain.rpartition(".")[0]} - {""}:
                names.setdefault(name, []).append(image.id)
        known = {name: ids[0] for name, ids in names.items() if len(ids) == 1}
        ids = {str(i.id) for i in images}
        found = 0
        for raw in annotations:
            if (m := _IMAGE_TEXT.search(raw)) is None:
                continue
            word = m[1].decode("utf-8", "replace")
            if word not in known:
                if word not in ids:
                    return
            elif word not in ids:
                found += 1
        if found:
            self._names = known
            self._note("IMAGE_ID_NAME", None, None, f"{found} annotations name their image by its file name")

    def image(self, n: int, raw: msgspec.Raw) -> ImageEntry | None:
        """The ``n``-th image, or None where it has no usable id."""
        try:
            entry = _image.decode(raw)
            sized = 0 < entry.height <= SIDE_LIMIT and 0 < entry.width <= SIDE_LIMIT
            if abs(entry.id) < INT_LIMIT and sized and entry.name:
                return entry
        except _BAD:
            pass
        try:
            fields = _raw_image.decode(raw)
        except _BAD:
            self._note("IMAGE_ENTRY_BAD", None, None, f"images[{n}] is not an object: {_shown(raw)}")
            return None
        identity = self._identity(
            fields.id, "IMAGE_ID_BAD", f"images[{n}].id", (None, None), self._image_words, new=True
        )
        if identity is None:
            return None
        given = (_value(f) for f in (fields.file_name, fields.coco_url, fields.filename, fields.path))
        name = next((value for value in given if isinstance(value, str) and value), _value(fields.file_name))
        name = str(name) if type(name) is int else name  # 17 for 17.png: the folder tells
        if not isinstance(name, str):
            self._note("IMAGE_FILE_NAME_BAD", identity, None, f"images[{n}].file_name is {_shown(fields.file_name)}")
            name = ""
        height = self._side(fields.height, identity, f"images[{n}].height")
        width = self._side(fields.width, identity, f"images[{n}].width")
        return ImageEntry(identity, name, height, width)

    def _side(self, raw: msgspec.Raw, image_id: int, where: str) -> int:
        value = _value(raw)
        number = _number(value)
        if isinstance(value, str):
            self._note("IMAGE_SIZE_INVALID", image_id, None, f"{where} is text, {_shown(raw)}")
        if 0 < number <= SIDE_LIMIT and number == int(number):
            return int(number)
        if not isinstance(value, str):
            self._note("IMAGE_SIZE_INVALID", image_id, None, f"{where} is {_shown(raw)}")
        return 0

    def category(self, n: int, raw: msgspec.Raw) -> CategoryEntry | None:
        """The ``n``-th category, or None where it has no usable id."""
        try:
            fields = _raw_category.decode(raw)
        except _BAD:
            self._note("CATEGORY_BAD", None, None, f"categories[{n}] is not an object: {_shown(raw)}")
            return None
        words = self._category_words
        identity = self._identity(fields.id, "CATEGORY_BAD", f"categories[{n}].id", (None, None), words, new=True)
        if identity is None:
            return None
        name, above = _value(fields.name), _value(fields.supercategory)
        if not isinstance(name, str) or not name.strip():
            self._note("CATEGORY_BAD", None, None, f"categories[{n}].name is {_shown(fields.name)}")
            name = f"category {identity}"
        return CategoryEntry(identity, name, above if isinstance(above, str) else None)

    def annotation(self, n: int, raw: msgspec.Raw) -> AnnotationEntry:
        """The ``n``-th annotation. Unknown ids become `UNKNOWN`, a missing own id -(n + 1), bad numbers NaN."""
        try:
            entry = _annotation.decode(raw)
            if max(abs(entry.id), abs(entry.image_id), abs(entry.category_id), abs(entry.iscrowd)) < INT_LIMIT:
                return entry
        except _BAD:
            pass
        try:
            fields = _raw_annotation.decode(raw)
        except _BAD:
            self._note("ANN_ENTRY_BAD", None, -(n + 1), f"annotations[{n}] is not an object: {_shown(raw)}")
            return AnnotationEntry(-(n + 1), UNKNOWN, UNKNOWN, NO_BOX)
        where = f"annotations[{n}]"
        place = -(n + 1)
        own = self._integer(fields.id, "ANN_ID_BAD", f"{where}.id", (None, place))
        own = place if own is None else own
        image = self._identity(
            fields.image_id, "ANN_IMAGE_UNKNOWN", f"{where}.image_id", (None, place), self._image_words
        )
        who = (image, place)
        category = self._identity(
            fields.category_id, "LABEL_UNKNOWN", f"{where}.category_id", who, self._category_words
        )
        return AnnotationEntry(
            own,
            UNKNOWN if image is None else image,
            UNKNOWN if category is None else category,
            self._box(fields.bbox, where, who),
            fields.segmentation,
            self._area(fields.area, where, who),
            self._crowd(fields.iscrowd, where, who),
        )

    def _box(self, raw: msgspec.Raw, where: str, who: tuple[int | None, int]) -> Box:
        values = _value(raw)
        if values is None:
            self._note("BOX_MISSING", *who, f"{where} has no bbox")
            return NO_BOX
        if not isinstance(values, list) or len(values) != 4:
            plain = plain_box(values)
            if plain is None:
                self._note("BOX_MALFORMED", *who, f"{where}.bbox is {_shown(raw)}")
                return NO_BOX
            self.other_boxes += 1
            values = plain
        numbers = [_number(v) for v in values]
        if not all(math.isfinite(v) for v in numbers):
            self._note("BOX_NONFINITE", *who, f"{where}.bbox is {_shown(raw)}")
            return NO_BOX
        if any(isinstance(v, str) for v in values):
            self._note("BOX_STRING", *who, f"{where}.bbox holds text where numbers belong: {_shown(raw)}")
        return (numbers[0], numbers[1], numbers[2], numbers[3])

    def _area(self, raw: msgspec.Raw, where: str, who: tuple[int | None, int]) -> float:
        value = _value(raw)
        if value is None:
            return math.nan
        number = _number(value)
        if not math.isfinite(number) or isinstance(value, str):
            self._note("AREA_BAD", *who, f"{where}.area is {_shown(raw)}")
        return number if math.isfinite(number) else math.nan

    def _crowd(self, raw: msgspec.Raw, where: str, who: tuple[int | None, int]) -> int:
        value = _value(raw)
        if value is None or value in (0, 1, "0", "1"):
            return int(value or 0)
        self._note("ISCROWD_BAD", *who, f"{where}.iscrowd is {_shown(raw)}")
        return 0

    def _identity(
        self,
        raw: msgspec.Raw,
        code: str,
        where: str,
        who: tuple[int | None, int | None],
        words: dict[str, int],
        *,
        new: bool = False,
    ) -> int | None:
        """An id: a whole number, or what stands for a word; ``new``: of an entry that others refer to by it."""
        value = _value(raw)
        if isinstance(value, list) and len(value) == 1:
            value, raw = value[0], msgspec.Raw(bytes(raw).strip()[1:-1])
            self.listed_ids += 1
        if isinstance(value, str) and not new:
            named = self._names if words is self._image_words else self._classes
            if value in named:
                return named[value]
        text = value if isinstance(value, str) else str(value)
        is_word = isinstance(value, str) and value.strip().lstrip("-") not in ("", "NaN", "Infinity")
        is_word = is_word and not _WHOLE.fullmatch(text)
        is_huge = isinstance(value, int) and not isinstance(value, bool) and abs(value) >= INT_LIMIT
        if not (is_word or is_huge):
            return self._integer(raw, code, where, who)
        if new:
            return words.setdefault(text, UNKNOWN + 1 + len(words))
        if text not in words:
            self._note(code, *who, f"{where} is {_shown(raw)}")
        return words.get(text)

    def _integer(self, raw: msgspec.Raw, code: str, where: str, who: tuple[int | None, int | None]) -> int | None:
        value = _value(raw)
        number = _number(value)
        plain = not isinstance(value, str) or _WHOLE.fullmatch(value) is not None
        if plain and math.isfinite(number) and abs(number) < INT_LIMIT and number == int(number):
            if isinstance(value, str):
                self._note("ID_STRING", *who, f"{where} is text, {_shown(raw)}, where a whole number belongs")
                return int(value.strip().partition(".")[0])
            return int(value)  # not through float: ids above 2**53 must stay exact
        self._note(code, *who, f"{where} is {_shown(raw)}")
        return None

    def _note(self, code: str, image_id: int | None, annotation_id: int | None, text: str) -> None:
        self.problems.append(Problem(code, image_id, annotation_id, text))


def _value(raw: msgspec.Raw) -> Any:
    """The JSON value, by the standard library, which takes 1e400 and lone surrogates; text if it cannot."""
    text = bytes(raw)
    if not text:
        return None
    if len(text) > 2000:
        return text[:40].decode("utf-8", "replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text[:40].decode("utf-8", "replace")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    if isinstance(value, str) and value.count(",") == 1 and "." not in value:
        value = value.replace(",", ".")  # a spreadsheet's decimals
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _shown(raw: msgspec.Raw) -> str:
    text = bytes(raw) or b"missing"
    return (text if len(text) <= 60 else text[:57] + b"...").decode("utf-8", "replace")
