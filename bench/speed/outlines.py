"""What it saves that objects travel as outlines, not as full-size masks. Writes bench/results/outlines.md.

    python bench/speed/outlines.py [--threads 2] [--rounds 5]

The same step of this project with both kinds of target, in turns; then its parts: making the mask head's targets from
128 proposals, the guard's look at a batch, and memory that a batch holds.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

import common
import torch
from scaling import Setting
from step import make_batch, only, own_step, small_model
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from maskrcnn_coco.guard.inputs import Expected, check
from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.model.fast.mask_targets import mask_targets, outline_targets
from maskrcnn_coco.system.precision import bf16_is_native

SETTINGS: Sequence[Setting] = ((128, 4, 4), (800, 2, 7), (800, 2, 100))
"""Side of the images in pixels, images a batch, objects an image: the built-in set, COCO, a crowded set."""
PROPOSALS = 128


def in_turn(name: str, variants: Mapping[str, Callable[[int], object]], rounds: int) -> str:
    """One row: milliseconds of each, the last one's ratio to the first."""
    times = common.take_turns(variants, rounds, warm=1)
    cells = [f"{statistics.median(t.wall) * 1e3:.1f}" for t in times.values()]
    ratio = common.ratio(list(times.values())[-1].wall, next(iter(times.values())).wall)
    row = f"| {name} | {' | '.join(cells)} | {ratio} |"
    print(row, file=sys.stderr, flush=True)
    return row


def step_row(setting: Setting, rounds: int) -> str:
    """A guarded training step of the small network."""
    batch = make_batch(*setting)
    precision = "bf16" if bf16_is_native("cpu") else "fp32"
    net = accelerate(small_model(setting[0]).train())
    kinds = ("masks", "outlines")
    made = {k: own_step(copy.deepcopy(net), only(batch, k), precision, guarded=True) for k in kinds}
    return in_turn(_shown(setting), made, rounds)


def target_row(setting: Setting, rounds: int) -> str:
    """Targets of the mask head for one image: torchvision's way, from masks, from outlines."""
    target = make_batch(setting[0], 1, setting[2])[1][0]
    g = torch.Generator().manual_seed(1)
    matched = torch.randint(0, setting[2], (PROPOSALS,), generator=g)
    boxes = target["boxes"][matched]
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes = (boxes + 0.1 * sides * torch.randn(PROPOSALS, 4, generator=g)).clamp(0, setting[0])
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    ways: dict[str, Callable[[int], object]] = {
        "torchvision": lambda _: project_masks_on_boxes(target["masks"], boxes, matched, 28),
        "masks": lambda _: mask_targets(target["masks"], boxes, matched, 28),
        "outlines": lambda _: outline_targets(target["outlines"], boxes, matched, 28),
    }
    return in_turn(_shown(setting), ways, rounds)


def check_row(setting: Setting, rounds: int) -> str:
    """The guard's look at a batch before the forward pass; megabytes that its targets hold."""
    batch = make_batch(*setting)
    held = []
    for kind in ("masks", "outlines"):
        values = [v for t in only(batch, kind)[1] for v in (t[kind],)]
        held.append(sum(v.nbytes if isinstance(v, torch.Tensor) else v.points.nbytes + v.pixels.nbytes for v in values))
    looks = {k: (lambda b: lambda _: check([b], Expected(4)))(only(batch, k)) for k in ("masks", "outlines")}
    return in_turn(_shown(setting), looks, rounds) + f" {held[0] / 2**20:.2f} | {held[1] / 2**20:.2f} |"


def _shown(setting: Setting) -> str:
    return ", ".join(map(str, setting))


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    head = "| px, batch, objects | {} | ratio, last ÷ first |{}"
    two, three = "masks ms | outlines ms", "torchvision ms | masks ms | outlines ms"
    parts = [
        f"`python bench/speed/outlines.py`, {args.threads} threads, {args.rounds} rounds, variants in turn; medians, "
        "quartiles in brackets. Ellipses as polygons of 24 points. The loader's side is in loader.md.",
        "## A training step with guard and clipping, small network\n\n"
        + "\n".join([head.format(two, ""), "|---|---|---|---|", *(step_row(s, args.rounds) for s in SETTINGS)]),
        f"## The mask head's targets for {PROPOSALS} proposals of one image\n\n"
        + "\n".join([head.format(three, ""), "|---|---|---|---|---|", *(target_row(s, 9) for s in SETTINGS)]),
        "## The guard's look at a batch, and what its objects hold in memory\n\n"
        + "\n".join(
            [head.format(two, " MiB of masks | MiB of outlines |"), "|---|---|---|---|---|---|"]
            + [check_row(s, 9) for s in SETTINGS]
        ),
    ]
    print("\n\n".join(parts))
    print(common.write("outlines", "Outlines in place of full-size masks", parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
