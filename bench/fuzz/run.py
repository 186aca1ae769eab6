"""Fuzz everything that reads what a user's data set holds.

    python bench/fuzz/run.py --cases 1000000

Cases run in a child process. Its death by a signal, a hang, an exception other than DataError, or something that the
check let pass but that cannot be used is a failure, printed with its seed: --first SEED --cases 1 makes it again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from io import BytesIO
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "tests" / "hostile")]

import numpy as np  # noqa: E402
from hostile_corpus import HEIGHT, WIDTH, document, draw_images  # noqa: E402
from hostile_exercise import exercise  # noqa: E402
from mutate import mutated_bytes, mutated_json, segmentation  # noqa: E402
from PIL import Image  # noqa: E402

from maskrcnn_coco.data.images import read_image  # noqa: E402
from maskrcnn_coco.data.masks import decode_mask, encode_rle  # noqa: E402
from maskrcnn_coco.errors import DataError  # noqa: E402

MEMORY = "/dev/shm"
HANG = 5.0
"""Seconds after which one case counts as hanging."""


class Fuzzer:
    """Runs single cases, each a pure function of its seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.json_path = folder / "annotations.json"
        self.images = folder / "images"
        self.images.mkdir()
        draw_images(self.images)
        self.document = document()
        crowd = {"size": [HEIGHT, WIDTH], "counts": [100, 100, HEIGHT * WIDTH - 200]}
        self.document["annotations"][2].update(segmentation=crowd, iscrowd=1, bbox=[4, 0, 5, 24])
        self.document["annotations"][0]["segmentation"].append([20, 4, 25, 4, 25, 9])
        self.text = json.dumps(self.document).encode()
        self.pictures = [_picture(mode, suffix) for mode, suffix in _PICTURES]

    def run(self, seed: int) -> str:
        """What the case led to, in a word."""
        rng = Random(seed)
        kind = rng.random()
        if kind < 0.12:
            return self._annotations(mutated_json(rng, self.document), out=seed % 25 == 0)
        if kind < 0.20:
            return self._annotations(mutated_bytes(rng, self.text), out=False)
        if kind < 0.80:
            return self._mask(rng)
        return self._image(rng)

    def _annotations(self, text: bytes, *, out: bool) -> str:
        self.json_path.write_bytes(text)
        codes = exercise(self.json_path, self.images, images=out, out=self.folder if out else None)
        return (
            "json: refused"
            if codes and codes[0].startswith("DataError")
            else f"json: {'findings' if codes else 'clean'}"
        )

    def _mask(self, rng: Random) -> str:
        height, width = rng.choice(((24, 32), (1, 1), (7, 200), (480, 640)))
        value = segmentation(rng, height, width)
        try:
            mask = decode_mask(json.dumps(value).encode() if rng.random() < 0.5 else value, height, width)
        except DataError:
            return "mask: refused"
        assert mask.shape == (height, width) and mask.dtype == np.uint8 and mask.max() <= 1
        assert (decode_mask(encode_rle(mask), height, width) == mask).all()
        return "mask: decoded"

    def _image(self, rng: Random) -> str:
        (self.images / "x").write_bytes(mutated_bytes(rng, rng.choice(self.pictures)))
        try:
            image = read_image(self.images, "x")
        except DataError:
            return "image: refused"
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        return "image: read"


_PICTURES = [
    ("RGB", "PNG"),
    ("RGBA", "PNG"),
    ("P", "PNG"),
    ("I;16", "PNG"),
    ("RGB", "JPEG"),
    ("L", "GIF"),
    ("RGB", "TIFF"),
]
_PICTURES += [("RGB", "WEBP"), ("RGB", "BMP"), ("RGB", "PPM")]


def _picture(mode: str, suffix: str) -> bytes:
    out = BytesIO()
    Image.effect_noise((16, 12), 50).convert("L" if mode == "I;16" else mode).convert(mode).save(out, suffix)
    return out.getvalue()


def child(first: int, count: int, seconds: float) -> None:
    """Run cases, print one line of totals at the end; a failure is printed at once."""
    signal.signal(signal.SIGALRM, _hang)
    outcomes: Counter[str] = Counter()
    slowest = (0.0, 0)
    stop = time.monotonic() + seconds
    # In memory where there is such a place: making a file on disk takes longer than all the rest of a case.
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as name:
        fuzzer = Fuzzer(Path(name))
        at = os.open(os.environ["FUZZ_SEED_FILE"], os.O_WRONLY)
        for seed in range(first, first + count):
            os.pwrite(at, b"%20d" % seed, 0)
            signal.setitimer(signal.ITIMER_REAL, HANG)
            start = time.perf_counter()
            try:
                outcomes[fuzzer.run(seed)] += 1
            except Exception:
                print(json.dumps({"seed": seed, "failure": traceback.format_exc()[-1500:]}), flush=True)
            slowest = max(slowest, (time.perf_counter() - start, seed))
            if time.monotonic() > stop:
                break
        signal.setitimer(signal.ITIMER_REAL, 0)
    done = sum(outcomes.values())
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(m[1]) / 1024 if (m := re.search(r"VmHWM:\s+(\d+)", status)) else 0.0
    print(json.dumps({"done": done, "outcomes": outcomes, "slowest": slowest, "peak_mib": peak}), flush=True)


def _hang(*_: object) -> None:
    raise TimeoutError(f"the case took more than {HANG} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after this many seconds")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.first, args.cases, args.seconds)
        return 0
    start = time.perf_counter()
    total: Counter[str] = Counter()
    failures: list[str] = []
    slowest, peak, seed, last = (0.0, 0), 0.0, args.first, args.first + args.cases
    with tempfile.NamedTemporaryFile() as seed_file:
        seed_file.write(b"%20d" % seed)
        seed_file.flush()
        while seed < last and time.perf_counter() - start < args.seconds:
            left = args.seconds - (time.perf_counter() - start)
            command = [sys.executable, __file__, "--child", "--first", str(seed), "--seconds", str(left)]
            command += ["--cases", str(min(last - seed, 50_000))]
            env = {**os.environ, "FUZZ_SEED_FILE": seed_file.name, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env)
            at = int(Path(seed_file.name).read_bytes())
            for line in map(json.loads, done.stdout.splitlines()):
                if "failure" in line:
                    failures.append(f"seed {line['seed']}: {line['failure']}")
                else:
                    total += Counter(line["outcomes"])
                    slowest, peak = max(slowest, tuple(line["slowest"])), max(peak, line["peak_mib"])
            if done.returncode:
                failures.append(f"seed {at}: the process ended with {done.returncode}")
            seed = at + 1
            print(
                f"{seed - args.first} cases, {len(failures)} failures, {time.perf_counter() - start:.0f} s",
                file=sys.stderr,
            )
    print(json.dumps({"cases": seed - args.first, "failures": len(failures), "outcomes": dict(sorted(total.items()))}))
    print(
        json.dumps(
            {
                "slowest_s": slowest[0],
                "slowest_seed": slowest[1],
                "peak_mib": round(peak),
                "seconds": round(time.perf_counter() - start),
            }
        )
    )
    for failure in failures[:20]:
        print(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
