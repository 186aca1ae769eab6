"""What does a guarded step cost? Against torchvision's reference step, and against the same loop with the guard off.

python bench/speed/guard.py [--threads 2 4] [--rounds 12] [--models r18 r50] [--out bench/results/guard.md]

All three variants live in one process, each with its own weights, and take turns on the same batch with the same
random numbers; the learning rate is so small that their weights stay together, so each does the same work.
Two ratios per cell. "step": median over rounds of the whole step's time over its neighbour's in the same round.
"parts": the CPU time outside the model's forward and backward pass is taken apart, and set against the shared median
of forward and backward; it is far less noisy, because the guard only adds there.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from engine import reference_optimizer, reference_update
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from maskrcnn_coco.guard import forward_backward
from maskrcnn_coco.guard.guard import Guard


@dataclass
class Clock:
    """Wall and CPU seconds of whole steps, and of what is not forward or backward."""

    inside: float = 0.0
    inside_cpu: float = 0.0
    total: list[float] = field(default_factory=list)
    model: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    model_cpu: list[float] = field(default_factory=list)

    def run(self, step: Callable[[], Any]) -> None:
        self.inside = self.inside_cpu = 0.0
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        self.total.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        self.model.append(self.inside)
        self.model_cpu.append(self.inside_cpu)

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            began, cpu = time.perf_counter(), time.process_time()
            try:
                return call(*args)
            finally:
                self.inside += time.perf_counter() - began
                self.inside_cpu += time.process_time() - cpu

        return timed

    @property
    def rest(self) -> list[float]:
        """CPU seconds outside the model: time that other programs took from this one does not count."""
        return [t - m for t, m in zip(self.cpu, self.model_cpu, strict=True)]


def make_model(name: str) -> MaskRCNN:
    torch.manual_seed(0)
    if name == "r18":
        backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
        return MaskRCNN(backbone, 4, min_size=128, max_size=128).train()
    return maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=256, max_size=256, trainable_backbone_layers=5
    ).train()


def make_batch(size: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    g = torch.Generator().manual_seed(0)
    images, targets = [], []
    for _ in range(2):
        corner = torch.rand(5, 2, generator=g) * size * 0.5
        boxes = torch.cat([corner, corner + size * (0.15 + 0.3 * torch.rand(5, 2, generator=g))], 1)
        masks = torch.zeros(5, size, size, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        images.append(torch.rand(3, size, size, generator=g))
        targets.append({"boxes": boxes, "labels": torch.tensor([1, 2, 3, 1, 2]), "masks": masks})
    return images, targets


def reference(model: nn.Module, batch: Any, clock: Clock) -> Callable[[], None]:
    """One iteration of torchvision's references/detection/engine.py, without logging."""
    optimizer = reference_optimizer(model)
    forward = clock.timed(lambda: model(*batch))
    backward = clock.timed(lambda loss: loss.backward())

    def step() -> None:
        reference_update(optimizer, forward(), backward=backward)

    return step


def ours(model: nn.Module, batch: Any, clock: Clock, mode: Any) -> Callable[[], None]:
    """A step of this project's loop on the same model: fused SGD, clipping at 10."""
    guard = Guard(model, reference_optimizer(model, fused=True), mode=mode)
    forward = clock.timed(lambda b: model(*b))
    backward = forward_backward.backward

    def step() -> None:
        forward_backward.backward = clock.timed(backward)
        try:
            record = guard.step(forward, batch)
        finally:
            forward_backward.backward = backward
        assert record.applied, guard.alarm

    return step


def measure(name: str, threads: int, rounds: int) -> dict[str, Clock]:
    """Interleaved: every round visits each variant once, in rotated order."""
    torch.set_num_threads(threads)
    model, batch = make_model(name), make_batch(128 if name == "r18" else 256)
    clocks = {v: Clock() for v in ("reference", "guarded", "off")}
    variants = {
        "reference": reference(copy.deepcopy(model), batch, clocks["reference"]),
        "guarded": ours(copy.deepcopy(model), batch, clocks["guarded"], "recover"),
        "off": ours(copy.deepcopy(model), batch, clocks["off"], "off"),
    }
    names = list(variants)
    for i in range(rounds + 1):
        for variant in names[i % 3 :] + names[: i % 3]:
            torch.manual_seed(0)
            clocks[variant].run(variants[variant])
    for clock in clocks.values():  # the first round warms up
        for series in (clock.total, clock.model, clock.cpu, clock.model_cpu):
            del series[0]
    return clocks


def quartiles(values: list[float]) -> str:
    low, mid, high = statistics.quantiles(values, n=4)
    return f"{mid:.3f} ({low:.3f}–{high:.3f})"


def ratios(clocks: dict[str, Clock], below: str) -> tuple[str, str, float]:
    """ "step" ratio with quartiles, its CPU-time twin, and the "parts" ratio."""
    a, b = clocks["guarded"], clocks[below]
    wall = [x / y for x, y in zip(a.total, b.total, strict=True)]
    cpu = [x / y for x, y in zip(a.cpu, b.cpu, strict=True)]
    shared = statistics.median(a.model_cpu + b.model_cpu)
    parts = (shared + statistics.median(a.rest)) / (shared + statistics.median(b.rest))
    return quartiles(wall), quartiles(cpu), parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--models", nargs="+", default=["r18", "r50"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = [
        "| model | threads | guarded ÷ | step, wall (quartiles) | step, CPU time | parts | outside model, CPU ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in args.models:
        for threads in args.threads:
            clocks = measure(name, threads, args.rounds)
            for below in ("reference", "off"):
                wall, cpu, parts = ratios(clocks, below)
                ms = [1e3 * statistics.median(clocks[v].rest) for v in ("guarded", below)]
                size = {"r18": "resnet18, 128 px", "r50": "resnet50, 256 px"}[name]
                seconds = statistics.median(clocks["guarded"].total)
                row = f"| {size}, {seconds:.2f} s | {threads} | {below} | {wall} | {cpu} | **{parts:.4f}** |"
                row += f" {ms[0]:.1f} / {ms[1]:.1f} |"
                lines.append(row)
                print(row, flush=True)
    if args.out:
        load = os.getloadavg()[0]
        head = __doc__.split("\n\n", 2)
        args.out.write_text(
            f"# Cost of the guard\n\n{head[2].strip()}\n\n" + "\n".join(lines) + "\n\n"
            f"{args.rounds} rounds; batch of 2 images with 5 objects; torch {torch.__version__}; load average\n"
            f"{load:.1f} on a machine shared with other work, so the quartiles are wide.\n\n"
            "Run: `python bench/speed/guard.py --out bench/results/guard.md`\n"
        )


if __name__ == "__main__":
    main()
