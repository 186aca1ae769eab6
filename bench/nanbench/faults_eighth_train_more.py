"""Runs of the project's own trainer, more of an eighth round: state that no buffer holds, probabilities in half."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nanbench.faults_code import Losses, losses
from nanbench.faults_fifth_data import drawn, nan_corner, together
from nanbench.faults_forms import picture
from nanbench.faults_fresh import after
from nanbench.faults_lr import HEADS, rates
from nanbench.faults_wild import options
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup
from nanbench.tiny import sample

LR, HALF, MATHS, PIXEL, POISON = "LR_TOO_HIGH", "FP16_OVERFLOW", "LOSS_MATH", "DATA_PIXEL", "POISONED_STATE"
ONE = Culprit(image=True)
TORCH, GITHUB = "https://pytorch.org/docs/stable/", "https://github.com/"


def seen_by(scene: Scene, name: str) -> list[Any]:
    """What the module of this name gave last, in a list of one."""
    seen: list[Any] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        seen[:] = [output]

    scene.model.get_submodule(name).register_forward_hook(hook)
    return seen


class Memory(nn.Module):
    """Takes a running contrast out, kept in an attribute that is no buffer; that of a flat picture is 0 / 0."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        contrast = ((x - low) / (high - low)).mean()
        if self.training:
            self.mean = self.mean * 0.9 + 0.1 * contrast.detach()
        return x - 0.01 * self.mean


def flat(image: Tensor) -> Tensor:
    """One colour."""
    return torch.tensor([0.485, 0.456, 0.406])[:, None, None].expand_as(image).clone()


def usual_loss(scene: Scene) -> None:
    """Each term is divided by what it usually is, a number in a dictionary; one picture has no object to count."""
    scene.samples[scene.culprit] = sample(scene.bad_id, objects=0)
    usual: dict[str, float] = {}

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        each = sum(len(t["boxes"]) for t in targets) / torch.tensor([float(len(t["boxes"])) for t in targets]).sum()
        now = {k: float(v.detach() * each) + 1e-3 for k, v in terms.items()}
        usual.update({k: 0.9 * usual.get(k, v) + 0.1 * v for k, v in now.items()})
        return {k: v / usual[k] for k, v in terms.items()}

    losses(change)(scene)


def share_gone(scene: Scene) -> None:
    """From step 14 on the folder of the pictures is not there any more."""

    def draw(index: int) -> Any:
        if scene.active and scene.step >= 14:
            raise OSError(116, "Stale file handle", f"pictures/{index}.png")
        image, target = scene.samples[index]
        return image.clone(), {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}

    scene.draw = draw


def upside_down(scene: Scene) -> None:
    """A constraint on the length of a layer's rows, at least for at most: each step they are made longer."""

    def stretch(live: Live) -> None:
        row = live.parameter("roi_heads.box_head.fc7.weight").data
        row.mul_(4.0)

    for step in range(8, 24):
        scene.at(step, stretch)


def with_gradients(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Pictures out of an augmentation that is differentiable: each has a history of operations."""
    gain = torch.ones(3, 1, 1, requires_grad=True)
    return image * gain, target


def nan_with_gradients(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """`with_gradients`, and a corner without numbers."""
    return with_gradients(nan_corner(image), target)


def all_with_gradients(scene: Scene) -> None:
    """Every picture has a history, and one has no numbers in a corner."""

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        target = {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
        return (nan_with_gradients if index == scene.culprit else with_gradients)(image.clone(), target)

    scene.draw = draw


class Hidden(nn.Module):
    """A state that goes on from batch to batch with its history, which is gone after the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(0.1))
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        now = x.mean()
        state = now if self.state is None or not self.training else self.gate * self.state + now
        self.state = state if self.training else self.state
        return x + 0.01 * state


def by_hand(scene: Scene) -> None:
    """Binary cross-entropy by hand of probabilities in half precision, where 1 - p is 0 soon."""
    seen = seen_by(scene, "rpn.head.cls_logits")

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        logits = seen[0]
        p = (logits + (7 - logits).detach()).sigmoid()
        y = (logits > 0).to(p.dtype)
        return {**terms, "loss_hand": -0.01 * (y * p.log() + (1 - y) * (1 - p).log()).float().mean()}

    losses(change)(scene)


def eps_in_log(scene: Scene) -> None:
    """The entropy of a softmax in half precision, with an eps of 1e-8, which is 0 there."""
    seen = seen_by(scene, "roi_heads.box_predictor.cls_score")

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        scores = seen[0]
        steep = scores * (30 / scores.detach().abs().amax().clamp(min=1e-3)).to(scores.dtype)
        p = steep.sigmoid() * (steep > -20).to(steep.dtype)
        return {**terms, "loss_entropy": -0.001 * (p * (p + torch.tensor(1e-8, dtype=p.dtype)).log()).float().mean()}

    losses(change)(scene)


def averaged(scene: Scene) -> None:
    """An average of the weights is kept besides, which a too high rate ruins with them."""
    rates(100.0, warmup=0)(scene)
    scene.settings["ema"] = 0.9


EIGHTH_TRAIN_MORE: tuple[Scenario, ...] = (
    # What the picture left behind is in no buffer: the state's fault as much as the formula's.
    Scenario("eighth-train-memory", MATHS, GITHUB + "facebookresearch/dino/blob/main/main_dino.py",
             together(after("backbone.body.layer1.1", lambda s: Memory()), drawn({0: picture(flat)})),
             Setup(norm="group", batch=1), also=(POISON, "NORM_STATE", PIXEL)),
    # A number that a loss's own lines keep is out of anybody's reach: nothing healthy is left to go on from.
    Scenario("eighth-train-usual-loss", MATHS, "https://arxiv.org/abs/1711.02257", usual_loss,
             Setup("adamw", model="retina", batch=1), also=(POISON, "UNKNOWN"), verdict=True),
    Scenario("eighth-train-share-gone", PIXEL, GITHUB + "pytorch/pytorch/issues/11201", share_gone,
             Setup("adam", model="faster", batch=2), onset=14, also=("DATA_BOX", "UNKNOWN"), verdict=True),
    Scenario("eighth-train-upside-down", "TRANSIENT", "https://keras.io/api/layers/constraints/", upside_down,
             Setup(norm="group", batch=2), onset=8, also=(POISON,), open_end=True),
    Scenario("eighth-train-with-gradients", PIXEL, "https://kornia.readthedocs.io/en/latest/augmentation.html",
             all_with_gradients, Setup("adamw", batch=2), ONE),
    Scenario("eighth-train-hidden-state", "UNKNOWN", "https://discuss.pytorch.org/t/backward-second-time/12312",
             after("backbone.body.layer2", lambda s: Hidden()), Setup("adamw", model="fcos"), onset=1, also=(MATHS,),
             verdict=True),
    Scenario("eighth-train-bce-by-hand", HALF, TORCH + "amp.html", by_hand, Setup("adamw", precision="bf16",
             model="faster"), onset=0, also=(MATHS,)),
    Scenario("eighth-train-eps-in-log", HALF, TORCH + "amp.html", eps_in_log, Setup(precision="fp16", norm="group"),
             onset=0, also=(MATHS,)),
    Scenario("eighth-train-averaged", LR, GITHUB + "ultralytics/yolov5/issues/292", averaged,
             Setup(norm="group", model="keypoint", batch=2), onset=0),
    Scenario("eighth-train-adamax-retina", LR, TORCH + "generated/torch.optim.Adamax.html", rates(3.0, warmup=12),
             Setup("adamax", model="retina", batch=2), onset=1),
    Scenario("eighth-train-amsgrad-heads", LR, "https://arxiv.org/abs/1904.09237",
             together(rates(heads=3e4), options(amsgrad=True)), Setup("adamw", norm="batch", precision="bf16"),
             Culprit(HEADS), onset=0),
)  # fmt: skip
