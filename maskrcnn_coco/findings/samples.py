"""Samples of detection data as they reach the model: labels, boxes, masks, pixels, put into facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskrcnn_coco.findings.content import Picture, content_of, picture_of
from maskrcnn_coco.findings.extents import Objects, geometry_of
from maskrcnn_coco.findings.facts import Facts, Labels, Pixels, Stage, Targets, Way
from maskrcnn_coco.findings.forms import Form, form_of

ENOUGH = 64
"""Samples after which a look is over."""
NEGATIVE, LARGE, FAINT = -0.05, 1.05, 1 / 250
"""Values past 0..1 by more than interpolation goes; and below which two divisions by 255 leave everything."""
LOOKED = 64
"""Pictures whose edges are looked at."""
ROWS = 200
"""Most masks that are also read along rows."""
NONE4 = np.full(4, np.nan)


class Samples:
    """Collects what samples show. Add (image, target) pairs of torchvision's contract, then ask for `facts`.

    Args:
        head: outputs of the classifier, background included. num_classes: what the caller says. normalises: the
            model subtracts a mean of its own, ``mean``. channels: of the images that it takes, None: not known.
            learns_masks: it has a mask head.
    """

    def __init__(
        self,
        *,
        head: int | None = None,
        num_classes: int | None = None,
        normalises: bool = True,
        channels: int | None = None,
        mean: float = 0.0,
        learns_masks: bool = False,
    ) -> None:
        self.head, self.num_classes, self.normalises = head, num_classes, normalises
        self.channels, self.mean, self.learns_masks = channels, mean, learns_masks
        self.forms: Counter[Form] = Counter()
        """What does not fit torchvision's contract, with the number of samples that have it."""
        self._unread: list[int] = []
        self._twice = 0
        self.images = self.bad_images = 0
        self._labels: Counter[int] = Counter()
        self._labelled = 0
        self._out_of_range: list[int] = []
        self._boxes: list[np.ndarray] = []
        self._extents: list[np.ndarray] = []
        self._rows: list[list[np.ndarray]] = []
        self._sizes: list[np.ndarray] = []
        self._ids: list[int] = []
        self._lost: dict[str, list[int]] = {"large enough": [], "mask not empty": []}
        self._counts = Counter[str]()
        self._ranges: list[tuple[float, float]] = []
        self._range_ids: list[int] = []
        self._pictures: set[int] = set()
        self._looked: list[Picture] = []

    @classmethod
    def for_model(cls, model: nn.Module, num_classes: int | None = None) -> Samples:
        """What a torchvision detector expects; nothing is expected of other models."""
        inner = getattr(model, "module", model)
        score = getattr(getattr(getattr(inner, "roi_heads", None), "box_predictor", None), "cls_score", None)
        transform = getattr(inner, "transform", None)
        mean, std = getattr(transform, "image_mean", None), getattr(transform, "image_std", None)
        normalises = bool(mean and std and (max(abs(m) for m in mean) > 0.05 or abs(max(std) - 1) > 0.05))
        return cls(
            head=getattr(score, "out_features", None),
            num_classes=num_classes,
            normalises=normalises,
            channels=len(mean) if mean else None,
            mean=max(map(abs, mean)) if mean else 0.0,
            learns_masks=getattr(getattr(inner, "roi_heads", None), "mask_predictor", None) is not None,
        )

    def add(self, image: Tensor, target: Mapping[str, Any], image_id: int, index: int | None = None) -> None:
        """One sample; what cannot be read is counted in ``forms``. ``index``: its place in the data set."""
        place = self.images if index is None else index
        self.images += 1
        problem = form_of(image, target, self.channels, masks=self.learns_masks)
        if problem is not None:
            self.refuse(problem, image_id)
            return
        try:
            self._read(image, target, image_id, place)
        except Exception as e:  # of a stranger's sample anything may raise; the run itself will name the item
            self.refuse(Form(f"a sample cannot be read: {type(e).__name__}: {str(e)[:120]}"), image_id)

    def _read(self, image: Tensor, target: Mapping[str, Any], image_id: int, place: int) -> None:
        """What the looks of `facts` need of one sample that has the right form."""
        self._add_pixels(image, image_id)
        boxes = target["boxes"].detach().reshape(-1, 4).cpu().double().numpy()
        if "labels" in target:
            self._add_labels(target["labels"], image_id)
        size = np.array(image.shape[-2:], np.float64)
        keyed = np.column_stack([boxes, target["labels"].detach().reshape(-1).cpu().double().numpy()])
        self._twice += len(keyed) - len(np.unique(keyed, axis=0))
        masks = target.get("masks")
        masks = masks if isinstance(masks, Tensor) and masks.layout == torch.strided else None
        extents, rows = extents_of(masks) if isinstance(masks, Tensor) else (None, None)
        self._counts["objects"] += len(boxes)
        if isinstance(masks, Tensor) and len(masks) and len(self._looked) < LOOKED:
            solid = masks.detach().cpu().numpy() != 0
            self._looked.append(picture_of(image.detach().float().cpu().numpy(), solid, image_id, place))
        with np.errstate(invalid="ignore"):
            large = (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1) | ~np.isfinite(boxes).all(axis=1)
        self._stage("large enough", large, image_id)
        if extents is not None:
            self._counts["masked"] += 1
            self._stage("mask not empty", large & np.isfinite(extents).all(axis=1), image_id, large)
        for n, box in enumerate(boxes):
            self._boxes.append(box)
            self._extents.append(NONE4 if extents is None else extents[n])
            self._sizes.append(size)
            self._ids.append(image_id)
            self._rows.append([NONE4, NONE4] if rows is None else [r[n] for r in rows])

    def refuse(self, problem: Form, image_id: int) -> None:
        """One of the samples counted in ``images`` cannot be trained on."""
        self.forms[problem] += 1
        self._unread.append(image_id)

    def _stage(self, name: str, kept: np.ndarray, image_id: int, of: np.ndarray | None = None) -> None:
        self._counts[name] += int(kept.sum())
        if (~kept if of is None else of & ~kept).any():
            self._lost[name].append(image_id)

    def _add_labels(self, labels: Tensor, image_id: int) -> None:
        values = labels.detach().reshape(-1).cpu().tolist()
        self._labels.update(int(v) for v in values)
        if not values:
            return
        self._labelled += 1
        known = self.head or self.num_classes
        if min(values) < 1 or (known is not None and max(values) >= known):
            self.bad_images += 1
            self._out_of_range.append(image_id)

    def _add_pixels(self, image: Tensor, image_id: int) -> None:
        low, high = (float(v) for v in torch.aminmax(image.detach()))
        if low == low and high == high and abs(low) != float("inf") and abs(high) != float("inf"):
            self._ranges.append((low, high))
            self._range_ids.append(image_id)
            few = image.detach()[..., ::7, ::7].cpu().contiguous()
            self._pictures.add(hash((tuple(image.shape), few.numpy().tobytes())))

    @property
    def form(self) -> Form | None:
        """What keeps every sample so far from being read; None where one can be."""
        return self.forms.most_common(1)[0][0] if self.images and self.forms.total() == self.images else None

    @property
    def objects(self) -> int:
        """Objects seen."""
        return self._counts["objects"]

    def facts(self, way: Way, *, whole: bool, of: str = "training data") -> Facts:
        """Everything seen. ``whole``: that was every sample there is. ``of``: what messages call the data."""
        facts = Facts(way=way, labels=self._label_facts(), pixels=self._pixel_facts(), targets=[self._targets(whole)])
        for part in (facts.labels, facts.pixels, facts.targets[0]):
            if part is not None:
                part.of = of
        if self._boxes:
            rows = [np.array([r[i] for r in self._rows]) for i in (0, 1)]
            objects = Objects(
                *(np.array(v) for v in (self._boxes, self._extents, self._sizes, self._ids)), by_rows=rows
            )
            facts.geometry = [geometry_of(objects)]
            facts.geometry[0].of, facts.geometry[0].twice = of, self._twice
            content = content_of(self._looked, of)
            facts.contents = [] if content is None else [content]
        return facts

    def _label_facts(self) -> Labels:
        return Labels(
            dict(sorted(self._labels.items())),
            self._labelled,
            self.bad_images,
            self.num_classes,
            self.head,
            image_ids=self._out_of_range[:20],
        )

    def _targets(self, whole: bool) -> Targets:
        stages = [Stage("annotated", self._counts["objects"])]
        names = ["large enough", *(["mask not empty"] if self._counts["masked"] else [])]
        stages += [Stage(n, self._counts[n], self._lost[n][:20]) for n in names]
        form = self.forms.most_common(1)[0][0] if self.forms else Form("", "")
        unread = self.forms.total()
        return Targets(
            self.images,
            stages,
            whole=whole,
            form=form.what,
            form_fix=form.fix,
            unread=unread,
            unread_ids=self._unread[:20],
        )

    def _bright(self) -> int:
        """Images above 2 beside others that end at 1: two scales in one set."""
        plain = [b for _, b in self._ranges if 0 < b <= LARGE]
        return sum(b > 2 and b >= 50 * max(plain) for _, b in self._ranges) if plain else 0

    def _pixel_facts(self) -> Pixels:
        low = min((a for a, _ in self._ranges), default=0.0)
        high = max((b for _, b in self._ranges), default=0.0)
        return Pixels(
            len(self._ranges),
            low,
            high,
            negative=sum(a < NEGATIVE for a, _ in self._ranges),
            large=sum(b > LARGE for _, b in self._ranges),
            faint=sum(a >= 0 and 0 < b <= FAINT for a, b in self._ranges),
            constant=sum(a == b for a, b in self._ranges),
            bright=self._bright(),
            distinct=len(self._pictures),
            normalises=self.normalises,
            mean=self.mean,
            image_ids=self._range_ids[:20],
        )


def extents_of(masks: Tensor) -> tuple[np.ndarray, list[np.ndarray] | None]:
    """Extents xyxy (N, 4) of masks (N, H, W), NaN where empty; and read along rows, for the first `ROWS` of them."""
    if masks.ndim != 3 or not len(masks):
        return np.zeros((0, 4)), None
    solid = masks.detach() != 0
    found = _extents(solid).cpu().numpy()
    h, w = solid.shape[-2:]
    if h == w or len(masks) > ROWS:
        return found, None
    flat = solid.reshape(len(solid), -1)
    columns = flat.reshape(-1, w, h).transpose(1, 2)
    rows = solid.transpose(1, 2).reshape(len(solid), -1).reshape(-1, h, w)
    return found, [_extents(m).cpu().numpy() for m in (columns, rows)]


def _extents(solid: Tensor) -> Tensor:
    columns, rows = solid.any(dim=1), solid.any(dim=2)
    out = torch.full((len(solid), 4), float("nan"), dtype=torch.float64, device=solid.device)
    for axis, line in ((0, columns), (1, rows)):
        length = line.shape[1]
        place = torch.arange(length, device=line.device)
        out[:, axis] = torch.where(line, place, length).amin(1).double()
        out[:, axis + 2] = torch.where(line, place + 1, 0).amax(1).double()
    out[~columns.any(dim=1)] = float("nan")
    return out
