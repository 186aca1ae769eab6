"""What the looks for silent failures take of a run: ``python bench/silent/cost.py [TRAIN FLAGS]`` (without: --demo).

CPU time of the process within the looks (before the first step, at steps, after epochs and evaluations) against that of
the whole run, evaluation included. Each look is timed at its outermost call, in the run itself.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import torch  # noqa: E402

from maskrcnn_coco.cli.command_line import main as command  # noqa: E402
from maskrcnn_coco.findings.watch import Watch  # noqa: E402
from maskrcnn_coco.training import epoch_end, findings  # noqa: E402

spent: Counter[str] = Counter()
within = 0


def timed(owner: Any, name: str, moment: str) -> None:
    """Have every outermost call of ``owner.name`` counted under ``moment``."""
    inner: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(inner)
    def call(*arguments: Any, **named: Any) -> Any:
        global within
        within, began = within + 1, time.process_time()
        try:
            return inner(*arguments, **named)
        finally:
            within -= 1
            if within == 0:
                spent[moment] += time.process_time() - began

    setattr(owner, name, call)


def main() -> None:
    torch.set_num_threads(1)
    timed(findings, "prepare", "before the first step")
    timed(epoch_end, "look_after", "after epochs and evaluations")
    for name in ("batch", "record", "end_of_epoch", "optimizer"):
        timed(Watch, name, "at steps")
    with tempfile.TemporaryDirectory() as folder:
        out = ["--logdir", f"{folder}/run", "--checkpoint-dir", f"{folder}/checkpoints"]
        began = time.process_time()
        code = command(["train", *(sys.argv[1:] or ["--demo"]), *out])
        whole = time.process_time() - began
    print(f"\nexit code {code}, {whole:.1f} CPU s in all")
    for moment, seconds in spent.items():
        print(f"{moment}: {seconds:.2f} CPU s, {seconds / whole:.2%}")
    print(f"all looks: {sum(spent.values()) / whole:.2%}")


if __name__ == "__main__":
    main()
