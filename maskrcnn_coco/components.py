"""Which component a parameter belongs to: the four of a torchvision Mask R-CNN, top-level children of other models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from maskrcnn_coco.records import COMPONENTS

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Path parts that DistributedDataParallel, torch.compile and others add to a parameter's name."""

FPN = "backbone.fpn."
"""How the parameters of a torchvision detector's feature pyramid begin: a part of the backbone."""
TIMES = "component_times"
"""Key of a parameter group whose rate is that many times its component's; a group without it has the component's."""


def plain_name(name: str) -> str:
    """``name`` of a parameter or module as the unwrapped model has it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def component_of(name: str) -> str:
    """The component that a parameter or module name belongs to.

    ``backbone``, ``rpn``, ``box_head`` (``roi_heads.box_*``) and ``mask_head`` (``roi_heads.mask_*``) for torchvision
    detectors; ``keypoint_head`` where there is one; otherwise the top-level child, or "model" for a parameter that sits
    on the model itself.
    """
    parts = plain_name(name).split(".")
    if parts[0] == "roi_heads" and len(parts) > 1:
        for prefix in ("box", "mask", "keypoint"):
            if parts[1].startswith(prefix + "_"):
                return f"{prefix}_head"
    return parts[0] or "model"


def class_count(model: nn.Module) -> int | None:
    """Classes of a torchvision detector, background included: labels are below it. None: not known of this model."""
    inner = getattr(model, "module", model)
    score = getattr(getattr(getattr(inner, "roi_heads", None), "box_predictor", None), "cls_score", None)
    dense = getattr(getattr(inner, "head", None), "classification_head", None)
    found = [getattr(score, "out_features", None), *(getattr(dense, k, None) for k in ("num_classes", "num_columns"))]
    return next((n for n in found if isinstance(n, int)), None)


def times_of(group: Mapping[str, Any]) -> float:
    """The rate of a parameter group, over that of its component."""
    return float(group.get(TIMES, 1.0))


def real(value: Any) -> float:
    """A setting as a number; NaN where it is complex, as (1 - step / total) ** 0.9 is past the end of a plan."""
    return math.nan if isinstance(value, complex) else float(value)


def is_possible(value: Any, *, below: float = math.inf) -> bool:
    """Whether an optimizer can take steps with a setting of this value; what is no number is not judged."""
    return not isinstance(value, complex) and (not isinstance(value, (float, int, Tensor)) or 0 <= float(value) < below)


def sound_value(usual: Any, group: str, given: Any) -> Any:
    """What ``group`` gets in place of its ``given`` setting: ``usual``, of a mapping by groups' names its own part."""
    return usual.get(group, given) if isinstance(usual, Mapping) else usual


def forgets_squares(group: Mapping[str, Any]) -> bool:
    """Whether an Adam with these betas forgets squares before means: without a gradient those are 0 first, rightly."""
    betas = [float(b) for b in group.get("betas") or ()]
    return len(betas) > 1 and betas[1] < betas[0] ** 2


def components(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Component → (parameter name → parameter): an exact partition of the trainable parameters.

    Names are ``model.named_parameters()``'s own, with any wrapper's prefix. A parameter that several modules share is
    counted once, where it is met first. A component without trainable parameters is absent. The four of torchvision
    detectors come first, in the order of `records.COMPONENTS`.
    """
    found: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            component = component_of(name) if "." in plain_name(name) else "model"
            found.setdefault(component, {})[name] = parameter
    first = {name: found.pop(name) for name in COMPONENTS if name in found}
    return {**first, **found}
