"""File names as annotation tools write them: backslashes, addresses, query strings, two ways to write an umlaut."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Of the formats that are read, in small letters; the one list that every verb goes by."""


def plain_name(name: str) -> str:
    """``name`` as a path with "/" between its parts, whatever tool wrote it; for comparing, not for opening.

    Addresses lose their scheme, host and query; where the query is the path (Label Studio's ``/data/local-files/?d=``)
    it is taken. Composed and decomposed letters become the same, and blanks around a part do not count.
    """
    text = name
    if _ADDRESS.match(text) or "/?d=" in text:
        parts = urlsplit(text)
        given = parse_qs(parts.query).get("d")
        text = given[0] if given else unquote(parts.path)
    text = _QUERY.sub(r"\1", text)
    text = _DRIVE.sub("", text.replace("\\", "/"))
    parts = [p for p in map(str.strip, text.split("/")) if p not in ("", ".", "..")]
    return unicodedata.normalize("NFC", "/".join(parts))


_ADDRESS = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
_QUERY = re.compile(rf"({'|'.join(re.escape(s) for s in IMAGE_SUFFIXES)})\?[^/\\]*$", re.IGNORECASE)
"""What follows the name of an image in an address whose beginning was cut off."""
_DRIVE = re.compile(r"^[a-zA-Z]:(?=/)")


def tails(name: str) -> Iterator[str]:
    """The ends of a plain name, the longest first: "a/b/c.png", "b/c.png", "c.png"."""
    parts = name.split("/")
    for n in range(len(parts)):
        yield "/".join(parts[n:])


@dataclass(frozen=True)
class Answer:
    """The files that a name may mean, as paths below the folder; ``how`` they differ from it. One: it is that one."""

    files: tuple[str, ...]
    how: str = ""


class FileIndex:
    """The image files below a folder, by what is left of their paths when case, suffix or folder do not count."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.files: list[str] = []
        self._by_base: defaultdict[str, list[str]] = defaultdict(list)
        self._by_two: defaultdict[str, list[str]] = defaultdict(list)
        self._by_stem: defaultdict[str, list[str]] = defaultdict(list)
        for path in _images_below(self.root):
            self.files.append(path)
            parts = plain_name(path).casefold().split("/")
            base = parts[-1]
            self._by_base[base].append(path)
            self._by_two["/".join(parts[-2:])].append(path)
            self._by_stem[_stem(base)].append(path)

    def answer(self, name: str, taken: Collection[str] = ()) -> Answer:
        """The files that ``name`` may mean, without those in ``taken``; the fewer things differ the better."""
        spelled = [plain_name(name)]
        spelled += [plain_name(unquote(spelled[0]))] if "%" in spelled[0] else []
        for wanted in spelled:
            parts = wanted.casefold().split("/")
            # Where each folder has an image.png, the folder's name is looked up with it.
            alike = self._by_two.get("/".join(parts[-2:])) or self._by_base.get(parts[-1], [])[:_ALIKE]
            for found, same, how in (
                (alike, lambda text: text, _how(name)),
                (alike, str.casefold, "in another case"),
                (
                    self._by_stem.get(_stem(parts[-1]), [])[:_ALIKE],
                    lambda text: _stem(text.casefold()),
                    "with another suffix",
                ),
            ):
                best = _closest(wanted, [f for f in found if f not in taken], same)
                if best:
                    return Answer(tuple(best), how)
            if marked := [f for f in self._marked(parts[-1]) if f not in taken]:
                return Answer(tuple(marked), "with a mark that an annotation tool adds")
        return Answer(())

    def _marked(self, base: str) -> list[str]:
        """The files whose names are ``base`` but for the mark of a tool, on one side or the other, never on both:
        two marks may be of two images."""
        wanted, original = _stem(base), unmarked(base)
        found = list(self._by_stem.get(original, ())) if original else []
        signs = () if original is None else self._by_signs.get(_signs(original), ())
        found += [*signs, *self._by_original.get(_signs(wanted), ())]
        return list(dict.fromkeys(found))[:_ALIKE]

    @cached_property
    def _by_original(self) -> dict[str, list[str]]:
        """Files that carry the mark of a tool, by the name without it."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for path in self.files:
            original = unmarked(plain_name(path).casefold().rpartition("/")[2])
            if original is not None:
                found[_signs(original)].append(path)
        return found

    @cached_property
    def _by_signs(self) -> dict[str, list[str]]:
        """Files by their letters and digits: tools that add a mark also exchange blanks and brackets."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for stem, paths in self._by_stem.items():
            found[_signs(stem)] += paths
        return found

    def near(self, name: str) -> list[str]:
        """At most three files whose names are like ``name``, or that it may mean and that are several."""
        answer = self.answer(name)
        if answer.files:
            return list(answer.files[:3])
        bases = {f.rpartition("/")[2]: f for f in self.files[:_COMPARED]}
        return [bases[b] for b in difflib.get_close_matches(plain_name(name).rpartition("/")[2], bases, 3, 0.6)]


_COMPARED = 5000
"""Names that one is compared with, most: 20 ms."""
_FILES = 2_000_000
_ALIKE = 200
"""Files of one name that are told apart by their folders, most."""


def _images_below(root: Path) -> Iterator[str]:
    count = 0
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        for name in sorted(files):
            # Names that are no text (surrogates stand for their bytes) cannot be in an annotation file.
            if name.lower().endswith(IMAGE_SUFFIXES) and _is_text(name):
                yield name if inside == "." else f"{inside}/{name}"
                count += 1
        if count > _FILES:
            return


def _is_text(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _closest(wanted: str, files: list[str], same: Callable[[str], str]) -> list[str]:
    """Those of ``files`` whose paths share the longest end with ``wanted``, at least their last part."""
    mine = [same(part) for part in wanted.split("/")]
    best, most = [], 1
    for file in files:
        theirs = [same(part) for part in plain_name(file).split("/")]
        shared = 0
        for a, b in zip(reversed(mine), reversed(theirs), strict=False):
            if a != b:
                break
            shared += 1
        if shared > most:
            best, most = [], shared
        if shared == most:
            best.append(file)
    return best


def _stem(base: str) -> str:
    """Without the suffix of an image; whatever else follows a dot belongs to the name."""
    return next((base[: -len(s)] for s in IMAGE_SUFFIXES if base.endswith(s)), base)


_UPLOAD = re.compile(r"^[0-9a-f]{8}(?:(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})?(?:-|__)(?=.)")
"""What Label Studio puts before the name of an uploaded file."""
_DATE = re.compile(r"^(?:19|20)\d{6}")
_ROBOFLOW = re.compile(r"^(?P<name>.+)\.rf\.[0-9a-z]{8,64}$")
_OLD_SUFFIX = re.compile(rf"[_-](?:{'|'.join(s[1:] for s in IMAGE_SUFFIXES)})$")


def unmarked(base: str) -> str | None:
    """The stem of a file name, in small letters, without the mark that an annotation tool adds; None: it has none.

    "1f2e3d4c-cat.jpg" (Label Studio) and "cat_png.rf.9e107d9d372bb6826bd81d3542a419d6.jpg" (Roboflow) are "cat".
    """
    stem = _stem(base)
    if roboflow := _ROBOFLOW.match(stem):
        return _OLD_SUFFIX.sub("", roboflow["name"])
    if (upload := _UPLOAD.match(stem)) and not _DATE.match(stem):
        return stem[upload.end() :]
    return None


def _signs(stem: str) -> str:
    return re.sub(r"[\W_]+", "-", stem).strip("-")


def _how(name: str) -> str:
    if "\\" in name:
        return "written with backslashes"
    if _ADDRESS.match(name) or "/?d=" in name:
        return "written as an address"
    if any(part != part.strip() for part in name.split("/")):
        return "with blanks around them"
    if unicodedata.normalize("NFC", name) != name or not name.isascii():
        return "with letters written in another way, or in another folder"
    return "in another folder"
