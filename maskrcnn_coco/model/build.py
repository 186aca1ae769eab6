"""Mask R-CNN for K classes: torchvision's bodies through FPN, and a small one for the built-in shapes.

Norm layers never change statistics here. Pretrained norms are frozen; layers that start at random are normalised by
group (GroupNorm). Batch statistics over 2 to 4 images are poor, a batch without objects turns the mask head's running
variance into NaN, and a frozen identity norm on a random network makes features grow until they overflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN

from maskrcnn_coco.config.settings import COCO_WEIGHTS, MODELS, Config
from maskrcnn_coco.data.classes import Classes, saved_classes
from maskrcnn_coco.errors import CheckpointError, ConfigError
from maskrcnn_coco.model.architecture import FULL, SMALL, assemble, freeze
from maskrcnn_coco.model.backbones import BODIES
from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.model.foreign_files import SCORE
from maskrcnn_coco.model.predictor_rows import rows_by_name
from maskrcnn_coco.model.timm_bodies import PREFIX, create
from maskrcnn_coco.model.weights import (
    StateDict,
    describe,
    detector_state,
    download,
    is_coco_v1,
    keep_eps_zero_numbers,
    load_body,
    load_detector,
    read_weights,
)


def build_model(
    name: str,
    num_classes: int,
    *,
    weights: str = "none",
    backbone_weights: str | Path | None = None,
    min_size: int = 800,
    max_size: int = 1333,
    freeze_stages: int | None = None,
    small: bool = False,
    detections_per_image: int = 100,
    fast: bool = True,
    classes: Classes | None = None,
) -> MaskRCNN:
    """A Mask R-CNN with torchvision's names and interface. ``model.notes`` lists what was done with the weights.

    Args:
        name: one of `config.MODELS`.
        num_classes: classes with background. classes: their names, matched with a checkpoint's; None: by place.
        weights: "coco" or "imagenet" (downloaded through torch.hub), "none", or the path of a checkpoint of this
            project or of a torchvision detector's state dict. Predictors of other classes start at random: a note.
        backbone_weights: path of weights for the backbone alone, loaded after ``weights``.
        min_size, max_size: sides of the resized image, pixels.
        freeze_stages: backbone stages from the stem (1: stem, 2: and the first stage, … 5: all) that do not train.
            Default: 2 where the backbone's weights are loaded, else 0.
        small: the variant for the built-in shapes, `maskrcnn_resnet18_fpn` only.
        detections_per_image: most detections kept for an image in evaluation.
        fast: with `fast.accelerate`, the same numbers in less time.

    Raises:
        ConfigError: unknown model, weights that the model has not, a failed download, another architecture's weights.
        CheckpointError: a weights file that is damaged or not finite.
    """
    _check(name, num_classes, small, weights)
    contents = None if weights in ("coco", "imagenet", "none") else read_weights(weights)
    state = None if contents is None else detector_state(contents, weights)
    if state is not None:
        found = describe(state)
        # A checkpoint of the built-in shapes is of the small variant; nothing else loads it.
        small = found.small if found and found.model == name else small
    body_norm, head_norm = _norms(state, weights, backbone_weights)
    sizes = {"min_size": min_size, "max_size": max_size, "detections": detections_per_image}
    model = assemble(name, num_classes, SMALL if small else FULL, body_norm, head_norm, **sizes)
    state, said = _by_name(state, contents, model, classes, weights)
    notes = [*_load(model, name, weights, state), *said]
    if backbone_weights is not None:
        load_body(model.get_submodule("backbone.body"), read_weights(backbone_weights), backbone_weights)
        notes.append(f"backbone from {backbone_weights}")
    freeze(model, name, freeze_stages, loaded=weights != "none" or backbone_weights is not None)
    if fast:
        accelerate(model)
    model.notes = notes  # type: ignore[assignment]
    return model


def _by_name(
    state: StateDict | None, contents: Mapping[str, Any] | None, model: MaskRCNN, classes: Classes | None, source: str
) -> tuple[StateDict | None, list[str]]:
    """``state`` with its predictors in the order of ``classes``, and a sentence where that changes something."""
    if state is None or contents is None or classes is None or SCORE not in state:
        return state, []
    had = saved_classes(contents, len(state[SCORE]))
    return rows_by_name(state, model.state_dict(), had=had, has=classes, source=source)


def _check(name: str, num_classes: int, small: bool, weights: str) -> None:
    if name not in MODELS and not name.startswith(PREFIX):
        raise ConfigError(f"--model {name} is not known", expected=", ".join((*MODELS, "timm/NAME")))
    if num_classes < 2:
        raise ConfigError("too few classes", got=num_classes, expected="2 or more, the background included")
    if small and (name != "maskrcnn_resnet18_fpn" or weights in ("coco", "imagenet")):
        raise ConfigError("the small variant is maskrcnn_resnet18_fpn from scratch", got=f"{name}, weights {weights}")
    if weights == "coco" and name not in COCO_WEIGHTS:
        raise ConfigError(f"there are no COCO weights of {name}", fix="use --weights imagenet, none or a PATH")


def _norms(state: StateDict | None, weights: str, backbone_weights: object) -> tuple[str, str]:
    """Norm of the body and of the other layers: frozen where loaded with statistics, by group where random."""
    if state is not None and (found := describe(state)) is not None:
        return found.body_norm, found.head_norm or "group"
    if weights == "coco":
        return "frozen", "frozen"
    return ("frozen" if weights == "imagenet" or backbone_weights is not None else "group"), "group"


def _load(model: MaskRCNN, name: str, weights: str, state: StateDict | None) -> list[str]:
    detection = torchvision.models.detection
    if state is not None:
        notes = load_detector(model, state, weights)
        if is_coco_v1(state):
            notes += keep_eps_zero_numbers(model)
        return [f"weights from {weights}", *notes]
    if weights == "imagenet" and name.startswith(PREFIX):
        fetch = lambda: create(name.removeprefix(PREFIX), pretrained=True).state_dict()  # noqa: E731
        load_body(
            model.get_submodule("backbone.body"), download(fetch, f"weights of {name}", "--backbone-weights"), name
        )
        return [f"backbone from {name}"]
    if weights == "imagenet":
        source = BODIES[name].weights
        fetched = _fetch(source, "ImageNet weights", "--backbone-weights")
        load_body(model.get_submodule("backbone.body"), fetched, source.url)
        return [f"backbone from {source.url}"]
    if weights != "coco":
        return []
    v2 = name == "maskrcnn_resnet50_fpn_v2"
    chosen = detection.MaskRCNN_ResNet50_FPN_V2_Weights if v2 else detection.MaskRCNN_ResNet50_FPN_Weights
    fetched = _fetch(chosen.COCO_V1, "COCO weights", "--weights")
    notes = load_detector(model, fetched, "COCO_V1")
    return notes + ([] if v2 else keep_eps_zero_numbers(model))


def _fetch(source: Any, what: str, flag: str) -> dict[str, Tensor]:
    return download(lambda: source.get_state_dict(progress=False, check_hash=True), f"{what} {source.url}", flag)


def build_from_state(
    state: Mapping[str, Tensor],
    *,
    min_size: int = 800,
    max_size: int = 1333,
    freeze_stages: int = 0,
    detections_per_image: int = 100,
    source: str | Path = "the checkpoint",
    fast: bool = True,
) -> MaskRCNN:
    """The detector that ``state`` (tensors by name) was saved from: architecture, norms and classes are read from it.

    ``fast``: with `fast.accelerate`, the same numbers in less time.

    Raises:
        CheckpointError: of no architecture of this project.
    """
    found = describe(state)
    if found is None:
        first = ", ".join(list(state)[:3])
        raise CheckpointError(
            f"{source} holds no Mask R-CNN of this project", got=f"tensors {first}, …", expected=", ".join(MODELS)
        )
    model = assemble(
        found.model,
        found.num_classes,
        SMALL if found.small else FULL,
        found.body_norm,
        found.head_norm or "group",
        min_size=min_size,
        max_size=max_size,
        detections=detections_per_image,
    )
    try:
        load_detector(model, state, source)
    except ConfigError as e:  # here no flag chooses another model
        raise CheckpointError(f"{source} holds no Mask R-CNN of this project", got=_lack(state) or e.got) from e
    freeze(model, found.model, freeze_stages, loaded=True)
    if fast:
        accelerate(model)
    model.notes = [f"weights from {source}"]  # type: ignore[assignment]
    return model


def _lack(state: Mapping[str, Tensor]) -> str | None:
    """What a detector of another kind is, where its names tell."""
    if not any(k.startswith("roi_heads.mask_predictor.") for k in state):
        other = "a Keypoint R-CNN" if any("keypoint" in k for k in state) else "a Faster R-CNN"
        return f"weights without a mask head: {other}?"
    return None


def load_for_inference(
    path: str | Path,
    *,
    num_classes: int | None = None,
    min_size: int | None = None,
    max_size: int | None = None,
    detections_per_image: int | None = None,
    fast: bool = True,
) -> tuple[MaskRCNN, dict[str, Any]]:
    """A detector in eval mode from a checkpoint or a torchvision state dict, and what else the file held.

    Sizes that are None come from the checkpoint's own configuration.

    Args:
        num_classes: classes with background of the data to evaluate on; None: whatever the checkpoint has.
        fast: see `build_from_state`; False: torchvision's own classes, for tracing and export.

    Raises:
        ConfigError: no such file, or the checkpoint has another number of classes than the data.
        CheckpointError: damaged, not finite, or of another model.
    """
    contents = read_weights(path)
    if contents.get("use_ema"):
        # The averaged weights were the better ones; those that training goes on from stay under "model".
        contents = {**contents, "model": contents["ema"]["weights"]}
    state = detector_state(contents, path)
    config = contents.get("config")
    saved: Mapping[str, Any] = config if isinstance(config, Mapping) else {}
    model = build_from_state(
        state,
        min_size=min_size or saved.get("min_size") or 800,
        max_size=max_size or saved.get("max_size") or 1333,
        detections_per_image=detections_per_image or saved.get("box_detections_per_image") or 100,
        source=path,
        fast=fast,
    )
    has = int(state["roi_heads.box_predictor.cls_score.weight"].shape[0])
    if num_classes is not None and num_classes != has:
        classes = contents.get("classes")
        named = f" ({', '.join(map(str, classes))})" if isinstance(classes, (list, tuple)) else ""
        raise ConfigError(
            f"{path} was trained for other classes than the data has",
            got=f"{has} classes with background{named}",
            expected=f"{num_classes} classes with background",
            fix="evaluate on the data set it was trained for, or train with --weights " + str(path),
        )
    model.eval()
    return model, {k: v for k, v in contents.items() if k not in state}


def classes_in(model: nn.Module) -> int:
    """The number of classes, with background, that a detector of this project tells apart."""
    return int(model.state_dict()["roi_heads.box_predictor.cls_score.weight"].shape[0])


def set_sampler(model: nn.Module, proposals: int | None) -> None:
    """Train the heads on ``proposals`` of each image; None, or a model without torchvision's sampler: as it is."""
    sampler = getattr(getattr(model, "roi_heads", None), "fg_bg_sampler", None)
    if proposals is not None and sampler is not None:
        sampler.batch_size_per_image = proposals


def make_model(config: Config, classes: Classes, *, small: bool) -> nn.Module:
    """The model that a resolved ``config`` describes. ``small``: the small variant for the built-in shapes."""
    assert config.model and config.weights and config.min_size and config.max_size
    # Weights of new heads are drawn from torch's generator: the same seed gives the same model.
    torch.manual_seed(config.seed)
    model = build_model(
        config.model,
        1 + len(classes.names),
        weights=config.weights,
        backbone_weights=config.backbone_weights,
        min_size=config.min_size,
        max_size=config.max_size,
        freeze_stages=config.freeze_stages,
        small=small,
        detections_per_image=config.box_detections_per_image
        if isinstance(config.box_detections_per_image, int)
        else 100,
        classes=classes,
    )
    set_sampler(model, config.box_batch_size_per_image)
    return model
