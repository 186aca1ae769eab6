"""Does the advice train as well as the best rung of the ladder? To the end of the plan, per seed.

    python bench/advice/ap.py [--epochs 6] [--seeds 0 1 2] [--settings JSON] [--raw FILE] [--out FILE.md]

Every rung has the recipe's --lr and another --head-lr-multiplier; "advised" has what `maskrcnn-coco advise` said for
that seed. Best, last and spread are over the seeds; a setting that needed the guard says how often. ``--settings``
holds fields of Config for all runs, such as data and model; without it the built-in shapes are trained.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from maskrcnn_coco import Config, train
from maskrcnn_coco.advice.advise import advise_data
from maskrcnn_coco.report.console import Console

LADDER = (3.0, 5.0, 7.0, 10.0)
Outcome = dict[str, Any]


RUNGS = {f"ladder {m:g}" + (" (recipe)" if m == 5.0 else ""): {"head_lr_multiplier": m} for m in LADDER}
"""Name → flags. Small data sets and the built-in one have the rung 5 as their recipe."""
ADVISED = ("lr", "head_lr_multiplier", "rpn_lr_multiplier", "warmup_steps", "max_grad_norm")


def advised(common: dict[str, Any], seed: int) -> dict[str, Any]:
    """The flags that `maskrcnn-coco advise` gives."""
    advice = advise_data(Config(seed=seed, **common), Console(quiet=True))
    return {n: getattr(advice, n) for n in ADVISED}


def run(flags: dict[str, Any], common: dict[str, Any], seed: int) -> Outcome:
    """One training run: AP at the end, incidents, whether it stayed finite."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"logdir": f"{folder}/run", "checkpoint_dir": f"{folder}/checkpoints"}
        result = train(Config(seed=seed, **(common | flags), **places), quiet=True)
        return {
            "ap": result.metrics["segm/AP"],
            "ap50": result.metrics["segm/AP50"],
            "incidents": len(result.incidents),
            "finite": result.finite,
        }


def table(rows: list[Outcome]) -> str:
    """One line a setting: mean and standard deviation over seeds."""
    lines = ["| setting | segm/AP, mean ± sd over seeds | segm/AP50 | finite | incidents |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(r["name"] for r in rows):
        of = [r for r in rows if r["name"] == name]
        cells = []
        for key in ("ap", "ap50"):
            values = [r[key] for r in of]
            sd = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {sd:.3f}")
        finite, incidents = sum(r["finite"] for r in of), sum(r["incidents"] for r in of)
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {finite}/{len(of)} | {incidents} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", type=json.loads, default={"demo": True}, help="fields of Config, as JSON")
    parser.add_argument("--limit", type=int, default=10**6, help="end after so many new runs")
    parser.add_argument("--raw", type=Path, help="append outcomes here, and skip the runs that are there already")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "advise_ap.md")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.raw.read_text().splitlines()] if args.raw and args.raw.exists() else []
    common = {"epochs": args.epochs, **args.settings}
    done = {(r["seed"], r["name"]) for r in rows}
    todo = [(seed, name) for seed in args.seeds for name in (*RUNGS, "advised") if (seed, name) not in done]
    for seed, name in todo[: args.limit]:
        flags = RUNGS.get(name) or advised(common, seed)
        row = {"name": name, "seed": seed, "flags": flags, **run(flags, common, seed)}
        rows.append(row)
        print(json.dumps(row), flush=True)
        if args.raw:
            with args.raw.open("a") as file:
                file.write(json.dumps(row) + "\n")
    order = sorted(rows, key=lambda r: r["name"] == "advised")
    said = sorted({(r["seed"], json.dumps(r["flags"])) for r in rows if r["name"] == "advised"})
    what = "built-in shapes" if args.settings == {"demo": True} else f"`{json.dumps(args.settings)}`"
    text = (
        f"# Final AP with the advice, against the ladder of head multipliers\n\n{what}, {args.epochs} epochs, "
        f"seeds {', '.join(map(str, args.seeds))}, torch {torch.__version__}, {torch.get_num_threads()} thread(s). "
        "Run: `python bench/advice/ap.py`.\n\n"
        + table(order)
        + "\n\nAdvised: "
        + "; ".join(f"seed {seed}: `{flags}`" for seed, flags in said)
        + "\n"
    )
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
