"""``evaluate``: how good a checkpoint is, and what lies behind the figure."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.cli.evaluation_page import write_page
from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.audit.whole_set import category_shift, facts_of
from maskrcnn_coco.data.bit_depth import BitRange
from maskrcnn_coco.data.bit_range import given_range, saved_range
from maskrcnn_coco.data.builtin_shapes import write_shapes
from maskrcnn_coco.data.coco.table import CocoTable, load_coco
from maskrcnn_coco.data.layouts import find_data
from maskrcnn_coco.data.orientation import saved_orientation
from maskrcnn_coco.data.prepare import shapes_folder
from maskrcnn_coco.data.stacks import without_stacks
from maskrcnn_coco.data.tile_grid import OVERLAP
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.evaluation.analysis import ERRORS, Analysis, analyse, plain
from maskrcnn_coco.evaluation.ceiling import ceiling_of
from maskrcnn_coco.evaluation.classes import in_labels_of
from maskrcnn_coco.evaluation.evaluate import EvalResult, evaluate_model
from maskrcnn_coco.evaluation.readings import mask_readings, matching_of
from maskrcnn_coco.findings.facts import Facts
from maskrcnn_coco.findings.judge import judge
from maskrcnn_coco.inference.checkpoints import checkpoint_card
from maskrcnn_coco.inference.eval_adapter import EvalAdapter
from maskrcnn_coco.inference.predictor import Engine, Predictor
from maskrcnn_coco.inference.tiles import check_overlap, idle_overlap, tile_side
from maskrcnn_coco.inference.torch_engine import TorchEngine
from maskrcnn_coco.inference.tta import TtaEngine, parse_ways
from maskrcnn_coco.model.build import classes_in, load_for_inference
from maskrcnn_coco.records import RunFinding, to_json
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.system.backends import passed_over
from maskrcnn_coco.system.files import write_text
from maskrcnn_coco.system.precision import resolve_amp
from maskrcnn_coco.wording import count, named


def pick_device(name: str) -> torch.device:
    """The device to use; see `distributed.device.resolve_device`."""
    from maskrcnn_coco.distributed.device import resolve_device
    from maskrcnn_coco.distributed.ranks import Ranks

    ranks = Ranks.start(name)
    return resolve_device(name, ranks.world, ranks.local_rank)


def evaluation_table(
    data: str | None,
    images: str | None,
    bit_range: BitRange | None = None,
    source: str = "in training",
    *,
    as_stored: bool | None = None,
) -> tuple[CocoTable, list[str]]:
    """The annotations to evaluate on, and what was chosen: the validation part of a data set that has one, else all.

    Args:
        bit_range: the scale of images of more than 8 bits, from ``source``; None: it is found.
        as_stored: the checkpoint's images were not turned as their EXIF tags say; None: it does not tell.
    """
    if data is None:
        json_path = write_shapes(shapes_folder())[1]
        return load_coco(json_path, Path(json_path).parent), []
    found = find_data(data, images=images, bit_range=bit_range, bit_range_source=source, as_stored=as_stored)
    # A json is meant as it stands; a folder's training part is what the checkpoint has seen.
    table = found.train if found.val is None or Path(data).is_file() else found.val
    table, stacks = without_stacks(table)
    said = [note for note in found.notes if "8 bits" in note or "EXIF" in note] + ([] if stacks is None else [stacks])
    said += [p.text for p in table.problems if p.code == "IMAGE_ID_SHIFT"]
    if shift := category_shift(table):
        off = "low" if shift > 0 else "high"
        wrong = f"category ids of the annotations are one too {off}: classes are named wrongly"
        said.append(f"{wrong}; maskrcnn-coco check {table.flags} --fix OUT.json writes a copy that is right")
    return table, said


def range_to_use(given: str | None, contents: Mapping[str, Any]) -> tuple[BitRange | None, str]:
    """The scale of deep images, None to find one, and where it comes from: the flag, or the checkpoint."""
    if given is not None:
        return given_range(given), "--bit-range says"
    return saved_range(contents), "in training"


@dataclass(frozen=True)
class EvaluateOptions:
    """The flags of ``evaluate``; see ``--help``."""

    device: str = "auto"
    out: str | None = None
    html: str | None = None
    bit_range: str | None = None
    batch_size: int = 1
    tile: str | None = None
    overlap: float = OVERLAP
    tta: str | None = None
    json_mode: bool = False


def evaluate_checkpoint(checkpoint: Path, data: str | None, images: str | None, options: EvaluateOptions) -> int:
    """``maskrcnn-coco evaluate``: prints the COCO metrics and what lies behind them; exit code 0, or 3 where images
    could not be looked at (the metrics are of the rest).

    Raises:
        ConfigError, DataError, CheckpointError: as their names say.
    """
    _check(options)
    ways = parse_ways(options.tta)
    console = Console(json_mode=options.json_mode)
    where = pick_device(options.device)
    model, contents = load_for_inference(checkpoint)
    scale = range_to_use(options.bit_range, contents)
    table, chosen = evaluation_table(data, images, *scale, as_stored=saved_orientation(contents))
    source, notes = in_labels_of(table, contents, classes_in(model), checkpoint)
    idle = passed_over(options.device)
    for sentence in chosen + notes + ([] if idle is None else [idle]):
        console.note(sentence)
    if (vain := idle_overlap(options.tile, options.overlap)) is not None:
        console.warn(vain)
    model.to(where)
    precision = resolve_amp("auto", where)
    finder, how = None, None
    if options.tile is not None or ways:
        finder, how = _finder(model, contents, where, precision, options, ways)
        console.note(how)
    result = evaluate_model(
        model, source, device=where, precision=precision, batch_size=options.batch_size, finder=finder
    )
    if not result.truth.annotations:
        console.warn(f"{table.json_path} has no objects on these images: AP is not defined (a dash)")
    analysis = analyse(result)
    ceiling = ceiling_of(source)
    best = ceiling.scores if ceiling is not None else {}
    noticed = _noticed(result, table)
    if options.out is not None:
        write_text(Path(options.out), to_json(result.detections))
    _warn(console, result.left_out)
    if options.json_mode:
        more = {"findings": noticed, "ceiling": best, "analysis": plain(analysis)}
        more |= {"left_out": result.left_out, "how": how}
        sys.stdout.write(to_json(_summary(checkpoint, table, result) | more) + "\n")
    else:
        _print(console, table, result)
        if best:
            console.note(
                "the truth itself, as predictions, scores " + " · ".join(f"{n} {v:.3f}" for n, v in best.items())
            )
        _explain(console, analysis)
        for finding in noticed:
            console.finding(finding)
    if options.html is not None:
        title = f"{checkpoint.name} on {table.json_path}" + (f" ({how})" if how else "")
        write_page(Path(options.html), title, result, analysis, source, best)
        console.note(f"curves, confusions and labels to look at: {options.html}")
    return 0 if result.images == len(source) else 3


def _noticed(result: EvalResult, table: CocoTable) -> list[RunFinding]:
    """Why these figures may say little of the model: permuted classes, masks elsewhere, boxes that are read wrongly."""
    names = {int(c["id"]): str(c["name"]) for c in result.truth.categories}
    data = facts_of(table, audit(table, images=False), of="data that are evaluated on")
    facts = Facts(audited=data.audited, matching=matching_of(result, names), mask_readings=mask_readings(result))
    found = judge(facts, "epoch")
    for finding in found:
        finding.fix = named(finding.fix, table.flags)
    return found


def _check(options: EvaluateOptions) -> None:
    """What would fail at the end fails before the work."""
    if options.batch_size < 1:
        raise ConfigError("--batch-size is no number of images", got=options.batch_size, expected="1 or more")
    for flag, path in (("--out", options.out), ("--html", options.html)):
        if path is not None and Path(path).is_dir():
            raise ConfigError(f"{flag} {path} is a folder", expected="the name of a file")


def _finder(
    model: nn.Module, contents: Mapping[str, Any], device: torch.device, precision: str, options: EvaluateOptions,
    ways: tuple[str, ...],
) -> tuple[EvalAdapter, str]:  # fmt: skip
    """Who looks at the images in the model's place, and how, in words."""
    card = checkpoint_card(model, contents)
    engine: Engine = TorchEngine(model, device, precision)
    said = []
    if ways:
        engine = tta = TtaEngine(engine, ways)
        said.append(f"{tta.views} views of each image ({', '.join(ways)})")
    side = tile_side(options.tile, card.usual_side)
    if side is not None:
        said.append(f"in tiles of {side} pixels")
    return EvalAdapter(Predictor(engine, card), side, check_overlap(options.overlap)), " and ".join(said)


def _warn(console: Console, sentences: list[str], most: int = 8) -> None:
    """What was left out: a few by name, and how many more."""
    for sentence in sentences[:most]:
        console.warn(sentence)
    if len(sentences) > most:
        console.warn(f"… and {len(sentences) - most} more such lines; --json lists them all")


def _summary(checkpoint: Path, table: CocoTable, result: EvalResult) -> dict[str, Any]:
    return {
        "checkpoint": str(checkpoint),
        "data": str(table.json_path),
        "images": result.images,
        "metrics": result.metrics,
        "per_class": result.per_class,
        "seconds": result.seconds,
    }


def _print(console: Console, table: CocoTable, result: EvalResult) -> None:
    rows = [[name, f"{value:.4f}" if value >= 0 else "-"] for name, value in result.metrics.items()]
    console.note(f"{count(result.images, 'image')} of {table.json_path}")
    console.table("", rows, ["metric", "value"])
    names = ["bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50", "objects"]
    shown = [n for n in names if any(n in figures for figures in result.per_class.values())]
    cells = [
        [name, *(_cell(n, figures[n]) for n in shown if n in figures)] for name, figures in result.per_class.items()
    ]
    console.table("per class", cells, ["class", *shown])


def _explain(console: Console, a: Analysis) -> None:
    """Thresholds, confusions, errors and suspects, below the metrics."""
    if a.overall is None:
        return
    rows = [[n, *(f"{v:.2f}" for v in (t.score, t.precision, t.recall, t.f1))] for n, t in a.best.items()]
    o = a.overall
    rows.append(["all", *(f"{v:.2f}" for v in (o.score, o.precision, o.recall, o.f1))])
    console.table("best score of each class (F1 at IoU 0.5)", rows, ["class", "score", "precision", "recall", "F1"])
    names = [*(a.names[n] for n in a.order), "nothing"]
    taken = [
        (int(a.confusion[i, j]), names[i], names[j])
        for i in range(len(names)) for j in range(len(names)) if i != j and a.confusion[i, j]
    ]  # fmt: skip
    if taken:
        mixed = [[truth, found, str(n)] for n, truth, found in sorted(taken, reverse=True)[:8]]
        console.table(f"taken for another, at score {o.score:.2f}", mixed, ["truth", "found", "times"])
    errors = sorted(a.errors.items(), key=lambda e: -e[1][1])
    cells = [[ERRORS[k], str(n), f"{gain:.3f}"] for k, (n, gain) in errors if n]
    console.table("errors by kind", cells, ["error", "how many", "AP50 gained without them"])
    if a.suspects:
        console.note(
            f"{count(len(a.suspects), 'label')} to look at: there the model is sure of something else, rightly or not; "
            "--html FILE draws them"
        )


def _cell(name: str, value: float) -> str:
    return f"{value:.0f}" if name == "objects" else f"{value:.3f}" if value >= 0 else "-"
