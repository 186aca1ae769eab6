"""Which recipe trains best in the same CPU time? Segm AP along the run, for each recipe, set and seed.

    nice -n 19 python bench/train/ap.py [--sets dsb2018 cars shapes] [--arms default torchvision …] [--seeds 0 1 2]
        [--times 1] [--raw bench/results/recipes.jsonl] [--minutes 60] [--page]

Each run gets as many steps as cost what the default's steps cost: the ratio of a step's CPU time is measured side by
side first, so that a machine which slows down for a while favours no recipe. Evaluation is in nobody's budget. Runs
are appended to ``--raw``, and those that stand there are not taken again. All recipes of a seed run in turn, so that
whatever stops the bench leaves whole seeds. The default's runs average their weights beside (``--ema auto``); the
figures "averaged" are of those, and change nothing in the others.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from recipes import ARMS, Arm
from sets import DETECTIONS, SETS, BenchSet

from maskrcnn_coco import Config, train
from maskrcnn_coco.model.build import set_sampler
from maskrcnn_coco.training import epoch_end
from maskrcnn_coco.training.session import Session

RAW = Path(__file__).resolve().parents[1] / "results" / "recipes.jsonl"
LOOKS = (1 / 2, 1.0)
"""Shares of the run after which the next end of an epoch is evaluated."""
KEYS = ("segm/AP", "segm/AP50", "bbox/AP")
TRIAL_STEPS = 10


class Meter:
    """CPU seconds of training without evaluation, and the metrics at each look; an observer of the run."""

    def __init__(self, total: int) -> None:
        self.total, self.due = total, list(LOOKS)
        self.began: float | None = None
        self.apart = 0.0
        self.stamps: list[float] = []
        self.curve: list[dict[str, float]] = []
        self.averaged: dict[str, float] = {}

    def __call__(self, record: Any) -> None:
        if type(record).__name__ == "StepRecord":
            now = time.process_time() - self.apart
            self.began = now if self.began is None else self.began
            self.stamps.append(now - self.began)

    def look(self, session: Session, number: int) -> Any:
        """In place of the evaluation of an epoch."""
        step, before = session.progress.step, time.process_time()
        if not self.due or step < self.due[0] * self.total:
            return None
        self.due = [d for d in self.due if step < d * self.total]
        result = epoch_end.evaluate_weights(session)
        self.curve.append({"step": step, "cpu": self.stamps[-1], **{k: result.metrics[k] for k in KEYS}})
        if not self.due and session.ema is not None:
            with session.ema.in_place(session.model):
                averaged = epoch_end.evaluate_weights(session)
            self.averaged = {k: averaged.metrics[k] for k in KEYS}
        self.apart += time.process_time() - before
        return None


@functools.cache
def trained(name: str, folder: Path) -> dict[str, Any]:
    """The weights of a detector of set ``name`` after a run of the set's own length."""
    of = SETS[name]
    model = of.model(0)
    assert model is not None
    run(of, ARMS["rpn x5"], 0, of.steps, folder, look=False, model=model)
    return {k: v.clone() for k, v in model.state_dict().items()}


def run(
    of: BenchSet, arm: Arm, seed: int, steps: int, folder: Path, *, look: bool = True, model: Any = None
) -> tuple[Meter, Any]:
    """One training of ``steps`` steps; of ``model``, or of the set's own."""
    start = None if arm.starts_from is None else trained(arm.starts_from, folder)
    meter, model = Meter(steps), model or of.model(seed, arm.change, start)
    data = of.data_of(folder, arm.images)
    with tempfile.TemporaryDirectory() as out, arm.in_force():
        base: dict[str, Any] = (
            {}
            if of.name == "shapes"
            else {
                "weights": "none",
                "min_size": of.min_size,
                "max_size": of.max_size,
                "box_detections_per_image": DETECTIONS,
            }
        )
        epoch = -(-of.images(folder, arm.images) // of.batch_size)
        fields = base | data | arm.fields(of, epoch)
        if model is not None:
            set_sampler(model, fields.get("box_batch_size_per_image"))
        config = Config(
            seed=seed,
            batch_size=of.batch_size,
            max_steps=steps,
            device="cpu",
            workers=0,
            ema="auto" if arm.name == "default" else "none",
            checkpoint_every="100000",
            logdir=f"{out}/run",
            checkpoint_dir=f"{out}/checkpoints",
            **fields,
        )
        with (
            patch.object(epoch_end, "evaluate_session", meter.look if look else lambda *_: None),
            patch.object(epoch_end, "save_epoch", lambda *_, **__: None),
            patch.object(epoch_end, "save_before_evaluation", lambda *_: None),
        ):
            result = train(config, model=model, quiet=True, observers=[meter])
    return meter, result


def cost(of: BenchSet, arm: Arm, folder: Path) -> float:
    """CPU seconds of a step over the default's: two trials of each, in turn."""
    spent = {"default": 0.0, arm.name: 0.0}
    for name in ("default", arm.name, arm.name, "default"):
        meter, _ = run(of, ARMS[name], 0, TRIAL_STEPS, folder, look=False)
        spent[name] += meter.stamps[-1] - meter.stamps[1]  # the first step allocates
    return spent[arm.name] / spent["default"]


def read(raw: Path) -> list[dict[str, Any]]:
    """All lines of ``raw``."""
    return [json.loads(line) for line in raw.read_text().splitlines()] if raw.is_file() else []


def append(raw: Path, line: dict[str, Any]) -> None:
    """One more line, and on the screen."""
    print(json.dumps(line), flush=True)
    with raw.open("a") as file:
        file.write(json.dumps(line) + "\n")


def steps_for(of: BenchSet, arm: Arm, folder: Path, raw: Path, times: float) -> int:
    """How many steps of ``arm`` the budget, ``times`` the set's own, holds."""
    if not arm.costs:
        return round(of.steps * times * arm.longer)
    known = [r["ratio"] for r in read(raw) if r["kind"] == "cost" and (r["set"], r["arm"]) == (of.name, arm.name)]
    if not known:
        known = [cost(of, arm, folder)]
        append(raw, {"kind": "cost", "set": of.name, "arm": arm.name, "ratio": known[0]})
    return round(of.steps * times / known[0])


def main() -> None:
    """Run what is missing; ``--page`` writes the page from what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--arms", nargs="+", default=["default", "torchvision", "detectron2"], choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--times", type=float, default=1.0, help="the budget, in multiples of the set's own")
    parser.add_argument("--raw", type=Path, default=RAW)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no run after so many")
    parser.add_argument("--page", action="store_true", help="write bench/results/recipes.md from --raw and end")
    args = parser.parse_args()
    if args.page:
        from page import write

        write(read(args.raw), RAW.with_suffix(".md"))
        return
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            for of in (SETS[s] for s in args.sets):
                for arm in (ARMS[a] for a in args.arms if of.name in ARMS[a].only):
                    one(of, arm, seed, Path(folder), args.raw, end, args.times)


def one(of: BenchSet, arm: Arm, seed: int, folder: Path, raw: Path, end: float, times: float) -> None:
    """One run, if it is missing and there is time."""
    key = (of.name, arm.name, seed, times)
    there = {(r["set"], r["arm"], r["seed"], r.get("times", 1.0)) for r in read(raw) if r["kind"] == "run"}
    if key in there or time.monotonic() > end:
        return
    steps = steps_for(of, arm, folder, raw, times)
    meter, result = run(of, arm, seed, steps, folder)
    if result.status != "finished":
        raise SystemExit(f"{key}: {result.status}")  # a signal: what was run stays, the rest is for another time
    line = {"kind": "run", "set": of.name, "arm": arm.name, "seed": seed, "times": times, "steps": steps}
    told = {"cpu": meter.stamps[-1], "curve": meter.curve, "averaged": meter.averaged, "status": result.status}
    append(raw, line | told | {"incidents": len(result.incidents), "refused": result.skipped_steps})


if __name__ == "__main__":
    main()
