"""bench/results/recipes.md from the runs: what was expected, what came, and the curves."""

from __future__ import annotations

import os
import platform
import statistics
from pathlib import Path
from typing import Any

import torch
from recipes import ARMS
from sets import SETS

Row = dict[str, Any]


def write(rows: list[Row], path: Path) -> None:
    """The page at ``path``."""
    runs = [r for r in rows if r["kind"] == "run" and r["status"] == "finished"]
    ratios = {(r["set"], r["arm"]): r["ratio"] for r in rows if r["kind"] == "cost"}
    parts = [_head(), _predictions(runs)]
    lengths = sorted({r.get("times", 1.0) for r in runs})
    for name in SETS:
        for times in lengths:
            of = [r for r in runs if r["set"] == name and r.get("times", 1.0) == times]
            if of:
                parts.append(_section(name, times, of, ratios))
    path.write_text("\n".join(parts), encoding="utf-8")


def _head() -> str:
    return f"""# Recipes in the same CPU time

`python bench/train/ap.py` (runs: `recipes.jsonl`), then `python bench/train/ap.py --page`. Mask R-CNN as wide as
torchvision's at a fifth of its image size: MobileNetV2 from ImageNet, FPN, RPN and heads from random weights, batch 2,
32 proposals an image for every recipe; on the shapes the built-in small network, batch 4. A recipe gets as many steps
as cost what the default's cost in CPU time, measured side by side; evaluation is in nobody's budget. Segm AP on
validation images, mean ± standard deviation over the seeds that ran. Short runs, and three times as long ones
(`--times 3`): what is compared is who gets anywhere in the time, not where long runs end.

"default" is the default as it was when these ran: every component but the heads at the backbone's rate. Since then the
FPN and the region proposal network of a detector whose backbone alone is pretrained start at the top of the proposals'
safe range, which with fewer than 500 images is "fpn x5" (its runs are of a bench that set the rate from outside; the
groups are the same). "rpn x5" was the default in between.

{platform.machine()}, {os.cpu_count()} cores, shared; one thread; torch {torch.__version__}.
"""


def _predictions(runs: list[Row]) -> str:
    lines = ["## What was expected before the first run", "", "| recipe | expected |", "|---|---|"]
    ran = dict.fromkeys(r["arm"] for r in runs)
    lines += [f"| {name} | {arm.expected} |" for name, arm in ARMS.items() if name in ran]
    left = [name for name in ARMS if name not in ran]
    lines += ["", f"Restated but not run for want of time: {', '.join(left)}." if left else ""]
    return "\n".join(lines)


def _section(name: str, times: float, runs: list[Row], ratios: dict[tuple[str, str], float]) -> str:
    default = _finals(runs, "default")
    noise = 2 * statistics.stdev(default) if len(default) > 1 else float("nan")
    lines = [
        f"\n## {name}" + (f", {times:g} times the budget" if times != 1 else ""),
        "",
        f"Twice the default's noise over seeds: {noise:.4f}.",
        "",
        "| recipe | seeds | steps | of a step | first look: CPU s, AP | end: CPU s, segm/AP | segm/AP50 | ÷ default |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(r["arm"] for r in runs):
        of = [r for r in runs if r["arm"] == arm]
        paired = [
            r["curve"][-1]["segm/AP"] / d["curve"][-1]["segm/AP"]
            for r in of
            for d in runs
            if d["arm"] == "default" and d["seed"] == r["seed"] and d["curve"][-1]["segm/AP"] > 0
        ]
        first = [r["curve"][0] for r in of]
        cells = [
            arm,
            ", ".join(str(r["seed"]) for r in of),
            str(of[0]["steps"]),
            f"{ratios.get((name, arm), 1.0):.2f}",
            f"{statistics.mean(f['cpu'] for f in first):.0f}: {_spread([f['segm/AP'] for f in first])}",
            f"{statistics.mean(r['cpu'] for r in of):.0f}: **{_spread(_finals(runs, arm))}**",
            _spread([r["curve"][-1]["segm/AP50"] for r in of]),
            f"{statistics.median(paired):.2f}" if paired else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
        averaged = [r["averaged"]["segm/AP"] for r in of if r["averaged"]]
        if averaged:
            lines.append(f"| {arm}, averaged (--ema auto) | | | | | {_spread(averaged)} | | |")
    refused = sum(r["refused"] for r in runs)
    lines += [
        "",
        f'Steps that the guard refused, in all runs: {refused}. "Of a step": its CPU time over the default\'s.',
    ]
    return "\n".join([*lines, ""])


def _finals(runs: list[Row], arm: str) -> list[float]:
    return [r["curve"][-1]["segm/AP"] for r in runs if r["arm"] == arm]


def _spread(values: list[float]) -> str:
    sd = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{sd}"
