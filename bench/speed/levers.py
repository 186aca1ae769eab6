"""Levers that no other benchmark measures by itself. Writes bench/results/levers_measured.md.

    python bench/speed/levers.py [--threads 2] [--rounds 6]

Frozen stages: the guarded step of resnet50 with 0, 2 and 3 stages that do not train. Bytes: what a batch takes from a
loader process to the training step as uint8 pixels or as float32. Workers: an epoch of the built-in set, loader and
steps together, with batches made in the same process or ahead in others.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import torch
from step import LR, MODELS, make_batch, make_model, only, own_step
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from maskrcnn_coco.data.batch import Batch
from maskrcnn_coco.data.builtin_shapes import write_shapes
from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.loader import build_loader
from maskrcnn_coco.data.plan import Plan
from maskrcnn_coco.data.shared_memory import pack
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.model.architecture import freeze
from maskrcnn_coco.model.build import build_model
from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.model.optim import apply_lr, build_optimizer
from maskrcnn_coco.system.precision import autocast, bf16_is_native

BATCHES = 12
PIXELS = (3, 800, 1088)


def frozen(rounds: int) -> str:
    """The step of resnet50 by frozen stages."""
    parts = []
    for precision in ("fp32", "bf16") if bf16_is_native("cpu") else ("fp32",):
        steps: dict[str, Callable[[int], None]] = {}
        batch = only(make_batch(*MODELS["resnet50"]), "outlines")
        for stages in (0, 2, 3):
            net = accelerate(make_model("resnet50").train())
            freeze(net, "maskrcnn_resnet50_fpn", stages, loaded=True)  # pyright: ignore[reportArgumentType]
            steps[f"{stages} stages frozen, {precision}"] = own_step(net, batch, precision, guarded=True)
        times = common.take_turns(steps, rounds, warm=1)
        parts.append(common.table(times, next(iter(steps))))
        print(parts[-1], flush=True)
    return "## Frozen stages, guarded step of resnet50, 256 px, batch 2\n\n" + "\n\n".join(parts)


class Ready(Dataset):
    """Steps of two large images that are decoded already, sent as bytes or as floats in the parcel that a run sends."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.images = dtype, [torch.randint(0, 256, PIXELS, dtype=torch.uint8) for _ in range(2)]

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, index: int) -> Any:
        images = list(self.images) if self.dtype == torch.uint8 else [image.float() / 255 for image in self.images]
        return pack([Batch(images, [{}, {}], [])])


def transfer(rounds: int) -> str:
    """From a loader process to float32 images in this one."""

    def receive(dtype: torch.dtype) -> Callable[[int], None]:
        source = Ready(dtype)

        def run(_: int) -> None:
            for parcel in DataLoader(source, batch_size=None, num_workers=1):
                for batch in parcel.open():
                    batch.to("cpu")

        return run

    times = common.take_turns({"float32": receive(torch.float32), "uint8": receive(torch.uint8)}, rounds, warm=1)
    title = f"## Images as bytes: {BATCHES} steps of two images {PIXELS[1]} × {PIXELS[2]} from one loader process"
    print(common.table(times, "float32"), flush=True)
    return f"{title}, started each time\n\n{common.table(times, 'float32')}"


def workers(rounds: int, folder: Path) -> str:
    """One epoch of the built-in set by loader processes; 30 guarded steps."""
    path = write_shapes(folder)[0]
    source = CocoDataset(load_coco(path, path.parent), train=True, min_size=128, max_size=128, scales=(1.0,))
    source.outlines = True
    plan = Plan(0, source.image_ids, 4, aspect_ratios=source.aspect_ratios)
    precision = "bf16" if bf16_is_native("cpu") else "fp32"
    variants = {f"{n} loader processes": epoch(source, plan, n, precision) for n in (0, 2)}
    times = common.take_turns(variants, max(3, rounds // 2), warm=1)
    print(common.table(times, "0 loader processes"), flush=True)
    title = f"## An epoch of the built-in set: {plan.steps_per_epoch} guarded steps of 4 images, {precision}"
    made = statistics.median(common.take_turns({"": lambda n: drain(source, plan, n)}, 3)[""].wall)
    return f"{title}\n\n{common.table(times, '0 loader processes')}\n\nMaking its batches alone: {made:.2f} s."


def drain(source: CocoDataset, plan: Plan, number: int) -> None:
    """Every batch of an epoch, made here and thrown away."""
    for _ in batches(source, plan, number, 0):
        pass


def batches(source: CocoDataset, plan: Plan, number: int, processes: int) -> Iterator[list[Batch]]:
    """The batches of epoch ``number`` + 5."""
    at = number + 5
    return build_loader(source, plan, at, at * plan.steps_per_epoch, workers=processes)


def epoch(source: CocoDataset, plan: Plan, processes: int, precision: str) -> Callable[[int], None]:
    """A function that trains one epoch at a learning rate that changes next to nothing."""
    torch.manual_seed(0)
    net = build_model("maskrcnn_resnet18_fpn", 4, small=True, min_size=128, max_size=128).train()
    optimizer = build_optimizer(net)
    apply_lr(optimizer, {"backbone": LR})
    guard = Guard(net, optimizer)

    def run(number: int) -> None:
        for step, made in enumerate(batches(source, plan, number, processes)):
            torch.manual_seed(step)
            assert guard.step(lambda batch: losses(net, batch, precision), made[0].to("cpu")).applied

    return run


def losses(net: nn.Module, batch: Batch, precision: str) -> dict[str, Tensor]:
    """The model's losses in float32."""
    with autocast(precision, "cpu"):
        return {name: value.float() for name, value in net(batch.images, batch.targets).items()}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        parts = [
            f"`python bench/speed/levers.py`, {args.threads} threads, {args.rounds} rounds, variants in turn; ratios "
            "are medians over rounds, quartiles in brackets.",
            frozen(args.rounds),
            transfer(args.rounds),
            workers(args.rounds, Path(name)),
        ]
    print(common.write("levers_measured", "Levers measured by themselves", parts))


if __name__ == "__main__":
    main()
