"""Does the measured limit predict what training does? 24 settings, five rates each, trained from the start.

    python bench/advice/run.py [--out bench/results/advise.json] [--only NAME]

For each setting the limit is measured as `advise` does, from batches and random numbers of one seed. Then the model is
trained anew from its first weights, with a warm-up, other batches and other random numbers, twice as long as a trial,
at 0.5, 0.8, 1.25, 2 and 4 times the limit. The guard's alarm says whether it diverged.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from maskrcnn_coco.advice.limits import judge, limits_from, rising, settle
from maskrcnn_coco.advice.trials import Task, Trials
from maskrcnn_coco.guard.early_warning import early_warning, own_level
from maskrcnn_coco.model.architecture import Size, assemble
from maskrcnn_coco.model.forward import step_seed
from maskrcnn_coco.model.optim import build_optimizer
from maskrcnn_coco.records import COMPONENTS, plain

TINY = Size(
    channels=32,
    box_width=64,
    mask_layers=(32,),
    mask_width=32,
    anchors=(8, 16, 24, 32, 48),
    canonical_scale=32,
    rpn_batch=32,
    box_batch=16,
    proposals_train=(100, 50),
)
FACTORS = (0.5, 0.8, 1.25, 2.0, 4.0)
STEPS, WARMUP = 40, 15


@dataclass(frozen=True)
class Setting:
    """One training task; each of its four components is a setting of the proof."""

    name: str
    model: str = "maskrcnn_resnet18_fpn"
    optimizer: str = "sgd"
    momentum: float = 0.9
    clip: float = 10.0
    size: int = 64
    objects: int = 3
    batch: int = 2
    base: float = 1e-3


SETTINGS = (
    Setting("resnet18 sgd clip 10"),
    Setting("resnet18 sgd no clip", clip=0.0),
    Setting("resnet18 adamw clip 10", optimizer="adamw", base=1e-4),
    Setting("mobilenet sgd momentum 0 clip 10", model="maskrcnn_mobilenet_v2_fpn", momentum=0.0, objects=1),
    Setting("mobilenet sgd clip 1", model="maskrcnn_mobilenet_v2_fpn", clip=1.0, size=96),
    Setting("mobilenet sgd no clip", model="maskrcnn_mobilenet_v2_fpn", clip=0.0, objects=5),
    Setting("mobilenet adamw no clip", model="maskrcnn_mobilenet_v2_fpn", optimizer="adamw", clip=0.0, base=1e-4),
)


def draw_batch(seed: int, setting: Setting) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Images of coloured squares on noise, float32 (3, S, S), and torchvision's targets."""
    rng = np.random.default_rng([seed, setting.size, setting.objects])
    images, targets, side = [], [], setting.size
    for _ in range(setting.batch):
        image = torch.from_numpy(rng.random((3, side, side), dtype=np.float32)) * 0.3
        boxes, labels, masks = [], [], []
        for _ in range(setting.objects):
            w = int(rng.integers(side // 6, side // 2))
            x, y = (int(v) for v in rng.integers(0, side - w, 2))
            label = int(rng.integers(1, 4))
            mask = torch.zeros(side, side, dtype=torch.uint8)
            mask[y : y + w, x : x + w] = 1
            image[label - 1, y : y + w, x : x + w] = 0.8
            boxes.append([x, y, x + w, y + w])
            labels.append(label)
            masks.append(mask)
        images.append(image)
        targets.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32),
                "labels": torch.tensor(labels),
                "masks": torch.stack(masks),
            }
        )
    return images, targets


def make_task(setting: Setting, seed: int, batches: int = 8) -> Task:
    """The task of ``setting``; ``seed`` draws batches and samplers, never the first weights."""

    def make_model() -> torch.nn.Module:
        torch.manual_seed(7)
        side = setting.size
        return assemble(setting.model, 4, TINY, "group", "group", min_size=side, max_size=side, detections=20)

    def make_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
        decay = 1e-4 if setting.optimizer == "sgd" else 0.05
        return build_optimizer(model, kind=setting.optimizer, momentum=setting.momentum, weight_decay=decay)

    def forward(model: torch.nn.Module, batch: Any, step: int, micro: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(step_seed(seed, step, micro))
        return model(*batch)

    drawn = [draw_batch(1000 * seed + i, setting) for i in range(batches)]
    return Task(make_model, make_optimizer, forward, drawn, max_grad_norm=setting.clip)


def train_at(trials: Trials, fresh: Any, setting: Setting, component: str, rate: float, level: float) -> dict[str, Any]:
    """Train from the first weights with one component at ``rate``; what `advise`'s verdict on that is."""
    trials.load(fresh)
    lr = dict.fromkeys(COMPONENTS, setting.base) | {component: rate}
    trial = trials.run(lr, STEPS, ramp=rising(WARMUP))
    verdict = judge(trial, component, level)
    warned = any(
        w for i in range(trial.steps) for w in early_warning(trial.records[: i + 1]) if w.component == component
    )
    seen = {"stable": verdict.stable, "alarm": verdict.alarm, "peak": verdict.peak}
    end = own_level(trial.records[-8:], component)
    return {**seen, "warned": warned, "end": end, "steps": trial.steps}


def prove(setting: Setting, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Limits of the four components of one setting, and the five trainings of each."""
    base: dict[str, float] = dict.fromkeys(COMPONENTS, setting.base)
    trials = Trials(make_task(setting, seed=1))
    limits = limits_from(trials, settle(trials, base, 10))
    trials = Trials(make_task(setting, seed=2))
    fresh, rows = trials.save(0), []
    settled = settle(trials, base, 10)
    for component, limit in limits.items():
        level = own_level(settled.trial.records, component)
        began = time.monotonic()
        runs = {f: train_at(trials, fresh, setting, component, limit.value * f, level) for f in FACTORS}
        checked = time.monotonic() - began
        row = {"setting": setting.name, "component": component, **plain(limit), "runs": runs, "check_seconds": checked}
        rows.append(plain(row))
        marks = " ".join(
            f"{f}:{'ok' if r['stable'] else 'ALARM' if r['alarm'] else 'jump'}@{r['steps']}/{r['peak']:.1f}"
            for f, r in runs.items()
        )
        say(
            f"{component:10} {limit.value:.3g} ({limit.low:.3g}..{limit.high:.3g}) crit {limit.critical:.3g} "
            f"{limit.steps_spent} steps {limit.seconds:.0f} s | {marks}"
        )
    return rows


def main() -> None:
    """Run all, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="bench/results/advise.json")
    parser.add_argument("--only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    # --only renews one setting and keeps the others.
    rows = json.loads(Path(args.out).read_text()) if args.only and Path(args.out).exists() else []
    for setting in SETTINGS:
        if args.only and args.only not in setting.name:
            continue
        print(setting.name, f"({time.monotonic() - began:.0f} s)", flush=True)
        rows = [r for r in rows if r["setting"] != setting.name]
        rows += prove(setting, lambda line: print("  ", line, flush=True))
        Path(args.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
