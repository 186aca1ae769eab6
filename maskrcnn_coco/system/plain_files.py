"""Small files that a person or another program wrote, read without harm: regular files of bounded size, YAML without
aliases (a few lines of which can stand for terabytes) and of bounded depth."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

MOST = 64 << 20


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, open for reading.

    Raises:
        OSError: it cannot be read, or is a pipe or a device, which would block, or never end.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return os.fdopen(fd, "rb")


def read_regular(path: str | Path, *, most: int = MOST) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as `open_regular`, or it has more than ``most`` bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size} bytes, more than {most}", str(path))
        return file.read(most)


@dataclass
class Lines:
    """Where the keys and values of a YAML file stand: a path of keys → the line, from 1."""

    of: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def at(self, path: Iterable[Any]) -> str:
        """ ", line N" of ``path``, or of the nearest thing around it that has one; "" where nothing has."""
        path = tuple(path)
        while path:
            if path in self.of:
                return f", line {self.of[path]}"
            path = path[:-1]
        return ""


def read_yaml(path: str | Path, *, most: int = 1 << 20) -> Any:
    """The content of a YAML file: plain data.

    Raises:
        OSError: as `read_regular`. ValueError: not YAML, not UTF-8, with aliases, with a key twice, or nested too deep.
    """
    return read_yaml_lines(path, most=most)[0]


def read_yaml_lines(path: str | Path, *, most: int = 1 << 20) -> tuple[Any, Lines]:
    """`read_yaml`, and the line that each key and value stands in."""
    import yaml

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*name) are not used here")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            # YAML takes the last of equal keys: a setting that stands twice would be lost in silence.
            first: dict[str, int] = {}
            for key in (k for k, _ in node.value if isinstance(k.value, str)):
                before, line = first.setdefault(key.value, -1), key.start_mark.line + 1
                if before >= 0:
                    where = f"line {line}" if line == before else f"lines {before} and {line}"
                    raise yaml.YAMLError(f"{key.value!r} stands twice, in {where}")
                first[key.value] = line
            return super().construct_mapping(node, deep)

    text = read_regular(path, most=most).decode("utf-8")
    try:
        loader, lines = Plain(text), Lines()
        try:
            node = loader.get_single_node()
            if node is None:
                return None, lines
            data = loader.construct_document(node)
        finally:
            loader.dispose()
        _note_lines(node, (), lines.of)
        return data, lines
    except yaml.YAMLError as e:
        raise ValueError(_one_line(e)) from e
    except (RecursionError, OverflowError) as e:
        raise ValueError("it is nested too deep, or holds a number that is too large") from e


def _note_lines(node: Any, path: tuple[Any, ...], lines: dict[tuple[Any, ...], int]) -> None:
    if node.id == "mapping":
        for key, value in node.value:
            inner = (*path, key.value)
            if isinstance(key.value, str):
                lines[inner] = key.start_mark.line + 1
                _note_lines(value, inner, lines)
    elif node.id == "sequence":
        for n, value in enumerate(node.value):
            lines[(*path, n)] = value.start_mark.line + 1
            _note_lines(value, (*path, n), lines)


def _one_line(error: Exception) -> str:
    """What PyYAML says over several lines, in one: what is wrong, and the line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or not problem:
        return (str(error).splitlines() or ["it cannot be parsed"])[0]
    return f"{problem}, line {mark.line + 1}"
