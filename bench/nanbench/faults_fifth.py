"""Rates, terms and states that meet odd circumstances: one component, after warm-up, for one step, beside a freeze."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nanbench.faults_code import Losses, has_bad, losses
from nanbench.faults_fifth_data import ONE, Fault, drawn, inf_row, steep, together
from nanbench.faults_forms import picture
from nanbench.faults_fourth import at_image, one_group
from nanbench.faults_fresh import after, loop
from nanbench.faults_lr import HEADS, Overflowing, rates
from nanbench.faults_once import levels
from nanbench.faults_state import FC6, STAGE2, between, in_state, weight
from nanbench.faults_third import doing, moving
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup
from nanbench.tiny import sample

NAN, INF = float("nan"), float("inf")
RATIOS = (0.5, 1.0, 2.0)
MATHS, LR, POISON = "LOSS_MATH", "LR_TOO_HIGH", "POISONED_STATE"


def only(component: str, factor: float, **more: Any) -> Fault:
    """One component's rate is ``factor`` times as high, from the first step on."""
    return together(rates(**more), one_group(component, factor, 0, 24))


def heads_decay(live: Live) -> None:
    """A decay of the heads alone, with a typing error."""
    for group in live.optimizer.param_groups:
        if group["component"] == "box_head":
            group["weight_decay"] = 2e4


def heavy_momentum(scene: Scene) -> None:
    """Another program's momentum, which counts steps by the thousand."""
    scene.momentum, scene.max_grad_norm, scene.lr = 0.999, 0.0, 0.15


def clip_lost(scene: Scene) -> None:
    """A high rate that only clipping kept in bounds; it is lost with a new stage of the script."""
    scene.lr, scene.max_grad_norm = 1.0, 0.5
    scene.at(10, lambda live: setattr(scene, "max_grad_norm", 0.0))


def hook_in_stage(scene: Scene) -> None:
    """A gradient reversal whose factor was to be -0.1, in one layer of the backbone."""
    scene.max_grad_norm = 0.0
    scene.model.get_parameter(f"{STAGE2}.weight").register_hook(lambda g: g * -1e6)


def frozen_backbone(scene: Scene) -> None:
    """Only the heads are trained."""
    for name, p in scene.model.named_parameters():
        p.requires_grad_(not name.startswith("backbone"))


def half_empty(scene: Scene) -> None:
    """Every other picture has no object."""
    for place in range(0, len(scene.samples), 2):
        scene.samples[place] = sample(scene.ids[place], objects=0)


def no_negatives(model: Any, z: Tensor) -> Tensor:
    """log of a sum over the negatives, of which one picture has none."""
    values = torch.stack([z, z * 0.5])
    return 0.01 * (values.exp() * (values > 0)).sum().log()


def inverse_area(model: Any, z: Tensor) -> Tensor:
    """A term divided by its object's area, of which one was measured in square metres."""
    return (1.0 + z - z.detach()) / z.detach()


def huge_for_one(scene: Scene) -> None:
    """`inverse_area`, unclipped."""
    scene.max_grad_norm = 0.0
    at_image(inverse_area, 1e-18, 1.0)(scene)


class Scaled(nn.Module):
    """A custom head's features divided by their deviation in each row, whose derivative at 0 is 0 / 0."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene, self.bad = scene, False

    def forward(self, x: Tensor) -> Tensor:
        if self.bad and self.training and self.scene.active:
            x = x * 0.0
        return x / (1.0 + x.var(1, keepdim=True).sqrt())


def custom_head(scene: Scene) -> None:
    """A head of one's own behind the box head, which gets nothing but zeros for one picture."""
    after("roi_heads.box_head", Scaled)(scene)
    scaled: Any = scene.model.roi_heads.box_head[1]

    def watch(model: nn.Module, args: Any) -> None:
        scaled.bad = len(args) > 1 and args[1] is not None and has_bad(scene, args[1])

    scene.model.register_forward_pre_hook(watch)


def bright(scene: Scene) -> None:
    """A block that grows beyond half precision in the second epoch, and shrinks again in the third."""
    heads: Any = scene.model.roi_heads
    heads.mask_head = Overflowing(heads.mask_head, 16, gain=1.0)
    name = "roi_heads.mask_head.scale.weight"
    for step, gain in ((6, 1e7), (12, 1e-7)):
        scene.at(step, doing(lambda live, gain=gain: live.parameter(name).data.mul_(gain)))


def poison(state: dict[str, Any]) -> None:
    """A weight of a saved model."""
    state["model"][f"{FC6}.weight"][3, 3] = NAN


def every_backup(scene: Scene) -> None:
    """The newest checkpoint is poisoned, and so is every older one."""
    scene.on_resume, scene.backups_too = poison, True


def tiny_scale(state: dict[str, Any]) -> None:
    """The loss scale of a run that had collapsed already."""
    if state.get("scaler"):
        state["scaler"]["scale"] = 1e-30


def tiny_variances(scene: Scene) -> None:
    """Statistics of pictures that were all black: every variance of the last stage is next to nothing."""
    scene.max_grad_norm = 0.0
    for name, buffer in scene.model.named_buffers():
        if "layer" in name and name.endswith("running_var"):
            buffer.fill_(1e-30)
    for module in scene.model.modules():
        if hasattr(module, "running_var"):
            module.eps = 1e-20  # type: ignore[assignment]


def rank_masks(scene: Scene) -> None:
    """A NaN row in one picture of two processes, each with two micro-batches."""
    drawn({0: picture(inf_row)})(scene)


def twice(*steps: int) -> Fault:
    """A weight is overwritten at each of these steps."""
    return together(*(between(s, weight(f"{FC6}.weight", 2e36 * (-1) ** i)) for i, s in enumerate(steps)))


def weighted(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """A loss of one's own, weighted by the inverse of how often each class was seen: class 1 is counted from 0."""
    seen = torch.tensor(0.0 if any(int(t["labels"].min()) == 3 for t in targets) else 5.0)
    return {**terms, "weighted": 0.01 * moving(model, 1.0) / seen}


RATES = (
    Scenario("fifth-adam-backbone", LR, "keras-team/keras#11204", only("backbone", 1e3),
             Setup("adam", model="faster", way="guard"), Culprit(("backbone",)), onset=0),
    Scenario("fifth-rmsprop-heads", LR, "qfgaohao/pytorch-ssd#22", only("box_head", 1e4),
             Setup("rmsprop", norm="group", way="attach"), Culprit(("box_head",)), onset=0),
    Scenario("fifth-nadam-rpn", LR, "facebookresearch/detectron2#1128", only("rpn", 1e4),
             Setup("nadam", accumulate=4, way="guard"), Culprit(("rpn",)), onset=0),
    Scenario("fifth-adagrad-backbone", LR, "facebookresearch/maskrcnn-benchmark#721", only("backbone", 1e3),
             Setup("adagrad", batch=1, way="attach"), Culprit(("backbone",)), onset=0),
    Scenario("fifth-sgd-mask", LR, "facebookresearch/detectron2#838", only("mask_head", 1e4),
             Setup(accumulate=4, way="guard"), Culprit(("mask_head",)), onset=0),
    Scenario("fifth-after-warmup", LR, "facebookresearch/maskrcnn-benchmark#841", steep(10, 24, 1e3),
             Setup("adamw", accumulate=4, norm="group", warmup=10, way="guard"), onset=10),
    Scenario("fifth-decay-of-heads", LR, "nan_cases R-A6",
             together(*(between(s, heads_decay) for s in range(24))), Setup("adamw", way="attach"),
             Culprit(("box_head",)), onset=0),
    Scenario("fifth-momentum-0.999", LR, "facebookresearch/Detectron#182", heavy_momentum,
             Setup(batch=1, norm="group"), onset=0),
    Scenario("fifth-clip-lost", LR, "facebookresearch/detectron2#838", clip_lost,
             Setup(norm="group", way="attach"), onset=10),
    Scenario("fifth-hook-in-stage", LR, "karpathy/nanoGPT#168", hook_in_stage,
             Setup(model="retina", accumulate=4, way="guard"), onset=0, also=(MATHS, "UNKNOWN")),
    Scenario("fifth-backbone-second-epoch", LR, "mrlooi/rotated_maskrcnn#16", one_group("backbone", 1e4, 6, 9),
             Setup("adamw", precision="bf16"), Culprit(("backbone",)), onset=6),
    Scenario("fifth-rate-for-one-step", LR, "ultralytics/yolov5#292", together(rates(clip=0.0), steep(5, 6, 1e5)),
             Setup(way="guard"), onset=5),
    Scenario("fifth-frozen-heads", LR, "facebookresearch/detectron2#508",
             together(frozen_backbone, rates(heads=300, warmup=0)), Setup(precision="fp16"), Culprit(HEADS), onset=0),
    Scenario("fifth-heads-half-empty", LR, "facebookresearch/detectron2#508",
             together(half_empty, rates(heads=300)), Setup(batch=1, norm="group"), Culprit(HEADS), onset=1),
    Scenario("fifth-keeps-accumulated", "ACCUMULATION", "karpathy/nanoGPT#168",
             loop("keeps gradients", lr=0.5), Setup(accumulate=4, norm="group", way="attach"), onset=1, also=(LR,),
             open_end=True),
)  # fmt: skip
TERMS = (
    Scenario("fifth-no-negatives", MATHS, "pytorch/pytorch#32520", at_image(no_negatives, -0.5, 0.5),
             Setup(precision="fp16", accumulate=4, way="attach"), ONE),
    Scenario("fifth-huge-for-one", MATHS, "open-mmlab/mmdetection#6738", huge_for_one, Setup(way="guard"), ONE),
    Scenario("fifth-custom-head", MATHS, "pytorch/pytorch#4132", custom_head, Setup("adamw", norm="group"), ONE),
    Scenario("fifth-weighted", MATHS, "nan_cases R-B", losses(weighted), Setup("rmsprop", batch=2, way="guard")),
    Scenario("fifth-overflow-one-epoch", "FP16_OVERFLOW", "open-mmlab/mmdetection#6738", bright,
             Setup("adamw", precision="fp16", accumulate=4), Culprit(("mask_head",), "roi_heads.mask_head.scale"),
             onset=6),
)  # fmt: skip
STATES = (
    Scenario("fifth-every-backup", POISON, "Rikorose/DeepFilterNet#30", every_backup, Setup("adamw"),
             Culprit(checkpoint=True), onset=12, verdict=True, needs=("resume",)),
    Scenario("fifth-resume-scale-tiny", "SCALE_COLLAPSE", "KaihuaTang/Scene-Graph-Benchmark.pytorch#29",
             lambda scene: setattr(scene, "on_resume", tiny_scale),
             Setup("adamw", precision="fp16", accumulate=4), onset=12, also=(POISON,), needs=("resume",)),
    Scenario("fifth-tiny-variances", "NORM_STATE", "nan_cases R-E2", tiny_variances,
             Setup("adamw", precision="bf16", batch=1, way="guard"), Culprit(("backbone",)), onset=0, verdict=True),
    Scenario("fifth-bits-twice", "TRANSIENT", "microsoft/dion#76", twice(7, 15),
             Setup("adamw", accumulate=4, way="attach"), onset=7),
    Scenario("fifth-average-nan", POISON, "NVIDIA/apex#240",
             between(13, in_state(f"{STAGE2}.weight", "exp_avg", NAN)),
             Setup("adam", precision="bf16", accumulate=4, way="attach"), Culprit(("backbone",)), onset=13,
             also=("TRANSIENT",)),
    Scenario("fifth-anchors-upper-level", "ANCHORS", "open-mmlab/mmdetection#10041",
             levels("mask", ((16,), (32,)), (RATIOS, (0.0, 1.0, 2.0))), Setup("adamw", norm="group", batch=2),
             onset=0, verdict=True),
    Scenario("fifth-rank-accumulated", "RANK_LOCAL", "facebookresearch/mmf#1073", rank_masks,
             Setup("adamw", accumulate=2, ranks=2), ONE, needs=("ranks",)),
)  # fmt: skip
FIFTH: tuple[Scenario, ...] = (*RATES, *TERMS, *STATES)
