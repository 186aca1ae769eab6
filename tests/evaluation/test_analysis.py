"""What explains an AP: thresholds against a slow twin, confusions, errors and suspects that were put there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maskrcnn_coco.data.masks import encode_rle
from maskrcnn_coco.evaluation.analysis import analyse, plain
from maskrcnn_coco.evaluation.evaluate import EvalResult
from maskrcnn_coco.evaluation.metrics import coco_metrics, ground_truth
from maskrcnn_coco.records import to_json

SIZE = 100


def thing(image: int, label: int, x: int, y: int, **more: Any) -> dict[str, Any]:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[y : y + 20, x : x + 20] = 1
    box = [float(x), float(y), 20.0, 20.0]
    return {"image_id": image, "category_id": label, "bbox": box, "segmentation": encode_rle(mask), **more}


def result(objects: list[dict[str, Any]], found: list[dict[str, Any]], images: int = 3) -> EvalResult:
    rows = [{"id": n, "height": SIZE, "width": SIZE} for n in range(images)]
    names = [{"id": 1, "name": "apple"}, {"id": 2, "name": "pear"}]
    truth = ground_truth(rows, names, [{"id": n, "iscrowd": 0, **o} for n, o in enumerate(objects)])
    metrics = {f"segm/{k}": v for k, v in coco_metrics(truth, found, "segm").metrics.items()}
    return EvalResult(metrics, {"apple": {}, "pear": {}}, [], truth, found)


def test_what_was_put_there_is_found() -> None:
    objects = [thing(0, 1, 5, 5), thing(0, 2, 50, 50), thing(1, 1, 10, 10), thing(2, 2, 30, 30)]
    found = [
        thing(0, 1, 5, 5, score=0.95),
        thing(0, 1, 50, 50, score=0.9),  # a pear that it calls an apple
        thing(1, 1, 10, 10, score=0.85),
        thing(1, 2, 70, 70, score=0.83),  # nothing is annotated there
        thing(2, 2, 44, 30, score=0.6),  # out of place
    ]
    a = analyse(result(objects, found))
    assert a.confusion[a.order.index(2), a.order.index(1)] == 1
    kinds = {s.kind: s for s in a.suspects}
    assert kinds["missing_annotation"].row == 1
    assert kinds["missing_annotation"].found["score"] == 0.83
    assert kinds["wrong_label"].annotation is not None
    assert kinds["wrong_label"].annotation["category_id"] == 2
    assert a.errors["Cls"][0] == 1
    assert a.errors["Loc"][0] == 1
    assert a.errors["Bkg"][0] == 1
    to_json(plain(a))


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_are_those_of_a_slow_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spots = [(x, y) for x in range(0, 80, 26) for y in range(0, 80, 26)]
    objects, found = [], []
    for image in range(3):
        for x, y in spots:
            label = int(rng.integers(1, 3))
            objects.append(thing(image, label, x, y))
            if rng.random() < 0.8:
                score = round(float(rng.uniform(0.05, 1)), 1)  # many are equal
                found.append(thing(image, label if rng.random() < 0.7 else 3 - label, x, y, score=score))
    a = analyse(result(objects, found))
    for label, name in ((1, "apple"), (2, "pear")):
        best = max((slow_f1(objects, found, label, t / 10), t / 10) for t in range(11))
        assert a.best[name].f1 == pytest.approx(best[0])
        assert slow_f1(objects, found, label, a.best[name].score) == pytest.approx(best[0])


def slow_f1(objects: list[dict], found: list[dict], label: int, score: float) -> float:
    """Every detection sits exactly on one object: right where the classes agree."""
    at = {(o["image_id"], *o["bbox"]): o["category_id"] for o in objects}
    kept = [f for f in found if f["category_id"] == label and f["score"] >= score - 1e-9]
    hits = sum(at[(f["image_id"], *f["bbox"])] == label for f in kept)
    total = len(kept) + sum(o["category_id"] == label for o in objects)
    return 2 * hits / total if total else 0.0


@pytest.mark.parametrize("found", [[], [thing(0, 1, 5, 5, score=0.9)]])
def test_nothing_to_match_is_nothing_to_explain(found: list[dict[str, Any]]) -> None:
    a = analyse(result([] if found else [thing(0, 1, 5, 5)], found))
    assert a.best == {}
    assert a.overall is None
    assert a.suspects == []
    to_json(plain(a))


def test_a_perfect_model_is_accused_of_nothing() -> None:
    objects = [thing(0, 1, 5, 5), thing(1, 2, 50, 50)]
    a = analyse(result(objects, [o | {"score": 0.9} for o in objects]))
    assert a.suspects == []
    assert all(n == 0 for n, _ in a.errors.values())
    assert a.overall is not None
    assert a.overall.f1 == pytest.approx(1.0)
