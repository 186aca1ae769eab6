"""The region proposal network's losses and filters with fewer reads by the host; same numbers, same random draws.

On the CPU, where a read is free, NMS runs level by level on the boxes that are left. Elsewhere nothing is left out
before the end: boxes keep their places, flags say which count, and the host reads once for filter and sampler together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.ops import boxes as box_ops

from maskrcnn_coco.model.fast import nms
from maskrcnn_coco.model.fast.sampler import Sample, draw, pick, tally

Found = tuple[list[Tensor], list[Tensor]]
"""Boxes (n, 4) and scores (n,) of each image."""


class FastRPN(RegionProposalNetwork):
    """`RegionProposalNetwork` with the same parameters and calls."""

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """As torchvision's: proposals (n, 4) of each image, and in training the two losses."""
        if not self.training or targets is None or images.tensors.device.type == "cpu":
            return super().forward(images, features, targets)
        maps = list(features.values())
        scores, codes = self.head(maps)
        anchors = self.anchor_generator(images, maps)
        per_level = [s[0].numel() for s in scores]
        objectness, deltas = concat_box_prediction_layers(scores, codes)
        proposals = self.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
        labels, matched = self.assign_targets_to_anchors(anchors, targets)
        regression = torch.cat(self.box_coder.encode(matched, anchors))
        flat = torch.cat(labels)
        running, bounds = tally(flat, [len(x) for x in labels])
        truth = torch.cat([t["boxes"] for t in targets])
        degenerate = (truth[:, 2:] <= truth[:, :2]).any()
        candidates = self._candidates(proposals, objectness, images.image_sizes, per_level)
        (boxes, _), read = self._settle(candidates, torch.cat((degenerate.long()[None], bounds.flatten())))
        if read[0]:
            refuse_hollow(targets)
        images_ = len(anchors) + 1
        sampler = self.fg_bg_sampler
        both = read[1 : 1 + images_], read[1 + images_ :]
        sample = pick(running, both, sampler.batch_size_per_image, sampler.positive_fraction)
        names = "loss_objectness", "loss_rpn_box_reg"
        return boxes, dict(zip(names, _losses(objectness, deltas, flat, regression, sample), strict=True))

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> Found:
        """Best proposals of each image after NMS, as torchvision's where it runs NMS level by level."""
        if proposals.device.type != "cpu":
            candidates = self._candidates(proposals, objectness, image_shapes, num_anchors_per_level)
            return self._settle(candidates, None)[0]
        images = len(proposals)
        objectness = objectness.detach().reshape(images, -1)
        chosen: list[list[Tensor]] = [[] for _ in range(images)]
        scores: list[list[Tensor]] = [[] for _ in range(images)]
        for boxes, probability in self._levels(proposals, objectness, num_anchors_per_level):
            for i, shape in enumerate(image_shapes):
                kept, value = self._suppress(box_ops.clip_boxes_to_image(boxes[i], shape), probability[i])
                chosen[i].append(kept)
                scores[i].append(value)
        return self._best(chosen, scores)

    def _levels(self, proposals: Tensor, objectness: Tensor, per_level: list[int]) -> list[tuple[Tensor, Tensor]]:
        """The best boxes (B, n, 4) of each level before NMS and their scores (B, n), best first."""
        found, start = [], 0
        for anchors in per_level:
            best, order = objectness[:, start : start + anchors].topk(min(self.pre_nms_top_n(), anchors), dim=1)
            boxes = proposals[:, start : start + anchors].gather(1, order[:, :, None].expand(-1, -1, 4))
            found.append((boxes, torch.sigmoid(best)))
            start += anchors
        return found

    def _suppress(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """One level of one image: boxes that are large and likely enough, after NMS, best first."""
        fit = self._fit(boxes, scores)
        boxes, scores = boxes[fit], scores[fit]
        keep = box_ops.nms(boxes, scores, self.nms_thresh)
        return boxes[keep], scores[keep]

    def _fit(self, boxes: Tensor, scores: Tensor) -> Tensor:
        side = boxes[..., 2:] - boxes[..., :2]
        return (side >= self.min_size).all(-1) & (scores >= self.score_thresh)

    def _best(self, boxes: list[list[Tensor]], scores: list[list[Tensor]]) -> Found:
        final_boxes, final_scores = [], []
        for levels, values in zip(boxes, scores, strict=True):
            value, order = torch.cat(values).sort(descending=True, stable=True)
            order = order[: self.post_nms_top_n()]
            final_boxes.append(torch.cat(levels)[order])
            final_scores.append(value[: self.post_nms_top_n()])
        return final_boxes, final_scores

    def _candidates(
        self, proposals: Tensor, objectness: Tensor, shapes: list[tuple[int, int]], per_level: list[int]
    ) -> Candidates:
        """All levels of all images side by side, each as long as the longest; what fills them up is not fit."""
        levels = self._levels(proposals, objectness.detach().reshape(len(proposals), -1), per_level)
        size = max(s.shape[1] for _, s in levels)
        boxes = torch.stack([F.pad(b, (0, 0, 0, size - b.shape[1])) for b, _ in levels], 1)
        scores = torch.stack([F.pad(s, (0, size - s.shape[1]), value=-1.0) for _, s in levels], 1)
        ends = torch.tensor([(w, h, w, h) for h, w in shapes], dtype=boxes.dtype)
        boxes = boxes.clamp(min=0).minimum(ends.to(boxes.device, non_blocking=True)[:, None, None])
        fit = self._fit(boxes, scores) & (scores >= 0)
        groups = boxes.flatten(0, 1)
        suppresses = nms.overlaps(groups, self.nms_thresh) if nms.fits(groups) else None
        return Candidates(boxes, scores, fit, suppresses)

    def _settle(self, found: Candidates, extra: Tensor | None) -> tuple[Found, list[int]]:
        """NMS and the best of each image, with one read, in which the numbers ``extra`` (int64, 1-D) come along."""
        images, fit, rounds = len(found.boxes), found.fit.flatten(0, 1), nms.ROUNDS
        stay = fit
        while True:
            if found.suppresses is None:
                groups = found.boxes.flatten(0, 1)
                stay, settled = nms.suppress_in_parts(groups, self.nms_thresh, fit, stay, rounds)
            else:
                stay, settled = nms.suppress(found.suppresses, fit, stay, rounds)
            kept = stay.view(images, -1)
            ranked = torch.where(kept, found.scores.flatten(1), -1.0).sort(dim=1, descending=True, stable=True)
            order = ranked.indices[:, : self.post_nms_top_n()]
            counts = kept.sum(1).clamp(max=order.shape[1])
            numbers = [settled.long()[None], counts, *([] if extra is None else [extra])]
            final, *read = torch.cat(numbers).tolist()
            if final:
                break
            rounds *= 2
        boxes = found.boxes.flatten(1, 2).gather(1, order[:, :, None].expand(-1, -1, 4))
        final_boxes = [b[:n] for b, n in zip(boxes, read, strict=False)]
        return (final_boxes, [s[:n] for s, n in zip(ranked.values, read, strict=False)]), read[images:]

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Objectness and box loss over the sampled anchors, as torchvision's."""
        sampler = self.fg_bg_sampler
        flat = torch.cat(labels)
        sizes = [len(x) for x in labels]
        sample = draw(flat, sizes, sampler.batch_size_per_image, sampler.positive_fraction)
        return _losses(objectness, pred_bbox_deltas, flat, torch.cat(regression_targets), sample)


class Candidates(NamedTuple):
    """Boxes before NMS: (B, L, K, 4), (B, L, K), (B, L, K) and, of `nms.overlaps`, (B * L, K, K), if it fits."""

    boxes: Tensor
    scores: Tensor
    fit: Tensor
    suppresses: Tensor | None


def _losses(
    objectness: Tensor, deltas: Tensor, labels: Tensor, regression: Tensor, sample: Sample
) -> tuple[Tensor, Tensor]:
    """Objectness and box loss over the anchors of ``sample``."""
    drawn = torch.cat((sample.positive_indices, sample.negative_indices))
    wanted = regression[sample.positive_indices]
    box_loss = F.smooth_l1_loss(deltas[sample.positive_indices], wanted, beta=1 / 9, reduction="sum")
    return F.binary_cross_entropy_with_logits(objectness.flatten()[drawn], labels[drawn]), box_loss / drawn.numel()


def refuse_hollow(targets: Sequence[dict[str, Any]]) -> None:
    """Raise AssertionError, with torchvision's words, for the first box without width or height."""
    for position, target in enumerate(targets):
        for box in target["boxes"].tolist():
            if box[2] <= box[0] or box[3] <= box[1]:
                text = "All bounding boxes should have positive height and width."
                raise AssertionError(f"{text} Found invalid box {box} for target at index {position}.")
