"""COCO evaluation of a detector: boxes and masks in the original image's pixels, in any process, over any data set."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.evaluation.detect import Prediction, infer_each
from maskrcnn_coco.evaluation.ground_truth import EvalSet, Example, as_eval_set, check_label
from maskrcnn_coco.evaluation.metrics import (
    COCO_DETECTIONS,
    GroundTruth,
    IouType,
    coco_metrics,
    ground_truth,
    most_objects,
)

MaxDets = int | Literal["auto"]
Finder = Callable[[Sequence[Example]], list[Prediction | DataError]]
"""Detections on examples: one answer each, with rows for image ids, labels for category ids."""


@dataclass
class EvalResult:
    """What an evaluation found.

    Attributes:
        metrics: ``bbox/AP`` … ``segm/ARl``: the twelve COCO numbers of each kind, 0..1, -1 where undefined; and
            ``segm/AP@100`` … as COCO counts, where ``max_dets`` is another number.
        per_class: class name → ``bbox/AP``, ``bbox/AP50``, ``segm/AP``, ``segm/AP50``, and ``objects``, their number.
        detections: COCO results with the data set's image and category ids; boxes xywh and masks (RLE) in pixels.
            Without those of classes that the data set does not list: they have no id there, and COCO counts none.
        truth, found: ground truth and results as scored, with rows for image ids and labels for category ids.
        left_out: images and annotations that could not be used, one sentence each.
        notes: how images of a data set of one's own were converted to be read: a sentence for each kind.
        seconds, seconds_metrics: wall time of the whole, and of the metric part.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    detections: list[dict[str, Any]]
    truth: GroundTruth
    found: list[dict[str, Any]]
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    images: int = 0
    max_dets: int = COCO_DETECTIONS
    """Detections of one class in one image that count."""
    seconds: float = 0.0
    seconds_metrics: float = 0.0


@dataclass
class Shard:
    """One process's part of an evaluation: plain data, ready to be sent. ``image_id`` is the row throughout."""

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    masks: bool = False


def evaluate_model(
    model: nn.Module,
    source: Any,
    *,
    device: torch.device | str,
    precision: str = "fp32",
    batch_size: int = 1,
    class_names: Sequence[str] | None = None,
    ranks: Ranks | None = None,
    progress: Callable[[int, int], None] | None = None,
    max_dets: MaxDets = "auto",
    finder: Finder | None = None,
) -> EvalResult:
    """COCO metrics of ``model`` on ``source``. The model's train or eval mode is left as it was found.

    Args:
        model: torchvision's detection contract: in eval mode a list of dicts ``boxes`` float (N, 4) xyxy pixels,
            ``labels`` (N,), ``scores`` (N,), optionally ``masks`` (N, 1, H, W) in 0..1.
        source: a `CocoTable`, a data set with one as ``.table``, or a map-style data set with torchvision's targets.
        device, precision: where and in what ("fp32", "fp16", "bf16") the forward pass runs.
        class_names: ("background", first class, …) for a data set of your own.
        ranks: the run's processes: each then evaluates its share, and all get the same result.
        progress: called with (images done, images to do) of this process.
        max_dets: detections of one class in one image that count; "auto": 100, or the data's own most objects.
        finder: looks at the images in the model's place: in tiles, or several times.

    Raises:
        DataError: the model predicts a class that the data does not have, or no image can be evaluated. Single images
            that cannot be read, or that the model cannot take, are left out and named.
    """
    began = time.perf_counter()
    data = as_eval_set(source, class_names)
    rows = range(len(data)) if ranks is None else range(ranks.rank, len(data), ranks.world)
    shard = detect(
        model, data, rows, device=device, precision=precision, batch_size=batch_size, progress=progress, finder=finder
    )
    shards = [shard]
    if ranks is not None and ranks.world > 1:
        shards = [Shard(**part) for part in ranks.gather_objects(shard)]
    result = score(shards, data, max_dets)
    result.seconds = time.perf_counter() - began
    return result


def detect(
    model: nn.Module,
    data: EvalSet,
    rows: Sequence[int],
    *,
    device: torch.device | str,
    precision: str = "fp32",
    batch_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
    finder: Finder | None = None,
) -> Shard:
    """Run ``model`` over ``rows`` of ``data``; see `evaluate_model`."""
    finder = finder or partial(infer_each, model, device=device, precision=precision)
    shard, done = Shard(), 0
    for batch in _batches(data, data.order(rows), batch_size, shard):
        for example, found in zip(batch, finder(batch), strict=True):
            if isinstance(found, DataError):
                shard.left_out.append(f"{example.file_name}: {found.what}")
            else:
                _keep(shard, example, found)
        done += len(batch)
        if progress is not None:
            progress(done, len(rows))
    return shard


def _batches(data: EvalSet, rows: list[int], batch_size: int, shard: Shard) -> Iterator[list[Example]]:
    with _loaded(data, rows, ahead=2 * batch_size) as examples:
        batch: list[Example] = []
        for example in examples:
            if isinstance(example, DataError):
                shard.left_out.append(example.what)
                continue
            batch.append(example)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


@contextmanager
def _loaded(data: EvalSet, rows: list[int], ahead: int) -> Iterator[Iterator[Example | DataError]]:
    """The examples in order, read ahead in threads where the data set allows it."""

    def load(row: int) -> Example | DataError:
        try:
            return data.load(row)
        except DataError as e:
            return e

    if data.threads == 0:
        yield map(load, rows)
        return
    with ThreadPoolExecutor(data.threads, "evaluation") as pool:
        try:
            yield _read_ahead(pool, load, rows, ahead)
        finally:
            pool.shutdown(cancel_futures=True)


def _read_ahead(
    pool: ThreadPoolExecutor, load: Callable[[int], Example | DataError], rows: list[int], ahead: int
) -> Iterator[Example | DataError]:
    coming = [pool.submit(load, r) for r in rows[:ahead]]
    for at in range(len(rows)):
        if at + ahead < len(rows):
            coming.append(pool.submit(load, rows[at + ahead]))
        yield coming.pop(0).result()


def _keep(shard: Shard, example: Example, found: Prediction) -> None:
    shard.images.append(
        {"id": example.row, "image_id": example.image_id, "height": example.height, "width": example.width}
    )
    shard.annotations += example.annotations
    for note in dict.fromkeys(example.notes):
        shard.notes[note] = shard.notes.get(note, 0) + 1
    shard.masks |= found.has_masks
    shard.results += found.results
    if found.dropped:
        shard.left_out.append(f"{example.file_name}: {found.dropped} detections are not finite and were dropped")


def score(shards: Sequence[Shard], data: EvalSet, max_dets: MaxDets = "auto") -> EvalResult:
    """COCO metrics of gathered shards; ``max_dets`` as in `evaluate_model`.

    Raises:
        DataError: the model predicts a class that the data does not have, or no image at all could be evaluated.
    """
    left_out = [text for s in shards for text in s.left_out]
    if left_out and not any(s.images for s in shards):
        raise DataError(f"none of the {len(data)} images can be evaluated; the first: {left_out[0]}")
    images = sorted((i for s in shards for i in s.images), key=lambda i: i["id"])
    results = sorted((r for s in shards for r in s.results), key=lambda r: r["image_id"])
    annotations = [a for s in shards for a in s.annotations]
    for label in {r["category_id"] for r in results}:
        check_label(label, data.names)
    labels = _labels(data, annotations, results)
    began = time.perf_counter()
    truth = ground_truth(images, [{"id": n, "name": name} for n, name in labels.items()], annotations)
    metrics: dict[str, float] = {}
    per_class: dict[str, dict[str, float]] = {name: {} for name in labels.values()}
    cap = counted(max_dets, truth)
    kinds: tuple[IouType, ...] = ("bbox", "segm") if any(s.masks for s in shards) else ("bbox",)
    for kind in kinds:
        # Without the box a mask's own area decides whether it is small, medium or large.
        given = results if kind == "bbox" else [{k: v for k, v in r.items() if k != "bbox"} for r in results]
        scores = coco_metrics(truth, given, kind, cap)
        metrics |= {f"{kind}/{name}": value for name, value in scores.metrics.items()}
        metrics |= {f"{kind}/{name}@{COCO_DETECTIONS}": value for name, value in scores.coco.items()}
        for label, values in scores.per_class.items():
            per_class[labels[label]] |= {f"{kind}/{name}": value for name, value in values.items()}
    seconds = time.perf_counter() - began
    _count_objects(per_class, labels, truth)
    detections = _with_users_ids(results, images, data)
    return EvalResult(
        metrics,
        per_class,
        detections,
        truth,
        results,
        left_out + truth.left_out,
        _said(shards),
        len(images),
        cap,
        seconds_metrics=seconds,
    )


def _said(shards: Sequence[Shard]) -> list[str]:
    counts: Counter[str] = Counter()
    for shard in shards:
        counts.update(shard.notes)
    return [f"{text} ({number} of them)" for text, number in counts.items()]


def counted(max_dets: MaxDets, truth: GroundTruth) -> int:
    """Detections of one class in one image that count."""
    return max(COCO_DETECTIONS, most_objects(truth)) if max_dets == "auto" else max_dets


def _labels(data: EvalSet, annotations: list[dict[str, Any]], results: list[dict[str, Any]]) -> dict[int, str]:
    """Label → a name that is unique."""
    if data.names is None:
        seen = {int(x["category_id"]) for x in (*annotations, *results)}
        return {n: f"class {n}" for n in sorted(seen - {0})}
    twice = {name for name in data.names if data.names.count(name) > 1}
    return {n: f"{name} ({n})" if name in twice else name for n, name in enumerate(data.names, 1)}


def _count_objects(per_class: dict[str, dict[str, float]], labels: dict[int, str], truth: GroundTruth) -> None:
    for values in per_class.values():
        values["objects"] = 0.0
    for annotation in truth.annotations:
        per_class[labels[annotation["category_id"]]]["objects"] += 1.0


def _with_users_ids(results: list[dict[str, Any]], images: list[dict[str, Any]], data: EvalSet) -> list[dict[str, Any]]:
    ids = {i["id"]: i["image_id"] for i in images}
    if len(set(ids.values())) != len(ids):  # a data set whose images share an id: the row is the only name left
        ids = {row: row for row in ids}
    if data.category_ids is None:
        return [r | {"image_id": ids[r["image_id"]]} for r in results]
    categories = dict(enumerate(data.category_ids, 1))
    return [
        r | {"image_id": ids[r["image_id"]], "category_id": category}
        for r in results
        if (category := categories.get(r["category_id"], r["category_id"])) is not None
    ]
