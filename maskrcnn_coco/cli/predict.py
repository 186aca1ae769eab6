"""``predict``: a model's findings on images as drawn pictures, COCO results, tables, outlines and label images.

Imports no torch: an exported model runs where torch is not installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

from maskrcnn_coco.data.bit_range import given_range
from maskrcnn_coco.data.classes import Classes
from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.evaluation.ids import result_ids
from maskrcnn_coco.inference.inputs import nothing_to_look_at
from maskrcnn_coco.inference.load import load
from maskrcnn_coco.inference.predictor import Predictions, Predictor
from maskrcnn_coco.inference.result import check_score
from maskrcnn_coco.inference.tiles import idle_overlap
from maskrcnn_coco.inference.writer import RESULTS, TABLE, Writer, Written, parse_formats
from maskrcnn_coco.records import to_json
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.wording import clean, count

FORMATS = "coco,png"
"""What is written unless told otherwise."""


@dataclass(frozen=True)
class PredictOptions:
    """The flags of ``predict``; see ``--help``."""

    out: Path = Path("predictions")
    score: float = 0.5
    format: str = FORMATS
    tile: str | None = None
    overlap: float = 0.25
    coco: Path | None = None
    bit_range: str | None = None
    device: str = "auto"
    json_mode: bool = False


def predict_checkpoint(checkpoint: Path, images: Sequence[str], options: PredictOptions) -> int:
    """``maskrcnn-coco predict``: exit code 0, or 3 where images could not be read (the rest is done and written).

    Raises:
        ConfigError, DataError, CheckpointError: as their names say; then nothing was written.
    """
    console = Console(json_mode=options.json_mode)
    formats, score = parse_formats(options.format), check_score(options.score)
    predictor = load(checkpoint, options.device)
    idle = None
    if checkpoint.suffix.lower() not in (".onnx", ".xml"):  # those run without torch
        from maskrcnn_coco.system.backends import passed_over

        idle = passed_over(options.device)
    if idle is not None:
        console.note(idle)
    if (vain := idle_overlap(options.tile, options.overlap)) is not None:
        console.warn(vain)
    predictions = predictor.predict(
        list(images),
        0.0,
        options.tile,
        overlap=options.overlap,
        bit_range=None if options.bit_range is None else given_range(options.bit_range) or "auto",
        on_unreadable=console.warn,
    )
    if predictions.depth is not None:
        console.note(predictions.depth)
    for sentence in predictions.notes:
        console.warn(sentence)
    writer = Writer(options.out, formats, score, predictions.paths)
    try:
        written, stopped = _write(predictor, predictions, writer, options, console)
    except OSError as e:
        writer.abandon()
        if e.filename is None and e.errno is not None:  # of an image that a library was writing
            raise OSError(e.errno, e.strerror, str(options.out)) from e
        raise
    except BaseException:
        writer.abandon()
        raise
    if options.json_mode:
        sys.stdout.write(to_json(_summary(written, predictions.failed, options)) + "\n")
    else:
        _say(console, written, formats, options)
    if stopped:
        console.warn(f"interrupted after {count(written.images, 'image')}; what was done is written")
        return 130
    return 3 if predictions.failed else 0


def _write(
    predictor: Predictor, predictions: Predictions, writer: Writer, options: PredictOptions, console: Console
) -> tuple[Written, bool]:
    """All files in place; and whether Ctrl-C ended it early."""
    classes = Classes(tuple(predictor.classes), tuple(predictor.category_ids))
    data = None if options.coco is None else load_coco(options.coco, options.coco.parent)
    ids = result_ids(predictions.paths, classes, data)
    for sentence in ids.notes:
        console.note(sentence)
    categories = [ids.categories[n] for n in range(1, len(classes.names) + 1)]
    beyond = max(ids.images.values(), default=0)
    stopped = False
    try:
        for result in predictions:
            result.category_ids = categories
            known = None if result.path is None else ids.images.get(result.path)
            if data is None:
                known = result.number
            writer.add(result, beyond + result.number if known is None else known)
    except KeyboardInterrupt:
        stopped = True
    if not writer.done.images and not stopped:
        raise nothing_to_look_at(predictions.failed)
    return writer.close(), stopped


def _summary(written: Written, failed: list[str], options: PredictOptions) -> dict[str, Any]:
    best = written.best
    return {
        "images": [str(p) for p in written.drawn],
        "results": str(options.out / RESULTS) if "coco" in parse_formats(options.format) else None,
        "objects": written.objects,
        "classes": dict(written.classes),
        "images_seen": written.images,
        "best": None if best is None else {"score": best.score, "class": best.name, "file_name": best.image},
        "failed": failed,
    }


def _say(console: Console, written: Written, formats: Sequence[str], options: PredictOptions) -> None:
    if written.objects:
        classes = ", ".join(f"{clean(name)} {n}" for name, n in written.classes.most_common(12))
        console.note(
            f"{count(written.objects, 'object')} of score {options.score:g} or more on {written.with_objects} of "
            f"{count(written.images, 'image')}: {classes}"
        )
    else:
        console.warn(_nothing(written, options.score))
    where = {
        "png": ("drawn pictures", options.out), "coco": ("all detections, as COCO results", options.out / RESULTS),
        "csv": ("table", options.out / TABLE), "labels": ("label images", options.out / "labels"),
        "polygons": ("outlines, LabelMe and GeoJSON", options.out / "polygons"),
    }  # fmt: skip
    for name in formats:
        what, place = where[name]
        console.note(f"{what}: {place}")


def _nothing(written: Written, score: float) -> str:
    best = written.best
    if best is None:
        return f"no object of any score on {count(written.images, 'image')}"
    lower = max(floor(best.score * 10) / 10, floor(best.score * 100) / 100 if best.score < 0.2 else 0.1)
    more = sum(s >= lower for s in written.scores)
    digits = 2 if round(best.score, 2) < score else 5
    return (
        f"no object has a score of {score:g} or more; the best is {best.score:.{digits}f} ({clean(best.name)} on "
        f"{clean(best.image)}): --score {lower:g} shows {count(more, 'object')}"
    )
