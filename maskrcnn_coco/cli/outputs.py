"""Files that a verb is asked to write: judged before its work, not after minutes of it."""

from __future__ import annotations

import os
from pathlib import Path

from maskrcnn_coco.errors import ConfigError


def require_writable(flag: str, path: str | None) -> None:
    """Raise ConfigError where ``path``, the value of ``flag``, cannot become a file; None is nothing to write."""
    if path is None:
        return
    target = Path(path)
    try:
        nearest = next(p for p in target.absolute().parents if p.exists())
        why = (
            "it is a folder"
            if target.is_dir()
            else f"{nearest} is no folder"
            if not nearest.is_dir()
            else "its folder is not this user's to write to"
            if not os.access(nearest, os.W_OK | os.X_OK)
            else ""
        )
    except OSError as e:
        why = e.strerror or str(e)
    if why:
        raise ConfigError(
            f"{flag} cannot be written: {why}",
            got=path,
            expected="the name of a file, in a folder that this user may write to",
            fix=f"give another name with {flag}",
        )
