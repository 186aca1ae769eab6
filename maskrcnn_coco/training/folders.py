"""The run's folders: a new run never overwrites an old one."""

from __future__ import annotations

import contextlib
import errno
import os
from datetime import datetime
from pathlib import Path

from maskrcnn_coco.errors import ConfigError


def fresh_folder(path: Path, stamp: str | None = None) -> Path | None:
    """Make ``path`` an empty folder; one that holds something is renamed with its start time first.

    Returns:
        Where the old folder went, or None.

    Raises:
        ConfigError: the folder cannot be made or written (read-only, no permission, a file in the way, disk full).
    """
    moved = None
    try:
        if path.is_dir() and any(path.iterdir()):
            moved = _free_name(path, stamp or started_at(path))
            path.rename(moved)
        path.mkdir(parents=True, exist_ok=True)
        _probe(path)
    except OSError as e:
        raise _unusable(path, e) from e
    return moved


def keep_folder(path: Path) -> None:
    """Make ``path`` if it is missing and check that it can be written, as `fresh_folder` does; its content stays."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        _probe(path)
    except OSError as e:
        raise _unusable(path, e) from e


def started_at(path: Path) -> str:
    """When the run in ``path`` started: the age of its oldest file, as 2026-01-31_13-59-59."""
    times = [p.stat().st_mtime for p in path.iterdir() if p.is_file()]
    config = path / "config.yaml"
    with contextlib.suppress(OSError):
        times = [config.stat().st_mtime]
    return datetime.fromtimestamp(min(times, default=path.stat().st_mtime)).strftime("%Y-%m-%d_%H-%M-%S")


def _free_name(path: Path, stamp: str) -> Path:
    candidate = path.with_name(f"{path.name}_{stamp}")
    count = 2
    while candidate.exists():
        candidate = path.with_name(f"{path.name}_{stamp}_{count}")
        count += 1
    return candidate


def _probe(path: Path) -> None:
    # os.access lies for root and on read-only mounts; only a write tells.
    probe = path / f".probe-{os.getpid()}"
    probe.write_bytes(b"x")
    probe.unlink()


def _unusable(path: Path, e: OSError) -> ConfigError:
    why = "the disk is full" if e.errno in (errno.ENOSPC, errno.EDQUOT) else (e.strerror or str(e))
    return ConfigError(
        f"cannot write to the folder {path}: {why}",
        expected="a folder that this user may write to",
        fix="free some space, change its permissions, or choose others with --logdir and --checkpoint-dir",
    )
