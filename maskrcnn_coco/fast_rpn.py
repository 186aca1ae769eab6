"""The region proposal network's losses and filters with fewer reads by the host; same numbers, same random draws."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import boxes as box_ops

from maskrcnn_coco.fast_sampler import draw


class FastRPN(RegionProposalNetwork):
    """`RegionProposalNetwork` with the same parameters and calls."""

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Best proposals of each image after NMS: boxes (n, 4) and scores (n,), as torchvision's.

        Sizes and scores are tested together, and NMS runs level by level without looking the levels up.
        """
        images = len(proposals)
        objectness = objectness.detach().reshape(images, -1)
        chosen: list[list[Tensor]] = [[] for _ in range(images)]
        scores: list[list[Tensor]] = [[] for _ in range(images)]
        start = 0
        for anchors in num_anchors_per_level:
            best, order = objectness[:, start : start + anchors].topk(min(self.pre_nms_top_n(), anchors), dim=1)
            probability = torch.sigmoid(best)
            boxes = proposals[:, start : start + anchors].gather(1, order[:, :, None].expand(-1, -1, 4))
            start += anchors
            for i, shape in enumerate(image_shapes):
                kept, value = self._suppress(box_ops.clip_boxes_to_image(boxes[i], shape), probability[i])
                chosen[i].append(kept)
                scores[i].append(value)
        return self._best(chosen, scores)

    def _suppress(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """One level of one image: boxes that are large and likely enough, after NMS, best first."""
        side = boxes[:, 2:] - boxes[:, :2]
        fit = (side >= self.min_size).all(1) & (scores >= self.score_thresh)
        boxes, scores = boxes[fit], scores[fit]
        keep = box_ops.nms(boxes, scores, self.nms_thresh)
        return boxes[keep], scores[keep]

    def _best(self, boxes: list[list[Tensor]], scores: list[list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        final_boxes, final_scores = [], []
        for levels, values in zip(boxes, scores, strict=True):
            value, order = torch.cat(values).sort(descending=True, stable=True)
            order = order[: self.post_nms_top_n()]
            final_boxes.append(torch.cat(levels)[order])
            final_scores.append(value[: self.post_nms_top_n()])
        return final_boxes, final_scores

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Objectness and box loss over the sampled anchors, as torchvision's."""
        sampler = self.fg_bg_sampler
        flat = torch.cat(labels)
        sizes = [len(x) for x in labels]
        sample = draw(flat, sizes, sampler.batch_size_per_image, sampler.positive_fraction)
        drawn = torch.cat((sample.positive_indices, sample.negative_indices))
        regression = torch.cat(regression_targets)[sample.positive_indices]
        box_loss = F.smooth_l1_loss(pred_bbox_deltas[sample.positive_indices], regression, beta=1 / 9, reduction="sum")
        objectness_loss = F.binary_cross_entropy_with_logits(objectness.flatten()[drawn], flat[drawn])
        return objectness_loss, box_loss / drawn.numel()
