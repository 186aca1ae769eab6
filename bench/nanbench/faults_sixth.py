"""Learning rates that go wrong by another mechanism each: schedules, thaws, betas, decays, momenta, scaling rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from nanbench.faults_fifth_data import Fault, together
from nanbench.faults_lr import HEADS, rates
from nanbench.faults_wild import options
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup

LR, ACC = "LR_TOO_HIGH", "ACCUMULATION"
BACKBONE, RPN, BOX = Culprit(("backbone",)), Culprit(("rpn",)), Culprit(("box_head",))
THAWED = Culprit(("backbone", "fresh"))
"""The group that a loop added goes by the name that the loop gave it."""


def by_step(share: Callable[[int, float], float], clip: float | None = None) -> Fault:
    """A loop's own schedule: ``share(step, usual rate)`` in place of the usual rate."""

    def fault(scene: Scene) -> None:
        usual = scene.rates
        scene.rates = lambda step: {c: share(step, v) for c, v in usual(step).items()}  # type: ignore[method-assign]
        scene.max_grad_norm = scene.max_grad_norm if clip is None else clip

    return fault


def of_component(component: str, share: Callable[[int, float], float], clip: float | None = None) -> Fault:
    """The schedule of one group alone."""

    def fault(scene: Scene) -> None:
        usual = scene.rates
        change = lambda step: {c: share(step, v) if c == component else v for c, v in usual(step).items()}  # noqa: E731
        scene.rates = change  # type: ignore[method-assign]
        scene.max_grad_norm = scene.max_grad_norm if clip is None else clip

    return fault


def warm_restart(step: int, rate: float) -> float:
    """A cosine that restarts every seven steps; the rate of a restart is multiplied by 100 and was to be by 1 / 100."""
    cycle, at = divmod(step, 7)
    return rate if cycle == 0 else 3e-3 * 100.0**cycle * 0.5 * (1 + math.cos(math.pi * at / 7))


def exp_range(step: int, rate: float) -> float:
    """A triangle of six steps whose height is to shrink by gamma a step; gamma is above 1."""
    height = 1 - abs((step % 6) / 3 - 1)
    return 0.003 + 0.03 * height * 1.5**step


def uncapped(step: int, rate: float) -> float:
    """A linear warm-up without an end."""
    return 0.25 * (step + 1)


def past_the_end(step: int, rate: float) -> float:
    """(1 - step / total) squared, two steps long: behind its end it grows again."""
    return 0.03 * (1 - step / 2) ** 2


def to_the_floor(step: int, rate: float) -> float:
    """A cosine whose lower end, 1e-2, was typed as 1e2."""
    return 100 + (0.03 - 100) * 0.5 * (1 + math.cos(math.pi * step / 23))


def plateau_upwards(step: int, rate: float) -> float:
    """A plateau scheduler with a factor of 10 for one of 0.1: every six steps."""
    return rate * 10.0 ** (step // 6)


def after_restart(step: int, rate: float) -> float:
    """A restarted scheduler multiplies its share onto the rate of the group, which holds the old share already."""
    return rate if step < 12 else rate * 1000


def twice_scaled(scene: Scene) -> None:
    """The linear rule for 8 processes, in the launcher and in the script."""
    scene.lr *= 64
    scene.max_grad_norm = 0.0


def for_sixteen(scene: Scene) -> None:
    """The rate of sixteen images, at one image a step."""
    scene.lr *= 16
    scene.max_grad_norm = 0.0


def upside_down(scene: Scene) -> None:
    """A decay of the rate by depth, with 1 / 0.7 in place of 0.7 over twenty layers: the deepest learn fastest."""
    scene.multipliers = {"backbone": 1250.0, "rpn": 30.0, "box_head": 1.0, "mask_head": 1.0}
    scene.max_grad_norm = 0.0


def thaw(factor: float, at: int) -> Fault:
    """The backbone is thawed under way, in a group of its own, at ``factor`` times the rate of the others."""

    def fault(scene: Scene) -> None:
        frozen = [p for n, p in scene.model.named_parameters() if n.startswith("backbone")]
        for p in frozen:
            p.requires_grad_(False)
        usual = scene.rates
        with_fresh = lambda step: {**usual(step), "fresh": usual(step)["backbone"] * factor}  # noqa: E731
        scene.rates = with_fresh  # type: ignore[method-assign]

        def change(live: Live) -> None:
            for p in frozen:
                p.requires_grad_(True)
            group = {"params": frozen, "lr": with_fresh(at)["fresh"], "weight_decay": scene.weight_decay}
            live.optimizer.add_param_group({**group, "component": "fresh"})

        scene.at(at, change)

    return fault


def from_then(start: int, **values: Any) -> Fault:
    """Settings of every group, from step ``start`` on."""

    def change(live: Live) -> None:
        for group in live.optimizer.param_groups:
            group.update(values)

    def fault(scene: Scene) -> None:
        for step in range(start, 24):
            scene.at(step, change)

    return fault


def cycled_momentum(scene: Scene) -> None:
    """Momentum runs against the rate, as in a one-cycle policy, up to 9.5 for 0.95."""
    scene.max_grad_norm = 0.0
    from_then(12, momentum=9.5)(scene)


def growing_decay(scene: Scene) -> None:
    """A weight decay that climbs along a cosine, to 4e3 for 0.4."""
    for step in range(6, 24):
        value = 4e3 * 0.5 * (1 - math.cos(math.pi * step / 23))
        scene.at(
            step, lambda live, value=value: [g.update(weight_decay=value) for g in live.optimizer.param_groups] and None
        )


def swapped_betas(scene: Scene) -> None:
    """(0.999, 0.9) for (0.9, 0.999), and a rate for large batches."""
    scene.lr, scene.max_grad_norm = 0.1, 0.0
    options(betas=(0.999, 0.9))(scene)


def two_bursts(step: int, rate: float) -> float:
    """Two stages of a schedule with a typing error each."""
    return rate * (1e4 if step in (7, 8) or step in (17, 18) else 1.0)


def keeps_from(start: int, lr: float) -> Fault:
    """The line that clears the gradients is lost with the second stage of the script."""

    def fault(scene: Scene) -> None:
        scene.lr, scene.max_grad_norm = lr, 0.0
        scene.at(start, lambda live: scene.loop.add("keeps gradients"))

    return fault


def undivided(lr: float) -> Fault:
    """Micro-batches are summed from the first step on."""

    def fault(scene: Scene) -> None:
        scene.lr, scene.max_grad_norm = lr, 0.0
        scene.loop.add("undivided")

    return fault


def biases_fast(scene: Scene) -> None:
    """Biases learn twice as fast, as in Caffe: a hook on each, with 2e6 for 2."""
    scene.max_grad_norm = 0.0
    for module in scene.model.get_submodule("rpn").modules():
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            bias.register_hook(lambda g: g * 2e6)


SCHEDULES = (
    Scenario("sixth-warm-restart", LR, "https://github.com/pytorch/pytorch/issues/62640", by_step(warm_restart),
             Setup("adamw", norm="group", way="guard"), onset=14),
    Scenario("sixth-exp-range", LR, "https://github.com/pytorch/pytorch/pull/18001", by_step(exp_range, 0.0),
             Setup(batch=2, way="attach"), onset=8),
    Scenario("sixth-warm-up-uncapped", LR, "https://github.com/the-database/traiNNer-redux/pull/274",
             by_step(uncapped, 0.0), Setup(model="retina", way="guard"), onset=1),
    Scenario("sixth-past-the-end", LR, "https://github.com/ivadomed/ivadomed/issues/57", by_step(past_the_end, 0.0),
             Setup(norm="group", way="attach"), onset=8),
    Scenario("sixth-floor-of-100", LR, "https://github.com/ml-explore/mlx/issues/2617", by_step(to_the_floor),
             Setup(model="keypoint", way="guard"), onset=1),
    Scenario("sixth-plateau-upwards", LR, "https://github.com/facebookresearch/detectron2/issues/1403",
             by_step(plateau_upwards, 0.0), Setup(model="fcos", way="guard"), onset=6),
    Scenario("sixth-restarted-scheduler", LR, "https://github.com/ultralytics/yolov5/issues/292",
             by_step(after_restart, 0.0), Setup(way="attach"), onset=12),
    Scenario("sixth-two-bursts", LR, "https://github.com/facebookresearch/maskrcnn-benchmark/issues/295",
             of_component("rpn", two_bursts, 0.0), Setup(batch=2, way="guard"), RPN, onset=7),
    Scenario("sixth-mask-late", LR, "https://github.com/zjhuang22/maskscoring_rcnn/issues/53",
             of_component("mask_head", lambda step, v: v * (1e5 if step >= 19 else 1.0), 0.0),
             Setup("adamw", batch=1, way="attach"), Culprit(("mask_head",)), onset=19),
)  # fmt: skip
RULES = (
    Scenario("sixth-twice-scaled", LR, "https://github.com/facebookresearch/maskrcnn-benchmark/issues/33",
             twice_scaled, Setup(norm="group", warmup=8), onset=1),
    Scenario("sixth-for-sixteen", LR, "https://github.com/mrlooi/rotated_maskrcnn/issues/16", for_sixteen,
             Setup(batch=1), onset=2),
    Scenario("sixth-depth-upside-down", LR, "https://github.com/huggingface/pytorch-image-models/pull/2532",
             upside_down, Setup(batch=2), BACKBONE, onset=1),
    Scenario("sixth-thawed-afresh", LR, "https://github.com/Lightning-AI/pytorch-lightning/pull/5744",
             thaw(1e4, 8), Setup(norm="group", way="guard"), THAWED, onset=8),
    Scenario("sixth-thawed-adam", LR, "https://github.com/luxonis/luxonis-train/pull/234", thaw(3e3, 11),
             Setup("adamw", way="attach"), THAWED, onset=11),
    Scenario("sixth-points-heads", LR, "https://github.com/TannerGilbert/Tensorflow-Object-Detection-API-train-custom-"
             "Mask-R-CNN-model/issues/13", rates(heads=500), Setup(model="keypoint", batch=2, warmup=10), BOX, onset=1),
    Scenario("sixth-norm-batch-rate", LR, "https://github.com/facebookresearch/detectron2/issues/5080",
             rates(30.0), Setup(norm="batch", batch=2), onset=1),
)  # fmt: skip
OPTIMIZERS = (
    Scenario("sixth-momentum-cycled", LR, "https://github.com/pytorch/pytorch/pull/18001", cycled_momentum,
             Setup(norm="group"), onset=12),
    Scenario("sixth-decay-climbs", LR, "https://github.com/wandb/senpai/pull/3131", growing_decay,
             Setup("adamw", precision="bf16", way="guard"), onset=8),
    Scenario("sixth-betas-swapped", LR, "https://github.com/wandb/senpai/pull/3128", swapped_betas,
             Setup("adam", batch=2, way="attach"), onset=0),
    Scenario("sixth-rmsprop-centred", LR, "https://github.com/ibab/tensorflow-wavenet/issues/149",
             options(alpha=0.0, centered=True), Setup("rmsprop", way="guard"), onset=0, also=("POISONED_STATE",)),
    Scenario("sixth-biases-fast", LR, "https://github.com/facebookresearch/detectron2/issues/1128", biases_fast,
             Setup(way="guard"), RPN, onset=1, also=("LOSS_MATH", "UNKNOWN")),
    Scenario("sixth-keeps-from-8", ACC, "https://github.com/Lightning-AI/pytorch-lightning/issues/149",
             keeps_from(8, 0.3), Setup(norm="group", way="attach"), onset=9, also=(LR,), open_end=True),
    Scenario("sixth-undivided-retina", ACC, "https://github.com/Lightning-AI/pytorch-lightning/issues/12894",
             undivided(1.0), Setup(accumulate=4, model="retina", way="attach"), onset=0, also=(LR,), open_end=True),
    Scenario("sixth-heads-and-decay", LR, "https://github.com/ivanvovk/WaveGrad/issues/3",
             together(rates(heads=100, weight_decay=0.5), options(nesterov=True)),
             Setup(accumulate=2, norm="group"), Culprit(HEADS), onset=1),
)  # fmt: skip
SIXTH: tuple[Scenario, ...] = (*SCHEDULES, *RULES, *OPTIMIZERS)
