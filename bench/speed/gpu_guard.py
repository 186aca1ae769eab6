"""What the guard costs on a GPU: off, reading at once, reading late, side by side; and where a step's time goes.

    python bench/speed/gpu_guard.py [--px 800] [--batch 2] [--amp off bf16] [--steps 10] [--rounds 7] [--dry]

The aim is late ÷ off at most 1.01. Each variant has its own copy of resnet50_fpn; they take turns on one batch. With
``--profile`` the operators of one guarded step follow, by time on the device. ``--dry``: one tiny turn on the CPU: it
shows that the script works and measures nothing.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import common
import gpu
import step
import torch
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

from maskrcnn_coco.data.batch import Batch
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.model.optim import apply_lr, build_optimizer
from maskrcnn_coco.system.precision import make_scaler

VARIANTS = ("off", "at once", "late")


def variant(how: str, net: nn.Module, held: Batch, device: torch.device, precision: str) -> gpu.Step:
    """One training step with the guard ``off``, reading ``at once`` or ``late``."""
    optimizer = build_optimizer(net)
    apply_lr(optimizer, {"backbone": step.LR})
    mode = "off" if how == "off" else "recover"
    scaler = make_scaler(precision, device)
    guard = Guard(net, optimizer, scaler=scaler, mode=mode, deferred=how == "late")
    forward = Forward(net, device=device, precision=precision, seed=0)

    def run(seed: int) -> None:
        guard.step(forward.begin(seed), held, step=seed)

    return run


def cell(px: int, images: int, amp: str, device: torch.device, steps: int, rounds: int, profile: bool) -> str:
    """One line of the table for each variant, and the profile."""
    torch.manual_seed(0)
    made = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=step.CLASSES, min_size=px, max_size=px
    )
    net = accelerate(made)
    content = step.only(step.make_batch(px, images, gpu.OBJECTS), "masks")
    held = Batch(*content, [SampleKey(0, n, n) for n in range(images)], resized=True)
    held = held.pin_memory() if device.type == "cuda" else held
    runs = {
        how: variant(how, copy.deepcopy(net).to(device).train(), held, device, gpu.PRECISIONS[amp]) for how in VARIANTS
    }
    turns: dict[str, Callable[[int], object]] = {how: gpu.many(run, steps, device) for how, run in runs.items()}
    times = common.take_turns(turns, rounds, warm=1)
    lines = []
    for how in VARIANTS:
        wall = sorted(times[how].wall)[rounds // 2] / steps
        share = common.ratio(times[how].wall, times["off"].wall)
        lines.append(f"| {amp} | {images} | {how} | {1000 * wall:.1f} | {share} |")
    if profile:
        lines += ["", profiled(runs["late"], device)]
    return "\n".join(lines)


def profiled(run: gpu.Step, device: torch.device) -> str:
    """The dearest operators of one step, copies among them: by time on the device, or on the CPU where it is that."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=kinds) as seen:
        run(9)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return f"```\n{seen.key_averages().table(sort_by=by, row_limit=20)}\n```"


def main() -> None:
    """Measure, print, and on a GPU write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--px", type=int, default=800)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--amp", nargs="+", choices=list(gpu.PRECISIONS), default=["off", "bf16"])
    parser.add_argument("--steps", type=int, default=10, help="steps a turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--dry", action="store_true", help="one tiny turn on the CPU; measures nothing")
    args = parser.parse_args()
    if not args.dry and not torch.cuda.is_available():
        print("no CUDA device here: nothing measured")
        return
    device = torch.device("cpu" if args.dry else "cuda")
    if args.dry:
        args.px, args.batch, args.amp, args.steps, args.rounds = 64, 1, ["off"], 1, 2
    lines = ["| amp | batch | guard | ms a step | times the step without guard |", "|" + "---|" * 5]
    print("\n".join(lines), flush=True)
    for amp in args.amp:
        lines.append(cell(args.px, args.batch, amp, device, args.steps, args.rounds, args.profile))
        print(lines[-1], flush=True)
    if args.dry:
        print("dry run: the script works; nothing was measured")
        return
    what = f"`python bench/speed/gpu_guard.py` on {torch.cuda.get_device_name(device)}, {args.px} px, "
    what += f"{time.strftime('%Y-%m-%d')}. Medians over {args.rounds} rounds, quartiles in brackets."
    print(common.write("gpu_guard", "The guard on a GPU", [what, "\n".join(lines)]))


if __name__ == "__main__":
    main()
