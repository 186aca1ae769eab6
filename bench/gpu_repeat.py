"""Does a step give the same bits twice? One step, ten times from the same state: bits that differ, by component.

    python bench/gpu_repeat.py [--px 800] [--times 10] [--amp off bf16] [--dry]

Without and with what `--deterministic` switches on. On CUDA RoIAlign's backward adds atomically and cuDNN
chooses its kernels, so "the same bits" is claimed of a CPU only; this counts what it comes to. ``--dry``: tiny, on the
CPU, where all must be equal: it ends with 1 where they are not.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts; deterministic cuBLAS asks for it

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "speed"))

import common
import gpu
import step
from torchvision.models.detection import maskrcnn_resnet50_fpn

from maskrcnn_coco.components import components
from maskrcnn_coco.data.batch import Batch
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.system.determinism import deterministic


def gradients(net: torch.nn.Module, forward: Forward, batch: Batch) -> dict[str, torch.Tensor]:
    """All gradients of each component of one step, side by side, on the CPU."""
    net.zero_grad(set_to_none=True)
    sum(forward.begin(3)(batch).values()).backward()  # type: ignore[union-attr]
    return {
        name: torch.cat([p.grad.flatten().cpu() for p in params.values() if p.grad is not None])
        for name, params in components(net).items()
    }


def compare(px: int, times: int, amp: str, device: torch.device, how: str) -> list[str]:
    """One line a component: share of gradient numbers whose bits differ from the first time, and by how much."""
    torch.manual_seed(0)
    sizes = {"min_size": px, "max_size": px}
    made = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=step.CLASSES, **sizes)
    net = accelerate(made).to(device).train()
    content = step.only(step.make_batch(px, 2, gpu.OBJECTS), "masks")
    batch = Batch(*content, [SampleKey(0, n, n) for n in range(2)], resized=True)
    forward = Forward(net, device=device, precision=gpu.PRECISIONS[amp], seed=0)
    first = gradients(net, forward, batch)
    differ = dict.fromkeys(first, 0.0)
    most = dict.fromkeys(first, 0.0)
    for _ in range(times - 1):
        for name, found in gradients(net, forward, batch).items():
            off = found != first[name]
            differ[name] = max(differ[name], float(off.float().mean()))
            largest = float(first[name].abs().max()) or 1.0
            most[name] = max(most[name], float((found - first[name]).abs().max()) / largest)
    return [f"| {amp} | {how} | {name} | {100 * differ[name]:.3f} | {most[name]:.1e} |" for name in first]


def main() -> int:
    """Measure, print, and on a GPU write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--px", type=int, default=800)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--amp", nargs="+", choices=list(gpu.PRECISIONS), default=["off", "bf16"])
    parser.add_argument("--dry", action="store_true", help="tiny, on the CPU")
    args = parser.parse_args()
    if not args.dry and not torch.cuda.is_available():
        print("no CUDA device here: nothing measured")
        return 0
    device = torch.device("cpu" if args.dry else "cuda")
    px, times, amps = (64, 3, ["off"]) if args.dry else (args.px, args.times, args.amp)
    lines = ["| amp | deterministic | component | numbers that differ, % | most, of the largest |", "|" + "---|" * 5]
    for amp in amps:
        for on in (False, True):
            with deterministic(on):
                lines += compare(px, times, amp, device, "yes" if on else "no")
    print("\n".join(lines))
    if args.dry:
        same = all(" 0.000 | 0.0e+00 |" in line for line in lines[2:])
        print("dry run: " + ("the same bits each time" if same else "bits differ on a CPU, which must not be"))
        return 0 if same else 1
    what = f"`python bench/gpu_repeat.py` on {torch.cuda.get_device_name(device)}, {px} px, one step {times} times, "
    what += f"{time.strftime('%Y-%m-%d')}."
    print(common.write("gpu_repeat", "The same bits twice on a GPU", [what, "\n".join(lines)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
