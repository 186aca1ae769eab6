"""Terms at a border, code of a loop, rates that run away, in the ways and detectors that had fewest of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nanbench.faults_code import Losses, compiled, has_bad, losses
from nanbench.faults_fresh import after, loop
from nanbench.faults_lr import rates
from nanbench.faults_once import levels
from nanbench.faults_state import STAGE3, between, weight
from nanbench.faults_third import moving
from nanbench.faults_wild import set_by_hook, times
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup
from nanbench.tiny import sample

NAN, INF = float("nan"), float("inf")
ONE, RATIOS = Culprit(image=True), (0.5, 1.0, 2.0)
MATHS, LR = "LOSS_MATH", "LR_TOO_HIGH"


def at_image(make: Callable[[Any, Tensor], Tensor], bad: float, good: float) -> Callable[[Scene], None]:
    """A term of a number that is ``bad`` with the bad image and ``good`` without it; it follows the weights."""

    def change(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        return {**terms, "own": make(model, moving(model, bad if has_bad(scene, targets) else good))}

    return losses(change)


def direction(model: Any, z: Tensor) -> Tensor:
    """The direction of (0, 0): 0 / 0."""
    return 0.01 * z / torch.hypot(z, z * 1.5)


def saturated(model: Any, z: Tensor) -> Tensor:
    """Cross-entropy of a probability: 1 - sigmoid is 0 in half precision."""
    return -0.01 * (1 - z.bfloat16().sigmoid()).log().float()


def distilled(model: Any, z: Tensor) -> Tensor:
    """p log(p / q) of a teacher that is certain: 0 times log 0."""
    teacher = torch.stack([z.detach().sigmoid(), 1 - z.detach().sigmoid()])
    student = torch.stack([z, -z]).sigmoid()
    return 0.01 * (teacher * (teacher / student).log()).sum()


def unclamped(model: Any, z: Tensor) -> Tensor:
    """A size from its logarithm, which nobody bounds."""
    return 0.01 * z.exp()


def spread(scene: Scene) -> None:
    """The deviation of the boxes' sizes in each image; one image has one object."""
    scene.samples[scene.culprit] = sample(scene.bad_id, objects=1)

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        sizes = [(t["boxes"][:, 2] - t["boxes"][:, 0]) * moving(model, 1.0) for t in targets]
        return {**terms, "spread": 0.001 * torch.stack([v.std() for v in sizes]).mean()}

    losses(change)(scene)


class PowerMean(nn.Module):
    """A mean with a learned power, not clamped: a square is fine, its neighbours are not for numbers below 0."""

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * x.pow(self.power).mean((2, 3), keepdim=True)


def log_variance(scene: Scene) -> None:
    """Losses weighted by exp(-s), where s was given as the variance it is the logarithm of."""
    scene.model.register_parameter("noise", nn.Parameter(torch.tensor(-70.0)))

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        return {k: v * (-model.noise).exp() + model.noise for k, v in terms.items()}

    losses(change)(scene)


def detached(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Terms for the log take the place of the terms for the gradient."""
    return {k: v.detach() for k, v in terms.items()} if scene.step >= 9 else terms


def clipped_to_nan(scene: Scene) -> None:
    """The bound of the clipping is a mean over nothing from step 10 on."""

    def clip(live: Live) -> None:
        if scene.step >= 10:
            nn.utils.clip_grad_norm_(live.model.parameters(), NAN)

    scene.after_backward = clip


class HalfInside(nn.Module):
    """A block that computes in half precision whatever the run does, and whose gain passes its range at a step."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene

    def forward(self, x: Tensor) -> Tensor:
        gain = 1e7 if self.scene.active and self.scene.step >= 8 else 16.0
        return ((x * gain).half() * 1.0).float() / gain


class Energy(nn.Module):
    """Each channel's share of the energy, whose squares are taken in the precision of the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.dirac_(self.gain.weight)
        self.gain.weight.data.mul_(3000.0)
        self.gain.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.gain(x)
        energy = wide * wide
        return x + energy / energy.sum(1, keepdim=True)


class Raising(torch.autograd.Function):
    """Passes on, and raises on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError("unsupported shape in a fused backward kernel")


def raises_backward(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """A kernel cannot take one image on the way back."""
    return {k: Raising.apply(v) if has_bad(scene, targets) else v for k, v in terms.items()}  # pyright: ignore


def gradients_off(live: Live) -> None:
    """A library leaves autograd switched off."""
    torch.set_grad_enabled(False)


def replaced(module: str, steps: tuple[int, ...], value: float) -> Callable[[Scene], None]:
    """A flaky device: one module returns garbage at each of these steps, once."""

    def fault(scene: Scene) -> None:
        left = list(steps)

        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor | None:
            if scene.active and scene.step in left:
                left.remove(scene.step)
                return output * value
            return None

        scene.model.get_submodule(module).register_forward_hook(hook)

    return fault


def stale(module: str, step: int) -> Callable[[Scene], None]:
    """One module returns memory of somebody else's, once: numbers of every size, all finite."""

    def fault(scene: Scene) -> None:
        left = [True]

        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor | None:
            if scene.active and scene.step == step and left:
                left.pop()
                g = torch.Generator().manual_seed(step)
                noise = torch.randn(output.shape, generator=g)
                return output * 0 + noise * 10.0 ** (12 * torch.rand(output.shape, generator=g))
            return None

        scene.model.get_submodule(module).register_forward_hook(hook)

    return fault


def growing(factor: float, start: int) -> Callable[[Scene], None]:
    """A schedule that multiplies where it should divide, from ``start`` on."""

    def fault(scene: Scene) -> None:
        for step in range(start, 24):

            def change(live: Live, times: float = factor ** (step - start + 1)) -> None:
                for group in live.optimizer.param_groups:
                    group["lr"] = group["lr"] * times

            scene.at(step, change)

    return fault


def one_group(component: str, factor: float, start: int, stop: int) -> Callable[[Scene], None]:
    """The rate of one group has a typing error in the second stage of the schedule."""
    return set_by_hook(start, stop, times(factor, (component,)))


def hook_scales(scene: Scene) -> None:
    """Gradients of one layer are multiplied by a hook, from step 8 on."""
    scene.max_grad_norm = 0.0
    weight = scene.model.get_parameter("roi_heads.box_predictor.bbox_pred.weight")
    weight.register_hook(lambda g: g * (1e7 if scene.step >= 8 else 1.0))


def checked(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """The loop's own check, as in torchvision's script."""
    if not all(bool(v.isfinite()) for v in terms.values()):
        raise FloatingPointError("Loss is nan, stopping training")
    return terms


def checks_itself(change: Callable[[Scene], None]) -> Callable[[Scene], None]:
    """What is wrong raises before anybody sees a number."""

    def fault(scene: Scene) -> None:
        change(scene)
        losses(checked)(scene)

    return fault


def anomaly_mode(change: Callable[[Scene], None]) -> Callable[[Scene], None]:
    """Autograd's own check is on, and raises in the backward pass."""

    def fault(scene: Scene) -> None:
        change(scene)
        scene.at(0, lambda live: torch.autograd.set_detect_anomaly(True) and None)

    return fault


def watched(change: Callable[[Scene], None]) -> Callable[[Scene], None]:
    """Every module checks what it gives, and raises."""

    def check(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not bool(output.isfinite().all()):
            raise FloatingPointError(f"{type(module).__name__} gave numbers that are not finite")

    def fault(scene: Scene) -> None:
        change(scene)
        for module in scene.model.modules():
            module.register_forward_hook(check)

    return fault


TERMS = (
    Scenario("fourth-direction", MATHS, "Zzh-tju/DIoU#14", at_image(direction, 0.0, 0.4), Setup(model="keypoint"), ONE),
    # The half rounds to 1; nothing overflows, yet in float32 the same step is finite.
    Scenario("fourth-saturated", MATHS, "pytorch/pytorch#7014", at_image(saturated, 12.0, 0.5),
             Setup(precision="bf16", model="own", way="guard"), ONE, also=("FP16_OVERFLOW",)),
    Scenario("fourth-distilled", MATHS, "pytorch/pytorch#32520", at_image(distilled, 120.0, 0.5),
             Setup("rmsprop", model="faster", way="guard"), ONE),
    Scenario("fourth-unclamped", MATHS, "open-mmlab/mmdetection#6738", at_image(unclamped, 150.0, 0.5),
             Setup(model="ssd"), ONE),
    Scenario("fourth-spread-of-one", MATHS, "pytorch/pytorch#4132", spread, Setup(way="attach"), ONE),
    Scenario("fourth-power-mean", MATHS, "filipradenovic/cnnimageretrieval-pytorch#60",
             after("neck", lambda s: PowerMean()), Setup(model="own", way="guard"), onset=1, verdict=True),
    Scenario("fourth-log-variance", MATHS, "median-research-group/LibMTL#12", log_variance, Setup(model="retina"),
             onset=0, verdict=True),
    Scenario("fourth-clip-nan", MATHS, "NVIDIA/apex#1322", clipped_to_nan, Setup(model="faster", way="attach"),
             onset=10, also=("UNKNOWN",), open_end=True),
    Scenario("fourth-half-inside", "FP16_OVERFLOW", "Peterande/D-FINE#199", after("neck", HalfInside),
             Setup(model="own", way="guard"), onset=8, verdict=True),
    Scenario("fourth-fp16-energy", "FP16_OVERFLOW", "huggingface/transformers#9295",
             after("neck", lambda s: Energy(32)), Setup(model="own", precision="fp16"), Culprit(("neck",)),
             onset=0),
)  # fmt: skip
CODE = (
    Scenario("fourth-detached", "UNKNOWN", "pytorch/vision#2144", losses(detached), Setup(model="retina", way="guard"),
             onset=9, also=(MATHS,), verdict=True),
    Scenario("fourth-gradients-off", "UNKNOWN", "pytorch/vision#2144", between(9, gradients_off),
             Setup(model="faster"), onset=9, verdict=True),
    Scenario("fourth-backward-raises", "UNKNOWN", "pytorch/pytorch#40497", losses(raises_backward),
             Setup(model="retina", way="guard"), ONE),
    Scenario("fourth-compiled-neck", "BACKEND", "pytorch/pytorch#114109", compiled("neck", 9),
             Setup(model="own", way="guard"), Culprit(("neck",), "neck"), onset=9),
    Scenario("fourth-flaky-twice", "TRANSIENT", "NVIDIA/apex#1322", replaced("backbone.body.layer2", (8, 15), 1e8),
             Setup("adamw", model="retina", way="guard"), onset=8),
    Scenario("fourth-stale-memory", "TRANSIENT", "pytorch/FBGEMM#5754", stale("roi_heads.box_head", 11),
             Setup(norm="group", way="attach"), onset=11),
    Scenario("fourth-anchors-nan", "ANCHORS", "open-mmlab/mmdetection#10041",
             levels("faster", ((NAN,), (32,)), (RATIOS,) * 2), Setup(model="faster", way="guard"), onset=0,
             verdict=True),
    Scenario("fourth-anchors-ratio-minus", "ANCHORS", "open-mmlab/mmdetection#10041",
             levels("retina", ((16,), (32,)), ((0.5, -1.0, 2.0),) * 2), Setup(model="retina"), onset=0, verdict=True),
)  # fmt: skip
RAISED = (
    Scenario("fourth-checked-rate", LR, "facebookresearch/detr#101", checks_itself(rates(300.0, warmup=0)),
             Setup(model="own", way="guard"), onset=1),
    Scenario("fourth-checked-term", MATHS, "pytorch/vision#2144",
             checks_itself(at_image(lambda m, z: -0.01 * z.clamp(min=0).log(), 0.0, 0.5)), Setup(model="retina"), ONE,
             also=("UNKNOWN",)),
    Scenario("fourth-anomaly-mode", MATHS, "pytorch/pytorch#4132",
             anomaly_mode(at_image(lambda m, z: 0.01 * z.square().sqrt(), 0.0, 0.5)),
             Setup(model="faster", way="guard"), ONE),
    Scenario("fourth-watched-flip", "TRANSIENT", "AlexeyAB/darknet#5547",
             watched(between(11, weight(f"{STAGE3}.weight", 3e38))), Setup(way="guard"), onset=11,
             also=("POISONED_STATE",)),
)  # fmt: skip
RATES = (
    Scenario("fourth-doubling", LR, "ultralytics/yolov5#292", growing(2.0, 5), Setup(way="guard"), onset=5),
    Scenario("fourth-exponential-adam", LR, "keras-team/keras#11204", growing(2.5, 3),
             Setup("adam", model="faster", way="attach"), onset=3),
    Scenario("fourth-lr-batch-1", LR, "facebookresearch/maskrcnn-benchmark#721", rates(2.0, warmup=0),
             Setup(model="faster", batch=1, way="attach"), onset=0),
    Scenario("fourth-lr-rmsprop", LR, "qfgaohao/pytorch-ssd#22", rates(1.0, warmup=0),
             Setup("rmsprop", model="faster", way="guard"), onset=0),
    Scenario("fourth-lr-nadam-layer", LR, "yhenon/pytorch-retinanet#42", rates(30.0, warmup=0),
             Setup("nadam", norm="layer", model="own", way="guard"), onset=0),
    Scenario("fourth-lr-adamw-batch-2", LR, "facebookresearch/Detectron#676", rates(30.0, warmup=0, clip=10.0),
             Setup("adamw", norm="group", batch=2, model="fcos", way="attach"), onset=0),
    Scenario("fourth-rpn-typo", LR, "facebookresearch/detectron2#1128", one_group("rpn", 1e5, 8, 12),
             Setup(way="attach"), Culprit(("rpn",)), onset=8),
    # What the hook does is as a rate for this layer; that it is a hook no replay can tell.
    Scenario("fourth-hook-scales", LR, "karpathy/nanoGPT#168", hook_scales, Setup(way="guard"), onset=8,
             also=(MATHS, "UNKNOWN"), verdict=True),
    Scenario("fourth-keeps-retina", "ACCUMULATION", "karpathy/nanoGPT#168", loop("keeps gradients", lr=1.0),
             Setup(model="retina", way="attach"), onset=1, also=(LR,), open_end=True),
)  # fmt: skip
FOURTH: tuple[Scenario, ...] = (*TERMS, *CODE, *RAISED, *RATES)
