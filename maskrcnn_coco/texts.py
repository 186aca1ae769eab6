"""Text from the data, made safe to show."""

from __future__ import annotations


def printable(text: object, limit: int = 400) -> str:
    """``text`` with control and direction-changing characters made visible, cut to ``limit`` characters.

    A category or file name can hold escape sequences that a terminal would obey; after this it is inert everywhere but
    in markup, which templates escape.
    """
    found = str(text)
    found = found if len(found) <= limit else found[: limit - 1] + "…"
    return "".join(c if c.isprintable() or c == " " else f"\\u{ord(c):04x}" for c in found)
