"""Where hotcoco is absent, pycocotools or faster-coco-eval give the same figures and the same explanation."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_sets import ORACLE_WARNING, random_set

from maskrcnn_coco.data import native_masks
from maskrcnn_coco.evaluation import metrics
from maskrcnn_coco.evaluation.analysis import analyse, plain
from maskrcnn_coco.evaluation.evaluate import EvalResult
from maskrcnn_coco.evaluation.metrics import coco_metrics, ground_truth
from maskrcnn_coco.evaluation.second_engine import _average_precision, _matched

pytestmark = pytest.mark.filterwarnings(ORACLE_WARNING)


def told(seed: int) -> list[Any]:
    """Figures and explanations of a random set, at several limits and for both kinds of IoU."""
    truth, results = random_set(seed, images=4 + seed % 3, detections=20 + 50 * (seed % 2))
    checked = ground_truth(truth["images"], truth["categories"], truth["annotations"])
    out: list[Any] = []
    for kind in ("bbox", "segm"):
        for limit in (100, 10, 150):
            scores = coco_metrics(checked, results, kind, limit)
            out.append([scores.metrics, {str(k): v for k, v in scores.per_class.items()}, scores.coco])
        out.append(plain(analyse(EvalResult({f"{kind}/AP": 0.0}, {}, [], checked, results))))
    return json.loads(json.dumps(out, default=float))


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{where}: {list(a)} {list(b)}"]
        return [d for k in a for d in differences(a[k], b[k], f"{where}/{k}")]
    if isinstance(a, list):
        if len(a) != len(b):
            return [f"{where}: {len(a)} {len(b)}"]
        return [d for n, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}/{n}")]
    same = abs(a - b) <= 1e-9 if isinstance(a, float) and isinstance(b, float) else a == b
    return [] if same else [f"{where}: {a} {b}"]


@pytest.mark.parametrize("seed", range(4))
def test_figures_and_explanation_are_hotcocos(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first = told(seed)
    monkeypatch.setattr(native_masks, "ENGINE", "pycocotools")
    assert differences(first, told(seed)) == []


def test_nothing_found_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_masks, "ENGINE", "pycocotools")
    truth, _ = random_set(1)
    checked = ground_truth(truth["images"], truth["categories"], truth["annotations"])
    assert coco_metrics(checked, [], "segm").metrics["AP"] == 0.0
    assert metrics.unmatched(checked, [], "segm").__class__.__name__ == "SecondEvaluation"


BLOCKED = """
import sys
sys.path[:0] = {paths}
for name in {blocked}:
    sys.modules[name] = None
import json, warnings
warnings.simplefilter("ignore")
import numpy as np
from maskrcnn_coco.data import native_masks
from maskrcnn_coco.data.masks import decode_mask, encode_rle
assert native_masks.ENGINE == {engine!r}, native_masks.ENGINE
mask = np.random.default_rng(0).random((20, 30)) > 0.6
coded = encode_rle(mask)
polygon = [[1.5, 1, 18, 2, 9, 17.25]]
print(json.dumps({{"told": {told}, "coded": coded, "back": bool((decode_mask(coded, 20, 30) == mask).all()),
    "polygon": int(decode_mask(polygon, 20, 30).sum()), "none": list(native_masks.iou([], [coded], [False]).shape)}}))
"""


@pytest.mark.parametrize(
    ("engine", "package", "blocked"),
    [("pycocotools", "pycocotools", ["hotcoco"]), ("faster-coco-eval", "faster_coco_eval", ["hotcoco", "pycocotools"])],
)
def test_with_the_import_blocked(engine: str, package: str, blocked: list[str]) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    here = Path(__file__).resolve()
    # The random sets are made with pycocotools; where that is blocked, masks alone are compared.
    figures = f"__import__('{here.stem}').told(3)" if "pycocotools" not in blocked else "None"
    code = BLOCKED.format(
        paths=[str(here.parent), str(here.parents[1] / "helpers")], blocked=blocked, engine=engine, told=figures
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    if said["told"] is not None:
        assert differences(told(3), said["told"]) == []
    mask = np.random.default_rng(0).random((20, 30)) > 0.6
    assert said["coded"]["counts"] == native_masks.encode(np.asfortranarray(mask).view(np.uint8))["counts"].decode()
    assert said["back"]
    assert said["polygon"] == int(native_masks.area(native_masks.fr_py_objects([[1.5, 1, 18, 2, 9, 17.25]], 20, 30))[0])
    assert said["none"] == [0, 1]


def test_matching_prefers_objects_to_crowds() -> None:
    overlap = np.array([[0.9, 0.6], [0.8, 0.55], [0.7, 0.2]])
    assert _matched(overlap, np.array([True, False]), 0.5).tolist() == [1, 0, 0]  # the crowd is had twice
    assert _matched(overlap, np.array([False, False]), 0.5).tolist() == [0, 1, -1]


def test_average_precision_by_hand() -> None:
    scores, ignored = np.array([0.9, 0.8, 0.7]), np.zeros(3, bool)
    right = np.array([True, False, True])
    assert _average_precision(scores, right, ignored, 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert _average_precision(scores, right, np.array([False, True, False]), 2) == pytest.approx(1.0)
    assert _average_precision(scores[:0], right[:0], ignored[:0], 2) == 0.0
