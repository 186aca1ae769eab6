"""What a checkpoint costs a run, against torch.save. Writes bench/results/checkpoint.md.

    python bench/speed/checkpoint.py

The state is that of the default model with momentum. The same computation is timed in interleaved rounds: alone; with a
checkpoint saved in the background; with torch.save over the old file; with torch.save and an fsync. What a round takes
longer than the one alone is the cost: copies, waiting, and what the writing thread takes away from the computation.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision

from maskrcnn_coco.checkpoint import Saver, load, run_lock

RESULTS = Path(__file__).resolve().parents[1] / "results" / "checkpoint.md"
EVERY_SECONDS = 60


def state_of_default_model() -> dict[str, Any]:
    """Mask R-CNN ResNet-50 FPN v2 for 91 classes, and SGD with filled momentum."""
    model = torchvision.models.detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e-3)
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": None,
        "guard": {},
        "loop": {"step": 1, "epoch": 0},
        "config": {},
        "classes": [],
        "environment": {},
    }


def compute(units: int) -> None:
    """A fixed amount of work of the kind that training does, on this process's threads."""
    image, kernel = torch.randn(1, 64, 128, 128), torch.randn(64, 64, 3, 3)
    for _ in range(units):
        torch.nn.functional.conv2d(image, kernel, padding=1)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Candidates:
    """The ways to save, each called at the start of a round; `finish` at its end."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.state, self.folder = state, folder
        self.saver = Saver(folder)

    def alone(self) -> None:
        """No checkpoint."""

    def background(self) -> None:
        self.saver.save_last(self.state)

    def torch_save(self) -> None:
        torch.save(self.state, self.folder / "plain.pt")

    def torch_save_synced(self) -> None:
        with (self.folder / "synced.pt").open("wb") as f:
            torch.save(self.state, f)
            f.flush()
            os.fsync(f.fileno())

    def finish(self) -> None:
        warnings = self.saver.wait()
        if warnings:
            raise SystemExit(f"a checkpoint was not written: {warnings}")


def measure(folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds of each round by candidate, and what one save blocks and takes in all."""
    state = state_of_default_model()
    candidates = Candidates(folder, state)
    names = ("alone", "background", "torch_save", "torch_save_synced")
    units = max(1, round(20 * seconds / timed(lambda: compute(20))))
    taken: dict[str, list[float]] = {name: [] for name in names}
    blocked: list[float] = []
    for number in range(rounds + 1):
        for name in names:
            save = getattr(candidates, name)
            began = time.perf_counter()
            save()
            stop = time.perf_counter() - began
            compute(units)
            candidates.finish()
            if number:  # the first round warms up
                taken[name].append(time.perf_counter() - began)
                if name == "background":
                    blocked.append(stop)
            os.sync()  # what torch.save left in memory must not slow the next round down
    whole = [timed(lambda: (candidates.background(), candidates.finish())) for _ in range(3)]
    size = (folder / "last.pth").stat().st_size
    loading = timed(lambda: load(folder / "last.pth"))
    return {"taken": taken, "blocked": blocked, "size": size, "load": loading, "whole": whole}


def render(found: dict[str, Any], rounds: int, seconds: float) -> str:
    alone = found["taken"]["alone"]
    shown = {
        "background": "this project: copied, checked, written, read back, fsynced, in the background",
        "torch_save": "`torch.save` over the old file",
        "torch_save_synced": "`torch.save`, then fsync",
    }
    rows = []
    for name, title in shown.items():
        costs = [t - a for t, a in zip(found["taken"][name], alone, strict=True)]
        cost = statistics.median(costs)
        spread = f"{min(costs):.2f} to {max(costs):.2f}"
        rows.append(f"| {title} | {cost:.2f} | {spread} | {100 * cost / EVERY_SECONDS:.1f} % |")
    return "\n".join(
        [
            "# What a checkpoint costs",
            "",
            f"Made by `python bench/speed/checkpoint.py`: {rounds} interleaved rounds of {seconds:.0f} s of "
            f"computation on {torch.get_num_threads()} of {os.cpu_count()} cores, torch {torch.__version__}, "
            f"{platform.machine()}. The state is that of `maskrcnn_resnet50_fpn_v2` with momentum, "
            f"{found['size'] / 1e6:.0f} MB. Each round is compared with the one alone beside it.",
            "",
            f"| saved by | seconds lost, median | least to most | of a run with one every {EVERY_SECONDS} s |",
            "| --- | ---: | ---: | ---: |",
            *rows,
            "",
            f"The training thread itself stood still for {statistics.median(found['blocked']):.2f} s (median) in a "
            f"save of this project: the copy. The save was on the disk {statistics.median(found['whole']):.1f} s after "
            f"it was asked for. Loading with all checks takes {found['load']:.1f} s.",
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0, help="computation in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true", help="print only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name, run_lock(name):
        found = measure(Path(name), arguments.rounds, arguments.seconds)
    text = render(found, arguments.rounds, arguments.seconds)
    print(text)
    if not arguments.dry_run:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
