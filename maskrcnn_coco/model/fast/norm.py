"""Frozen batch norm as one kernel, which also stays in half precision under autocast."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import FrozenBatchNorm2d


class FastFrozenNorm(FrozenBatchNorm2d):
    """`FrozenBatchNorm2d` with the same buffers and numbers.

    torchvision multiplies by float32 buffers, so under autocast every activation after a norm becomes float32: twice
    the memory, and a cast before the next convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, H, W) scaled and shifted by channel, in its own dtype."""
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return F.batch_norm(x, mean, var, self.get_buffer("weight"), self.get_buffer("bias"), False, 0.0, self.eps)
