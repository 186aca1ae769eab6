"""Does the fast path train as well as torchvision's own components? Pairs of trainings with the same seeds.

    python bench/speed/ap.py [--sets shapes dsb2018] [--dsb2018 FOLDER] [--backbone FILE] [--jobs 2]

Both sides run the same loop, data order, augmentation, weights at the start and validation. "torchvision" has its
unaccelerated modules, full-size masks and float32; "this project" the defaults of a run on this machine: accelerated
modules, mask targets from outlines, bfloat16 where it is native. Nuclei come as RLE; for training they are turned into
polygons along their pixels' edges, because only polygons take another path to the mask targets.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import nn

from maskrcnn_coco import Config, train
from maskrcnn_coco.data.builtin_shapes import write_shapes
from maskrcnn_coco.data.masks import decode_mask
from maskrcnn_coco.model.build import build_model, set_sampler

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared"
BACKBONE = SHARED / "weights" / "mobilenet_v2_features_imagenet_bnfolded.pth"
SIDES = ("torchvision", "this project")
METRICS = ("segm/AP", "segm/AP50", "bbox/AP")
SETTINGS: dict[str, dict[str, Any]] = {
    "shapes": {"min_size": 128, "max_size": 128, "epochs": 5, "lr": 1e-2, "head_lr_multiplier": 3.0, "batch_size": 4},
    "dsb2018": {"min_size": 192, "max_size": 256, "epochs": 2, "lr": 5e-3, "head_lr_multiplier": 3.0, "batch_size": 4},
}
SEEDS = {"shapes": 3, "dsb2018": 2}
PROPOSALS = 64
LARGEST = 400
"""Longest side of the nuclei's training images, pixels: a few huge ones would take half the time."""


def contours(mask: np.ndarray) -> list[list[float]]:
    """Outer boundaries of a mask (H, W), along the edges of its pixels: flat lists x1, y1, x2, y2, …"""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(cols[0])
    padded = np.pad(mask[top : rows[-1] + 1, left : cols[-1] + 1].astype(bool), 1)
    after: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    inside = padded[1:-1, 1:-1]
    # Clockwise as seen on the screen: the object lies to the right of each edge.
    edges = (
        (inside & ~padded[:-2, 1:-1], (0, 0), (1, 0)),
        (inside & ~padded[1:-1, 2:], (1, 0), (1, 1)),
        (inside & ~padded[2:, 1:-1], (1, 1), (0, 1)),
        (inside & ~padded[1:-1, :-2], (0, 1), (0, 0)),
    )
    for where, start, end in edges:
        for y, x in zip(*(axis.tolist() for axis in np.nonzero(where)), strict=True):
            after[left + x + start[0], top + y + start[1]].append((left + x + end[0], top + y + end[1]))
    rings = []
    while after:
        ring = [next(iter(after))]
        while (ends := after.get(ring[-1])) is not None:
            point = ring[-1]
            ring.append(ends.pop())
            if not ends:
                del after[point]
        rings.append(np.array(ring[:-1], np.float64))
    return [_corners(r).ravel().tolist() for r in rings if _signed_area(r) > 0]


def _signed_area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _corners(ring: np.ndarray) -> np.ndarray:
    """Without the points on straight lines."""
    turns = np.any(np.roll(ring, -1, axis=0) - ring != ring - np.roll(ring, 1, axis=0), axis=1)
    return ring[turns]


def write_nuclei(source: Path, folder: Path) -> None:
    """A copy of ``source`` with the smaller images to train on, and their annotations as polygons."""
    shutil.copytree(source, folder)
    path = folder / "train" / "_annotations.coco.json"
    data = json.loads(path.read_text())
    data["images"] = [i for i in data["images"] if max(i["height"], i["width"]) <= LARGEST]
    sizes = {i["id"]: (i["height"], i["width"]) for i in data["images"]}
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in sizes]
    for annotation in data["annotations"]:
        annotation["segmentation"] = contours(decode_mask(annotation["segmentation"], *sizes[annotation["image_id"]]))
    path.write_text(json.dumps(data))


def make_model(kind: str, classes: int, seed: int, backbone: Path, *, fast: bool) -> nn.Module:
    """The model of one pair: the same weights for both sides."""
    size = {k: SETTINGS[kind][k] for k in ("min_size", "max_size")}
    torch.manual_seed(seed)
    if kind == "shapes":
        model = build_model("maskrcnn_resnet18_fpn", classes, small=True, fast=fast, **size)
    else:
        model = build_model("maskrcnn_mobilenet_v2_fpn", classes, backbone_weights=backbone, fast=fast, **size)
    set_sampler(model, PROPOSALS)
    return model


def one(kind: str, data: str, side: str, seed: int, backbone: Path) -> dict[str, float]:
    """Train one side once: metrics of the validation after the last epoch, and CPU seconds."""
    torch.set_num_threads(1)
    fast = side == "this project"
    began = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        config = Config(
            data=data,
            seed=seed,
            amp="auto" if fast else "off",
            weights="none",
            device="cpu",
            workers=0,
            logdir=f"{out}/run",
            checkpoint_dir=f"{out}/checkpoints",
            checkpoint_every="1000",
            **SETTINGS[kind],
        )
        model = make_model(kind, {"shapes": 4, "dsb2018": 2}[kind], seed, backbone, fast=fast)
        result = train(config, model=model, quiet=True)
    if result.status != "finished" or result.skipped_steps:
        raise SystemExit(f"{side}, seed {seed}: {result.status}, {result.skipped_steps} steps refused")
    return {**{m: result.metrics[m] for m in METRICS}, "cpu": time.process_time() - began}


def spawn(kind: str, data: str, side: str, seed: int, backbone: Path, raw: Path) -> dict[str, float]:
    """`one` in a process of its own; or its figures from ``raw``, where an earlier call has written them."""
    lines = map(json.loads, raw.read_text().splitlines()) if raw.is_file() else ()
    kept = next((x["found"] for x in lines if (x["set"], x["side"], x["seed"]) == (kind, side, seed)), None)
    if kept is not None:
        return kept
    command = [sys.executable, __file__, "--one", kind, data, side, str(seed), "--backbone", str(backbone)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    with raw.open("a") as out:
        out.write(json.dumps({"set": kind, "side": side, "seed": seed, "found": found}) + "\n")
    return found


def verdict(a: list[float], b: list[float]) -> str:
    """The mean difference of ``b`` from ``a`` (same seeds), and whether the scatter of seeds explains it."""
    n = len(a)
    noise = math.sqrt((statistics.variance(a) + statistics.variance(b)) / n)
    difference = statistics.mean(b) - statistics.mean(a)
    return f"{difference:+.3f} ({'within' if abs(difference) <= 2 * noise else '**outside**'} ± {2 * noise:.3f})"


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: mean ± standard deviation over seeds of each side, and the difference."""
    lines = ["| | " + " | ".join(SIDES) + " | difference (two standard errors) |", "|---|---|---|---|"]
    for metric in METRICS:
        a, b = ([f[metric] for f in found[side]] for side in SIDES)
        cells = [f"{statistics.mean(v):.3f} ± {statistics.stdev(v):.3f}" for v in (a, b)]
        lines.append(f"| {metric} | {cells[0]} | {cells[1]} | {verdict(a, b)} |")
    cpu = [statistics.median(f["cpu"] for f in found[side]) for side in SIDES]
    lines.append(f"| CPU s a run, evaluation included | {cpu[0]:.0f} | {cpu[1]:.0f} | {cpu[1] / cpu[0]:.2f} × |")
    return "\n".join(lines)


def prepare(kind: str, folder: Path, nuclei: Path) -> str:
    """The data of one set, below ``folder``."""
    if kind == "shapes":
        write_shapes(folder / kind, train=200, val=60, size=128)
    else:
        write_nuclei(nuclei, folder / kind)
    return str(folder / kind)


def main() -> int:
    """Train all pairs, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--dsb2018", type=Path, default=SHARED / "data" / "dsb2018")
    parser.add_argument("--backbone", type=Path, default=BACKBONE, help="MobileNetV2's features, for dsb2018")
    parser.add_argument("--raw", type=Path, default=common.RESULTS / "ap.jsonl", help="figures of each run, kept")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--one", nargs=4, metavar=("SET", "DATA", "SIDE", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        kind, data, side, seed = args.one
        print(json.dumps(one(kind, data, side, int(seed), args.backbone)))
        return 0
    parts = [
        "`python bench/speed/ap.py`: pairs of trainings with the same seeds, one loop, one data order and one set of "
        "initial weights. torchvision: unaccelerated modules, full-size masks, float32. This project: its defaults "
        "here, that is accelerated modules, mask targets from outlines, bfloat16 where native. Mean ± standard "
        f"deviation over seeds. dsb2018: training images up to {LARGEST} px a side, nuclei as polygons along their "
        "pixels' edges. Short trainings: what counts is the difference, not the height."
    ]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        for kind in args.sets:
            if kind == "dsb2018" and not args.dsb2018.is_dir():
                print(f"{args.dsb2018} is not here: dsb2018 left out", file=sys.stderr)
                continue
            data = prepare(kind, Path(folder), args.dsb2018)
            runs = {
                (s, n): pool.submit(spawn, kind, data, s, n, args.backbone, args.raw)
                for n in range(SEEDS[kind])
                for s in SIDES
            }
            found = {s: [runs[s, n].result() for n in range(SEEDS[kind])] for s in SIDES}
            settings = f"{SEEDS[kind]} seeds, {SETTINGS[kind]}, {PROPOSALS} proposals an image."
            parts.append(f"## {kind}\n\n{settings}\n\n{table(found)}")
            print(parts[-1], flush=True)
    print(common.write("ap", "Same accuracy as torchvision's components", parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
