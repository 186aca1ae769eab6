"""Text from the data, made safe to show."""

from __future__ import annotations

import unicodedata

LIMIT = 1000
"""Characters that are shown of one text; a name or a message that is longer was made to be."""


def clean(text: object, limit: int = LIMIT) -> str:
    """``text`` on one line, with control and direction-changing characters made visible, cut to ``limit`` characters.

    Category and file names come from strangers: printed raw, an escape sequence in one could rewrite the screen. After
    this a text is inert everywhere but in markup, which templates escape.
    """
    found = str(text)
    found = found if len(found) <= limit else found[: limit - 1] + "…"
    return found if found.isprintable() else "".join(map(_visible, found))


def _visible(c: str) -> str:
    if c in "\n\r\t" or unicodedata.category(c) == "Zs":
        return " "
    return c if c.isprintable() else f"\\u{ord(c):04x}"
