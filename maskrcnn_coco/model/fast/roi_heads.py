"""RoI heads in training with few reads by the host: one for sampling, one for pooling (none on the CPU), else none.

Same proposals, same random draws, same losses as torchvision's `RoIHeads`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads

from maskrcnn_coco.model.fast.mask_targets import mask_targets, outline_targets
from maskrcnn_coco.model.fast.roi_align import FastPool, flatten, gathers, sort_boxes
from maskrcnn_coco.model.fast.sampler import Sample, draw

Target = dict[str, Any]


class FastRoIHeads(RoIHeads):
    """`RoIHeads` with the same parameters and calls; training of box and mask heads is batched over images."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's: (detections, losses). Evaluation and keypoint models take torchvision's own path."""
        if not self.training or self.has_keypoint():
            return super().forward(features, proposals, image_shapes, targets)
        self._check(targets)
        assert targets is not None
        boxes, matched, labels, regression, sample = self._training_samples(proposals, targets)
        drawn = list(boxes.split(sample.sizes))
        positive = list(boxes[sample.positives].split(sample.positive_sizes))
        levels, positive_levels = self._levels(features, drawn, positive, image_shapes)
        pooled = self.box_roi_pool(levels, drawn, image_shapes)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        losses = _box_losses(logits, deltas, labels, regression, sample.positives)
        if self.has_mask():
            assert self.mask_roi_pool is not None and self.mask_head is not None and self.mask_predictor is not None
            masks = self.mask_predictor(self.mask_head(self.mask_roi_pool(positive_levels, positive, image_shapes)))
            which = matched[sample.positives].split(sample.positive_sizes)
            losses["loss_mask"] = _mask_loss(masks, labels[sample.positives], positive, list(which), targets)
        return [], losses

    def _check(self, targets: list[Target] | None) -> None:
        if targets is None:
            raise ValueError("targets should not be None")
        for t in targets:
            missing = [k for k in ("boxes", "labels") if k not in t]
            if missing or (self.has_mask() and "masks" not in t and "outlines" not in t):
                raise ValueError(f"every target needs boxes, labels and masks, but this one has {sorted(t)}")
            if t["boxes"].dtype not in (torch.float, torch.double, torch.half):
                raise TypeError(f"target boxes must be of float type, instead got {t['boxes'].dtype}")
            if t["labels"].dtype != torch.int64:
                raise TypeError(f"target labels must be of int64 type, instead got {t['labels'].dtype}")

    def _levels(
        self, features: dict[str, Tensor], boxes: list[Tensor], positive: list[Tensor], shapes: list[tuple[int, int]]
    ) -> tuple[Any, Any]:
        """What box and mask pooler take: the pyramid flattened once for both, or the boxes of both sorted at once."""
        pools = [p for p in (self.box_roi_pool, self.mask_roi_pool) if type(p) is FastPool]
        if not pools or pools[0] is not self.box_roi_pool:
            return features, features
        if gathers(next(iter(features.values())).device):
            pyramid = flatten(features, tuple(n for n in features if n in self.box_roi_pool.featmap_names))
            return pyramid, pyramid if len(pools) == 2 else features
        if any(len(p.set_up(features, shapes)) < 2 for p in pools):
            return features, features
        found = sort_boxes(features, list(zip(pools, (boxes, positive), strict=False)))
        return found[0], found[1] if len(found) == 2 else features

    def _training_samples(
        self, proposals: list[Tensor], targets: list[Target]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Sample]:
        """Sampled boxes (N, 4), matched ground truth (N,), labels (N,), regression targets (N, 4), over all images."""
        dtype = proposals[0].dtype
        truth = [t["boxes"].to(dtype) for t in targets]
        proposals = self.add_gt_proposals(proposals, truth)
        matched, labels = self.assign_targets_to_proposals(proposals, truth, [t["labels"] for t in targets])
        sampler = self.fg_bg_sampler
        flat_labels = torch.cat(labels)
        sizes = [len(p) for p in proposals]
        sample = draw(flat_labels, sizes, sampler.batch_size_per_image, sampler.positive_fraction)
        boxes = torch.cat(proposals)[sample.indices]
        flat_matched = torch.cat(matched)[sample.indices]
        # Row of each image's first box in the concatenated ground truth; an image without any has one box of zeros.
        padded = [t if len(t) else t.new_zeros((1, 4)) for t in truth]
        reference = torch.cat(
            [p[m] for p, m in zip(padded, flat_matched.split(sample.sizes), strict=True)],
        )
        regression = self.box_coder.encode_single(reference, boxes)
        return boxes, flat_matched, flat_labels[sample.indices], regression, sample


def _box_losses(
    logits: Tensor, deltas: Tensor, labels: Tensor, regression: Tensor, positives: Tensor
) -> dict[str, Tensor]:
    """torchvision's `fastrcnn_loss` with the positives' places (P,) already known."""
    deltas = deltas.reshape(len(labels), -1, 4)
    box = F.smooth_l1_loss(deltas[positives, labels[positives]], regression[positives], beta=1 / 9, reduction="sum")
    return {"loss_classifier": F.cross_entropy(logits, labels), "loss_box_reg": box / labels.numel()}


def _mask_loss(
    logits: Tensor, labels: Tensor, boxes: list[Tensor], matched: list[Tensor], targets: list[Target]
) -> Tensor:
    """torchvision's `maskrcnn_loss`: logits (P, K, M, M), labels (P,), boxes and matches per image."""
    if len(labels) == 0:
        return logits.sum() * 0
    size = logits.shape[-1]
    wanted = [_wanted(t, b, m, size) for t, b, m in zip(targets, boxes, matched, strict=True)]
    chosen = logits[torch.arange(len(labels), device=labels.device), labels]
    return F.binary_cross_entropy_with_logits(chosen, torch.cat(wanted))


def _wanted(target: Target, boxes: Tensor, matched: Tensor, size: int) -> Tensor:
    """Mask targets (P, size, size) of one image: from its outlines where it has them, else from full-size masks."""
    outlines = target.get("outlines")
    if outlines is None:
        return mask_targets(target["masks"], boxes, matched, size)
    return outline_targets(outlines, boxes, matched, size).to(boxes.device)
