"""Pictures for the report: the worst and typical predictions beside the truth, and the images that incidents name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_coco.data import native_masks
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.evaluation.analysis import Analysis, Suspect, analyse, plain
from maskrcnn_coco.evaluation.draw import ALARM, Shape, beside, colour_of, draw, encoded, shapes_of
from maskrcnn_coco.evaluation.evaluate import EvalResult
from maskrcnn_coco.evaluation.ground_truth import EvalSet, Example, as_eval_set
from maskrcnn_coco.records import Incident, to_json
from maskrcnn_coco.system.files import write_bytes
from maskrcnn_coco.wording import annotation_words

FOLDER = "predictions"
ANALYSIS = "analysis.json"
_LONGEST = 640


@dataclass
class Grade:
    """How well one image came out: ``f1`` of the detections that are drawn, matched at IoU 0.5 class by class.

    ``found`` + ``missed`` are the objects (without crowds); ``false``: detections that match none.
    """

    row: int
    f1: float
    found: int
    missed: int
    false: int


def save_gallery(
    logdir: str | Path, source: Any, result: EvalResult, *, worst: int = 12, typical: int = 12, min_score: float = 0.5
) -> Path:
    """Draw the ``worst`` and ``typical`` images into ``logdir``/predictions, with predictions.json for the report.

    Args:
        source, result: what `evaluate_model` was given and what it returned.
        min_score: detections below are neither counted nor drawn.

    Raises:
        OSError: the folder cannot be written.
    """
    data, folder = as_eval_set(source), Path(logdir) / FOLDER
    grades = sorted(grade_images(result, min_score), key=lambda g: (g.f1, -(g.missed + g.false), g.row))
    low, middle = choose(grades, worst, typical)
    out: dict[str, Any] = {"min_score": min_score, "images": len(grades)}
    for name, chosen in (("worst", low), ("typical", middle)):
        entries = [_draw_pair(folder, f"{name}_{n:02d}", data, result, g, min_score) for n, g in enumerate(chosen, 1)]
        out[name] = [e for e in entries if e is not None]
    write_bytes(folder / "predictions.json", to_json(out, indent=1).encode())
    return folder


def pairs_of(source: Any, result: EvalResult, *, most: int = 4, min_score: float = 0.5) -> list[tuple[bytes, int, int]]:
    """The first ``most`` images that have objects, truth left and prediction right: (JPEG, height, width) of each.

    The same images at every evaluation, so that their pictures can be compared.
    """
    data = as_eval_set(source)
    truth, found = _by_row(result.truth.annotations), _by_row(result.found)
    rows = [i["id"] for i in result.truth.images if truth[i["id"]]][:most]
    pictures = []
    for row in rows:
        try:
            example = data.load(row)
        except DataError:
            continue
        pair = beside([_side(data, example, items, min_score) for items in (truth[row], found[row])])
        pictures.append((encoded(pair, ".jpg"), pair.height, pair.width))
    return pictures


def save_analysis(logdir: str | Path, source: Any, result: EvalResult, *, most: int = 12) -> Path:
    """``logdir``/predictions/analysis.json: what lies behind the AP, with pictures of the labels that look wrong.

    Raises:
        OSError: the folder cannot be written.
    """
    data, folder = as_eval_set(source), Path(logdir) / FOLDER
    analysis = analyse(result)
    content, drawn = plain(analysis), []
    for n, suspect in enumerate(analysis.suspects[:most], 1):
        picture = suspect_picture(suspect, result, analysis, data)
        if picture is not None:
            name = f"suspect_{n:02d}.jpg"
            write_bytes(folder / name, picture[1])
            drawn.append({"caption": picture[0], "picture": name})
    write_bytes(folder / ANALYSIS, to_json(content | {"pictures": drawn}).encode())
    return folder / ANALYSIS


def suspect_picture(
    suspect: Suspect, result: EvalResult, analysis: Analysis, data: EvalSet, longest: int = 420
) -> tuple[str, bytes] | None:
    """(caption, JPEG) of a label that may be wrong, what the model found in red; None where it cannot be drawn."""
    names = analysis.names
    try:
        example = data.load(suspect.row)
        size = (example.height, example.width)
        shapes = shapes_of([t for t in result.truth.annotations if t["image_id"] == suspect.row], names, *size)
        (found,) = shapes_of([suspect.found], names, *size)
    except DataError:
        return None
    if len(names) == 1:  # in one colour: among objects of all colours red would say nothing
        shapes = [replace(s, colour=colour_of(1)) for s in shapes]
    what = names[suspect.found["category_id"]]
    shapes.append(Shape(found.box, found.mask, f"? {what}", ALARM))
    picture = encoded(draw(pixels_of(example.image), shapes, longest=longest), ".jpg")
    said = "nothing" if suspect.annotation is None else names[suspect.annotation["category_id"]]
    return f"{example.file_name}: found {what} {suspect.found['score']:.2f}, annotated {said}", picture


def choose(grades: list[Grade], worst: int, typical: int) -> tuple[list[Grade], list[Grade]]:
    """The first ``worst`` of grades that are sorted worst first, and the ``typical`` around the median of the rest."""
    low = grades[: min(worst, (len(grades) + 1) // 2)]
    rest = grades[len(low) :]
    if not rest:
        return low, []
    middle = grades[len(grades) // 2].f1
    near = sorted(rest, key=lambda g: (abs(g.f1 - middle), g.row))[:typical]
    return low, sorted(near, key=lambda g: (g.f1, g.row))


def grade_images(result: EvalResult, min_score: float) -> list[Grade]:
    """A `Grade` of each evaluated image."""
    truth, found = _by_row(result.truth.annotations), _by_row(result.found)
    return [_grade(i["id"], truth[i["id"]], found[i["id"]], min_score) for i in result.truth.images]


def _by_row(items: Iterable[dict[str, Any]]) -> defaultdict[int, list[dict[str, Any]]]:
    rows: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for item in items:
        rows[item["image_id"]].append(item)
    return rows


def _grade(row: int, truth: list[dict[str, Any]], results: list[dict[str, Any]], min_score: float) -> Grade:
    objects = [a for a in truth if not a["iscrowd"]]
    crowds = [a for a in truth if a["iscrowd"]]
    found = false = 0
    for label in {x["category_id"] for x in (*truth, *results)}:
        mine = [r for r in results if r["category_id"] == label and r["score"] >= min_score]
        hits, misses = _match(mine, [a for a in objects if a["category_id"] == label], crowds)
        found, false = found + hits, false + misses
    missed = len(objects) - found
    total = 2 * found + missed + false
    return Grade(row, 2 * found / total if total else 1.0, found, missed, false)


def _match(results: list[dict], objects: list[dict], crowds: list[dict]) -> tuple[int, int]:
    """(matched, unmatched) of results, best score first; a result inside a crowd region is neither."""
    if not results:
        return 0, 0
    overlap, free = _iou(results, objects, crowd=False), set(range(len(objects)))
    inside = _iou(results, crowds, crowd=True).max(axis=1, initial=0.0)
    hits = misses = 0
    for n in sorted(range(len(results)), key=lambda n: -results[n]["score"]):
        best = max(free, key=lambda g: overlap[n, g], default=None)
        if best is not None and overlap[n, best] >= 0.5:
            free.remove(best)
            hits += 1
        elif inside[n] < 0.5:
            misses += 1
    return hits, misses


def _iou(results: list[dict], others: list[dict], *, crowd: bool) -> np.ndarray:
    if not others:
        return np.zeros((len(results), 0))
    flags = [crowd] * len(others)
    if all(x.get("segmentation") for x in (*results, *others)):
        size = results[0]["segmentation"]["size"]
        return np.asarray(native_masks.iou([_rle(r, *size) for r in results], [_rle(o, *size) for o in others], flags))
    return np.asarray(native_masks.bbox_iou([r["bbox"] for r in results], [o["bbox"] for o in others], flags))


def _rle(item: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    value = item["segmentation"]
    if isinstance(value, list):  # polygons that `ground_truth` has checked
        return native_masks.merge(native_masks.fr_py_objects(value, height, width))
    return {"size": value["size"], "counts": value["counts"].encode("ascii")}


def _draw_pair(
    folder: Path, name: str, data: EvalSet, result: EvalResult, grade: Grade, min_score: float
) -> dict[str, Any] | None:
    try:
        example = data.load(grade.row)
    except DataError:  # the file was there when it was evaluated; a report without it is better than none
        return None
    truth = [a for a in result.truth.annotations if a["image_id"] == grade.row]
    found = [r for r in result.found if r["image_id"] == grade.row]
    entry = asdict(grade) | {"image_id": example.image_id, "file_name": example.file_name}
    for side, items in (("truth", truth), ("prediction", found)):
        entry[side] = f"{name}_{side}.jpg"
        write_bytes(folder / entry[side], encoded(_side(data, example, items, min_score), ".jpg"))
    return entry


def _side(data: EvalSet, example: Example, items: list[dict[str, Any]], min_score: float) -> Image.Image:
    """An image with its truth, or with what was found on it."""
    names = dict(enumerate(data.names, 1)) if data.names else {1: "object"}
    shapes = shapes_of(items, names, example.height, example.width, min_score=min_score)
    return draw(pixels_of(example.image), shapes, longest=_LONGEST)


def save_incident_images(logdir: str | Path, incident: Incident, source: Any, *, most: int = 4) -> list[Path]:
    """Draw the images an incident names, with their annotations, the named ones in red, beside the incident's file.

    Files are ``incidents/<id>_image<image id>.jpg``; what cannot be read or drawn is left out.

    Raises:
        OSError: the folder cannot be written.
    """
    data, guilty = as_eval_set(source), set(incident.culprit.annotation_ids)
    rows = _rows_of(data, incident.culprit.image_ids[:most])
    written = []
    for image_id, row in rows.items():
        try:
            example = data.load(row)
            shapes = [_evidence_shape(a, data, guilty, example.height, example.width) for a in example.annotations]
        except DataError:
            continue
        picture = draw(pixels_of(example.image), [s for s in shapes if s is not None], longest=_LONGEST)
        path = Path(logdir) / "incidents" / f"{incident.id}_image{image_id}.jpg"
        write_bytes(path, encoded(picture, ".jpg"))
        written.append(path)
    return written


def _rows_of(data: EvalSet, image_ids: list[int]) -> dict[int, int]:
    table = getattr(data, "table", None)
    if table is not None:
        known = set(table.image_ids.tolist())
        return {i: table.row_of(i) for i in image_ids if i in known}
    return {i: i for i in image_ids if 0 <= i < len(data)}


def _evidence_shape(a: dict[str, Any], data: EvalSet, guilty: set[int], height: int, width: int) -> Shape | None:
    if not np.isfinite(a["bbox"]).all():
        return None
    names = dict(enumerate(data.names, 1)) if data.names is not None else {}
    try:
        (shape,) = shapes_of([a], names or {1: "object"}, height, width)
    except DataError:  # the very mask that was found bad
        (shape,) = shapes_of([a | {"segmentation": None}], names or {1: "object"}, height, width)
    if a["id"] in guilty:
        return Shape(shape.box, shape.mask, annotation_words([a["id"]]), ALARM)
    return shape


def pixels_of(image: Any) -> np.ndarray:
    """uint8 (H, W, 3) of a float (3, H, W) tensor in 0..1; whatever is outside or not finite is clipped."""
    values = np.nan_to_num(image.permute(1, 2, 0).cpu().numpy() * 255.0, nan=0.0, posinf=255.0, neginf=0.0)
    return np.ascontiguousarray(values.clip(0, 255).round().astype(np.uint8))
