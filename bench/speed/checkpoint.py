"""What a checkpoint costs a run, against torch.save. Writes bench/results/checkpoint.md.

    python bench/speed/checkpoint.py

The state is that of the default model with momentum. In interleaved rounds, each way to save is called while short
pieces of computation go on. The cost to a run whose processors are all busy is the time that the call takes and the
processor time that the writing thread takes; with a core to spare, or on a GPU, it is the call alone.
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
from typing import Any, NamedTuple

import torch
import torchvision

from maskrcnn_coco.checkpoint.lock import run_lock
from maskrcnn_coco.checkpoint.saver import Saver
from maskrcnn_coco.checkpoint.store import load

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


def piece() -> None:
    """About 20 ms of the kind of work that training does, on this process's threads."""
    image, kernel = torch.ones(1, 64, 64, 64), torch.ones(64, 64, 3, 3)
    for _ in range(8):
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


class Round(NamedTuple):
    """Seconds: the call; the processor time of other threads until all was on the disk; the whole time until then."""

    blocked: float
    background: float
    whole: float


def one_round(candidates: Candidates, save: Callable[[], None], seconds: float) -> Round:
    began = time.perf_counter()
    others = time.process_time() - time.thread_time()
    blocked = timed(save)
    while candidates.saver.busy:
        piece()
    candidates.finish()
    background = max(0.0, time.process_time() - time.thread_time() - others)
    result = Round(blocked, background, time.perf_counter() - began)
    while time.perf_counter() - began < seconds:
        piece()
    os.sync()  # what torch.save left in memory must not slow the next round down
    return result


def measure(folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """The rounds of each candidate, bytes of a checkpoint, and seconds to load it."""
    candidates = Candidates(folder, state_of_default_model())
    found: dict[str, list[Round]] = {"background": [], "torch_save": [], "torch_save_synced": []}
    for number in range(rounds + 1):
        for name, done in found.items():
            result = one_round(candidates, getattr(candidates, name), seconds)
            if number:  # the first round warms up
                done.append(result)
    loading = timed(lambda: load(folder / "last.pth"))
    return {"rounds": found, "size": (folder / "last.pth").stat().st_size, "load": loading}


def render(found: dict[str, Any], rounds: int, seconds: float) -> str:
    shown = {
        "background": "this project: copied, checked, written, read back, fsynced, in the background",
        "torch_save": "`torch.save` over the old file",
        "torch_save_synced": "`torch.save`, then fsync",
    }
    rows = []
    for name, title in shown.items():
        done = found["rounds"][name]
        costs = [r.blocked + r.background for r in done]
        blocked, background = (statistics.median(column) for column in list(zip(*done, strict=True))[:2])
        cost, most = 100 * statistics.median(costs) / EVERY_SECONDS, 100 * max(costs) / EVERY_SECONDS
        free = 100 * blocked / EVERY_SECONDS
        rows.append(
            f"| {title} | {blocked:.2f} | {background:.2f} | {free:.1f} % | {cost:.1f} % (at most {most:.1f} %) |"
        )
    whole = [r.whole for r in found["rounds"]["background"]]
    return "\n".join(
        [
            "# What a checkpoint costs",
            "",
            f"Made by `python bench/speed/checkpoint.py`: {rounds} interleaved rounds of {seconds:.0f} s beside "
            f"computation on {torch.get_num_threads()} of {os.cpu_count()} cores, torch {torch.__version__}, "
            f"{platform.machine()}, load average {os.getloadavg()[0]:.0f} from other work. The state is that of "
            f"`maskrcnn_resnet50_fpn_v2` with momentum, {found['size'] / 1e6:.0f} MB. Shares are of a run with one "
            f"checkpoint every {EVERY_SECONDS} s.",
            "",
            "| saved by | call, s | background, CPU s | cost, a core to spare | cost, all cores busy |",
            "| --- | ---: | ---: | ---: | ---: |",
            *rows,
            "",
            f"Medians. A save of this project is verified on the disk {statistics.median(whole):.1f} s after it was "
            f"asked for (at most {max(whole):.1f} s). Loading with all checks takes {found['load']:.1f} s.",
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0, help="computation in a round, at least")
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
