"""torchvision's choice of detections, in a form that never answers with no object at all.

OpenVINO keeps no tensor without elements: where no score passes the threshold, every later layer computes on memory of
an earlier image, and an object appears that is not there. Here the best candidate stays as a stand-in, told by a score
of -1, which whoever runs the graph leaves out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import boxes as box_ops

SMALLEST = 1e-2
"""torchvision's own: boxes with a shorter side, pixels of the resized image, are no detections."""


class NeverEmpty(RoIHeads):
    """`RoIHeads` in evaluation; the same detections wherever there is one, else one of score -1."""

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Of one image: boxes (N, 4) xyxy in pixels of the resized image, scores (N,), labels (N,); N is 1 or more."""
        decoded = box_ops.clip_boxes_to_image(self.box_coder.decode(box_regression, proposals), image_shapes[0])
        every = F.softmax(class_logits, -1)
        boxes, scores = decoded[:, 1:].reshape(-1, 4), every[:, 1:].reshape(-1)
        labels = torch.arange(every.shape[-1], device=every.device).view(1, -1).expand_as(every)[:, 1:].reshape(-1)
        sides = boxes[:, 2:] - boxes[:, :2]
        passes = (scores > self.score_thresh) & (sides[:, 0] >= SMALLEST) & (sides[:, 1] >= SMALLEST)
        # Scores end at 1: whatever passes; where nothing does, the surest of all.
        rank = torch.where(passes, torch.full_like(scores, 2.0), scores)
        keep = torch.where(passes | (rank == rank.max()))[0]
        boxes, labels = boxes[keep], labels[keep]
        scores = torch.where(passes, scores, -torch.ones_like(scores))[keep]
        keep = box_ops.batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
        return [boxes[keep]], [scores[keep]], [labels[keep]]
