"""."""

from __future__ import annotations

import sys
from pathlib import Path

from maskrcnn_coco.cli.evaluate import pick_device
from maskrcnn_coco.evaluation.predict import image_paths, predict_images
from maskrcnn_coco.model.build import load_for_inference
from maskrcnn_coco.records import to_json
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.system.precision import resolve_amp


def predict_checkpoint(
    checkpoint: Path, images: list[Path], out: Path, *, score: float, device: str, json_mode: bool
) -> int:
    """``maskrcnn-coco predict``: draws and writes COCO results; returns the exit code."""
    console = Console(json_mode=json_mode)
    where = pick_device(device)
    paths = image_paths(images)
    model, contents = load_for_inference(checkpoint)
    model.to(where)
    classes = contents.get("classes")
    count = int(model.state_dict()["roi_heads.box_predictor.cls_score.weight"].shape[0])
    names = [str(c) for c in classes] if isinstance(classes, (list, tuple)) else [f"class {i}" for i in range(count)]
    out.mkdir(parents=True, exist_ok=True)
    result = predict_images(
        model, paths, out, names, device=where, precision=resolve_amp("auto", where), min_score=score
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
