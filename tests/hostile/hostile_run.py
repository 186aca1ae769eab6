"""Run the corpus in this process and print one JSON line a case: a signal or a hang shows as a missing line.

Usage: hostile_run.py FOLDER
"""

from __future__ import annotations

import faulthandler
import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path

from hostile_corpus import Case, cases, draw_images
from hostile_exercise import exercise

LIMIT = 10
"""Seconds until a case counts as hanging: its alarm kills the process."""


def run(case: Case, folder: Path) -> list[str]:
    images = folder / "images"
    images.mkdir(parents=True)
    draw_images(images)
    if case.setup is not None:
        case.setup(images)
    json_path = folder / "annotations.json"
    if callable(case.text):
        case.text(json_path)
    else:
        json_path.write_bytes(case.text)
    return exercise(json_path, images, out=folder)


def peak_mib() -> float:
    """Most memory this process has had. Not getrusage: its figure includes the parent's size at the fork."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def main() -> None:
    faulthandler.enable()
    base = Path(sys.argv[1])
    for case in cases():
        signal.alarm(LIMIT)
        start = time.perf_counter()
        try:
            found: list[str] | str = run(case, base / "case")
        except Exception as e:  # the report of a bug is the purpose
            found = f"{type(e).__name__}: {e}"
        seconds = time.perf_counter() - start
        print(json.dumps({"name": case.name, "found": found, "seconds": seconds, "peak": peak_mib()}), flush=True)
        shutil.rmtree(base / "case")
    signal.alarm(0)


if __name__ == "__main__":
    main()
