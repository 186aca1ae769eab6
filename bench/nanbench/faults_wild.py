"""Mechanisms beside the usual ones: other optimizers and detectors, schedules that jump, sums that end in 0/0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nanbench.faults_code import Losses, has_bad, losses
from nanbench.faults_lr import HEADS, rates
from nanbench.faults_once import from_step
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup

NAN, INF = float("nan"), float("inf")
ONE, FILE = Culprit(image=True), Culprit(checkpoint=True)
FCOS, SSD, POINTS, OWN = Setup(model="fcos"), Setup(model="ssd"), Setup(model="keypoint"), Setup(model="own")
SGD, ADAM, GROUP, BATCH = Setup(), Setup(optimizer="adamw"), Setup(norm="group"), Setup(norm="batch")
TWO, SINGLE, RETINA, FASTER = Setup(batch=2), Setup(batch=1), Setup(model="retina"), Setup(model="faster")
FP16, BF16, ACC = Setup(precision="fp16"), Setup(precision="bf16"), Setup(accumulate=4)


def some_weight(model: nn.Module) -> Tensor:
    """A weight that every model here has."""
    return next(p for n, p in model.named_parameters() if p.ndim > 1 and p.requires_grad)


def zero_of(model: nn.Module, away: float) -> Tensor:
    """A number that depends on the weights and is ``away``."""
    value = some_weight(model).flatten()[0]
    return value - value.detach() + away


def term(make: Callable[[Tensor], Tensor]) -> Callable[[Scene], None]:
    """A term of the caller's own, of a number that is 0 with the bad image and 0.5 without it."""

    def change(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        return {**terms, "own": make(zero_of(model, 0.0 if has_bad(scene, targets) else 0.5))}

    return losses(change)


def times(name: str, value: float, start: int) -> Callable[[Scene], None]:
    """One loss is multiplied by ``value`` from step ``start`` on, whatever the batch."""

    def change(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        return {k: v * (value if k == name and scene.step >= start else 1.0) for k, v in terms.items()}

    return losses(change)


def added(start: int, factor: float) -> Callable[[Scene], None]:
    """A new term of enormous size sets in."""

    def change(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        extra = factor * some_weight(model).square().mean()
        return {**terms, "own": extra} if scene.step >= start else terms

    return losses(change)


def every_loss(factor: float) -> Callable[[Scene], None]:
    """Losses are sums where the rate is for means; nothing clips."""

    def fault(scene: Scene) -> None:
        scene.max_grad_norm = 0.0
        losses(lambda s, m, terms, t: {k: v * factor for k, v in terms.items()})(scene)

    return fault


MATHS = (
    ("log-of-nothing", lambda z: -0.01 * z.clamp(min=0).log(), SGD),
    ("root-retina", lambda z: 0.01 * z.abs().sqrt(), RETINA),
    ("power", lambda z: 0.01 * z.pow(0.3), FCOS),
    ("zero-times-inf", lambda z: z * (1 / z.detach()) * 0.01, ADAM),
    ("arc-cosine", lambda z: 0.01 * torch.acos(1 - z), SSD),
    ("masked-mean", lambda z: (z * (z.detach() > 0.1)).sum() / (z.detach() > 0.1).sum(), OWN),
    ("norm-of-nothing", lambda z: 0.01 * z / z.square().sum().sqrt(), GROUP),
    ("log-own-bf16", lambda z: -0.01 * z.clamp(min=0).log(), Setup(model="own", precision="bf16")),
)
FORMULAS = (
    ("nan-weight", times("loss_classifier", NAN, 9), 9, SGD),
    ("nan-weight-fcos", times("bbox_regression", NAN, 5), 5, FCOS),
    ("inf-weight-own", times("box", INF, 7), 7, OWN),
    ("1e5-fcos", from_step("classification", 1e5, 12), 12, FCOS),
    ("1e5-ssd", from_step("bbox_regression", 1e6, 9), 9, SSD),
    ("1e6-own", from_step("box", 1e6, 14), 14, OWN),
    ("new-term", added(10, 1e8), 10, SGD),
    ("new-term-faster", added(13, 1e9), 13, FASTER),
)


def rests_until(step: int, scene: Scene) -> None:
    """The backbone learns nothing before ``step``."""

    def learns(flag: bool) -> Any:
        def change(live: Live) -> None:
            for name, p in live.model.named_parameters():
                if name.startswith("backbone"):
                    p.requires_grad_(flag)

        return change

    scene.at(0, learns(False))
    scene.at(step, learns(True))


def set_by_hook(start: int, stop: int, change: Callable[[dict[str, Any]], None]) -> Callable[[Scene], None]:
    """Somebody's hook changes the optimizer's groups before each forward pass of these steps."""

    def fault(scene: Scene) -> None:
        for step in range(start, stop):
            scene.at(step, lambda live: [change(g) for g in live.optimizer.param_groups] and None)

    return fault


def times(factor: float, components: Sequence[str] | None = None) -> Callable[[dict[str, Any]], None]:
    """The rate of these components, or of all, times ``factor``."""

    def change(group: dict[str, Any]) -> None:
        if components is None or group.get("component") in components:
            group["lr"] = group["lr"] * factor

    return change


def heads(factor: float) -> Callable[[dict[str, Any]], None]:
    """The heads' rate, times ``factor``."""
    return times(factor, HEADS)


def setting(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """One setting of every group."""
    return lambda group: group.__setitem__(key, value)


def options(**values: Any) -> Callable[[Scene], None]:
    """The optimizer is made with these."""
    return lambda scene: scene.optimizer_options.update(values)


LR = "LR_TOO_HIGH"
RATES = (
    Scenario(
        "wild-lr-adagrad", LR, "amdegroot/ssd.pytorch#275", rates(20.0, warmup=0), Setup(optimizer="adagrad"), onset=0
    ),
    Scenario(
        "wild-lr-rmsprop", LR, "qfgaohao/pytorch-ssd#22", rates(1.0, warmup=0), Setup(optimizer="rmsprop"), onset=0
    ),
    Scenario("wild-lr-nadam", LR, "keras-team/keras#11204", rates(1.0, warmup=0), Setup(optimizer="nadam"), onset=0),
    Scenario("wild-lr-fcos", LR, "tianzhi0549/FCOS#146", rates(20.0), FCOS, onset=1),
    Scenario("wild-lr-ssd", LR, "amdegroot/ssd.pytorch#275", rates(10.0), SSD, onset=1),
    Scenario(
        "wild-lr-points",
        LR,
        "facebookresearch/detectron2#1128",
        rates(heads=40),
        POINTS,
        Culprit(("box_head", "keypoint_head")),
        onset=1,
    ),
    Scenario("wild-lr-own", LR, "yhenon/pytorch-retinanet#42", rates(300.0), OWN, onset=1),
    Scenario(
        "wild-lr-own-group-clipped",
        LR,
        "yhenon/pytorch-retinanet#42",
        rates(100.0, clip=10),
        Setup(model="own", norm="group"),
        onset=1,
    ),
    Scenario(
        "wild-lr-momentum-1.25", LR, "nan_cases R-A5", set_by_hook(2, 24, setting("momentum", 1.25)), SGD, onset=2
    ),
    Scenario("wild-lr-summed", LR, "karpathy/nanoGPT#168", every_loss(300.0), SGD, onset=1),
    Scenario("wild-lr-decay-adamw", LR, "nan_cases R-A6", rates(0.02, weight_decay=600.0), ADAM, onset=1),
    Scenario(
        "wild-lr-heads-late",
        LR,
        "facebookresearch/maskrcnn-benchmark#841",
        set_by_hook(10, 14, heads(300.0)),
        SGD,
        Culprit(HEADS),
        onset=10,
    ),
    Scenario(
        "wild-lr-all-late",
        LR,
        "ultralytics/yolov5#292",
        set_by_hook(12, 24, setting("lr", 20.0)),
        SGD,
        onset=12,
    ),
    Scenario(
        "wild-lr-negative",
        "POISONED_STATE",
        "ultralytics/yolov5#292",
        set_by_hook(8, 24, setting("lr", -0.5)),
        SGD,
        onset=8,
        also=(LR,),
    ),
    Scenario(
        "wild-decay-negative",
        "POISONED_STATE",
        "nan_cases R-A6",
        set_by_hook(8, 24, setting("weight_decay", -60.0)),
        SGD,
        onset=8,
        also=(LR,),
    ),
    Scenario(
        "wild-momentum-nan",
        "POISONED_STATE",
        "ultralytics/yolov5#292",
        set_by_hook(8, 9, setting("momentum", NAN)),
        SGD,
        onset=8,
    ),
    Scenario(
        "wild-betas-one",
        "POISONED_STATE",
        "keras-team/keras#11204",
        set_by_hook(8, 9, setting("betas", (1.0, 1.0))),
        ADAM,
        onset=8,
        also=("UNKNOWN",),
    ),
    Scenario(
        "wild-eps-zero",
        "POISONED_STATE",
        "NVIDIA/apex#240",
        options(eps=0.0),
        ADAM,
        onset=0,
        also=("UNKNOWN", "LOSS_MATH"),
    ),
    Scenario(
        "wild-eps-zero-rmsprop",
        "POISONED_STATE",
        "NVIDIA/apex#240",
        options(eps=0.0),
        Setup(optimizer="rmsprop"),
        onset=0,
        also=("UNKNOWN", "LOSS_MATH"),
    ),
)


MATHS_OF = tuple(
    Scenario(f"wild-maths-{name}", "LOSS_MATH", "pytorch/pytorch#4132", term(make), setup, ONE)
    for name, make, setup in MATHS
)
FORMULAS_OF = tuple(
    Scenario(
        f"wild-formula-{name}", "LOSS_MATH", "open-mmlab/mmdetection#3605", change, setup, verdict=True, onset=start
    )
    for name, change, start, setup in FORMULAS
)
WILD: tuple[Scenario, ...] = (*MATHS_OF, *FORMULAS_OF, *RATES)
