"""Training steps on a GPU against torchvision's reference recipe, side by side: images a second and peak memory.

    python bench/speed/gpu.py [--px 800] [--batches 2 8 16] [--amp off fp16 bf16] [--steps 10] [--rounds 5]

Both sides at the same AMP setting; the reference is torchvision's detection engine, restated: plain SGD, GradScaler for
fp16, the loss read by the host, batches copied as they are. Ours is what `train` does: fused optimizer, channels-last,
guard that reads late, clipping, pinned batches. Where there is no GPU nothing is measured, and no table is written.
"""

from __future__ import annotations

import argparse
import copy
import gc
import math
import statistics
import time
from collections.abc import Callable

import common
import step
import torch
from engine import LR, reference_optimizer, reference_update
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

from maskrcnn_coco.data.batch import Batch
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.model.optim import apply_lr, build_optimizer
from maskrcnn_coco.system.precision import autocast, make_scaler

OBJECTS = 7
"""Objects an image, COCO's mean."""
PRECISIONS = {"off": "fp32", "fp16": "fp16", "bf16": "bf16"}
Step = Callable[[int], None]


def reference(net: nn.Module, batch: step.Batch, device: torch.device, precision: str) -> Step:
    """One iteration of torchvision's references/detection/engine.py, without logging."""
    optimizer = reference_optimizer(net)
    scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None

    def run(seed: int) -> None:
        torch.manual_seed(seed)
        images = [image.to(device) for image in batch[0]]
        targets = [{k: v.to(device) for k, v in t.items()} for t in batch[1]]
        with autocast(precision, device):
            losses = net(images, targets)
        reference_update(optimizer, losses, scaler)

    return run


def ours(net: nn.Module, batch: step.Batch, device: torch.device, precision: str) -> Step:
    """One step of `train`; on CUDA its guard reads late."""
    optimizer = build_optimizer(net)
    apply_lr(optimizer, {"backbone": LR})
    scaler = make_scaler(precision, device)
    guard = Guard(net, optimizer, scaler=scaler, deferred=device.type == "cuda")
    forward = Forward(net, device=device, precision=precision, seed=0)
    held = Batch(*batch, [SampleKey(0, i, i) for i in range(len(batch[0]))], resized=True)
    held = held.pin_memory() if device.type == "cuda" else held

    def run(seed: int) -> None:
        guard.step(forward.begin(seed), held, step=seed)
        if guard.alarm is not None:
            raise SystemExit(guard.alarm.message)

    return run


def many(run: Step, steps: int, device: torch.device) -> Callable[[int], None]:
    """``steps`` steps and the wait for them."""

    def turn(round_: int) -> None:
        for n in range(steps):
            run(1000 * (round_ + 5) + n)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return turn


def peak(run: Callable[[int], None], device: torch.device) -> float:
    """GiB that a turn holds at most, beyond what both networks hold anyway; NaN off CUDA."""
    if device.type != "cuda":
        return math.nan
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run(0)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**30


def cell(px: int, images: int, amp: str, device: torch.device, steps: int, rounds: int) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    net = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=step.CLASSES, min_size=px, max_size=px)
    batch = step.only(step.make_batch(px, images, OBJECTS), "masks")
    precision = PRECISIONS[amp]
    sides = {
        "reference": reference(copy.deepcopy(net).to(device).train(), batch, device, precision),
        "ours": ours(accelerate(net).to(device).train(), batch, device, precision),
    }
    turns = {name: many(run, steps, device) for name, run in sides.items()}
    times = common.take_turns(turns, rounds)
    memory = {name: peak(turn, device) for name, turn in turns.items()}
    speed = {name: images * steps / statistics.median(t.wall) for name, t in times.items()}
    faster = common.ratio(times["reference"].wall, times["ours"].wall)
    del sides, turns
    gc.collect()
    return (
        f"| {amp} | {images} | {speed['reference']:.1f} | {speed['ours']:.1f} | {faster} "
        f"| {memory['reference']:.2f} | {memory['ours']:.2f} |"
    )


def main() -> None:
    """Measure every AMP setting and batch size, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--px", type=int, default=800)
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 8, 16])
    parser.add_argument("--amp", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--steps", type=int, default=10, help="steps a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda", help="cpu: tries the script, writes nothing")
    parser.add_argument("--dry", action="store_true", help="one tiny turn on the CPU; measures nothing")
    args = parser.parse_args()
    if args.dry:
        args.device, args.px, args.batches, args.amp, args.steps, args.rounds = "cpu", 64, [1], ["off"], 1, 2
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing measured")
        return
    head = "| amp | batch | reference images/s | ours images/s | times as fast | reference GiB | ours GiB |"
    lines = [head, "|" + "---|" * 7]
    print("\n".join(lines), flush=True)
    for amp in args.amp:
        for images in args.batches:
            lines.append(cell(args.px, images, amp, device, args.steps, args.rounds))
            print(lines[-1], flush=True)
    if device.type != "cuda":
        print("not on a GPU: the script works; nothing was measured")
        return
    what = (
        f"`python bench/speed/gpu.py` on {torch.cuda.get_device_name(device)}: resnet50_fpn, {args.px} px, {OBJECTS} "
        f"objects an image; turns of {args.steps} steps, {args.rounds} rounds; medians over rounds, quartiles "
        "in brackets. GiB: at most in a step, beyond weights and momentum."
    )
    began = time.strftime("%Y-%m-%d")
    print(common.write("gpu", "Training steps on a GPU", [f"{what} {began}.", "\n".join(lines)]))


if __name__ == "__main__":
    main()
