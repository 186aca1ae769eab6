"""Kinds met neither before: passes backward, recomputation, loops that load or average, terms of one image or class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from nanbench.faults_code import Losses, has_bad, losses
from nanbench.faults_fresh import after
from nanbench.faults_lr import Overflowing, rates
from nanbench.faults_once import gradient_once, levels
from nanbench.faults_state import STAGE2, between, resumed
from nanbench.faults_wild import heads, set_by_hook, setting
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup
from nanbench.tiny import sample

NAN, INF = float("nan"), float("inf")
ONE, FILE, RESUME = Culprit(image=True), Culprit(checkpoint=True), ("resume",)
GUARD, ATTACH, OWN = Setup(way="guard"), Setup(way="attach"), Setup(model="own")
RETINA, FCOS, SSD, POINTS = Setup(model="retina"), Setup(model="fcos"), Setup(model="ssd"), Setup(model="keypoint")
MATHS, LR, POISON = "LOSS_MATH", "LR_TOO_HIGH", "POISONED_STATE"


def doing(act: Callable[[Live], Any]) -> Callable[[Live], None]:
    """``act``, for what it does."""

    def change(live: Live) -> None:
        act(live)

    return change


def requires_grad(model: nn.Module, value: bool) -> None:
    """Freeze or thaw a backbone."""
    model.get_submodule("backbone").requires_grad_(value)


def moving(model: nn.Module, away: float) -> Tensor:
    """A number that follows the weights and is ``away``."""
    value = next(p for p in model.parameters() if p.ndim > 1 and p.requires_grad).flatten()[0]
    return value - value.detach() + away


def dice(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """1 - 2 |A and B| / (|A| + |B|) for each image, without an eps: of no object 0 / 0."""
    share = torch.sigmoid(moving(model, 0.3))
    parts = []
    for t in targets:
        area = t["masks"].float().sum() / 4096
        parts.append(1 - 2 * (share * area) / (share * area + area))
    return {**terms, "dice": 0.1 * torch.stack(parts).mean()}


def without_objects(change: Callable[[Scene], None]) -> Callable[[Scene], None]:
    """The bad image shows nothing."""

    def fault(scene: Scene) -> None:
        scene.samples[scene.culprit] = sample(scene.bad_id, objects=0)
        change(scene)

    return fault


def coarse_iou(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """-log IoU of boxes on a grid of 8 pixels: a small one has no area there."""
    boxes = torch.cat([t["boxes"] for t in targets]) + moving(model, 0.0)
    cells = (boxes / 8).detach().floor() + (boxes - boxes.detach())
    area = (cells[:, 2] - cells[:, 0]) * (cells[:, 3] - cells[:, 1])
    return {**terms, "iou": 0.01 * -(area * 0.9 / area).log().mean()}


def small_object(scene: Scene) -> None:
    """One honest box of 4 pixels, and a loss that cannot hold it."""
    scene.samples[scene.culprit][1]["boxes"][0] = torch.tensor([17.0, 17.0, 21.0, 21.0])
    losses(coarse_iou)(scene)


def bf16_widths(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Widths from corners in bfloat16: 40 and 40.1 are one number there."""
    corners = (torch.cat([t["boxes"] for t in targets]) + moving(model, 0.0)).bfloat16()
    return {**terms, "width": 0.01 * (corners[:, 2] - corners[:, 0]).float().log().abs().mean()}


def thin_object(scene: Scene) -> None:
    """One honest thin box, and a decoder that rounds."""
    scene.samples[scene.culprit][1]["boxes"][0] = torch.tensor([40.0, 8.0, 40.1, 40.0])
    losses(bf16_widths)(scene)


def one_class(scene: Scene) -> None:
    """Smoothing shared among the other classes of a picture: three pictures show one class only."""
    positions = [scene.culprit, (scene.culprit + 5) % 24, (scene.culprit + 11) % 24]
    scene.also_bad = positions[1:]
    for p, (_, target) in enumerate(scene.samples):
        target["labels"] = torch.tensor([2, 2] if p in positions else [1, 3])

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        kinds = torch.tensor(float(torch.cat([t["labels"] for t in targets]).unique().numel()))
        return {**terms, "smooth": 0.01 * moving(model, 0.4) / (kinds - 1)}

    losses(change)(scene)


def per_object(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Losses divided by the micro-batch's number of objects."""
    count = torch.tensor(float(sum(len(t["boxes"]) for t in targets)))
    return {k: 2 * v / count for k, v in terms.items()}


def focal(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """(1 - p)^0.5 -log p without an eps, where one image is certain: the root's derivative at 0."""
    p = torch.sigmoid(moving(model, 40.0 if has_bad(scene, targets) else 0.5))
    return {**terms, "focal": (1 - p).pow(0.5) * -p.log() * 0.1}


class Paths(nn.Module):
    """The mean of the paths that were kept; now and then none is."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.scene.active):
            return x
        keep = (torch.rand(2) > 0.25).float()
        return (x * keep[0] + x * keep[1]) / keep.sum()


class KeptShare(nn.Module):
    """Stochastic depth whose last block is kept with a chance of 0, and divided by it."""

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.zeros(())
        return x + 0.1 * x * (torch.rand(()) < keep) / keep if self.training else x


def flat_group(scene: Scene) -> None:
    """GroupNorm without an eps; one picture is one colour, the mean that is taken out."""
    for module in scene.model.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 0.0
    scene.samples[scene.culprit][0].fill_(0.45)


class Attention(nn.Module):
    """Softmax over the places, its products not divided: beyond 65504 in half precision."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_keys = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.dirac_(self.to_keys.weight)
        self.to_keys.weight.data.mul_(300)
        self.to_keys.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.to_keys(x).flatten(2)
        scores = torch.bmm(keys.transpose(1, 2), keys)
        return x + 0.05 * torch.bmm(x.flatten(2).to(scores.dtype), scores.softmax(1)).view_as(x)


def pyramid(scene: Scene) -> None:
    """The pyramid's upper level overflows where it is blown up to the lower one."""
    blocks: Any = scene.model.get_submodule("backbone.fpn.inner_blocks")
    blocks[1] = Overflowing(blocks[1], 16)


def backward_once(module: str, step: int, factor: float) -> Callable[[Scene], None]:
    """A kernel of the backward pass returns garbage once; the forward pass is right."""

    def fault(scene: Scene) -> None:
        left = [True]

        def hook(_: nn.Module, into: Any, out: Any) -> Any:
            if scene.active and scene.step == step and left:
                left.pop()
                return tuple(g if g is None else g * factor for g in into)
            return None

        scene.model.get_submodule(module).register_full_backward_hook(hook)

    return fault


def backward_raises(scene: Scene) -> None:
    """The backward pass raises, once."""
    left = [True]

    def hook(gradient: Tensor) -> None:
        if scene.step == 9 and left:
            left.pop()
            raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")

    next(p for p in scene.model.parameters() if p.requires_grad).register_hook(hook)


def recomputed_otherwise(scene: Scene) -> None:
    """A stage that is computed again in the backward pass takes another path there, from step 8 on."""
    stage: Any = scene.model.get_submodule("backbone.body.layer2")
    forward, calls = stage.forward, [0]

    def inner(x: Tensor) -> Tensor:
        calls[0] += 1
        out = forward(x)
        return out * out.abs() if scene.active and scene.step >= 8 and calls[0] % 2 else out

    stage.forward = lambda x: checkpoint(inner, x, use_reentrant=False)


def all_frozen(live: Live) -> None:
    """Everything is frozen by mistake: the loss has no gradient."""
    live.model.requires_grad_(False)


def left_in_evaluation(live: Live) -> None:
    """A validation under way that does not go back to training."""
    live.model.eval()


def unreduced(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """A loss of one value an image, which nobody averaged, from step 8 on."""
    return terms if scene.step < 8 else {**terms, "aux": moving(model, 0.2) * torch.ones(len(targets))}


def thawed(live: Live) -> None:
    """The backbone is trained from now on, at a rate of its own with a typing error."""
    for group in live.optimizer.param_groups:
        if group["component"] == "backbone":
            group["fresh"] = True
            for p in group["params"]:
                p.requires_grad_(True)


def thawed_fast(scene: Scene) -> None:
    """Frozen until step 10; then the schedule's rate times 1000 for the backbone alone."""
    scene.at(0, lambda live: requires_grad(live.model, False))
    scene.at(10, thawed)
    for step in range(10, 24):
        scene.at(step, thousandfold)


def thousandfold(live: Live) -> None:
    """The rates of what was thawed."""
    for group in live.optimizer.param_groups:
        if group.get("fresh"):
            group["lr"] = 1e3 * group["lr"]


def norm_decay(scene: Scene) -> None:
    """Norms and biases stand in a group of their own, whose decay was meant to be 0 and is 300."""
    scene.max_grad_norm = 0.0

    def split(live: Live) -> None:
        for group in list(live.optimizer.param_groups):
            flat = [p for p in group["params"] if p.ndim == 1]
            group["params"] = [p for p in group["params"] if p.ndim > 1]
            if flat:
                live.optimizer.add_param_group({**group, "params": flat, "weight_decay": 300.0})

    scene.at(0, split)


def other_order(live: Live) -> None:
    """Optimizer state of another order of the parameters, which torch loads without a word."""
    state = live.optimizer.state_dict()
    keys = sorted(state["state"])
    state["state"] = {k: state["state"][keys[(i + 3) % len(keys)]] for i, k in enumerate(keys)}
    live.optimizer.load_state_dict(state)


def sum_of_weights(live: Live) -> None:
    """The average that is copied back is the sum of ten."""
    for p in live.model.parameters():
        p.data.mul_(10.0)


def sign_loaded(live: Live) -> None:
    """A loop loads a stage whose sign another program turned, and scaled."""
    for name, p in live.model.named_parameters():
        if name.startswith("backbone.body"):
            p.data.mul_(-30.0)


def unused(scene: Scene) -> None:
    """A head that nothing calls; one of its weights becomes NaN."""
    scene.model.add_module("aux", nn.Linear(4, 4))
    scene.at(10, doing(lambda live: live.parameter("aux.weight").data[1].fill_(NAN)))


def prior(scene: Scene) -> None:
    """A buffer that only evaluation reads becomes infinite."""
    scene.model.register_buffer("prior", torch.zeros(4))
    scene.at(11, doing(lambda live: live.model.get_buffer("prior").fill_(INF)))


def strided(scene: Scene) -> None:
    """Weights in channels-last order, and one of them overwritten."""
    scene.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    scene.at(11, doing(lambda live: live.parameter(f"{STAGE2}.weight").data[0, 0].fill_(-2e36)))


def parametrised(scene: Scene) -> None:
    """A weight in direction and size, whose size is overwritten."""
    parametrizations.weight_norm(scene.model.get_submodule("roi_heads.box_head.fc6"))
    size = "roi_heads.box_head.fc6.parametrizations.weight.original0"
    scene.at(9, doing(lambda live: live.parameter(size).data[3].fill_(1e33)))


def tied(scene: Scene) -> None:
    """Both towers of a RetinaNet share a convolution, and the rate is too high."""
    head: Any = scene.model.head
    head.regression_head.conv[0][0].weight = head.classification_head.conv[0][0].weight
    rates(30.0)(scene)


def fixed_scale(scene: Scene) -> None:
    """A loss scale that is fixed far too high: it falls by a thousandth at each overflow."""

    def change(live: Live) -> None:
        if live.scaler is not None:
            live.scaler.set_backoff_factor(0.999)
            live.scaler.load_state_dict({**live.scaler.state_dict(), "scale": 2.0**90})

    scene.at(6, change)


def of_model(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], None]:
    """One saved weight, changed."""
    return lambda state: state["model"].__setitem__(name, change(state["model"][name]).contiguous())


def infinite_rate(live: Live) -> None:
    """A schedule divides by the steps that are left: the rate of the last group."""
    live.optimizer.param_groups[-1]["lr"] = INF


TERMS = (
    Scenario("third-dice-empty", MATHS, "pytorch/pytorch#1249", without_objects(losses(dice)), ATTACH, ONE),
    Scenario("third-iou-coarse", MATHS, "open-mmlab/mmdetection#6738", small_object,
             Setup(model="retina", way="guard"), ONE),
    Scenario("third-width-bf16", MATHS, "ultralytics/yolov5#292", thin_object, Setup(model="faster", precision="bf16"),
             ONE),
    Scenario("third-smooth-one-class", MATHS, "ultralytics/ultralytics#490", one_class,
             Setup(model="faster", batch=1, way="guard"), ONE),
    Scenario("third-per-object", MATHS, "argusswift/YOLOv4-pytorch#56", without_objects(losses(per_object)),
             Setup(accumulate=4, way="attach"), ONE, also=("ACCUMULATION",)),
    Scenario("third-focal-certain", MATHS, "fcakyon/balanced-loss#12", losses(focal), FCOS, ONE),
    # Chance decides which step: nobody is to blame but the formula.
    Scenario("third-no-path", MATHS, "pytorch/pytorch#4132", after("neck", Paths), OWN, also=("UNKNOWN",)),
    Scenario("third-depth-zero", MATHS, "pytorch/pytorch#4132", after("neck", lambda s: KeptShare()),
             Setup(model="own", way="guard"), onset=0, also=("UNKNOWN",), verdict=True),
    Scenario("third-group-flat", "NORM_STATE", "nan_cases R-E1", flat_group, Setup(model="own", norm="group"), ONE,
             also=("DATA_PIXEL", MATHS)),
    Scenario("third-unreduced", MATHS, "pytorch/vision#2740", losses(unreduced), Setup(norm="group"), onset=8,
             also=("UNKNOWN",), verdict=True),
)  # fmt: skip
HALF = (
    Scenario("third-fp16-attention", "FP16_OVERFLOW", "Peterande/D-FINE#199", after("neck", lambda s: Attention(32)),
             Setup(model="own", precision="fp16", way="guard"), Culprit(("neck",)), onset=0),
    Scenario("third-fp16-pyramid", "FP16_OVERFLOW", "open-mmlab/mmdetection#3605", pyramid,
             Setup(model="retina", precision="fp16"), Culprit(("backbone",), "backbone.fpn.inner_blocks.1.scale"),
             onset=0),
    Scenario("third-fp16-scale-fixed", "SCALE_COLLAPSE", "NVIDIA/apex#240", fixed_scale,
             Setup(precision="fp16", way="guard"), onset=6, also=(POISON,)),
)  # fmt: skip
ONCE = (
    Scenario("third-backward-nan", "TRANSIENT", "pytorch/FBGEMM#5754", backward_once("backbone.body.layer3", 10, NAN),
             Setup(model="retina", way="guard"), onset=10),
    Scenario("third-backward-huge", "TRANSIENT", "pytorch/FBGEMM#5754", backward_once("neck", 12, 1e12), OWN,
             onset=12),
    Scenario("third-backward-attach", "TRANSIENT", "pytorch/FBGEMM#5754",
             # What a loop does with gradients before it steps is not replayed: with a sound loss that may be it.
             backward_once("roi_heads.box_head", 13, INF), ATTACH, onset=13, also=("UNKNOWN",)),
    Scenario("third-backward-raises", "TRANSIENT", "pytorch/pytorch#40497", backward_raises, Setup("adamw"), onset=9),
    Scenario("third-hook-guard", "TRANSIENT", "pytorch/FBGEMM#5754", gradient_once(f"{STAGE2}.weight", 11, -1e9),
             GUARD, onset=11),
)  # fmt: skip
CODE = (
    Scenario("third-recompute", "UNKNOWN", "pytorch/pytorch#40497", recomputed_otherwise, Setup(norm="group"),
             onset=8, also=("BACKEND", "TRANSIENT"), verdict=True),
    Scenario("third-left-in-eval", "UNKNOWN", "pytorch/vision#2144", between(8, left_in_evaluation),
             Setup(model="retina", way="guard"), onset=8, verdict=True),
    Scenario("third-all-frozen", "UNKNOWN", "pytorch/vision#2144", between(9, all_frozen), Setup(model="faster"),
             onset=9, verdict=True),
)  # fmt: skip
RATES = (
    Scenario("third-thawed-fast", LR, "facebookresearch/maskrcnn-benchmark#841", thawed_fast, GUARD,
             Culprit(("backbone",)), onset=10),
    Scenario("third-norm-decay", LR, "nan_cases R-A6", norm_decay, Setup(norm="group", way="guard"), onset=0),
    Scenario("third-cyclic-ssd", LR, "amdegroot/ssd.pytorch#275", set_by_hook(9, 11, setting("lr", 30.0)),
             Setup(model="ssd", way="guard"), onset=9),
    Scenario("third-restart-heads", LR, "ultralytics/yolov5#292", set_by_hook(12, 14, heads(1000.0)), ATTACH,
             Culprit(("box_head", "mask_head")), onset=12),
    Scenario("third-momentum-3", LR, "nan_cases R-A5", set_by_hook(9, 15, setting("momentum", 3.0)),
             Setup(model="fcos", way="guard"), onset=9),
    Scenario("third-tied-retina", LR, "yhenon/pytorch-retinanet#42", tied, RETINA, onset=1),
    Scenario("third-heads-points", LR, "facebookresearch/detectron2#1128", rates(heads=300.0, warmup=0),
             Setup("adamw", "bf16", model="keypoint"), Culprit(("box_head", "keypoint_head")), onset=0),
    Scenario("third-rate-inf", POISON, "ultralytics/yolov5#292", between(13, infinite_rate),
             Setup("adamw", way="guard"), onset=13, also=(LR,)),
)  # fmt: skip
STATES = (
    Scenario("third-other-order", POISON, "ultralytics/ultralytics#17282", between(10, other_order), Setup("adamw"),
             onset=10, also=("UNKNOWN",)),
    Scenario("third-other-order-guard", POISON, "ultralytics/ultralytics#17282", between(10, other_order), GUARD,
             onset=10, also=("UNKNOWN",)),
    Scenario("third-sum-back", POISON, "ultralytics/ultralytics#17282", between(12, sum_of_weights),
             Setup(norm="batch"), onset=12, also=("TRANSIENT",)),
    Scenario("third-sign-loaded", POISON, "ultralytics/ultralytics#17282", between(11, sign_loaded), ATTACH, onset=11,
             also=("TRANSIENT",)),
    Scenario("third-unused-nan", POISON, "pytorch/pytorch#40497", unused, Setup(), onset=10, also=("TRANSIENT",)),
    Scenario("third-prior-inf", POISON, "valeoai/fiery R-E5", prior, Setup(model="own", way="guard"), onset=11,
             also=("NORM_STATE", "TRANSIENT")),
    Scenario("third-channels-last", "TRANSIENT", "microsoft/dion#76", strided, Setup("adamw"), onset=11,
             also=(POISON,)),
    Scenario("third-weight-norm", "TRANSIENT", "microsoft/dion#76", parametrised, GUARD, onset=9, also=(POISON,)),
    Scenario("third-anchors-ratio", "ANCHORS", "open-mmlab/mmdetection#10041",
             levels("faster", ((16,), (32,)), ((0.0, 1.0, 2.0),) * 2), Setup(model="faster"), onset=0, verdict=True),
    Scenario("third-anchors-minus", "ANCHORS", "open-mmlab/mmdetection#10041",
             levels("retina", ((-16,), (-32,)), ((0.5, 1.0, 2.0),) * 2), Setup(model="retina", way="guard"), onset=0,
             verdict=True),
    Scenario("third-resume-sign", POISON, "ultralytics/ultralytics#17282",
             resumed(of_model("backbone.body.layer3.0.weight", lambda v: -v)), POINTS, FILE, onset=12, needs=RESUME),
    Scenario("third-resume-rolled", POISON, "ultralytics/ultralytics#17282",
             resumed(of_model("head.classification_head.cls_logits.weight", lambda v: v.roll(1, 0))), FCOS, FILE,
             onset=12, needs=RESUME),
)  # fmt: skip
THIRD: tuple[Scenario, ...] = (*TERMS, *HALF, *ONCE, *CODE, *RATES, *STATES)
