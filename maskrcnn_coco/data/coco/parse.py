"""JSON text → the three lists of a COCO file, checked: nothing in the file is trusted.

Two ways through. A well-formed file is decoded straight into typed records (the segmentation stays raw JSON). As
soon as one entry does not fit, each entry is decoded by itself, so that one bad annotation costs one annotation.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from maskrcnn_coco.data.coco.entries import (
    ABSENT,
    SIDE_LIMIT,
    AnnotationEntry,
    CategoryEntry,
    Entries,
    ImageEntry,
    Problem,
)
from maskrcnn_coco.data.coco.file import SHAPE
from maskrcnn_coco.data.coco.forms import as_lists
from maskrcnn_coco.data.coco.keys import needs_names
from maskrcnn_coco.data.coco.loose_reader import LooseReader
from maskrcnn_coco.errors import DataError


class _Strict(msgspec.Struct, gc=False):
    images: list[ImageEntry]
    categories: list[CategoryEntry]
    annotations: list[AnnotationEntry]


class _Top(msgspec.Struct, gc=False):
    images: msgspec.Raw = ABSENT
    videos: msgspec.Raw = ABSENT
    annotations: msgspec.Raw = ABSENT
    categories: msgspec.Raw = ABSENT


_strict_decoder = msgspec.json.Decoder(_Strict)


def parse(text: bytes, path: Path, *, patient: bool = False) -> Entries:
    """The entries in JSON ``text``; ``path`` is named in errors. ``patient``: one by one from the start.

    Raises:
        DataError: not JSON, nested too deep, not COCO, no `images`, no `categories`.
    """
    if patient:
        return _parse_loose(text, path)
    try:
        top = _strict_decoder.decode(text)
    except RecursionError:
        raise _too_deep(path) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _parse_loose(text, path)  # one entry does not fit: take them one by one
    entries = Entries(top.images, top.annotations, top.categories)
    return entries if _sized(entries) and not _is_masked(entries, text) else _parse_loose(text, path)


def _is_masked(entries: Entries, text: bytes) -> bool:
    """No annotation has a segmentation, and the first would have one if a field had its right name."""
    if not entries.annotations or any(len(bytes(a.segmentation)) > 2 for a in entries.annotations):
        return False
    try:
        raw = msgspec.json.decode(text, type=_Top)
        return needs_names(
            {"annotations": json.loads(bytes(msgspec.json.decode(raw.annotations, type=list[msgspec.Raw])[0]))}
        )
    except (ValueError, RecursionError, IndexError, msgspec.DecodeError):
        return False


def _sized(entries: Entries) -> bool:
    sized = all(0 < i.height <= SIDE_LIMIT and 0 < i.width <= SIDE_LIMIT and i.name for i in entries.images)
    return sized and all(c.name.strip() for c in entries.categories)


def _parse_loose(text: bytes, path: Path) -> Entries:
    text, notes = arranged(mended(text))
    try:
        top = msgspec.json.decode(text, type=_Top)
        if not bytes(top.images) and bytes(top.videos):
            raise DataError(
                f"{path} is of videos (YouTube-VIS): its annotations go through frames",
                expected=SHAPE,
                fix="write an entry of `images` for each frame, and an annotation for each object in it",
            )
        lists = {n: _raw_list(getattr(top, n), n, path) for n in ("images", "annotations", "categories")}
    except RecursionError:
        raise _too_deep(path) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise _not_json(text, path, str(e)) from e
    reader = LooseReader()
    reader.problems += [Problem("FILE_FORM", None, None, note) for note in notes]
    images = [i for i in reader.images(lists["images"]) if i is not None]
    categories = [c for c in reader.categories(lists["categories"]) if c is not None]
    reader.learn_names(images, lists["annotations"])
    if lists["annotations"] and b'"segments_info"' in bytes(lists["annotations"][0]):
        raise DataError(
            f"{path} is COCO panoptic: its masks are in PNG files, not in the json",
            expected=SHAPE,
            fix="name instances_*.json, or convert it: panoptic2detection_coco_format.py of panopticapi writes masks",
        )
    annotations = [reader.annotation(n, raw) for n, raw in enumerate(lists["annotations"])]
    if reader.listed_ids:
        said = f"{reader.listed_ids} ids stand in lists of one"
        reader.problems.append(Problem("FILE_FORM", None, None, said))
    if reader.other_boxes:
        said = f"{reader.other_boxes} boxes are nested, named or text, and are read as four numbers"
        reader.problems.append(Problem("BOX_FORM", None, None, said))
    return Entries(images, annotations, categories, reader.problems)


def _not_json(text: bytes, path: Path, why: str) -> DataError:
    """What kind of text it is instead, where that can be seen."""
    fix = "export it again, or mend it at that byte"
    what = why
    first = text.lstrip().partition(b"\n")[0]
    if text.lstrip()[:2] in (b"{'", b"['"):
        what = "it is Python's notation, with single quotes"
        fix = f"read it with ast.literal_eval, and write it with json.dump(value, open({path.stem + '.json'!r}, 'w'))"
    elif "trailing" in why and _is_json(first):
        what = "it has an object a line (JSON Lines), not one object of three lists"
        fix = "json.loads of each line, and json.dump of the three lists; or export it as COCO"
    elif "truncated" in why:
        what, fix = "it ends in the middle, the file is not whole", "copy, download or export it again"
    return DataError(f"{path} is not valid JSON: {what}", expected=SHAPE, fix=fix)


def _is_json(text: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def arranged(text: bytes) -> tuple[bytes, list[str]]:
    """``text`` with the three lists at its top, and what was done to it; as it is where they are there, or nowhere."""
    try:
        top = msgspec.json.decode(text, type=_Top)
        first = [bytes(v)[:1] for v in (top.images, top.annotations, top.categories)]
        words = re.match(rb'\[\s*"', bytes(memoryview(top.categories)[:20]))
        if first == [b"["] * 3 and not words and not needs_names(_firsts(top)):
            return text, []
    except RecursionError:
        return text, []
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass  # the lists are not at the top, or the text is no JSON: the caller says so
    try:
        found = as_lists(json.loads(text))
    except (ValueError, RecursionError):
        return text, []
    return (text, []) if found is None else (json.dumps(found[0]).encode(), found[1])


def _firsts(top: _Top) -> dict[str, Any]:
    """The first entry of each list that is one."""
    found = {}
    for name in ("images", "annotations", "categories"):
        try:
            entries = msgspec.json.decode(getattr(top, name), type=list[msgspec.Raw])
            found[name] = json.loads(bytes(entries[0])) if entries else None
        except (ValueError, RecursionError, msgspec.DecodeError, UnicodeDecodeError):
            continue
    return found


def _raw_list(raw: msgspec.Raw, name: str, path: Path) -> list[msgspec.Raw]:
    if bytes(raw) in (b"", b"null"):
        if name == "annotations":
            return []
        raise DataError(
            f"{path} has no `{name}`",
            expected=SHAPE,
            fix="name the annotation file of a COCO data set; results files and captions lack this list",
        )
    try:
        return msgspec.json.decode(raw, type=list[msgspec.Raw])
    except msgspec.ValidationError as e:
        got = bytes(memoryview(raw)[:40]).decode("utf-8", "replace")
        raise DataError(f"`{name}` of {path} is not a list", got=got, expected=SHAPE, fix=_TO_LIST) from e


_TO_LIST = "export the file again; of pandas tables, to_dict(orient='records') makes lists"


def _too_deep(path: Path) -> DataError:
    return DataError(f"{path} is nested too deep to be a COCO file", expected=SHAPE, fix="check --data")


_SURROGATE = re.compile(rb"\\\\|\\u[dD][89abAB]..(?:\\u[dD][c-fC-F]..)?|\\u[dD][c-fC-F]..")


def mended(text: bytes) -> bytes:
    """JSON as Python writes it → strict JSON: NaN and infinities in quotes, lone surrogates replaced."""
    if b"\\ud" in text or b"\\uD" in text:
        text = _SURROGATE.sub(lambda m: b"\\ufffd" if len(m[0]) == 6 else m[0], text)
    return quote_constants(text)


def quote_constants(text: bytes) -> bytes:
    """``NaN`` and ``Infinity`` outside strings, put in quotes: Python writes them, strict JSON has neither."""
    spots: list[tuple[int, int]] = []
    for word in (b"NaN", b"Infinity"):
        at = text.find(word)
        while at >= 0:
            spots.append((at - (text[at - 1 : at] == b"-"), at + len(word)))
            at = text.find(word, at + len(word))
    if not spots:
        return text
    quotes = _quotes(text)
    parts, last = [], 0
    for start, stop in sorted(spots):
        if np.searchsorted(quotes, start) % 2 == 0:
            parts += [text[last:start], b'"', text[start:stop], b'"']
            last = stop
    return b"".join([*parts, text[last:]])


def _quotes(text: bytes) -> np.ndarray:
    """Positions of the quotes that open or close a string, in order."""
    data = np.frombuffer(text, np.uint8)
    found = np.flatnonzero(data == ord('"'))
    suspects = np.flatnonzero((found > 0) & (data[found - 1] == ord("\\")))
    return np.delete(found, [i for i in suspects.tolist() if _odd_backslashes(text, int(found[i]))])


def _odd_backslashes(text: bytes, at: int) -> bool:
    n = 0
    while at - n > 0 and text[at - n - 1] == 0x5C:
        n += 1
    return n % 2 == 1
