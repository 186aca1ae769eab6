"""Reading and checking annotations at the size of instances_train2017. Writes bench/results/annotations.md.

    python bench/speed/annotations.py
    python bench/speed/annotations_large.py

118,287 images and 860,001 polygons are generated in a temporary folder. Each reader runs in a process of its own, the
readers in turn, a round after another; a ratio compares two readers of the same round, and the median is reported.
Memory with workers is the sum of proportional set sizes: what processes share counts once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parents[1] / "results" / "annotations.md"
IMAGES, ANNOTATIONS, WORKERS = 118_287, 860_001, 8

_PSS = """
def pss():
    import re
    return int(re.search(r"Pss:\\s+(\\d+)", open("/proc/self/smaps_rollup").read())[1]) / 2**20
"""
_TIMED = """
import json, sys, time
{setup}
wall, cpu = time.perf_counter(), time.process_time()
{work}
print("@" + json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""
READERS = {
    "maskrcnn_coco": (
        "from maskrcnn_coco.data.coco.table import load_coco",
        "t = load_coco(sys.argv[1], '.'); t.annotations_of(7); t.row_of(int(t.image_ids[7]))",
    ),
    "pycocotools COCO": ("from pycocotools.coco import COCO", "COCO(sys.argv[1])"),
    "torchvision CocoDetection": (
        "from torchvision.datasets import CocoDetection; import pycocotools.coco",
        "CocoDetection('.', sys.argv[1])",
    ),
}
_CHECK = (
    "from maskrcnn_coco.data.coco.table import load_coco; from maskrcnn_coco.data.audit.checks import audit; "
    "t = load_coco(sys.argv[1], '.')",
    "audit(t, images=False)",
)
_MEMORY = (
    _PSS
    + """
import json, multiprocessing, sys
import numpy as np
from maskrcnn_coco.data.coco.table import load_coco

def work(table, ready, go, out):
    total = float(np.nansum(table.boxes)) + sum(len(table.segmentation_raw(a)) for a in range(0, len(table.ann_ids), 7))
    for row in range(len(table)):
        table.file_name(row), table.annotations_of(row)
    ready.release(); go.wait(); out.put(pss())

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[2])
    table = load_coco(sys.argv[1], ".")
    table.annotations_of(0)
    alone = pss()
    ready, go, out = context.Semaphore(0), context.Event(), context.Queue()
    workers = [context.Process(target=work, args=(table, ready, go, out)) for _ in range(int(sys.argv[3]))]
    [w.start() for w in workers]
    [ready.acquire() for _ in workers]
    main = pss()
    go.set()
    total = main + sum(out.get() for _ in workers)
    [w.join() for w in workers]
    print("@" + json.dumps([alone, total]))
"""
)


def write_set(path: Path) -> None:
    """The generated annotation file: star-shaped polygons of 10 to 44 points, COCO's key order and decimals."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="ascii") as out:
        out.write('{"info":{},"licenses":[],"images":[')
        url = "http://images.cocodataset.org/train2017"
        out.write(
            ",".join(
                f'{{"license":3,"file_name":"{i:012d}.jpg","coco_url":"{url}/{i:012d}.jpg","height":480,"width":640,'
                f'"date_captured":"2013-11-14 16:28:13","flickr_url":"http://farm9.staticflickr.com/8186/{i}_z.jpg",'
                f'"id":{4 * i + 9}}}'
                for i in range(IMAGES)
            )
        )
        out.write('],"annotations":[')
        for a in range(ANNOTATIONS):
            out.write("," * (a > 0) + _annotation(rng, a))
        names = ",".join(f'{{"supercategory":"s","id":{i},"name":"c{i}"}}' for i in range(1, 81))
        out.write(f'],"categories":[{names}]}}')


def _annotation(rng: np.random.Generator, a: int) -> str:
    count = int(rng.integers(10, 45))
    r = rng.uniform(5, 95)
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    x = (rng.uniform(100, 500) + r * np.cos(angles)).round(2)
    y = (rng.uniform(100, 380) + r * np.sin(angles)).round(2)
    points = ",".join(map(str, np.stack([x, y], axis=1).ravel().tolist()))
    box = f"[{x.min()},{y.min()},{x.max() - x.min():.2f},{y.max() - y.min():.2f}]"
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    image, category = int(rng.integers(0, IMAGES)) * 4 + 9, int(rng.integers(1, 81))
    return (
        f'{{"segmentation":[[{points}]],"area":{area:.4f},"iscrowd":0,"image_id":{image},"bbox":{box},'
        f'"category_id":{category},"id":{a + 1}}}'
    )


def measured(code: str, *args: str) -> list[float]:
    """The line of figures that a program prints."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(code)
        file.flush()
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, file.name, *args], capture_output=True, text=True, env=env, check=True)
    return json.loads(next(line[1:] for line in done.stdout.splitlines() if line.startswith("@")))


def timed(reader: tuple[str, str], path: Path) -> list[float]:
    """[wall seconds, CPU seconds]."""
    return measured(_TIMED.format(setup=reader[0], work=reader[1]), str(path))


def report(path: Path, rounds: int) -> str:
    times = {name: [] for name in (*READERS, "check")}
    for _ in range(rounds):
        for name, reader in (*READERS.items(), ("check", _CHECK)):
            times[name].append(timed(reader, path))
            print(name, times[name][-1], file=sys.stderr)
    lines = ["| reader | wall s | CPU s | maskrcnn_coco is faster, wall | CPU |", "|---|---|---|---|---|"]
    ours = times["maskrcnn_coco"]
    for name in READERS:
        wall, cpu = (statistics.median(t[i] for t in times[name]) for i in (0, 1))
        ratio = [statistics.median(t[i] / o[i] for t, o in zip(times[name], ours, strict=True)) for i in (0, 1)]
        lines.append(f"| {name} | {wall:.2f} | {cpu:.2f} | {ratio[0]:.1f} × | {ratio[1]:.1f} × |")
    wall, cpu = (statistics.median(t[i] for t in times["check"]) for i in (0, 1))
    memory = {kind: measured(_MEMORY, str(path), kind, str(WORKERS)) for kind in ("fork", "spawn")}
    return "\n".join(
        [
            "# Annotations at the size of instances_train2017",
            "",
            f"`python bench/speed/annotations.py`: {IMAGES:,} images, {ANNOTATIONS:,} polygons, "
            f"{path.stat().st_size / 1e6:.0f} MB of JSON, generated. {platform.processor() or platform.machine()}, "
            f"{os.cpu_count()} cores, Python {platform.python_version()}; {rounds} rounds, readers in turn, medians.",
            "",
            "Load and index:",
            "",
            *lines,
            "",
            f"Check of all annotations (no image files), one core: {cpu:.1f} s CPU, {wall:.1f} s wall.",
            "",
            "Resident memory, what is shared counted once (Pss), every worker having read all columns:",
            "",
            "| | GiB |",
            "|---|---|",
            f"| the table, one process | {memory['fork'][0]:.2f} |",
            *(f"| with {WORKERS} workers, {kind} | {m[1]:.2f} |" for kind, m in memory.items()),
            "",
        ]
    )


def write_part(text: str) -> None:
    """Put ``text``, which begins with its heading, in place of the part of the page with that heading."""
    parts = RESULTS.read_text(encoding="utf-8").split("\n# ") if RESULTS.is_file() else []
    parts = [part.removeprefix("# ").strip() for part in parts]
    heading = text.removeprefix("# ").partition("\n")[0]
    kept = {part.partition("\n")[0]: part for part in parts if part} | {heading: text.removeprefix("# ").strip()}
    RESULTS.write_text("".join(f"# {part}\n\n" for part in kept.values()).strip() + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--file", type=Path, help="use this annotation file instead of generating one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.file or Path(folder) / "instances.json"
        if args.file is None:
            write_set(path)
        text = report(path, args.rounds)
    write_part(text)
    print(text)


if __name__ == "__main__":
    main()
