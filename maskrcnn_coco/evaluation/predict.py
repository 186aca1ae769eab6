"""Predictions on single images: drawn pictures, and one COCO results file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from maskrcnn_coco.data.images import read_image
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.evaluation.detect import infer_each
from maskrcnn_coco.evaluation.draw import draw, encoded, shapes_of
from maskrcnn_coco.records import to_json
from maskrcnn_coco.system.files import write_bytes

RESULTS = "results.json"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")


@dataclass
class _Picture:
    row: int
    path: Path
    pixels: np.ndarray
    image: torch.Tensor
    height: int
    width: int


@dataclass
class PredictResult:
    """``detections``: COCO results with file_name; ``drawn``: the pictures; ``failed``: one sentence for each image."""

    detections: list[dict[str, Any]]
    drawn: list[Path]
    results_json: Path
    failed: list[str]


def image_paths(given: Iterable[Path]) -> list[Path]:
    """The images among ``given``: files as they are, folders by their image files, sorted.

    Raises:
        DataError: a path that does not exist, or a folder without images.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise DataError(f"the folder {path} has no images", expected=", ".join(IMAGE_SUFFIXES))
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"the image {path} does not exist", fix="name an image file or a folder of images")
    return found


def predict_images(
    model: nn.Module,
    paths: Sequence[Path],
    out_dir: Path,
    class_names: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    min_score: float = 0.5,
    category_ids: Mapping[int, int] | None = None,
    image_ids: Mapping[Path, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PredictResult:
    """Run ``model`` on image files and write what it finds.

    Writes ``out_dir``/NAME.png (.jpg for JPEG inputs) with the detections of at least ``min_score`` drawn, and
    ``out_dir``/results.json with all of them, in COCO's results format: boxes xywh and masks (RLE) in pixels.

    Args:
        class_names: ("background", first class, …).
        category_ids: the data set's id of each label; default: the label itself.
        image_ids: the data set's id of each path; default: numbered from 1 in the order given. ``file_name`` is always
            with each result.
        progress: called with (images done, images to do).

    Raises:
        DataError: none of the images can be read. Single ones that cannot are listed in ``failed``.
        OSError: ``out_dir`` cannot be written.
    """
    names = dict(enumerate(class_names[1:], 1))
    result = PredictResult([], [], out_dir / RESULTS, [])
    targets = _targets(paths, out_dir)
    for number, path in enumerate(paths, 1):
        try:
            picture = _read(path, number)
        except DataError as e:
            result.failed.append(e.what)
            continue
        (found,) = infer_each(model, [picture], device=device, precision=precision)
        if isinstance(found, DataError):
            result.failed.append(f"{path}: {found.what}")
            continue
        shapes = shapes_of(found.results, names, picture.height, picture.width, min_score=min_score)
        write_bytes(targets[path], encoded(draw(picture.pixels, shapes), targets[path].suffix))
        result.drawn.append(targets[path])
        image_id = (image_ids or {}).get(path, number)
        for r in found.results:
            label = r["category_id"]
            ids = {"image_id": image_id, "category_id": (category_ids or {}).get(label, label)}
            result.detections.append(r | ids | {"category_name": names.get(label, ""), "file_name": path.name})
        if progress is not None:
            progress(number, len(paths))
    if not result.drawn:
        raise DataError(result.failed[0] if result.failed else "no image was given", fix="name readable image files")
    write_bytes(result.results_json, to_json(result.detections).encode())
    return result


def _read(path: Path, number: int) -> _Picture:
    pixels = read_image(path.parent, path.name)
    image = torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255.0)
    return _Picture(number, path, pixels, image, *pixels.shape[:2])


def _targets(paths: Sequence[Path], out_dir: Path) -> dict[Path, Path]:
    """A file name of its own for each input; inputs of the same name are told apart by a number."""
    taken: set[str] = set()
    targets = {}
    for path in paths:
        suffix = ".jpg" if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
        name, n = path.stem + suffix, 1
        while name.lower() in taken:
            n += 1
            name = f"{path.stem}_{n}{suffix}"
        taken.add(name.lower())
        targets[path] = out_dir / name
    if any(path.resolve() == target.resolve() for path, target in targets.items()):
        raise DataError(
            f"drawing into {out_dir} would overwrite the images themselves", fix="name another folder with --out"
        )
    return targets
