"""Bodies from timm: any of its networks that has features at strides 4, 8, 16 and 32, as ``timm/NAME``."""

from __future__ import annotations

import importlib.util
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn_coco.errors import ConfigError

PREFIX = "timm/"
KEY = "backbone.body.timm_name"
"""The buffer that says in a detector's weights which network of timm its body is."""
STRIDES = (4, 8, 16, 32)


class TimmFeatures(nn.Module):
    """Name → features (N, C, H, W) of a network of timm, finest first; its name is among its buffers."""

    def __init__(self, name: str, net: Any) -> None:
        super().__init__()
        self.net, self.last = net, str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")
        self.ends = [module.replace(".", "_") for module in net.feature_info.module_name()]
        self.register_buffer("timm_name", torch.tensor(list(name.encode()), dtype=torch.uint8))

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Features of images (N, 3, H, W)."""
        found = (f.permute(0, 3, 1, 2).contiguous() if self.last else f for f in self.net(x))
        return OrderedDict((str(n), f) for n, f in enumerate(found))

    def freeze(self, count: int) -> None:
        """Stop training of the first ``count`` stages: the stem, and what ends with each child that the FPN taps."""
        done = 0
        for child, module in self.net.named_children():
            stage = done + any(part in child for part in ("layer", "stage", "block", *self.ends))
            if stage < count:
                module.requires_grad_(False)
            done += child in self.ends

    def load(self, contents: Mapping[str, Any]) -> dict[str, Any]:
        """``contents`` of a file of timm's, by the names that features have: what is stages.0 there is stages_0."""
        return {"net." + n: contents[k] for n, old in self._names().items() for k in (n, old) if k in contents}

    def file_names(self) -> set[str]:
        """The names that its tensors may have in a file of timm's."""
        return {name for names in self._names().items() for name in names}

    def _names(self) -> dict[str, str]:
        """Its own name of each tensor → timm's."""
        return {name: re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", name) for name in self.net.state_dict()}


def timm_backbone(name: str, channels: int, norm: Any) -> BackboneWithFPN:
    """The network ``name`` with random weights under an FPN; ``norm`` stands in for its batch norms, others stay."""
    net = create(name)
    widths = net.feature_info.channels()
    taps = {str(n): str(n) for n in range(len(widths))}
    backbone = BackboneWithFPN(nn.Sequential(*(nn.Identity() for _ in widths)), taps, widths, channels)
    backbone.body = TimmFeatures(name, _with_norm(net, norm))  # type: ignore[assignment]
    return backbone


def create(name: str, *, pretrained: bool = False) -> Any:
    """timm's own module of the features of ``name``; ``pretrained``: with the weights that timm downloads.

    Raises:
        ConfigError: no timm, no such network, or none that an FPN can stand on.
    """
    if importlib.util.find_spec("timm") is None:
        raise ConfigError(f"--model {PREFIX}{name}: timm is not installed", fix="pip install 'maskrcnn-coco[timm]'")
    import timm  # pyright: ignore[reportMissingImports]

    # A plain name only: others would have timm fetch a network's description from a hub, or read it from a folder.
    if not re.fullmatch(r"\w+(\.\w+)?", name) or not timm.is_model(name):
        near = timm.list_models(f"{name[:5]}*")[:4] if name.isidentifier() else []
        expected = ", ".join(PREFIX + n for n in near) or "a name that timm.list_models() has"
        raise ConfigError(f"--model {PREFIX}{name} is not known", expected=expected)
    try:
        strides = timm.create_model(name, features_only=True).feature_info.reduction()
        taps = tuple(strides.index(stride) for stride in STRIDES)
        net: Any = timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=taps)
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, 64, 96))  # some take images of one size alone
    except (AttributeError, ValueError, AssertionError, TypeError) as e:
        raise ConfigError(
            f"--model {PREFIX}{name} cannot be the body of a detector",
            got=(str(e).splitlines() or [type(e).__name__])[0][:200],
            expected="features at strides 4, 8, 16 and 32 of images of any size, as ResNets and ConvNeXts have",
        ) from e
    return net.train()


def _with_norm(module: nn.Module, norm: Any) -> nn.Module:
    """``module`` with frozen norms in place of its batch norms, or groups; an activation inside a norm stays."""
    from timm.layers import GroupNormAct, freeze_batch_norm_2d  # pyright: ignore[reportMissingImports]

    if norm is FrozenBatchNorm2d:
        return freeze_batch_norm_2d(module)
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            _with_norm(child, norm)
            continue
        width = child.num_features
        groups: Any = norm(width)
        if hasattr(child, "act"):
            groups = GroupNormAct(width, num_groups=math.gcd(32, width), apply_act=False)
            groups.act, groups.drop = child.act, child.drop
        setattr(module, name, groups)
    return module


def name_in(state: Mapping[str, Tensor]) -> str | None:
    """``timm/NAME`` of a detector's weights; None where its body is none of timm's."""
    if KEY not in state:
        return None
    said = state[KEY]
    return PREFIX + (bytes(said.tolist()).decode("utf-8", "replace") if said.dtype == torch.uint8 else "")
