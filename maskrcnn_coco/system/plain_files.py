"""Small files that a person or another program wrote, read without harm: regular files of bounded size, YAML without
aliases (a few lines of which can stand for terabytes) and of bounded depth."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

MOST = 64 << 20


def read_regular(path: str | Path, *, most: int = MOST) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it cannot be read, is a pipe or a device (which would block, or never end), or has more than ``most``
            bytes.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"it has {status.st_size} bytes, more than {most}", str(path))
        return file.read(most)


def read_yaml(path: str | Path, *, most: int = 1 << 20) -> Any:
    """The content of a YAML file: plain data.

    Raises:
        OSError: as `read_regular`. ValueError: not YAML, not UTF-8, with aliases, or nested too deep.
    """
    import yaml

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*name) are not used here")
            return super().compose_node(parent, index)

    text = read_regular(path, most=most).decode("utf-8")
    try:
        return yaml.load(text, Plain)
    except yaml.YAMLError as e:
        raise ValueError(str(e)) from e
    except (RecursionError, OverflowError) as e:
        raise ValueError("it is nested too deep, or holds a number that is too large") from e
