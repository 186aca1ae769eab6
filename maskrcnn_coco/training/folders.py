"""The run's folders: a new run never overwrites an old one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from maskrcnn_coco.checkpoint.lock import move_lock, run_lock
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.system.plain_files import read_regular

RUN_FILES = (".lock", "metrics.jsonl", "run.json", "last.pth", "best.pth", "epoch_[0-9][0-9][0-9]*.pth")
"""What only a run leaves, as does a ``config.yaml`` of all settings; a folder without any of it is never moved."""
_UNMARKED = (".gitignore", ".gitkeep", ".lock", ".DS_Store", "training_images.jpg")
"""What may lie in a folder that counts as empty; the last is all that a dry run leaves."""


def claim(checkpoints: Path, logdir: Path, lock: ExitStack, *, resuming: bool) -> list[tuple[Path, Path]]:
    """Make both folders this run's and lock them; what an older run left is renamed first, unless ``resuming``.

    The checkpoints go first: a kill between the two renames leaves no checkpoint that the next start could take for
    this run's, and that start finishes the move.

    Returns:
        Old and new name of what was moved.

    Raises:
        ConfigError: a folder cannot be made or written, or holds what is not a run's.
        CheckpointError: another run holds one of them.
    """
    moved: list[tuple[Path, Path]] = []
    for tries_left in reversed(range(TRIES)):
        try:
            with ExitStack() as held:
                _claim(checkpoints, logdir, held, moved, resuming=resuming)
                lock.push(held.pop_all())
        except FileNotFoundError as e:
            # Another start has just renamed a folder: look again, and let the lock tell who holds it.
            if not tries_left:
                raise _unusable(Path(e.filename or logdir), e) from e
        else:
            break
    return moved


TRIES = 10
"""Looks at folders that other starts rename meanwhile."""


def _claim(checkpoints: Path, logdir: Path, lock: ExitStack, moved: list[tuple[Path, Path]], *, resuming: bool) -> None:
    folders = list({folder.resolve(): folder for folder in (checkpoints, logdir)}.values())
    older = folders if not resuming else [] if logs_of(logdir, checkpoints) else [logdir]
    stamp = started_at(logdir) if logdir.is_dir() else None
    for folder in older:
        require_run(folder)
    for folder in older:
        target = fresh_folder(folder, stamp)
        if target is not None:
            moved.append((folder, target))
    for folder in folders:
        keep_folder(folder)
        try:
            lock.enter_context(run_lock(folder))
        except FileNotFoundError:
            raise
        except OSError as e:
            raise _unusable(folder, e) from e


def logs_of(logdir: Path, checkpoints: Path) -> bool:
    """Whether the logs in ``logdir`` are those of the run with these checkpoints: not of one that has its own."""
    match = None
    with contextlib.suppress(OSError, ValueError):
        match = re.search(r"^checkpoint_dir: (.+)$", read_regular(logdir / "config.yaml").decode(), re.MULTILINE)
    other = Path(match[1].strip("'\"")) if match else checkpoints
    return not other.is_dir() or other.resolve() == checkpoints.resolve()


def require_run(folder: Path) -> None:
    """Raise ConfigError where ``folder`` holds files, and none that a run leaves: it is somebody's data."""
    if not folder.is_dir() or not _content(folder):
        return
    if not any(p for pattern in RUN_FILES for p in folder.glob(pattern)) and not _has_settings(folder):
        some = ", ".join(sorted(p.name for p in _content(folder))[:3])
        raise ConfigError(
            f"the folder {folder} is not empty, and what it holds was not left by a run",
            got=some,
            expected="an empty or new folder, or that of an older run, which is then renamed",
            fix="choose another with --logdir or --checkpoint-dir",
        )


def _has_settings(folder: Path) -> bool:
    try:
        return "checkpoint_dir:" in read_regular(folder / "config.yaml").decode()
    except (OSError, ValueError):
        return False


def probe(folder: Path) -> None:
    """Raise ConfigError where ``folder`` could not be made or written; leaves nothing behind."""
    nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists() or p.is_symlink())
    try:
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file", str(nearest))
        _probe(nearest)
    except OSError as e:
        raise _unusable(folder, e) from e


def fresh_folder(path: Path, stamp: str | None = None) -> Path | None:
    """Make ``path`` an empty folder; one that holds something is renamed with its start time first.

    Returns:
        Where the old folder went, or None.

    Raises:
        ConfigError: the folder cannot be made or written (read-only, no permission, a file in the way, disk full).
        CheckpointError: a run holds it.
        FileNotFoundError: another start has renamed it meanwhile.
    """
    moved = None
    try:
        if path.is_dir() and _content(path):
            with move_lock(path):
                moved = _free_name(path, stamp or started_at(path))
                path.rename(moved)
        path.mkdir(parents=True, exist_ok=True)
        _probe(path)
    except FileNotFoundError:
        raise
    except OSError as e:
        raise _unusable(path, e) from e
    return moved


def _content(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.name not in _UNMARKED]


def keep_folder(path: Path) -> None:
    """Make ``path`` if it is missing and check that it can be written, as `fresh_folder` does; its content stays."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        _probe(path)
    except FileNotFoundError:
        raise
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
    path = path.absolute()  # "." has no name
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
