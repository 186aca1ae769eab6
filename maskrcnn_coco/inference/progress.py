"""How far long work is: a bar on stderr in a terminal, or a function of the caller's."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from maskrcnn_coco.system.streams import stated_width

Watch = bool | Callable[[int, int | None], None] | None
_PATIENCE = 1.5
"""Work that is over sooner needs no bar, seconds."""


@contextmanager
def watched(watch: Watch, total: int | None) -> Iterator[Callable[[], None]]:
    """Hands out a function to call after each image.

    Args:
        watch: True: a bar; None: a bar where stderr is a terminal; False: nothing; a function of (done, in all).
        total: images in all; None: unknown.
    """
    done = 0
    if callable(watch):
        told = watch

        def tell() -> None:
            nonlocal done
            done += 1
            told(done, total)

        yield tell
    elif watch or (watch is None and sys.stderr.isatty()):
        with _bar(total) as step:
            yield step
    else:
        yield lambda: None


@contextmanager
def _bar(total: int | None) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("images"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    bar = Progress(*columns, console=Console(stderr=True, width=stated_width()), transient=True, expand=True)
    task, began, shown, done = bar.add_task("images", total=total), time.monotonic(), False, 0

    def step() -> None:
        nonlocal shown, done
        done += 1
        if not shown and time.monotonic() - began > _PATIENCE:
            bar.start()
            shown = True
        bar.update(task, completed=done)

    try:
        yield step
    finally:
        bar.stop()
