"""torchvision's detectors with the same numbers, faster: see `accelerate`."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from maskrcnn_coco.model.fast.box_coder import FastBoxCoder
from maskrcnn_coco.model.fast.norm import FastFrozenNorm
from maskrcnn_coco.model.fast.rcnn import FastFasterRCNN, FastMaskRCNN
from maskrcnn_coco.model.fast.roi_align import FastPool
from maskrcnn_coco.model.fast.roi_heads import FastRoIHeads
from maskrcnn_coco.model.fast.rpn import FastRPN
from maskrcnn_coco.model.fast.sampler import FastMatcher
from maskrcnn_coco.model.fast.transform import FastTransform

FASTER: dict[type, type] = {
    MultiScaleRoIAlign: FastPool,
    RoIHeads: FastRoIHeads,
    RegionProposalNetwork: FastRPN,
    GeneralizedRCNNTransform: FastTransform,
    FrozenBatchNorm2d: FastFrozenNorm,
    MaskRCNN: FastMaskRCNN,
    FasterRCNN: FastFasterRCNN,
}
"""torchvision's class → the subclass that replaces it. Subclasses of a user's own are left as they are."""


def takes_outlines(model: nn.Module, device: torch.device) -> bool:
    """Whether ``model`` makes its mask targets from `Outlines`: an accelerated detector, on the CPU.

    Elsewhere a proposal would have to come to the host first; there the device's own resampling of full-size masks
    costs less.
    """
    return device.type == "cpu" and type(getattr(model, "roi_heads", None)) is FastRoIHeads


def accelerate(model: nn.Module, *, channels_last: bool = True) -> nn.Module:
    """Replace the slow parts of a torchvision two-stage detector in place, and return it.

    Outputs, gradients, random draws, parameter names and weights stay torchvision's; a model of another kind is
    returned as it is. It can be called before or after weights are loaded. Modules keep their identity (hooks and
    references stay valid): only their class changes, to a subclass without state of its own.
    """
    if not any(type(m) is RoIHeads for m in model.modules()):
        return model
    for module in model.modules():
        module.__class__ = FASTER.get(type(module), type(module))
        if isinstance(module, FastRPN) and type(module.proposal_matcher) is Matcher:
            module.proposal_matcher.__class__ = FastMatcher
        if isinstance(module, (FastRPN, FastRoIHeads)) and type(module.box_coder) is BoxCoder:
            module.box_coder.__class__ = FastBoxCoder
    if channels_last:
        model.to(memory_format=torch.channels_last)
    return model
