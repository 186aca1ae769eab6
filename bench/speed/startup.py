"""From the command to the first answer: --help, the first training step, the first batch of a resumed run.

    python bench/speed/startup.py [--rounds 5] [--file instances.json]

Each is a fresh process, timed from its start by the clock. The first step of the built-in set: until the losses of the
first batch are printed; warm, the set is drawn already; cold, it is drawn first (an empty cache folder). The resumed
run: a generated annotation file of the size of instances_train2017 (118,287 images, 860,001 polygons), a run on it that
was stopped after one step, and ``--resume auto``, until its next step is recorded. Image files are small.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import common
from annotations import ANNOTATIONS, IMAGES, write_set
from PIL import Image

MAIN = Path(__file__).resolve().parents[2] / "maskrcnn_coco" / "main_mlops.py"
FIRST = "First batch losses"
TRAIN = ("--device", "cpu", "--amp", "auto")


def seconds_to(command: Sequence[str], sign: Callable[[str], bool], env: dict[str, str]) -> float:
    """Seconds from the start of ``command`` to its first line of output for which ``sign``; then it is stopped."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if sign(line):
                took = time.perf_counter() - began
                process.send_signal(signal.SIGKILL)
                return took
    raise SystemExit(f"{' '.join(command)} ended early:\n{''.join(seen[-20:])}")


def help_seconds() -> float:
    """``maskrcnn-coco --help``, to its end."""
    script = Path(sys.executable).with_name("maskrcnn-coco")
    command = [str(script)] if script.is_file() else [sys.executable, "-m", "maskrcnn_coco.cli.command_line"]
    began = time.perf_counter()
    subprocess.run([*command, "--help"], check=True, capture_output=True)
    return time.perf_counter() - began


def imports() -> float:
    """A process that imports torch and torchvision, nothing else."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, torchvision"], check=True)
    return time.perf_counter() - began


def first_step(cache: Path, out: Path) -> float:
    """The built-in set: to the losses of the first batch."""
    flags = ["--demo", "--logdir", str(out / "run"), "--checkpoint-dir", str(out / "checkpoints"), *TRAIN]
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONUNBUFFERED": "1"}
    return seconds_to([sys.executable, str(MAIN), *flags], lambda line: FIRST in line, env)


def demo(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Warm and cold, in turns."""
    found: dict[str, list[float]] = {"warm": [], "cold": []}
    first_step(folder / "warm", folder / "first")
    for n in range(rounds):
        found["warm"].append(first_step(folder / "warm", folder / f"warm{n}"))
        found["cold"].append(first_step(folder / f"cold_cache{n}", folder / f"cold{n}"))
    return found


def big_set(folder: Path, given: Path | None) -> Path:
    """The annotation file, and an image file for each name: a small PNG of 640 × 480, no two with the same bytes."""
    data = folder / "data"
    (data / "images").mkdir(parents=True)
    path = data / "instances_train.json"
    if given is None:
        write_set(path)
    else:
        path.symlink_to(given)
    buffer = io.BytesIO()
    Image.new("L", (640, 480), 90).save(buffer, "PNG")
    for n in range(IMAGES):
        (data / "images" / f"{n:012d}.jpg").write_bytes(buffer.getvalue() + str(n).encode() + bytes(n % 997))
    return path


def resumed(folder: Path, path: Path, rounds: int) -> list[float]:
    """A run on the big set is stopped after its first steps; then it is resumed, again and again."""
    flags = [
        *("--data", str(path), "--images", str(path.parent / "images"), "--logdir", str(folder / "run")),
        *("--checkpoint-dir", str(folder / "checkpoints"), "--model", "maskrcnn_resnet18_fpn", "--weights", "none"),
        *("--min-size", "128", "--batch-size", "1", "--workers", "0", "--checkpoint-every", "1", *TRAIN),
    ]
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONUNBUFFERED": "1"}
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, str(MAIN), *flags], env=env, stdout=subprocess.DEVNULL) as process:
        metrics = folder / "run" / "metrics.jsonl"
        while steps_in(metrics) < 2 and process.poll() is None:
            time.sleep(0.2)
        print(f"first run to its second step: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
        process.send_signal(signal.SIGTERM)
    return [resume_once(folder / "run" / "metrics.jsonl", flags, env) for _ in range(rounds)]


def resume_once(metrics: Path, flags: Sequence[str], env: dict[str, str]) -> float:
    """Seconds from the start of a resumed run to the record of its first step."""
    before = steps_in(metrics)
    began = time.perf_counter()
    command = [sys.executable, str(MAIN), *flags, "--resume", "auto"]
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as process:
        while steps_in(metrics) <= before:
            if process.poll() is not None:
                raise SystemExit(f"the resumed run ended early, with {process.returncode}")
            time.sleep(0.02)
        took = time.perf_counter() - began
        process.send_signal(signal.SIGTERM)
    print(f"resumed: {took:.2f} s", file=sys.stderr, flush=True)
    return took


def steps_in(metrics: Path) -> int:
    """How many steps a run has recorded."""
    if not metrics.is_file():
        return 0
    lines = metrics.read_text(encoding="utf-8").splitlines()
    return sum(line.startswith('{"kind":"step"') or '"kind": "step"' in line for line in lines)


def line(name: str, times: Sequence[float], target: float | None) -> str:
    """One row: median, range, target."""
    wanted = "" if target is None else f"≤ {target:g}"
    return f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} to {max(times):.2f} | {wanted} |"


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--file", type=Path, help="an annotation file that annotations.py has generated")
    parser.add_argument("--skip-big", action="store_true", help="leave the resumed run out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [line("`maskrcnn-coco --help`", [help_seconds() for _ in range(args.rounds + 1)][1:], 0.3)]
        rows.append(
            line("`import torch, torchvision` by itself, for comparison", [imports() for _ in range(args.rounds)], None)
        )
        for kind, times in demo(folder, args.rounds).items():
            title = f"first step of the built-in set, {kind}"
            rows.append(line(title, times, 5.0))
        if not args.skip_big:
            path = big_set(folder, args.file)
            rows.append(
                line("first step of a resumed run, COCO-size annotations", resumed(folder, path, args.rounds), 2)
            )
    big = (
        f" Resumed: {IMAGES:,} images and {ANNOTATIONS:,} annotations, small network at 128 px; the time includes "
        "imports, reading the annotations, looking for changes in them and in the image files, the checkpoint, and one "
        "step."
    )
    parts = [
        f"`python bench/speed/startup.py`: each a fresh process, from its start, by the clock, {args.rounds} times; "
        f"{os.environ.get('OMP_NUM_THREADS', 'all')} threads. Cold: the built-in set has to be drawn and checked first."
        + ("" if args.skip_big else big),
        "\n".join(["| | seconds, median | range | target |", "|---|---|---|---|", *rows]),
    ]
    print("\n\n".join(parts))
    print(common.write("startup", "From the command to the first answer", parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
