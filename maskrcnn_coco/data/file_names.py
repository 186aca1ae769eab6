"""File names as annotation tools write them: backslashes, addresses, query strings, two ways to write an umlaut."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from urllib.parse import parse_qs, unquote, urlsplit


def plain_name(name: str) -> str:
    """``name`` as a path with "/" between its parts, whatever tool wrote it; for comparing, not for opening.

    Addresses lose their scheme, host and query; where the query is the path (Label Studio's ``/data/local-files/?d=``)
    it is taken. Composed and decomposed letters become the same.
    """
    text = name
    if _ADDRESS.match(text) or "/?d=" in text:
        parts = urlsplit(text)
        given = parse_qs(parts.query).get("d")
        text = given[0] if given else unquote(parts.path)
    text = _DRIVE.sub("", text.replace("\\", "/"))
    parts = [p for p in text.split("/") if p not in ("", ".", "..")]
    return unicodedata.normalize("NFC", "/".join(parts))


_ADDRESS = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
_DRIVE = re.compile(r"^[a-zA-Z]:(?=/)")


def tails(name: str) -> Iterator[str]:
    """The ends of a plain name, the longest first: "a/b/c.png", "b/c.png", "c.png"."""
    parts = name.split("/")
    for n in range(len(parts)):
        yield "/".join(parts[n:])
