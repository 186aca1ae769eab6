"""AP in bf16 against float32 on the nuclei at 640 to 800 pixels, with boxes kept exact and with torchvision's rounding.

    nice -n 19 python bench/train/precision.py [--px 640] [--steps 150] [--seeds 0 1] [--arms off exact rounded]
        [--raw bench/results/precision.jsonl]

``off``: float32. ``exact``: bf16 autocast, every box in float32, as `train` does. ``rounded``: bf16 autocast as
torchvision has it, where anchors, proposals and detections are rounded to bf16 (8 pixels from 1024 on). Each arm trains
from the same weights on the same batches, and its AP is taken in its own precision; besides, the weights trained in
float32 are evaluated in all three, which leaves the noise of training out. Runs are appended to ``--raw``, and those
that stand there are not taken again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sets import BACKBONE, SETS, SHARED

from maskrcnn_coco import Config, train
from maskrcnn_coco.evaluation.evaluate import evaluate_model
from maskrcnn_coco.model import weights as files
from maskrcnn_coco.model.architecture import Size, assemble, freeze
from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.system import exact_boxes as exact
from maskrcnn_coco.training import epoch_end
from maskrcnn_coco.training.session import Session

RESULTS = Path(__file__).resolve().parents[1] / "results"
KEYS = ("segm/AP", "segm/AP50", "segm/AP75", "segm/APs", "segm/APm", "segm/APl", "bbox/AP")
AMP = {"off": "off", "exact": "bf16", "rounded": "bf16"}
NUCLEI = Size(
    anchors=(16, 32, 64, 128, 256), rpn_batch=256, box_batch=64, proposals_train=(400, 400), proposals_test=(400, 250)
)
"""torchvision's detector; fewer proposals than its own, for the sake of a CPU."""
USERS = ("model.architecture", "model.forward", "evaluation.detect")
"""Files that call `exact_boxes`."""


@contextlib.contextmanager
def boxes(arm: str) -> Iterator[None]:
    """``rounded``: nobody keeps boxes exact."""
    with contextlib.ExitStack() as stack:
        if arm == "rounded":
            for user in USERS:
                stack.enter_context(patch(f"maskrcnn_coco.{user}.exact_boxes", lambda model: model))
        yield


def built(px: int, seed: int) -> nn.Module:
    """The model at its start, the same for every arm."""
    torch.manual_seed(seed)
    name = "maskrcnn_mobilenet_v2_fpn"
    model = assemble(name, 2, NUCLEI, "frozen", "group", min_size=px, max_size=2 * px, detections=120)
    path = SHARED / "weights" / BACKBONE
    files.load_body(model.get_submodule("backbone.body"), files.read_weights(path), path)
    freeze(model, name, None, loaded=True)
    return accelerate(model)


def run(arm: str, px: int, steps: int, seed: int, data: dict[str, Any]) -> dict[str, dict[str, float]]:
    """AP by the arm that evaluates, after ``steps`` steps of ``arm``: its own, and of float32's weights all."""
    found: dict[str, dict[str, float]] = {}

    def look(session: Session, _epoch: int) -> None:
        if session.progress.step >= steps:
            found.update({a: scores(a, session) for a in (AMP if arm == "off" else [arm])})

    with tempfile.TemporaryDirectory() as out, boxes(arm):
        model = built(px, seed)
        config = Config(
            seed=seed,
            batch_size=1,
            max_steps=steps,
            device="cpu",
            workers=0,
            amp=AMP[arm],
            ema="none",
            weights="none",
            min_size=px,
            max_size=2 * px,
            box_detections_per_image=120,
            checkpoint_every="100000",
            logdir=f"{out}/run",
            checkpoint_dir=f"{out}/checkpoints",
            **data,
        )
        with (
            patch.object(epoch_end, "evaluate_session", look),
            patch.object(epoch_end, "save_epoch", lambda *_, **__: None),
            patch.object(epoch_end, "save_before_evaluation", lambda *_: None),
        ):
            train(config, model=model, quiet=True)
    return found


def scores(arm: str, session: Session) -> dict[str, float]:
    """AP of the session's weights, evaluated as ``arm`` does."""
    precision = {"off": "fp32", "bf16": "bf16"}[AMP[arm]]
    with boxes("exact" if arm != "rounded" else arm), unhooked(session.model, arm):
        result = evaluate_model(
            session.model,
            session.val_source,
            device=session.device,
            precision=precision,
            batch_size=1,
            class_names=session.data.class_names,
        )
    return {k: round(result.metrics[k], 4) for k in KEYS}


@contextlib.contextmanager
def unhooked(model: nn.Module, arm: str) -> Iterator[None]:
    """``rounded``: without the hooks that an earlier `exact_boxes` left on the model."""
    tables = [(t, dict(t)) for m in model.modules() for t in (m._forward_hooks, m._forward_pre_hooks)]
    if arm == "rounded":
        for table, hooks in tables:
            for key, hook in hooks.items():
                if getattr(hook, "__module__", "") == exact.__name__:
                    del table[key]
    try:
        yield
    finally:
        for table, hooks in tables:
            table.clear()
            table.update(hooks)


def read(raw: Path) -> list[dict[str, Any]]:
    """All lines of ``raw``."""
    return [json.loads(line) for line in raw.read_text().splitlines()] if raw.is_file() else []


def main() -> None:
    """Train and evaluate what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--px", type=int, default=640)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", default=list(AMP), choices=list(AMP))
    parser.add_argument("--raw", type=Path, default=RESULTS / "precision.jsonl")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = SETS["dsb2018"].data(Path(folder))
        for seed in args.seeds:
            for arm in args.arms:
                job = {"px": args.px, "steps": args.steps, "seed": seed, "arm": arm}
                if any(job.items() <= line.items() for line in read(args.raw)):
                    continue
                began = time.process_time()
                line = {**job, "ap": run(arm, args.px, args.steps, seed, data), "cpu": time.process_time() - began}
                print(json.dumps(line), flush=True)
                with args.raw.open("a") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
