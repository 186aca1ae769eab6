"""Boxes to regression targets and back without constants sent to the device; same numbers as torchvision's."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, encode_boxes


class FastBoxCoder(BoxCoder):
    """`BoxCoder` with the same attributes and calls.

    torchvision sends weights and halves from the host for every batch, and each such copy waits for the device.
    """

    def encode_single(self, reference_boxes: Tensor, proposals: Tensor) -> Tensor:
        """Regression targets (N, 4) that turn ``proposals`` (N, 4) into ``reference_boxes`` (N, 4), both xyxy."""
        return encode_boxes(reference_boxes, proposals, self._weights(reference_boxes))

    def _weights(self, like: Tensor) -> Tensor:
        """The weights (4,) with dtype and device of ``like``; made again when somebody changed them."""
        key = (like.dtype, like.device, tuple(self.weights))
        if self.__dict__.get("_sent_key") != key:
            self.__dict__.update(_sent_key=key, _sent=torch.tensor(key[2], dtype=key[0]).to(key[1], non_blocking=True))
        return self.__dict__["_sent"]

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (N, 4K), xyxy, of K sets of regression values (N, 4K) relative to ``boxes`` (N, 4)."""
        boxes = boxes.to(rel_codes.dtype)
        widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        x, y = boxes[:, 0] + 0.5 * widths, boxes[:, 1] + 0.5 * heights
        dx, dy, dw, dh = (rel_codes[:, i::4] / weight for i, weight in enumerate(self.weights))
        x = dx * widths[:, None] + x[:, None]
        y = dy * heights[:, None] + y[:, None]
        half_width = 0.5 * (torch.exp(dw.clamp(max=self.bbox_xform_clip)) * widths[:, None])
        half_height = 0.5 * (torch.exp(dh.clamp(max=self.bbox_xform_clip)) * heights[:, None])
        return torch.stack((x - half_width, y - half_height, x + half_width, y + half_height), dim=2).flatten(1)
