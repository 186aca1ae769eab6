"""Runs of the project's own trainer, an eighth round: what the data hand out, state and files, hardware."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nanbench.faults_fifth_data import drawn
from nanbench.faults_forms import entry, picture
from nanbench.faults_sixth_data import resumed_with
from nanbench.faults_state import FC6, between
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup

NAN = float("nan")
ONE, FILE = Culprit(image=True), Culprit(checkpoint=True)
PIXEL, BOX, LABEL = "DATA_PIXEL", "DATA_BOX", "DATA_LABEL"
POISON, ONCE = "POISONED_STATE", "TRANSIENT"
GITHUB, TORCH = "https://github.com/", "https://pytorch.org/docs/stable/"


def saturated(image: Tensor) -> Tensor:
    """Colours made stronger through their saturation: of a black pixel it is 0 / 0."""
    image[:, :6, :6] = 0.0
    high, low = image.amax(0), image.amin(0)
    saturation = (high - low) / high
    return high - (high - image) * (saturation * 1.2).clamp(max=1.0) / saturation


def no_data(image: Tensor) -> Tensor:
    """The border of a satellite's picture has the number that stands for no data."""
    image[:, :, 58:] = torch.finfo(torch.float32).min
    return image


def relative(boxes: Tensor) -> Tensor:
    """Middle and size in shares of the picture, where corners in pixels belong."""
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1) / 64


def second_set(scene: Scene) -> None:
    """Three pictures come from a second data set, whose classes are counted on from the first one's."""
    change = entry("labels", lambda labels: labels + 3)
    drawn({0: change, 5: change, 11: change})(scene)


def cache_flipped(scene: Scene) -> None:
    """From step 9 on one exponent bit is another in eight pixels of a picture that is kept in memory."""

    def flip(live: Live) -> None:
        image = scene.samples[scene.culprit][0]
        image[0, 20, 20:28].view(torch.int32).bitwise_xor_(1 << 30)

    scene.at(9, flip)


DATA = (
    Scenario("eighth-train-saturation", PIXEL, GITHUB + "pytorch/vision/issues/2174",
             drawn({0: picture(saturated)}, lambda step: step % 2 == 0), Setup("adamw", model="keypoint"), ONE),
    Scenario("eighth-train-no-data", PIXEL, "https://gdal.org/en/stable/user/raster_data_model.html",
             drawn({0: picture(no_data)}), Setup(model="fcos", norm="group", batch=2), ONE),
    Scenario("eighth-train-relative-box", BOX, GITHUB + "ultralytics/yolov5/issues/2293",
             drawn({0: entry("boxes", relative)}), Setup("adam", model="ssd"), ONE),
    Scenario("eighth-train-second-set", LABEL, TORCH + "data.html", second_set, Setup("adamw", model="faster", batch=2),
             ONE),
    Scenario("eighth-train-cache-flipped", PIXEL, "https://arxiv.org/abs/2102.11245", cache_flipped,
             Setup(norm="batch"), ONE, also=(ONCE,)),
)  # fmt: skip


def quantised(state: dict[str, Any]) -> None:
    """Weights of a file in eight bits, read without their scales: whole numbers up to 127."""
    for value in state["model"].values():
        if value.is_floating_point() and value.ndim > 1:
            value.copy_((value / value.abs().amax().clamp(min=1e-12) * 127).round())


def summed(state: dict[str, Any]) -> None:
    """The mean of five files, of which somebody took the sum."""
    for value in state["model"].values():
        if value.is_floating_point():
            value.mul_(5)


def scaled_moments(state: dict[str, Any]) -> None:
    """First moments that went through half precision times a loss scale of 2^24, and were never divided."""
    for one in state["optimizer"]["state"].values():
        one["exp_avg"].mul_(2.0**24)


def moments_flipped(live: Live) -> None:
    """One exponent bit of eight rows of first moments."""
    live.state_of(f"{FC6}.weight")["exp_avg"][:8].view(torch.int32).bitwise_xor_(1 << 30)


def momentum_once(live: Live) -> None:
    """The momentum of the heads is overwritten with what it is not, once."""
    for name, p in live.model.named_parameters():
        if name.startswith("head") and p in live.optimizer.state:
            live.optimizer.state[p]["momentum_buffer"].mul_(1e9)


def new_anchors(scene: Scene) -> None:
    """After the first epoch anchors are clustered anew; one cluster is empty, and its mean no number."""

    def change(live: Live) -> None:
        generator: Any = live.model.get_submodule("rpn.anchor_generator")
        generator.sizes = ((16.0,), (NAN,))
        generator.cell_anchors = [
            generator.generate_anchors(s, r) for s, r in zip(generator.sizes, generator.aspect_ratios, strict=True)
        ]

    scene.at(6, change)


STATE = (
    Scenario("eighth-train-resume-quantised", POISON, TORCH + "quantization.html", resumed_with(quantised),
             Setup(norm="group", model="retina"), FILE, onset=12, needs=("resume",)),
    # The first epoch is not over at step 12: there is no other file, and nothing healthy to go on from.
    Scenario("eighth-train-resume-summed", POISON, "https://arxiv.org/abs/1803.05407", resumed_with(summed),
             Setup("adamw", model="fcos", batch=2), FILE, onset=12, needs=("resume",), verdict=True),
    Scenario("eighth-train-resume-scaled-moments", POISON, TORCH + "notes/amp_examples.html",
             resumed_with(scaled_moments), Setup("nadam", model="keypoint"), FILE, onset=12, needs=("resume",)),
    Scenario("eighth-train-moments-flipped", ONCE, "https://arxiv.org/abs/2102.11245",
             between(14, moments_flipped), Setup("adamw", norm="group"), Culprit(("box_head",)), onset=14,
             also=(POISON,)),
    Scenario("eighth-train-momentum-once", ONCE, "https://arxiv.org/abs/2102.11245", between(10, momentum_once),
             Setup(model="ssd"), onset=10, also=(POISON,)),
    Scenario("eighth-train-new-anchors", "ANCHORS", GITHUB + "ultralytics/yolov5/blob/master/utils/autoanchor.py",
             new_anchors, Setup("adamw", model="keypoint", batch=2), Culprit(("rpn",)), onset=6, verdict=True),
)  # fmt: skip


def wrong_for(module: str, step: int, calls: int) -> Any:
    """One module returns NaN for so many calls, as long as a device is too warm."""

    def fault(scene: Scene) -> None:
        left = [calls]

        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor | None:
            if scene.active and scene.step >= step and left[0] > 0:
                left[0] -= 1
                return output * NAN
            return None

        scene.model.get_submodule(module).register_forward_hook(hook)

    return fault


def written_by_the_step(scene: Scene) -> None:
    """The kernel that writes the weights of the optimizer's step writes one exponent bit too many in a row, once."""
    left = [True]

    def watch(live: Live) -> None:
        def hook(optimizer: Any, args: Any, kwargs: Any) -> None:
            if left and scene.step == 13:
                left.pop()
                live.parameter(f"{FC6}.weight").data[5, :40].view(torch.int32).bitwise_xor_(1 << 30)

        live.optimizer.register_step_post_hook(hook)

    scene.at(13, watch)


def gradient_bits(scene: Scene) -> None:
    """One exponent bit of eight numbers of a gradient on its way through the pyramid, once."""
    scene.max_grad_norm = 0.0
    left = [True]

    def hook(gradient: Tensor) -> Tensor | None:
        if scene.step == 15 and left:
            left.pop()
            other = gradient.clone()
            other.view(-1)[:8].view(torch.int32).bitwise_xor_(1 << 30)
            return other
        return None

    scene.model.get_parameter("backbone.fpn.layer_blocks.0.0.weight").register_hook(hook)


HARDWARE = (
    # Whether three calls are one step or two hangs on how often somebody looks.
    Scenario("eighth-train-three-calls", ONCE, GITHUB + "pytorch/FBGEMM/issues/5754",
             wrong_for("roi_heads.mask_head", 9, 3), Setup(batch=2), onset=9, also=("BACKEND", "UNKNOWN")),
    Scenario("eighth-train-written-wrong", ONCE, "https://arxiv.org/abs/2102.11245", written_by_the_step,
             Setup("adamw", norm="batch"), Culprit(("box_head",)), onset=13, also=(POISON,)),
    Scenario("eighth-train-gradient-bits", ONCE, "https://arxiv.org/abs/2102.11245", gradient_bits,
             Setup(model="retina", norm="group"), onset=15),
)  # fmt: skip
EIGHTH_TRAIN_DATA: tuple[Scenario, ...] = (*DATA, *STATE, *HARDWARE)
