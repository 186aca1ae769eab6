"""What a run holds on a GPU, and what happens when it does not fit: peaks, snapshots, an investigation under a cap.

    python bench/speed/gpu_memory.py [--px 800] [--batches 2 8] [--dry]

Peaks of a step with 7 and with 100 objects an image, without and with amp; what a snapshot takes and what the ring's
budget is; then the built-in shapes with an image that is NaN, the device capped just above the step's peak
(`set_per_process_memory_fraction`): the image must be named and the run go on. ``--dry``: tiny, on the CPU, no cap.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path

import common
import gpu
import step
import torch
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

from maskrcnn_coco import Config, train
from maskrcnn_coco.model.build import build_model
from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.model.optim import build_optimizer
from maskrcnn_coco.replay.snapshot import state_bytes
from maskrcnn_coco.report.incident_files import read_incidents
from maskrcnn_coco.system import memory

GIB = 2**30


def network(px: int) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"min_size": px, "max_size": px}
    return accelerate(maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=step.CLASSES, **sizes))


def peaks(px: int, batches: list[int], device: torch.device) -> list[str]:
    """Peak of a step, GiB above what the network holds."""
    lines = ["| amp | batch | objects an image | GiB |", "|---|---|---|---|"]
    for amp, precision in gpu.PRECISIONS.items():
        if device.type == "cpu" and amp != "off":
            continue
        for images in batches:
            for objects in (gpu.OBJECTS, 100):
                batch = step.only(step.make_batch(px, images, objects), "masks")
                run = gpu.ours(network(px).to(device).train(), batch, device, precision)
                run(0)
                memory.reset_peak(device)
                before = memory.held(device)
                run(1)
                lines.append(f"| {amp} | {images} | {objects} | {(memory.peak(device) - before) / GIB:.2f} |")
                del run
                gc.collect()
                memory.release(device)
    return lines


def snapshots(px: int, device: torch.device) -> str:
    """What a snapshot of resnet50_fpn with momentum takes, and what the ring may take."""
    net = network(px).to(device)
    size = state_bytes(net, build_optimizer(net))
    short = memory.is_short(device, size)
    budget = memory.snapshot_budget(device) / GIB
    return f"snapshot {size / GIB:.2f} GiB, budget of the ring {budget:.1f} GiB, " + (
        "kept in main memory" if short else "kept on the device"
    )


class Shapes(torch.utils.data.Dataset):
    """Bright squares; image 5 holds a NaN pixel."""

    def __init__(self, px: int) -> None:
        self.px = px

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[torch.Tensor, dict]:
        image, mask = torch.full((3, self.px, self.px), 0.2), torch.zeros(1, self.px, self.px, dtype=torch.uint8)
        side = self.px // 3
        image[:, i : i + side, i : i + side] = 0.9
        mask[0, i : i + side, i : i + side] = 1
        if i == 5:
            image[0, 3, 3] = float("nan")
        box = torch.tensor([[i, i, i + side, i + side]], dtype=torch.float32)
        return image, {"boxes": box, "labels": torch.tensor([1]), "masks": mask, "image_id": 100 + i}


def under_a_cap(px: int, device: torch.device) -> str:
    """A run whose device has little more than a step takes, with a NaN image in it."""

    def model() -> nn.Module:
        torch.manual_seed(0)
        return build_model("maskrcnn_resnet18_fpn", 2, min_size=px, max_size=px)

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)

        def run(name: str) -> tuple[str, list[tuple[str, list[int]]]]:
            config = Config(
                logdir=str(out / name),
                checkpoint_dir=str(out / name / "c"),
                epochs=1,
                batch_size=2,
                num_classes=2,
                device=device.type,
            )
            result = train(config, model=model(), train_data=Shapes(px), quiet=True)
            found = read_incidents(out / name / "incidents")
            return result.status, [(i.cause, list(i.culprit.image_ids)) for i in found]

        memory.reset_peak(device)
        free = run("free")
        if device.type == "cuda":
            most = torch.cuda.max_memory_reserved(device)
            memory.release(device)
            torch.cuda.set_per_process_memory_fraction(1.02 * most / (memory.total(device) or most), device)
        began = time.monotonic()
        capped = run("capped")
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return f"free: {free}; capped at 1.02 times its peak: {capped}, {time.monotonic() - began:.0f} s"


def main() -> None:
    """Measure, print, and on a GPU write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--px", type=int, default=800)
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--dry", action="store_true", help="tiny, on the CPU; measures nothing")
    args = parser.parse_args()
    if not args.dry and not torch.cuda.is_available():
        print("no CUDA device here: nothing measured")
        return
    device = torch.device("cpu" if args.dry else "cuda")
    px, batches = (64, [1]) if args.dry else (args.px, args.batches)
    parts = ["\n".join(peaks(px, batches, device)), snapshots(px, device), under_a_cap(px, device)]
    print("\n\n".join(parts))
    if args.dry:
        print("dry run: the script works; nothing was measured")
        return
    print(common.write("gpu_memory", f"Memory on {torch.cuda.get_device_name(device)}", parts))


if __name__ == "__main__":
    main()
