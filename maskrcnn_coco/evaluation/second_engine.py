"""COCO evaluation where hotcoco is absent: AP by pycocotools or faster-coco-eval, and what explains it in NumPy.

`SecondEvaluation` answers as hotcoco's ``COCOeval`` does, as far as this project asks, with the same numbers.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np

from maskrcnn_coco.data import native_masks

_POINTS = np.linspace(0.0, 1.0, 101)
"""Recalls at which COCO reads precision."""
_BACKGROUND, _WRONG_LABEL = 0.1, 0.5
"""IoU below which a detection lies on nothing; from which its box is that of an object of another class."""
_FALSE = ("Loc", "Cls", "Dupe", "Bkg", "Both")


@dataclass
class _Cell:
    """One image and class, matched at one IoU: detections by falling score, objects in the file's order.

    ``found``: places in the results; ``hit``: the place, among ``truth``, of the object that each has, or -1;
    ``ignored``: it has a crowd. ``overlap``: float (detections, objects).
    """

    image: int
    label: int
    found: list[int]
    hit: np.ndarray
    ignored: np.ndarray
    overlap: np.ndarray
    truth: list[dict[str, Any]]

    @property
    def taken(self) -> set[int]:
        """Objects, by place, that a detection has."""
        return {int(h) for h in self.hit if h >= 0}


@dataclass
class _Error:
    """``kind``: of `_FALSE`; ``target``: the object that it is a bad view of, where it is one."""

    kind: str
    target: dict[str, Any] | None


def _library() -> tuple[Any, Any]:
    if native_masks.ENGINE == "faster-coco-eval":
        from faster_coco_eval import COCO, COCOeval_faster  # pyright: ignore[reportMissingImports]

        return COCO, COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Both libraries print as they go, and pycocotools' compiled part warns of NumPy 2."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


class SecondEvaluation:
    """``truth``: a COCO file's three lists, checked; ``results``: COCO results, checked; ``iou_type``: bbox or segm."""

    def __init__(self, truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], iou_type: str) -> None:
        self._truth, self._results, self._type = truth, [dict(r) for r in results], iou_type
        categories = sorted({int(c["id"]) for c in truth["categories"]})
        self.params = SimpleNamespace(max_dets=[1, 10, 100], cat_ids=categories)
        self.eval: dict[str, Any] = {}
        self.stats: list[float] = []
        self._inner: Any = None

    def evaluate(self) -> None:
        """Match detections and objects."""
        coco_class, evaluation_class = _library()
        with _quiet():
            truth = coco_class()
            truth.dataset = {**self._truth, "annotations": [dict(a) for a in self._truth["annotations"]]}
            truth.createIndex()
            found = coco_class()
            found.dataset = {**self._truth, "annotations": [dict(r) for r in self._boxed]}
            found.createIndex()
            self._inner = evaluation_class(truth, found, self._type)
            self._inner.params.maxDets = list(self.params.max_dets)
            self._inner.evaluate()

    def accumulate(self) -> None:
        """Precision and recall from the matches."""
        with _quiet():
            self._inner.accumulate()
        self.eval = self._inner.eval

    def summary_lines(self) -> None:
        """COCO's twelve numbers into ``stats``."""
        with _quiet():
            self._inner.summarize()
        self.stats = [float(v) for v in self._inner.stats[:12]]

    @cached_property
    def _boxed(self) -> list[dict[str, Any]]:
        """Results with what both libraries add to them: a number, an area, a box."""
        out = []
        for number, r in enumerate(self._results, 1):
            segmentation: Any = r.get("segmentation")
            box = r.get("bbox")
            if box is None:
                box = np.asarray(native_masks.to_bbox([segmentation]), float).reshape(4).tolist()
                area = float(native_masks.area(segmentation))  # type: ignore[arg-type]
            else:
                area = float(box[2] * box[3])
            out.append({**r, "id": number, "bbox": list(box), "area": area, "iscrowd": 0})
        return out

    @cached_property
    def _by_image(self) -> dict[int, tuple[list[int], list[dict[str, Any]]]]:
        """Image → (places of its results, its objects)."""
        out: dict[int, tuple[list[int], list[dict[str, Any]]]] = defaultdict(lambda: ([], []))
        for place, r in enumerate(self._results):
            out[r["image_id"]][0].append(place)
        for a in self._truth["annotations"]:
            out[a["image_id"]][1].append(a)
        return dict(out)

    @cached_property
    def _sizes(self) -> dict[int, tuple[int, int]]:
        return {i["id"]: (i["height"], i["width"]) for i in self._truth["images"]}

    def _overlap(self, image: int, found: list[int], truth: list[dict[str, Any]]) -> np.ndarray:
        if not found or not truth:
            return np.zeros((len(found), len(truth)))
        crowd = [bool(a["iscrowd"]) for a in truth]
        if self._type == "bbox":
            return native_masks.bbox_iou(
                [list(self._results[n]["bbox"]) for n in found], [a["bbox"] for a in truth], crowd
            )
        masks = [_rle(self._results[n]["segmentation"], *self._sizes[image]) for n in found]
        return native_masks.iou(masks, [_rle(a["segmentation"], *self._sizes[image]) for a in truth], crowd)

    def _cells(self, threshold: float) -> list[_Cell]:
        cells = []
        for image, (places, objects) in self._by_image.items():
            for label in self.params.cat_ids:
                found = [n for n in places if self._results[n]["category_id"] == label]
                found = sorted(found, key=lambda n: -self._results[n]["score"])[: self.params.max_dets[-1]]
                truth = [a for a in objects if a["category_id"] == label]
                if found or truth:
                    overlap = self._overlap(image, found, truth)
                    crowd = np.array([bool(a["iscrowd"]) for a in truth], bool)
                    hit = _matched(overlap, crowd, threshold)
                    ignored = np.array([h >= 0 and crowd[h] for h in hit], bool)
                    cells.append(_Cell(image, label, found, hit, ignored, overlap, truth))
        return cells

    def image_diagnostics(self, iou_thr: float, score_thr: float) -> dict[str, Any]:
        """``dt_status``: result, from 1 → tp or fp (in a crowd: neither); ``label_errors``: the surest first."""
        status: dict[int, str] = {}
        missed: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for cell in self._cells(iou_thr):
            for place, hit, ignored in zip(cell.found, cell.hit, cell.ignored, strict=True):
                if not ignored:
                    status[place + 1] = "tp" if hit >= 0 else "fp"
            taken = cell.taken
            missed[cell.image] += [a for g, a in enumerate(cell.truth) if not a["iscrowd"] and g not in taken]
        doubts = [
            doubt
            for number, said in status.items()
            if said == "fp" and self._results[number - 1]["score"] >= score_thr
            and (doubt := self._doubt(number, missed)) is not None
        ]  # fmt: skip
        return {"dt_status": status, "label_errors": sorted(doubts, key=lambda d: (-d["dt_score"], d["dt_id"]))}

    def _doubt(self, number: int, missed: Mapping[int, list[dict[str, Any]]]) -> dict[str, Any] | None:
        """Why a sure detection that is wrong may be right: an object of another name there, or none at all."""
        r = self._boxed[number - 1]
        here = [a for a in self._by_image[r["image_id"]][1] if not a["iscrowd"]]
        other = [a for a in missed[r["image_id"]] if a["category_id"] != r["category_id"]]
        said = {"image_id": r["image_id"], "dt_id": number, "dt_score": r["score"], "gt_id": None, "iou": 0.0}
        boxes = native_masks.bbox_iou([list(r["bbox"])], [a["bbox"] for a in other], [False] * len(other))
        if len(other) and boxes.max() >= _WRONG_LABEL:
            return said | {"gt_id": other[int(boxes.argmax())]["id"], "iou": float(boxes.max())}
        near = native_masks.bbox_iou([list(r["bbox"])], [a["bbox"] for a in here], [False] * len(here))
        return said if near.max(initial=0.0) < _BACKGROUND else None

    def confusion_matrix(self, iou_thr: float, min_score: float) -> dict[str, Any]:
        """``matrix`` (K + 1, K + 1): rows the truth, columns what was found, the last nothing; ``cat_ids``: the K."""
        ids = self.params.cat_ids
        place, nothing = {c: n for n, c in enumerate(ids)}, len(ids)
        matrix = np.zeros((nothing + 1, nothing + 1), np.int64)
        for image, (places, objects) in self._by_image.items():
            truth = sorted((a for a in objects if not a["iscrowd"]), key=lambda a: place[a["category_id"]])
            found = [n for n in places if self._results[n]["score"] >= min_score]
            found.sort(key=lambda n: (-self._results[n]["score"], place[self._results[n]["category_id"]]))
            found = found[: self.params.max_dets[-1]]
            hit = _matched(self._overlap(image, found, truth), np.zeros(len(truth), bool), iou_thr)
            rows = [place[a["category_id"]] for a in truth]
            for n, h in zip(found, hit, strict=True):
                matrix[rows[h] if h >= 0 else nothing, place[self._results[n]["category_id"]]] += 1
            for g in set(range(len(truth))) - {int(h) for h in hit}:
                matrix[rows[g], nothing] += 1
        return {"matrix": matrix, "cat_ids": ids}

    def tide_errors(self, pos_thr: float) -> dict[str, Any]:
        """TIDE (Bolya and others, 2020): ``counts`` of each kind of error, ``delta_ap``: AP gained without it."""
        cells = self._cells(pos_thr)
        errors = self._errors(cells, pos_thr)
        covered = {e.target["id"] for e in errors.values() if e.target is not None}
        taken = {cell.truth[g]["id"] for cell in cells for g in cell.taken}
        unmet = [a for c in cells for a in c.truth if not a["iscrowd"] and a["id"] not in taken | covered]
        said = Counter(e.kind for e in errors.values())
        counts = {k: said[k] for k in _FALSE} | {"Miss": len(unmet)}
        lost = Counter(a["category_id"] for a in unmet)
        # Of several errors at one object, the surest would be it; the others would be gone. So would all where it has
        # its detection already.
        best: dict[int, int] = {}
        for place, e in sorted(errors.items(), key=lambda item: -self._results[item[0]]["score"]):
            if e.target is not None and not e.target["iscrowd"] and e.target["id"] not in taken:
                best.setdefault(e.target["id"], place)
        return {"counts": counts, "delta_ap": self._gains(cells, errors, set(best.values()), lost)}

    def _errors(self, cells: Sequence[_Cell], threshold: float) -> dict[int, _Error]:
        """Place of a result that is wrong → its kind of error, and the object that it is nearest to."""
        errors: dict[int, _Error] = {}
        for cell in cells:
            objects = self._by_image[cell.image][1]
            others = [a for a in objects if not a["iscrowd"] and a["category_id"] != cell.label]
            across, taken = self._overlap(cell.image, cell.found, others), cell.taken
            for row, place in enumerate(cell.found):
                if cell.hit[row] >= 0:
                    continue
                same, cross = cell.overlap[row], across[row]
                kind = _kind(same, cross, [g in taken for g in range(len(same))], threshold)
                target = {"Loc": (same, cell.truth), "Cls": (cross, others)}.get(kind)
                errors[place] = _Error(kind, None if target is None else target[1][int(target[0].argmax())])
        return errors

    def _gains(
        self, cells: Sequence[_Cell], errors: Mapping[int, _Error], best: set[int], lost: Mapping[int, int]
    ) -> dict[str, float]:
        gains: dict[str, list[float]] = {k: [] for k in (*_FALSE, "Miss")}
        for label in self.params.cat_ids:
            mine = [c for c in cells if c.label == label]
            objects = sum(not a["iscrowd"] for c in mine for a in c.truth)
            if objects == 0:
                continue
            places = [n for c in mine for n in c.found]
            scores = np.array([self._results[n]["score"] for n in places], float)
            hit = np.array([h >= 0 for c in mine for h in c.hit], bool)
            ignored = np.array([i for c in mine for i in c.ignored], bool)
            base = _average_precision(scores, hit, ignored, objects)
            for k in _FALSE:
                gone = np.array([n in errors and errors[n].kind == k for n in places], bool)
                # Mended, a detection is a hit of its object's class, which is not its own where that was the error.
                mended = [n for n in best if errors[n].kind == k and errors[n].target["category_id"] == label]  # type: ignore[index]
                here = np.array([n in mended for n in places], bool)
                more = np.array([self._results[n]["score"] for n in mended if n not in places], float)
                right = np.append(hit | here, np.ones(len(more), bool))
                left_out = np.append(ignored | (gone & ~here), np.zeros(len(more), bool))
                whole = (np.append(scores, more), right, left_out)
                gains[k].append(_average_precision(*whole, objects) - base)
            gains["Miss"].append(_average_precision(scores, hit, ignored, objects - lost.get(label, 0)) - base)
        return {k: float(np.mean(v)) if v else 0.0 for k, v in gains.items()}


def _rle(value: Any, height: int, width: int) -> dict[str, Any]:
    return native_masks.merge(native_masks.fr_py_objects(value, height, width)) if isinstance(value, list) else value


def _matched(overlap: np.ndarray, crowd: np.ndarray, threshold: float) -> np.ndarray:
    """COCO's matching: int (detections,), the object that each takes, or -1. Only crowds are taken several times."""
    order = np.argsort(crowd, kind="stable")  # a crowd only where no object is
    taken = np.zeros(len(crowd), bool)
    out = np.full(len(overlap), -1, np.int64)
    for row in range(len(overlap)):
        best = min(threshold, 1 - 1e-10)
        for g in order:
            if taken[g] and not crowd[g]:
                continue
            if out[row] >= 0 and not crowd[out[row]] and crowd[g]:
                break
            if overlap[row, g] >= best:
                best, out[row] = overlap[row, g], g
        if out[row] >= 0:
            taken[out[row]] = True
    return out


def _kind(same: np.ndarray, cross: np.ndarray, taken: Sequence[bool], threshold: float) -> str:
    """What kind of error a detection without an object is, from its overlaps with its own class and with others."""
    if _BACKGROUND <= same.max(initial=0.0) <= threshold:
        return "Loc"
    if cross.max(initial=0.0) >= threshold:
        return "Cls"
    if any(t and o >= threshold for t, o in zip(taken, same, strict=True)):
        return "Dupe"
    return "Bkg" if cross.max(initial=0.0) <= _BACKGROUND else "Both"


def _average_precision(scores: np.ndarray, hit: np.ndarray, ignored: np.ndarray, objects: int) -> float:
    """COCO's, at 101 recalls; ``ignored`` detections are neither right nor wrong."""
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum((hit & ~ignored)[order])
    wrong = np.cumsum((~hit & ~ignored)[order])
    recall, precision = right / max(objects, 1), right / np.maximum(right + wrong, 1e-12)
    precision = np.maximum.accumulate(precision[::-1])[::-1] if len(precision) else precision
    at = np.searchsorted(recall, _POINTS, side="left")
    return float(np.append(precision, 0.0)[np.minimum(at, len(precision))].mean())
