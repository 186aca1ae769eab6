"""``predict``: drawn predictions and COCO results, in the data's own ids."""

from __future__ import annotations

import sys
from pathlib import Path

from maskrcnn_coco.cli.evaluate import pick_device
from maskrcnn_coco.data.classes import named_classes
from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.evaluation.ids import result_ids
from maskrcnn_coco.evaluation.predict import image_paths, predict_images
from maskrcnn_coco.model.build import classes_in, load_for_inference
from maskrcnn_coco.records import to_json
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.system.precision import resolve_amp


def predict_checkpoint(
    checkpoint: Path,
    images: list[Path],
    out: Path,
    *,
    score: float,
    device: str,
    json_mode: bool,
    coco: Path | None = None,
) -> int:
    """``maskrcnn-coco predict``: draws and writes COCO results; returns the exit code."""
    console = Console(json_mode=json_mode)
    where = pick_device(device)
    paths = image_paths(images)
    model, contents = load_for_inference(checkpoint)
    model.to(where)
    classes = named_classes(contents, classes_in(model))
    ids = result_ids(paths, classes, None if coco is None else load_coco(coco, coco.parent))
    for sentence in ids.notes:
        console.note(sentence)
    out.mkdir(parents=True, exist_ok=True)
    result = predict_images(
        model,
        paths,
        out,
        ("background", *classes.names),
        device=where,
        precision=resolve_amp("auto", where),
        min_score=score,
        category_ids=ids.categories,
        image_ids=ids.images,
    )
    for sentence in result.failed:
        console.warn(sentence)
    drawn = sum(d["score"] >= score for d in result.detections)
    if json_mode:
        summary = {"images": [str(p) for p in result.drawn], "results": str(result.results_json), "objects": drawn}
        sys.stdout.write(to_json({**summary, "failed": result.failed}) + "\n")
    else:
        console.note(f"{drawn} objects of score {score:g} or more on {len(result.drawn)} images: {out}")
        console.note(f"all detections, as COCO results: {result.results_json}")
    return 0
