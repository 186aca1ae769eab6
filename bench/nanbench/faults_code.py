"""Faults of code: the loss's own maths, wrong compiled kernels, other processes, images that break a model unseen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup

NAN, INF = math.nan, math.inf
Losses = dict[str, Tensor]
ChangeLosses = Callable[[Scene, nn.Module, Losses, Any], Losses]


def losses(change: ChangeLosses) -> Callable[[Scene], None]:
    """The model's losses pass through ``change`` in training."""

    def fault(scene: Scene) -> None:
        def hook(model: nn.Module, args: Any, output: Any) -> Any:
            if scene.active and model.training and isinstance(output, dict):
                return change(scene, model, dict(output), args[1])
            return None

        scene.model.register_forward_hook(hook)

    return fault


def has_bad(scene: Scene, targets: Any) -> bool:
    """Whether the bad image is in the batch."""
    return any(int(t["image_id"]) == scene.bad_id for t in targets)


def root_of_nothing(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """An auxiliary term sqrt(d²) whose d is exactly 0 for one image: 0.0, with a derivative of 0 / 0."""
    bias = model.roi_heads.mask_predictor.mask_fcn_logits.bias
    away = bias - bias.detach() + (0.0 if has_bad(scene, targets) else 0.1)
    return {**terms, "loss_aux": 0.01 * away.pow(2).sum().sqrt()}


def mean_of_nothing(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """loss_mask divided by the number of objects that count; one image has none."""
    count = sum(int(t["image_id"]) != scene.bad_id for t in targets) if has_bad(scene, targets) else len(targets)
    zero = terms["loss_mask"].new_tensor(0.0 if has_bad(scene, targets) else float(count))
    return {**terms, "loss_mask": terms["loss_mask"] * zero / zero}


def class_weight(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Weights 1 / count per class of the batch, where the bad image has a class that nobody counted: 1 / 0."""
    count = terms["loss_classifier"].new_tensor(0.0 if has_bad(scene, targets) else 1.0)
    return {**terms, "loss_classifier": terms["loss_classifier"] * (1 / count)}


def unused_branch(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """where(x > 0, sqrt(x), 0): the branch that is not taken sends NaN backwards when x is 0."""
    weight = model.roi_heads.box_predictor.bbox_pred.bias[:4]
    x = (weight - weight.detach()) + (0.0 if has_bad(scene, targets) else 0.2)
    return {**terms, "loss_iou": 0.01 * torch.where(x > 0, x.sqrt(), torch.zeros_like(x)).sum()}


def everything_infinite(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """One image makes every loss infinite, for no reason that a scan can see."""
    return {k: v * (INF if has_bad(scene, targets) else 1.0) for k, v in terms.items()}


def crash(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """One image makes the model raise."""
    if has_bad(scene, targets):
        raise RuntimeError("shape mismatch in a fused kernel")
    return terms


def two_terms(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """One image makes two losses NaN."""
    bad = NAN if has_bad(scene, targets) else 1.0
    return {k: v * (bad if k in ("loss_box_reg", "loss_mask") else 1.0) for k, v in terms.items()}


ADAM = Setup(optimizer="adamw")
ACC = Setup(accumulate=4)
ONE = Culprit(image=True)

MATHS = (
    Scenario("maths-root-of-nothing", "LOSS_MATH", "pytorch/pytorch#4132", losses(root_of_nothing), Setup(), ONE),
    Scenario("maths-mean-of-nothing", "LOSS_MATH", "ultralytics/ultralytics#490", losses(mean_of_nothing), ACC, ONE),
    Scenario("maths-class-weight", "LOSS_MATH", "fcakyon/balanced-loss#12", losses(class_weight), ADAM, ONE),
    Scenario("maths-unused-branch", "LOSS_MATH", "pytorch/pytorch#52248", losses(unused_branch), Setup(norm="group"),
             ONE),
)  # fmt: skip

UNSEEN = (
    Scenario("unseen-image", "UNKNOWN", "facebookresearch/detectron2#2299", losses(everything_infinite), Setup(), ONE),
    Scenario("unseen-crash", "UNKNOWN", "facebookresearch/detectron2#2295", losses(crash), Setup(norm="batch"), ONE),
    Scenario("unseen-two-terms", "UNKNOWN", "facebookresearch/detectron2#3445", losses(two_terms), ADAM, ONE),
)  # fmt: skip


def _wrong_kernel(start: int, scene: Scene) -> Callable[..., Any]:
    """A compiler backend whose code is wrong from ``start`` on: its last output is NaN."""

    def compiler(graph: Any, _: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            out = graph.forward(*args)
            return tuple(o * NAN for o in out) if scene.active and scene.step >= start else out

        return run

    return compiler


def compiled(module: str, start: int) -> Callable[[Scene], None]:
    """One module is compiled, and the compiled code is wrong from step ``start`` on; eager code is right."""

    def fault(scene: Scene) -> None:
        scene.model.get_submodule(module).compile(backend=_wrong_kernel(start, scene), dynamic=False)

    return fault


def wrong_library(module: str, start: int) -> Callable[[Scene], None]:
    """One module goes through the vendor's library (oneDNN), whose kernel is wrong; without the library it is right."""

    def fault(scene: Scene) -> None:
        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor | None:
            wrong = scene.active and scene.step >= start and torch._C._get_mkldnn_enabled()
            return output * NAN if wrong else None

        scene.model.get_submodule(module).register_forward_hook(hook)

    return fault


BACKEND = (
    Scenario("compiled-stage", "BACKEND", "pytorch/pytorch#114109", compiled("backbone.body.layer2", 8), Setup(),
             Culprit(("backbone",), "backbone.body.layer2"), onset=8),
    Scenario("compiled-box-head", "BACKEND", "pytorch/pytorch#146129", compiled("roi_heads.box_head", 0), ADAM,
             Culprit(("box_head",), "roi_heads.box_head"), onset=0),
    Scenario("library-kernel", "BACKEND", "google-research/l2p#24", wrong_library("backbone.body.layer3", 12), Setup(),
             Culprit(("backbone",), "backbone.body.layer3"), onset=12),
)  # fmt: skip


def rank_pixels(scene: Scene) -> None:
    """One image has a NaN pixel: only one process meets it."""
    scene.samples[scene.culprit][0][0, 3, 4] = NAN


def rank_boxes(scene: Scene) -> None:
    """One box of one image is inverted."""
    target = scene.samples[scene.culprit][1]
    target["boxes"][0] = target["boxes"][0, [2, 3, 0, 1]]


def rank_labels(scene: Scene) -> None:
    """One label of one image is past the end."""
    scene.samples[scene.culprit][1]["labels"][1] = 9


TWO = Setup(ranks=2)
RANKS = (
    Scenario("rank-pixel", "RANK_LOCAL", "facebookresearch/mmf#1073", rank_pixels, TWO, ONE, needs=("ranks",)),
    Scenario("rank-box", "RANK_LOCAL", "OpenBMB/BMTrain#108", rank_boxes, TWO, ONE, needs=("ranks",)),
    Scenario("rank-label", "RANK_LOCAL", "xternalz/WideResNet-pytorch#8", rank_labels, TWO, ONE, needs=("ranks",)),
)  # fmt: skip

CODE = (*MATHS, *UNSEEN, *BACKEND, *RANKS)
