"""Boxes stay float32 under autocast: whatever a detector computes with coordinates never meets half precision.

torchvision makes anchors in the dtype of the feature maps, decodes boxes in the dtype of the predicted deltas and casts
the ground truth to it. In bfloat16, numbers from 256 on are 2 pixels apart, from 1024 on 8: anchors fall on one another
(IoU with the true ones down to 0.6), small objects get boxes of no width, whose logarithm is the NaN of `loss_box_reg`,
and every detection is rounded to that grid.

The parts are found by the names that torchvision gives them (``anchor_generator`` beside ``head``, ``box_predictor``),
so that a subclass, or a head of somebody's own, is kept exact as well; torchvision itself is not needed here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_HALF = (torch.float16, torch.bfloat16)


def exact_boxes(model: nn.Module) -> nn.Module:
    """Keep every anchor, delta, proposal, target and detection of a torchvision detector in float32, and return it.

    Weights, parameter names and classes stay; hooks turn half-precision answers of the box heads into float32, and let
    anchors be made in float32. Without autocast nothing changes. A model of another kind is returned as it is. Another
    call costs a fraction of a millisecond, and finds parts that were exchanged since.
    """
    for part in model.modules():
        children = part._modules
        anchors, head = children.get("anchor_generator"), children.get("head")
        if anchors is not None and head is not None:
            if _float_maps not in anchors._forward_pre_hooks.values():
                anchors.register_forward_pre_hook(_float_maps)
            _answer_with(head, _float_outputs)
        for name, hook in _PREDICTORS.items():
            if (predictor := children.get(name)) is not None:
                _answer_with(predictor, hook)
    return model


def _answer_with(module: nn.Module, hook: Any) -> None:
    if hook not in module._forward_hooks.values():
        module.register_forward_hook(hook)


def _float_maps(generator: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Feature maps as an anchor generator is to see them: float32. torchvision's own look at shape and dtype only."""
    if len(args) < 2 or not isinstance(args[1], (list, tuple)) or not any(_is_half(m) for m in args[1]):
        return None
    if type(generator).forward.__module__.startswith("torchvision."):
        # One number, seen as a whole map: nothing of the map's size is made.
        maps = [m.new_empty((), dtype=torch.float32).expand(m.shape) if _is_half(m) else m for m in args[1]]
    else:
        maps = [in_float32(m) for m in args[1]]
    return (args[0], maps, *args[2:])


def _float_outputs(_module: nn.Module, _args: Any, output: Any) -> Any:
    return in_float32(output)


def _float_detections(module: nn.Module, _args: Any, output: Any) -> Any:
    """Masks are painted at 0.5: exact in a detection. In training their loss casts the few that it needs itself."""
    return output if module.training else in_float32(output)


_PREDICTORS = {
    "box_predictor": _float_outputs,
    "keypoint_predictor": _float_outputs,
    "mask_predictor": _float_detections,
}


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in _HALF


def in_float32(value: Any) -> Any:
    """``value`` with every half-precision tensor in it as float32; dicts, lists and tuples are looked into."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _HALF else value
    if isinstance(value, dict):
        return type(value)((k, in_float32(v)) for k, v in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(in_float32(v) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(in_float32(v) for v in value)
    return value
