"""Values for settings, from Python: what Python's own habits mean by them, and which are of no type that a setting has.

Flags and settings files are typed where they are read; a `Config` that a program makes may hold anything.
"""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec


def plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as settings hold them: a path or a device as text, a NumPy or torch number as Python's, a list as a
    tuple."""
    return {name: _plain(value) for name, value in fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list):
        return tuple(_plain(v) for v in value)
    if type(value).__module__ == "torch" and type(value).__name__ == "device":
        return str(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a scalar of NumPy, torch, JAX …
        return value.item()
    return value


def misfits(config: msgspec.Struct) -> Iterator[tuple[str, str]]:
    """(field, what is wrong) of each field whose value is of no type that it may have."""
    for field in msgspec.structs.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, str) and not _encodes(value):
            yield field.name, f"got {ascii(value)[:80]}, which no name of a file can be"
            continue
        if not _fits(value, field.type):
            yield field.name, f"got {_shown(value)}, expected {_wanted(field.type)}{_near(value, field.type)}"


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, int) and value.bit_length() > 128:  # cannot even be printed, where it has 4300 digits
        return False
    try:
        made = msgspec.convert(value, type=hint, builtin_types=())
    except (ValueError, TypeError, OverflowError):  # msgspec's ValidationError is a ValueError
        return False
    return type(made) is type(value) or (isinstance(value, int) and isinstance(made, float))


def _encodes(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeError:
        return False
    return True


def _shown(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a whole number of thousands of digits; an object that cannot show itself
        text = "something"
    return f"{text[:60]}{'…' if len(text) > 60 else ''} ({type(value).__name__})"


_WORDS = {float: "a number", int: "a whole number", str: "text", bool: "True or False", type(None): "None"}


def _wanted(hint: Any) -> str:
    """What a value may be, in words, as "a number, auto or None"."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        *first, last = (_wanted(h) for h in typing.get_args(hint))
        return f"{', '.join(first)} or {last}"
    if typing.get_origin(hint) is tuple:
        return f"a tuple of {_wanted(typing.get_args(hint)[0])}"
    choices = _choices(hint)
    return ", ".join(choices) if choices else _WORDS.get(hint, str(hint))


def _choices(hint: Any) -> list[str]:
    if typing.get_origin(hint) is typing.Literal:
        return [str(c) for c in typing.get_args(hint)]
    return [c for h in typing.get_args(hint) if h is not ... for c in _choices(h)]


def _near(value: Any, hint: Any) -> str:
    text = value[0] if isinstance(value, tuple) and value else value
    near = difflib.get_close_matches(text.lower(), _choices(hint), 1, 0.6) if isinstance(text, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""
