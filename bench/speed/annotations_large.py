"""200,000 images and 2 million annotations: `check`, the start of a run. Writes bench/results/annotations.md.

    python bench/speed/annotations_large.py

Half of the annotations are polygons, half compressed RLE, all drawn from 400 shapes. The images are JPEGs of 640 × 480
pixels that differ in a few bytes. Each command runs in a process of its own, with one thread; seconds are those of the
processor, of the command and its children, and the largest resident size is that of the largest process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from annotations import write_part
from PIL import Image

from maskrcnn_coco.data.masks import decode_mask, encode_rle

HEIGHT, WIDTH, SHAPES, EACH = 480, 640, 400, 10
TRAIN = (
    *("--dry-run", "--model", "maskrcnn_resnet18_fpn", "--weights", "none", "--min-size", "128", "--max-size", "160"),
    *("--workers", "0", "--device", "cpu", "--amp", "off", "--batch-size", "2"),
)


@dataclass
class Run:
    """What one command took: seconds, and bytes of its largest process."""

    cpu: float
    wall: float
    memory: int
    code: int
    load: float = 0.0
    """Of the machine, at its end: on a busy one the same work takes more seconds of the processor, too."""


def shapes() -> list[tuple[str, str, float]]:
    """Box and segmentation, as JSON text, and area, of star-shaped outlines; every second one as compressed RLE."""
    rng, found = np.random.default_rng(0), []
    for n in range(SHAPES):
        count, r = int(rng.integers(8, 30)), rng.uniform(8, 60)
        x, y = rng.uniform(r, WIDTH - r), rng.uniform(r, HEIGHT - r)
        angles = np.sort(rng.uniform(0, 2 * np.pi, count))
        points = np.stack([x + r * np.cos(angles), y + r * np.sin(angles)], axis=1).round(2)
        polygon = [points.ravel().tolist()]
        mask = decode_mask(polygon, HEIGHT, WIDTH)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            continue
        box = [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
        found.append((json.dumps(box), json.dumps(encode_rle(mask) if n % 2 else polygon), float(mask.sum())))
    return found


def write_annotations(path: Path, images: int) -> None:
    """``images`` entries and ten annotations for each."""
    rng, stock = np.random.default_rng(1), shapes()
    picks, classes = (rng.integers(low, high, EACH * images).tolist() for low, high in ((0, len(stock)), (1, 81)))
    with path.open("w", encoding="ascii") as out:
        out.write('{"images":[')
        entry = '{{"id":{0},"file_name":"{0:08}.jpg","height":480,"width":640}}'
        out.write(",".join(entry.format(i) for i in range(1, images + 1)))
        out.write('],"categories":[' + ",".join(f'{{"id":{c},"name":"c{c}"}}' for c in range(1, 81)))
        out.write('],"annotations":[')
        for n, (pick, label) in enumerate(zip(picks, classes, strict=True)):
            box, segmentation, area = stock[pick]
            out.write("," * (n > 0) + f'{{"id":{n + 1},"image_id":{n // EACH + 1},"category_id":{label},"iscrowd":0,')
            out.write(f'"bbox":{box},"area":{area},"segmentation":{segmentation}}}')
        out.write("]}")


def write_images(folder: Path, images: int) -> None:
    """Files that differ by what stands behind the end of the picture."""
    folder.mkdir()
    ramp = np.add.outer(np.arange(HEIGHT) // 4, np.arange(WIDTH) // 5).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=2)).save(buffer, "JPEG", quality=30)
    picture = buffer.getvalue()
    for i in range(1, images + 1):
        (folder / f"{i:08}.jpg").write_bytes(picture + i.to_bytes(8, "little"))


def run(*words: str) -> Run:
    """One command of the package, in a process of its own."""
    code = (
        "import os, resource, subprocess, sys, time; began = time.perf_counter(); "
        "done = subprocess.run([sys.executable, '-m', 'maskrcnn_coco', *sys.argv[1:]], stdout=subprocess.DEVNULL, "
        "stderr=subprocess.PIPE, text=True); used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "sys.stderr.write(done.stderr[-2000:]); "
        "print('@', used.ru_utime + used.ru_stime, time.perf_counter() - began, used.ru_maxrss, done.returncode)"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=env, check=True)
    found = re.search(r"@ (\S+) (\S+) (\d+) (-?\d+)", done.stdout)
    assert found is not None
    print(" ".join(words[:2]), found[0], done.stderr[-300:], file=sys.stderr, flush=True)
    unit = 1 if platform.system() == "Darwin" else 1024
    return Run(float(found[1]), float(found[2]), int(found[3]) * unit, int(found[4]), os.getloadavg()[0])


def measure(folder: Path, images: int) -> list[tuple[str, Run]]:
    """Name → what it took. Every cache starts empty, in ``folder``."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    path = folder / "annotations.json"
    write_annotations(path, images)
    write_images(folder / "images", images)
    data = ("--data", str(path), "--images", str(folder / "images"))
    train = ("train", *data, "--checkpoint-dir", str(folder / "checkpoints"), *TRAIN)
    return [
        ("`check --no-images`, first", run("check", *data, "--no-images")),
        ("`check --no-images`, again", run("check", *data, "--no-images")),
        ("start of a run, first: every image is decoded once", run(*train, "--logdir", str(folder / "1"))),
        ("start of a run, again", run(*train, "--logdir", str(folder / "2"))),
    ]


def page(rows: list[tuple[str, Run]], images: int, size: int) -> str:
    lines = [
        f"| {name} | {r.cpu:.1f} | {r.wall:.1f} | {r.memory / 2**30:.2f} | {r.code} | {r.load:.0f} |"
        for name, r in rows
    ]
    return "\n".join([
        f"# {images:,} images and {EACH * images:,} annotations",
        "",
        f"`python bench/speed/annotations_large.py`: half polygons, half RLE, {size / 1e6:.0f} MB of JSON, generated. "
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        "each once.",
        "",
        "| | CPU s | wall s | GiB, largest process | exit code | load |",
        "|---|---|---|---|---|---|",
        *lines,
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    args = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), args.images)
        text = page(rows, args.images, (Path(folder) / "annotations.json").stat().st_size)
        print(text, flush=True)
        write_part(text)  # before the folder's many files are deleted, which takes minutes
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
