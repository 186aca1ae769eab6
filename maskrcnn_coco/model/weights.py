"""Weights from files and downloads, checked before they reach a model. Only tensors are read, never pickled objects."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import struct
import urllib.error
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn_coco.errors import CheckpointError, ConfigError
from maskrcnn_coco.model.foreign_files import body_state, check_kind, inner_state, is_safetensors
from maskrcnn_coco.model.predictor_rows import PREDICTORS
from maskrcnn_coco.model.timm_bodies import TimmFeatures, name_in

StateDict = Mapping[str, Tensor]
IN_FOLDER = "model.safetensors"
"""The weights in a folder that `push` wrote, or that came from the hub."""

_UNREADABLE = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, struct.error)
"""What torch's own unpickler raises on bytes that are no weights file."""


@dataclass(frozen=True)
class Architecture:
    """What a detector's state dict is of, read from its names and shapes. Norms are "frozen", "group" or None."""

    model: str
    small: bool
    num_classes: int
    body_norm: str
    head_norm: str | None


def describe(state: StateDict) -> Architecture | None:
    """The architecture behind a detector's weights; None where they are of no architecture of this project."""
    score = state.get("roi_heads.box_predictor.cls_score.weight")
    if score is None or not any(k.startswith("backbone.body.") for k in state):
        return None
    model = _model_of(state)
    head_norm = None
    if model == "maskrcnn_resnet50_fpn_v2":
        head_norm = _norm(state, "roi_heads.")
    small = model == "maskrcnn_resnet18_fpn" and score.shape[1] < 1024
    return Architecture(model, small, int(score.shape[0]), _norm(state, "backbone.body."), head_norm)


def _model_of(state: StateDict) -> str:
    """The name of the model, by what only its body has."""
    if (named := name_in(state)) is not None:
        return named
    body = "backbone.body."
    if body + "1.conv.0.0.weight" in state:
        return "maskrcnn_mobilenet_v2_fpn"
    if body + "1.0.layer_scale" in state:
        return "maskrcnn_convnext_small_fpn" if body + "5.26.layer_scale" in state else "maskrcnn_convnext_tiny_fpn"
    if body + "1.0.attn.relative_position_bias_table" in state:
        return "maskrcnn_swin_s_fpn" if body + "5.17.norm1.weight" in state else "maskrcnn_swin_t_fpn"
    if body + "layer1.0.conv3.weight" not in state:
        return "maskrcnn_resnet18_fpn"
    deep, grouped = body + "layer3.22.conv3.weight" in state, state[body + "layer1.0.conv2.weight"].shape[1] == 4
    if grouped:
        return "maskrcnn_resnext101_64x4d_fpn" if deep else "maskrcnn_resnext50_32x4d_fpn"
    if deep:
        return "maskrcnn_resnet101_fpn"
    return "maskrcnn_resnet50_fpn_v2" if "rpn.head.conv.1.0.weight" in state else "maskrcnn_resnet50_fpn"


def _norm(state: StateDict, prefix: str) -> str:
    return "frozen" if any(k.startswith(prefix) and k.endswith("running_var") for k in state) else "group"


def read_weights(path: str | Path) -> dict[str, Any]:
    """What a weights file, or a folder in the hub's layout, holds.

    That is tensors by name, or a checkpoint of this project with "model" and "classes".

    Raises:
        ConfigError: no such file.
        CheckpointError: not a file of tensors, cut short, or one that would run code when loaded.
    """
    path = Path(path)
    if (path / IN_FOLDER).is_file():
        path /= IN_FOLDER
    if not path.is_file():
        raise ConfigError(f"no weights file {path}", expected="a .pth or .safetensors file", fix="check the path")
    if is_safetensors(path):
        return _read_safetensors(path)
    check_kind(path)
    try:
        # torchvision's own scripts keep their arguments beside the weights: a bag of names, which runs nothing.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore", UserWarning)  # of a pickle's protocol: what is wrong with it is said below
            with path.open("rb") as file:  # by its bytes: torch goes by the name of a path
                state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        # torch's own sentence advises to load it unsafely: that would run whatever code the file brings.
        raise CheckpointError(
            f"{path} is not a file of weights only",
            got="something other than tensors and plain data",
            fix="save model.state_dict() instead",
        ) from e
    except _UNREADABLE as e:
        first = (str(e).splitlines() or [type(e).__name__])[0].split(". ")[0]
        fix = "copy it again, or use an older checkpoint"
        raise CheckpointError(f"{path} cannot be read: it is damaged or cut short", got=first, fix=fix) from e
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds no state dict", got=type(state).__name__, expected="tensors by name")
    if "format" in state and "model" in state:
        from maskrcnn_coco.checkpoint.store import load

        return load(path)
    return dict(state)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, "pt") as file:
            said = _exported_card((file.metadata() or {}).get("maskrcnn_coco", ""))
        return {**load_file(path), **said}
    except (SafetensorError, OSError) as e:
        raise CheckpointError(
            f"{path} cannot be read", got=e, expected="a whole file of safetensors", fix="copy or download it again"
        ) from e


def _exported_card(text: str) -> dict[str, Any]:
    """What ``maskrcnn-coco export --format safetensors`` wrote beside the tensors, as a checkpoint holds it."""
    try:
        said = json.loads(text or "{}")
    except ValueError:
        return {}
    if not isinstance(said, dict) or not isinstance(said.get("classes"), list):
        return {}
    side = said.get("usual_side")
    return {
        "classes": ["background", *said["classes"]],
        "category_ids": said.get("category_ids"),
        "config": said.get("config"),
        "image_size": [side, side],
        "bit_range": said.get("bit_range"),
    }


def detector_state(contents: Mapping[str, Any], source: str | Path) -> dict[str, Tensor]:
    """The detector's tensors within what `read_weights` gave, under plain names, checked finite.

    Raises:
        CheckpointError: no detector in there, or a tensor with NaN or inf.
    """
    state = inner_state(contents, source)
    check_size(state, source)
    check_finite(state, source)
    return state


def check_size(state: StateDict, source: str | Path) -> None:
    """Raise CheckpointError at a tensor that stands for more memory than the file holds: 1 kB may ask for terabytes."""
    for name, tensor in state.items():
        if tensor.layout == torch.strided and tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{source} cannot be used: {name} repeats what it stores",
                got=f"shape {list(tensor.shape)}, {tensor.nbytes} bytes, of which it holds "
                f"{tensor.untyped_storage().nbytes()}",
                fix="save tensors as they are, not expanded: tensor.contiguous()",
            )


def check_finite(state: StateDict, source: str | Path) -> None:
    """Raise CheckpointError at the first tensor with NaN or inf, or the first negative running variance."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{source}: {name} has NaN or inf", fix="use an earlier checkpoint")
        if name.endswith("running_var") and bool((value < 0).any()):
            raise CheckpointError(f"{source}: {name} has a negative variance", got=float(value.min()))


def load_detector(model: nn.Module, state: StateDict, source: str | Path) -> list[str]:
    """Load a detector's weights; predictor layers of another number of classes keep their random start, and are named.

    Raises:
        ConfigError: weights of another architecture.
    """
    own = model.state_dict()
    state = _renamed(state)
    fit = {k: v for k, v in state.items() if not _other_classes(k, v, own)}
    known = {k for k, v in fit.items() if k in own and own[k].shape == v.shape}
    missing = [k for k in own if k not in known and not k.startswith(PREDICTORS)]
    unknown = [k for k in fit if k not in known and not k.endswith("num_batches_tracked")]
    if missing or unknown:
        found = describe(state)
        raise ConfigError(
            f"the weights in {source} are of another model",
            got=f"{len(unknown)} unknown and {len(missing)} missing names or shapes, first {(unknown + missing)[0]}",
            fix=f"use --model {found.model}" if found else "check --weights",
        )
    model.load_state_dict({k: fit[k] for k in known}, strict=False)
    replaced = sorted({k.rsplit(".", 1)[0] for k in state if k not in fit})
    if not replaced:
        return []
    had = state["roi_heads.box_predictor.cls_score.weight"].shape[0]
    has = own["roi_heads.box_predictor.cls_score.weight"].shape[0]
    names = ", ".join(replaced)
    return [f"{source} has {had} classes with background, the data {has}: {names} start at random"]


def _renamed(state: StateDict) -> dict[str, Tensor]:
    """Names of torchvision's first detector files (mask_fcn1, a single RPN convolution) as they are now."""
    renamed = {}
    for name, value in state.items():
        name = re.sub(
            r"roi_heads\.mask_head\.mask_fcn(\d)\.", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.", name
        )
        name = re.sub(r"rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1", name)
        name = re.sub(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2", name)
        renamed[name] = value
    return renamed


def _other_classes(name: str, value: Tensor, own: StateDict) -> bool:
    return name.startswith(PREDICTORS) and name in own and own[name].shape != value.shape


HEADS = ("fc.", "classifier.", "head.", "norm.")
"""What torchvision's classifiers have behind the last feature map; Swin and ConvNeXt a norm too."""


def load_body(body: nn.Module, contents: Mapping[str, Any], source: str | Path) -> None:
    """Load backbone weights (torchvision's classifier or its features alone) into a detector's ``backbone.body``.

    Raises:
        ConfigError: weights of another backbone.
    """
    own = body.state_dict()
    state = {
        k: v
        for k, v in body_state(contents, body.file_names() if isinstance(body, TimmFeatures) else own, source).items()
        if not k.startswith(HEADS)
    }
    check_size(state, source)
    check_finite(state, source)
    if isinstance(body, TimmFeatures):
        state = {**body.load(state), "timm_name": body.get_buffer("timm_name")}
    unknown = [k for k in state if k not in own and not k.endswith("num_batches_tracked")]
    wrong = [k for k in own if k not in state or state[k].shape != own[k].shape]
    if unknown or wrong:
        raise ConfigError(
            f"{source} holds weights of another backbone",
            got=f"{len(unknown)} unknown, {len(wrong)} missing or of another shape; first {(unknown + wrong)[0]}",
            fix="choose the --model that these weights belong to",
        )
    body.load_state_dict(state, strict=False)


def is_coco_v1(state: StateDict) -> bool:
    """Whether ``state`` is torchvision's own maskrcnn_resnet50_fpn COCO_V1 file, whose norms mean eps 0."""
    found = describe(state)
    counted = any(k.endswith("num_batches_tracked") for k in state)
    return bool(found and found.model == "maskrcnn_resnet50_fpn" and found.num_classes == 91 and not counted)


@torch.no_grad()
def keep_eps_zero_numbers(model: nn.Module, *, max_scale: float = 100.0) -> list[str]:
    """Make frozen norms (eps 1e-5) compute what torchvision's COCO_V1 weights mean, which were trained with eps 0.

    torchvision sets eps to 0, which turns a channel with variance 0 into NaN and one with 1e-40 into a huge factor.
    Here eps stays and each channel's weight is corrected by sqrt((var + eps) / var): the numbers are the same, and a
    checkpoint needs no memory of the eps. A channel whose factor would pass ``max_scale`` keeps its own weight.
    """
    kept = 0
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            var, weight = module.get_buffer("running_var"), module.get_buffer("weight")
            safe = var.clamp(min=torch.finfo(var.dtype).tiny)
            healthy = (var > 0) & (weight.abs() * torch.rsqrt(safe) <= max_scale)
            weight.copy_(torch.where(healthy, weight * torch.sqrt((var + module.eps) / safe), weight))
            kept += int((~healthy).sum())
    return [f"{kept} norm channels with a variance near 0 keep eps 1e-5"] if kept else []


def download(fetch: Callable[[], Any], what: str, flag: str) -> Any:
    """Run torchvision's download of ``what``; a failure says which file to get and how to pass it.

    Raises:
        ConfigError: no network, no such file, or a damaged download.
    """
    try:
        return fetch()
    except (urllib.error.URLError, OSError, RuntimeError) as e:
        raise ConfigError(
            f"could not download the {what}",
            got=e,
            fix=f"get that file on a machine with a network and pass it with {flag} PATH, or use --weights none",
        ) from e
