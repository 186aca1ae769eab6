"""Speed of each exported format against its checkpoint, on the CPU: `python bench/export/run.py CHECKPOINT IMAGES`.

Files are exported (and so proved) first. Prints a table: milliseconds an image, the median of ``--rounds`` passes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from maskrcnn_coco import load
from maskrcnn_coco.errors import MaskRCNNError
from maskrcnn_coco.inference.export import FORMATS, export
from maskrcnn_coco.inference.predictor import Predictor


def main() -> None:
    """Export, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models: dict[str, Predictor] = {
            "checkpoint": load(args.checkpoint, "cpu", precision="off"),
            "checkpoint, torchvision's classes": load(args.checkpoint, "cpu", precision="off", fast=False),
        }
        for name in FORMATS[:3]:
            try:
                done = export(args.checkpoint, Path(folder), name)
                models[name] = load(done.files[0], "cpu")
            except MaskRCNNError as e:
                print(f"{name}: {e.what}")
        pictures = [r.image for r in models["checkpoint"].predict(args.images)]
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(args.rounds + 1):  # the first warms up; the models take turns, so that all meet the same load
            for name, model in models.items():
                began = time.process_time()
                for image in pictures:
                    model.engine.run([image])
                times[name].append((time.process_time() - began) / len(pictures) * 1e3)
    print("| model | CPU ms an image | times the checkpoint |\n|---|---|---|")
    base = statistics.median(times["checkpoint"][1:])
    for name, values in times.items():
        middle = statistics.median(values[1:])
        print(f"| {name} | {middle:.1f} | {middle / base:.2f} |")


if __name__ == "__main__":
    main()
