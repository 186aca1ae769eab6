"""Tiles against the whole image, with a real detector: `python bench/export/tiles.py CHECKPOINT DATA.json`.

From each image that is large enough a square is cut. It is looked at whole, and in tiles that overlap; the model
resizes nothing in either case, so what differs is what tiles do: objects at their sides, and the merging. Printed:
objects of score 0.5 or more; how many of the whole's the tiles have, too (masks overlapping by a half, by nine tenths),
and the other way round; pairs of objects that lie on each other; F1 against the annotations.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_coco import load
from maskrcnn_coco.data.masks import decode_mask


def overlaps(a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray:
    """IoU (A, B) of bool masks of one size."""
    if not a or not b:
        return np.zeros((len(a), len(b)))
    x, y = (np.stack(m).reshape(len(m), -1).astype(np.float32) for m in (a, b))
    common = x @ y.T
    return common / np.maximum(x.sum(1)[:, None] + y.sum(1)[None] - common, 1)


def matched(iou: np.ndarray, least: float) -> int:
    """Pairs, best first, each mask in one."""
    iou, count = iou.copy(), 0
    while iou.size and iou.max() >= least:
        a, b = np.unravel_index(int(iou.argmax()), iou.shape)
        iou[a], iou[:, b], count = -1, -1, count + 1
    return count


def cut(path: Path, side: int) -> list[tuple[str, np.ndarray, list[np.ndarray]]]:
    """(name, pixels, masks of the annotations) of a square from the middle of each image that is large enough."""
    document, out = json.loads(path.read_text()), []
    for image in document["images"]:
        height, width = int(image["height"]), int(image["width"])
        if min(height, width) < side:
            continue
        pixels = np.asarray(Image.open(path.parent / image["file_name"]).convert("RGB"))
        y, x = (height - side) // 2, (width - side) // 2
        masks = [
            decode_mask(a["segmentation"], height, width).view(bool)[y : y + side, x : x + side]
            for a in document["annotations"]
            if a["image_id"] == image["id"] and a.get("segmentation")
        ]
        square = np.ascontiguousarray(pixels[y : y + side, x : x + side])
        out.append((image["file_name"][:8], square, [m for m in masks if m.sum() >= 4]))
    return out


def looked_at(model: Any, pixels: np.ndarray, tile: int | None, overlap: float) -> tuple[list[np.ndarray], float]:
    """Masks of score 0.5 or more, and CPU seconds. The model sees every pixel as one pixel."""
    side = tile or pixels.shape[0]
    model.model.transform.min_size, model.model.transform.max_size = (side,), side
    began = time.process_time()
    (result,) = model.predict(pixels, 0.5, tile, overlap=overlap)
    return list(result.masks), time.process_time() - began


def f1(found: list[np.ndarray], truth: list[np.ndarray]) -> tuple[int, int]:
    """Numerator and denominator at IoU 0.5."""
    return 2 * matched(overlaps(found, truth), 0.5), len(found) + len(truth)


def main() -> None:
    """Look, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--tiles", type=int, nargs="+", default=[256])
    parser.add_argument("--overlap", type=float, default=0.25)
    args = parser.parse_args()
    model, squares = load(args.checkpoint, "cpu", precision="off"), cut(args.data, args.side)
    print(f"{len(squares)} squares of {args.side} pixels, {sum(len(m) for *_, m in squares)} annotated objects\n")
    whole = [looked_at(model, pixels, None, 0.0) for _, pixels, _ in squares]
    total = sum(len(m) for m, _ in whole)
    base = np.sum([f1(m, truth) for (m, _), (*_, truth) in zip(whole, squares, strict=True)], 0)
    print("| | objects | of the whole's: IoU 0.5, 0.9 | of theirs in the whole | lying on another | F1 | CPU s |")
    print("|---|---|---|---|---|---|---|")
    print(f"| whole | {total} | | | {twice(whole)} | {base[0] / base[1]:.3f} | {sum(s for _, s in whole):.0f} |")
    for tile in args.tiles:
        tiled = [looked_at(model, pixels, tile, args.overlap) for _, pixels, _ in squares]
        count = sum(len(m) for m, _ in tiled)
        ious = [overlaps(w, t) for (w, _), (t, _) in zip(whole, tiled, strict=True)]
        half, most = (sum(matched(i, at) for i in ious) for at in (0.5, 0.9))
        score = np.sum([f1(m, truth) for (m, _), (*_, truth) in zip(tiled, squares, strict=True)], 0)
        cells = [f"tiles of {tile}", count, f"{half / total:.1%}, {most / total:.1%}", f"{half / max(count, 1):.1%}"]
        cells += [twice(tiled), f"{score[0] / score[1]:.3f}", f"{sum(s for _, s in tiled):.0f}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def twice(seen: list[tuple[list[np.ndarray], float]]) -> int:
    """Pairs of objects of one image that overlap by a half or more."""
    return sum(int((np.triu(overlaps(m, m), 1) >= 0.5).sum()) for m, _ in seen)


if __name__ == "__main__":
    main()
