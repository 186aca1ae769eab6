"""Ten thousand clean steps over models, optimizers, precisions and seeds: how many alarms?

python bench/guard/clean.py [--scale F] [--out bench/results/guard_clean.md]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
from rig import forward_of, tiny_batch, tiny_detector

from maskrcnn_coco.guard.guard import Guard

OPTIMIZERS: dict[str, Callable[[nn.Module, float], torch.optim.Optimizer]] = {
    "sgd": lambda m, lr: torch.optim.SGD(m.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4, fused=True),
    "nesterov": lambda m, lr: torch.optim.SGD(m.parameters(), lr=lr, momentum=0.9, nesterov=True),
    "adamw": lambda m, lr: torch.optim.AdamW(m.parameters(), lr=lr / 10, fused=True),
    "adam": lambda m, lr: torch.optim.Adam(m.parameters(), lr=lr / 10),
    "rmsprop": lambda m, lr: torch.optim.RMSprop(m.parameters(), lr=lr / 100),
}


@dataclass(frozen=True)
class Recipe:
    """One clean run. ``schedule``: warmup_cosine, steps, constant."""

    model: str
    optimizer: str
    precision: str
    seed: int
    steps: int
    schedule: str
    clip: float
    batch: int


class Tiny(nn.Module):
    """A classifier with batch norm, or a transformer block."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed = nn.Linear(8, 32)
        self.block = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True) if kind == "transformer" else nn.ReLU()
        self.norm = nn.BatchNorm1d(32) if kind == "mlp" else nn.Identity()
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.kind == "transformer":
            x = self.block(x[:, None].expand(-1, 3, -1)).mean(1)
        return self.head(self.norm(self.block(x) if self.kind == "mlp" else x))


def recipes(scale: float) -> list[Recipe]:
    """The whole list; ``scale`` multiplies the number of steps of each."""
    found = []
    for seed in range(3):
        for optimizer in OPTIMIZERS:
            for i, precision in enumerate(("fp32", "fp16", "bf16")):
                schedule = ("warmup_cosine", "steps", "constant")[(i + seed) % 3]
                clip = (10.0, 1.0, 0.0)[(i + 2 * seed) % 3]
                for model, steps in (("mlp", 150), ("transformer", 60)):
                    found.append(Recipe(model, optimizer, precision, seed, steps, schedule, clip, (2, 8, 32)[seed]))
    for seed in range(4):
        for optimizer in ("sgd", "adamw"):
            pair = ("fp32", "fp16")
            found += [Recipe("detector", optimizer, p, seed, 60, "warmup_cosine", 10.0, 2) for p in pair]
    return [Recipe(**{**vars(r), "steps": max(1, round(r.steps * scale))}) for r in found]


def lr_at(recipe: Recipe, step: int, base: float) -> float:
    """Linear warm-up over a tenth of the run, then the schedule."""
    warm = max(1, recipe.steps // 10)
    if recipe.schedule == "constant":
        return base
    if step < warm:
        return base * (step + 1) / warm
    done = (step - warm) / max(1, recipe.steps - warm)
    if recipe.schedule == "steps":
        return base * 0.1 ** int(done * 3)
    return base * 0.5 * (1 + math.cos(math.pi * done))


def data_of(recipe: Recipe, step: int) -> Any:
    """Noisy labels, small batches; for the detector also images without objects."""
    if recipe.model == "detector":
        images, targets = tiny_batch(1000 * recipe.seed + step % 40, recipe.batch)
        if step % 9 == 4:
            targets[0] |= {k: targets[0][k][:0] for k in ("boxes", "labels", "masks", "annotation_ids")}
        return images, targets
    g = torch.Generator().manual_seed(1000 * recipe.seed + step % 50)
    x = torch.randn(recipe.batch, 8, generator=g)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    noise = torch.rand(recipe.batch, generator=g) < 0.1
    return x, torch.where(noise, torch.randint(0, 3, (recipe.batch,), generator=g), y)


def run(recipe: Recipe) -> tuple[int, int, list[str]]:
    """Steps taken, benign skips, and alarms."""
    torch.manual_seed(recipe.seed)
    detector = recipe.model == "detector"
    model = tiny_detector(recipe.seed) if detector else Tiny(recipe.model)
    base = 0.01 if detector else 0.05
    optimizer = OPTIMIZERS[recipe.optimizer](model, base)
    rates = [g["lr"] for g in optimizer.param_groups]
    scaler = torch.amp.GradScaler("cpu", growth_interval=50) if recipe.precision == "fp16" else None
    guard = Guard(model, optimizer, scaler=scaler, max_grad_norm=recipe.clip)
    dtype = torch.float16 if recipe.precision == "fp16" else torch.bfloat16

    def classify(batch: Any) -> Tensor:
        with torch.autocast("cpu", dtype=dtype, enabled=recipe.precision != "fp32"):
            return F.cross_entropy(model(batch[0]).float(), batch[1])

    skips, alarms = 0, []
    for step in range(recipe.steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr_at(recipe, step, rate)
        forward = forward_of(model, step, recipe.precision) if detector else classify
        record = guard.step(forward, data_of(recipe, step))
        skips += not record.applied and guard.alarm is None
        if guard.alarm is not None:
            alarms.append(f"{recipe} step {step}: {guard.alarm.symptom}: {guard.alarm.message}")
    return recipe.steps, skips, alarms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    rows: dict[tuple[str, str], list[int]] = {}
    alarms: list[str] = []
    for recipe in recipes(args.scale):
        steps, skips, found = run(recipe)
        row = rows.setdefault((recipe.model, recipe.precision), [0, 0, 0, 0])
        for i, value in enumerate((1, steps, skips, len(found))):
            row[i] += value
        alarms += found
    total = [sum(r[i] for r in rows.values()) for i in range(4)]
    lines = ["| model | precision | runs | steps | skips of the scale search | alarms |", "|---|---|---|---|---|---|"]
    lines += [f"| {m} | {p} | {' | '.join(map(str, r))} |" for (m, p), r in rows.items()]
    lines.append(f"| all | | {' | '.join(map(str, total))} |")
    print("\n".join(lines), f"\n{time.monotonic() - began:.0f} s")
    print("\n".join(alarms[:40]))
    if args.out:
        args.out.write_text(
            "# Clean steps under the guard\n\n"
            f"{len(OPTIMIZERS)} optimizers, 3 precisions, 3 to 4 seeds, 3 schedules, clipping 10, 1 and off, batches\n"
            "of 2 to 32, noisy labels, images without objects. Every alarm is a false one.\n\n"
            + "\n".join(lines)
            + "\n\nRun: `python bench/guard/clean.py --out bench/results/guard_clean.md`\n"
        )
    sys.exit(bool(alarms))


if __name__ == "__main__":
    main()
