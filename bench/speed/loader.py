"""Samples a second through the loader, against torchvision's reference loader. Writes bench/results/loader.md.

    python bench/speed/loader.py

Both sides read the same JPEG files and polygons, flip, resize to a random shorter side of 640 to 800 pixels, vary
brightness and contrast by a fifth, and end with lists of float32 images in 0..1 and targets with dense masks. The
reference is what torchvision's detection script does, restated: ``CocoDetection``, targets made with pycocotools, the
v2 transforms; once with its own target conversion and once with torchvision's v2 wrapper. Rounds are interleaved.
Last, how long a training on this machine waits for two workers, with each augmentation.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from maskrcnn_coco.data.augment_file import policy_of
from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.loader import build_loader
from maskrcnn_coco.data.plan import Plan
from maskrcnn_coco.model.build import build_model
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.model.optim import apply_lr, build_optimizer

SIZE = (480, 640)
SIDES = (640, 680, 720, 760, 800)
LONGEST = 1333
WARM = 5
"""Batches before the clock starts: two workers make two ahead each."""
BATCH = 2
PRESETS = ("none", "light", "medium", "heavy")
SIDE = 256
"""Shorter side of the images of the run that is watched for waiting: small, so that its steps are short."""
STEPS = 8
RESULTS = Path(__file__).resolve().parents[1] / "results" / "loader.md"


def draw_set(folder: Path, images: int, objects: int, seed: int = 0) -> Path:
    """JPEG images of ``SIZE`` with ``objects`` polygons of 40 points on average each, about what COCO has."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    data: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "blob"}]}
    for image_id in range(1, images + 1):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(
            np.float64
        )
        name = f"{image_id:05d}.jpg"
        noisy = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / name, quality=90)
        data["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
        for _ in range(max(1, int(rng.poisson(objects)))):
            points = _outline(rng, height, width)
            low, high = points.min(0), points.max(0)
            entry = {
                "id": len(data["annotations"]) + 1,
                "image_id": image_id,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [*low.tolist(), *(high - low).tolist()],
                "area": float((high - low).prod() * 0.7),
                "segmentation": [[round(v, 2) for v in points.ravel().tolist()]],
            }
            data["annotations"].append(entry)
    path = folder / "annotations.json"
    path.write_text(json.dumps(data))
    return path


def _outline(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    count = int(rng.integers(20, 61))
    angles = np.sort(rng.uniform(0, 2 * math.pi, count))
    radius = math.exp(rng.uniform(math.log(12), math.log(150))) * rng.uniform(0.7, 1.0, (count, 1))
    centre = rng.uniform((40, 40), (width - 40, height - 40))
    return np.clip(centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1), 0, (width - 1, height - 1))


def reference_transforms() -> v2.Transform:
    """torchvision's multi-scale recipe, plus the same brightness and contrast."""
    return v2.Compose(
        [
            v2.ToImage(),
            v2.ColorJitter(brightness=0.2, contrast=0.2),
            v2.RandomShortestSize(list(SIDES), max_size=LONGEST),
            v2.RandomHorizontalFlip(0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.ConvertBoundingBoxFormat(tv_tensors.BoundingBoxFormat.XYXY),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )


class ReferenceDataset(CocoDetection):
    """CocoDetection with targets converted as in torchvision's reference: dense masks, clamped boxes."""

    def __init__(self, root: Path, path: Path) -> None:
        super().__init__(str(root), str(path))
        self.after = reference_transforms()

    def __getitem__(self, index: int) -> Any:
        image, annotations = super().__getitem__(index)
        width, height = image.size
        annotations = [a for a in annotations if a["iscrowd"] == 0]
        boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(min=0, max=width)
        boxes[:, 1::2].clamp_(min=0, max=height)
        masks = [_reference_mask(a["segmentation"], height, width) for a in annotations]
        keep = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes[keep], format="XYXY", canvas_size=(height, width)),  # type: ignore[call-overload]
            "labels": torch.tensor([a["category_id"] for a in annotations])[keep],
            "masks": tv_tensors.Mask(torch.stack(masks)[keep]),
            "image_id": self.ids[index],
            "area": torch.tensor([a["area"] for a in annotations])[keep],
            "iscrowd": torch.tensor([a["iscrowd"] for a in annotations])[keep],
        }
        return self.after(image, target)


def _reference_mask(polygons: list[list[float]], height: int, width: int) -> torch.Tensor:
    mask = coco_mask.decode(coco_mask.frPyObjects(polygons, height, width))  # pyright: ignore[reportCallIssue, reportArgumentType]
    mask = mask[..., None] if mask.ndim < 3 else mask
    return torch.as_tensor(mask, dtype=torch.uint8).any(dim=2)


def wrapped_dataset(root: Path, path: Path) -> Any:
    """The same through torchvision's own v2 wrapper."""
    dataset = CocoDetection(str(root), str(path), transforms=reference_transforms())
    keys = ("boxes", "labels", "masks", "image_id", "area", "iscrowd")
    return wrap_dataset_for_transforms_v2(dataset, target_keys=keys)


def _collate(batch: list[Any]) -> Any:
    return tuple(zip(*batch, strict=True))


def reference_loader(dataset: Any, workers: int) -> Callable[[int], Iterable[Any]]:
    """Epoch → batches of the reference."""

    def batches(epoch: int) -> Iterable[Any]:
        torch.manual_seed(epoch)
        return DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers, collate_fn=_collate)

    return batches


def our_loader(
    table: Any, workers: int, *, outlines: bool = False, augment: str = "light", side: int = SIDES[-1]
) -> Callable[[int], Iterable[Any]]:
    """Epoch → batches of this project, scaled to float32 as a training step does on its device.

    ``outlines``: objects travel undrawn, as in a run on a CPU, where the mask head's targets are made from outlines.
    """
    dataset = CocoDataset(table, train=True, min_size=side, max_size=LONGEST, policy=policy_of(augment))
    dataset.outlines = outlines
    plan = Plan(0, dataset.image_ids, BATCH, aspect_ratios=dataset.aspect_ratios)

    def batches(epoch: int) -> Iterable[Any]:
        start = epoch * plan.steps_per_epoch
        return (step[0].to("cpu") for step in build_loader(dataset, plan, epoch, start, workers=workers))

    return batches


def seconds(make: Callable[[int], Iterable[Any]], epoch: int) -> float:
    """Wall time of one epoch; workers are started outside of it, and the batches made meanwhile are not counted."""
    iterator = iter(make(epoch))
    for _ in range(WARM):
        next(iterator)
    began = time.perf_counter()
    for _ in iterator:
        pass
    return time.perf_counter() - began


def measure(folder: Path, path: Path, images: int, rounds: int, workers: int) -> dict[str, list[float]]:
    """Samples a second of each side in each round, interleaved."""
    table = load_coco(path, folder)
    sides = {
        "this project": our_loader(table, workers),
        "with outlines": our_loader(table, workers, outlines=True),
        "reference": reference_loader(ReferenceDataset(folder, path), workers),
        "reference, v2 wrapper": reference_loader(wrapped_dataset(folder, path), workers),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for epoch in range(rounds + 1):
        for name, make in sides.items():
            rate = (images - WARM * BATCH) / seconds(make, epoch)
            if epoch > 0:  # the first round warms the file cache
                rates[name].append(rate)
    return rates


def cpu_costs(folder: Path, path: Path, rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds a sample of each side in each round, without workers: what a busy machine cannot change much."""
    table = load_coco(path, folder)
    sides = {
        "reference": reference_loader(ReferenceDataset(folder, path), 0),
        "reference, v2 wrapper": reference_loader(wrapped_dataset(folder, path), 0),
        **{name: our_loader(table, 0, augment=name) for name in PRESETS},
        **{f"{name}, outlines": our_loader(table, 0, augment=name, outlines=True) for name in PRESETS},
    }
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for epoch in range(rounds + 1):
        for name, make in sides.items():
            began = time.process_time()
            samples = sum(len(batch[0]) if isinstance(batch, tuple) else len(batch) for batch in make(epoch))
            if epoch > 0:  # the first round warms the file cache
                spent[name].append(1000 * (time.process_time() - began) / samples)
    return spent


def waits(folder: Path, path: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Augmentation → wall seconds of ``STEPS`` training steps, and of these the seconds waited for two workers.

    The built-in small network: where the lightest of all does not wait, no other does.
    """
    table = load_coco(path, folder)
    model = build_model("maskrcnn_resnet18_fpn", 2, small=True, min_size=SIDE, max_size=LONGEST).train()
    forward = Forward(model, device=torch.device("cpu"), precision="fp32", seed=0)
    optimizer = build_optimizer(model)
    apply_lr(optimizer, {"backbone": 1e-6})
    found: dict[str, list[tuple[float, float]]] = {}
    for epoch in range(rounds):
        for preset in ("light", "heavy"):
            coming = iter(our_loader(table, 2, outlines=True, augment=preset, side=SIDE)(epoch))
            next(coming)  # the workers start
            began, waited = time.perf_counter(), 0.0
            for step in range(STEPS):
                asked = time.perf_counter()
                batch = next(coming)
                waited += time.perf_counter() - asked
                optimizer.zero_grad()
                torch.stack(list(forward.begin(step)(batch).values())).sum().backward()
                optimizer.step()
            found.setdefault(preset, []).append((time.perf_counter() - began, waited))
    return found


def wait_report(found: dict[str, list[tuple[float, float]]], spent: dict[str, list[float]]) -> str:
    """`waits` as Markdown, and how short a step has to be until it waits."""
    lines = [
        "## How long a run waits for two workers",
        "",
        f"{STEPS} training steps of {BATCH} images of {SIDE} pixels, the built-in small network, on one thread beside",
        f"two workers; {len(found['heavy'])} rounds. Waiting is the time from asking for a batch until it is there,",
        "the opening of its parcel and the scaling to float32 included.",
        "",
        "| augmentation | s a step | ms waited a step | share of the run |",
        "|---|---|---|---|",
    ]
    for preset, rounds in found.items():
        whole, waited = (sum(values) / len(rounds) / STEPS for values in zip(*rounds, strict=True))
        lines.append(f"| {preset} | {whole:.2f} | {1000 * waited:.1f} | {waited / whole:.1%} |")
    light, heavy = (statistics.median(spent[f"{p}, outlines"]) for p in ("light", "heavy"))
    lines += [
        "",
        f"Two workers on cores of their own make a batch of {BATCH} full-size images in the CPU time of one sample,",
        f"{light:.0f} ms with light and {heavy:.0f} ms with heavy: a step that takes longer never waits for them.",
    ]
    return "\n".join([*lines, ""])


def cpu_report(spent: dict[str, list[float]]) -> str:
    """`cpu_costs` as Markdown."""
    lines = [
        "## CPU time a sample, by augmentation",
        "",
        "The same set and sizes in one process without workers; medians of the rounds, and the range of the ratios to",
        "the reference of the same round. Two workers on cores of their own deliver 2000 ÷ the time samples a second:",
        "a run waits for its loader only where its steps take more than that.",
        "",
        "| | CPU ms a sample | reference ÷ this | samples/s of 2 workers |",
        "|---|---|---|---|",
    ]
    for name, times in spent.items():
        ratios = [a / b for a, b in zip(spent["reference"], times, strict=True)]
        middle = statistics.median(times)
        ratio = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}–{max(ratios):.2f})"
        lines.append(f"| {name} | {middle:.1f} | {ratio} | {2000 / middle:.0f} |")
    return "\n".join([*lines, ""])


def report(found: dict[int, dict[str, list[float]]], images: int, objects: int, rounds: int) -> str:
    """The results as Markdown."""
    lines = [
        "# Loader: samples a second",
        "",
        f"`python bench/speed/loader.py`: {images} JPEG images of {SIZE[0]} × {SIZE[1]} with {objects} polygons each",
        f"on average, to a shorter side of {SIDES[0]} to {SIDES[-1]}; flip, brightness, contrast; batches of {BATCH}",
        f"with dense masks and float32 images. {rounds} interleaved rounds; medians, and the range of the ratios. On a",
        "CPU a run's own samples carry outlines in place of masks: the last column.",
        f"{platform.machine()}, {torch.get_num_threads()} thread a process, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, Python {platform.python_version()}; {os.cpu_count()} cores,",
        f"at the end with a load average of {os.getloadavg()[0]:.0f}: above the cores, rates are low and ratios hold.",
        "",
        "| workers | this project | reference | ratio | reference, v2 wrapper | ratio | with outlines ÷ with masks |",
        "|---|---|---|---|---|---|---|",
    ]
    for workers, rates in found.items():
        cells = [str(workers), f"{statistics.median(rates['this project']):.1f}"]
        for name in ("reference", "reference, v2 wrapper"):
            ratios = [a / b for a, b in zip(rates["this project"], rates[name], strict=True)]
            cells.append(f"{statistics.median(rates[name]):.1f}")
            cells.append(f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}–{max(ratios):.2f})")
        ratios = [a / b for a, b in zip(rates["with outlines"], rates["this project"], strict=True)]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--objects", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--waits", type=int, default=2, help="rounds of training steps beside two workers")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    with tempfile.TemporaryDirectory() as folder:
        path = draw_set(Path(folder), args.images, args.objects)
        spent = cpu_costs(Path(folder), path, args.rounds)
        found = {w: measure(Path(folder), path, args.images, args.rounds, w) for w in args.workers}
        waited = waits(Path(folder), path, args.waits)
    text = report(found, args.images, args.objects, args.rounds) + "\n" + cpu_report(spent)
    text += "\n" + wait_report(waited, spent)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
