"""Runs of the project's own trainer, a ninth round: rates too high as people report them, by a little and by a lot."""

from __future__ import annotations

from typing import Any

from nanbench.faults_lr import HEADS, rates, undivided
from nanbench.faults_wild import rests_until, set_by_hook, times
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup

LR, ACC = "LR_TOO_HIGH", "ACCUMULATION"
BACKBONE, RPN = Culprit(("backbone",)), Culprit(("rpn",))
GITHUB = "https://github.com/"


def heavy_ball(momentum: float, lr: float) -> Any:
    """A momentum of another recipe, at a rate that was tuned without it."""

    def fault(scene: Scene) -> None:
        rates(lr)(scene)
        scene.momentum = momentum

    return fault


def thaw_at_full_rate(scene: Scene) -> None:
    """The backbone rests for eight steps, and is thawed at the rate that the fresh heads have, times a hundred."""
    scene.max_grad_norm = 0.0
    rests_until(8, scene)
    set_by_hook(8, 24, times(100.0, ("backbone",)))(scene)


def late(start: int, factor: float, clip: float, components: Any = None) -> Any:
    """A milestone late in the run multiplies the rate where it should divide it."""

    def fault(scene: Scene) -> None:
        scene.max_grad_norm = clip
        set_by_hook(start, 24, times(factor, components))(scene)

    return fault


WHOLE = (
    Scenario("ninth-rate-linear-rule", LR, GITHUB + "open-mmlab/mmdetection/issues/1710", rates(0.6),
             Setup(batch=2), onset=1),
    Scenario("ninth-rate-fcos-eight-gpus", LR, GITHUB + "tianzhi0549/FCOS/issues/6", rates(2.5),
             Setup(norm="batch", model="fcos", batch=2), onset=1),
    Scenario("ninth-rate-never-warm", LR, GITHUB + "YunYang1994/TensorFlow2.0-Examples/issues/8",
             rates(3.0, warmup=24), Setup(model="faster", norm="group", batch=2), onset=2),
    Scenario("ninth-rate-adam-for-sgd", LR, GITHUB + "dusty-nv/jetson-inference/issues/1495",
             rates(0.3, clip=10.0), Setup("adam", model="retina"), onset=1),
    Scenario("ninth-rate-ssd-first-batch", LR, GITHUB + "dmlc/gluon-cv/issues/142", rates(0.5, warmup=0),
             Setup("adamw", model="ssd", precision="bf16"), onset=0),
    Scenario("ninth-rate-faster-one-image", LR, GITHUB + "facebookresearch/maskrcnn-benchmark/issues/1347",
             rates(10.0, warmup=0), Setup(model="faster", batch=1), onset=0),
    Scenario("ninth-rate-clipped-hard", LR, GITHUB + "rwightman/efficientdet-pytorch/issues/113",
             rates(0.5, clip=0.001), Setup("adamw", norm="batch", model="retina", batch=2), onset=1),
    Scenario("ninth-rate-fp16-retina", LR, GITHUB + "open-mmlab/mmdetection/issues/4594", rates(5.0, clip=10.0),
             Setup(precision="fp16", model="retina", norm="group"), onset=1),
    Scenario("ninth-rate-counted-twice", LR, GITHUB + "fastai/fastai/issues/3023", rates(1.5),
             Setup(accumulate=4, norm="group"), onset=1),
    Scenario("ninth-rate-heavy-ball", LR, GITHUB + "karolzak/keras-unet/issues/41", heavy_ball(0.99, 0.3),
             Setup(model="keypoint", batch=2), onset=1),
    Scenario("ninth-rate-rmsprop-fcos", LR, GITHUB + "zylo117/Yet-Another-EfficientDet-Pytorch/issues/502",
             rates(0.3), Setup("rmsprop", model="fcos", batch=1), onset=1),
)  # fmt: skip
PARTS = (
    Scenario("ninth-rate-heads-mild", LR, GITHUB + "csuhan/opendet2/issues/29", rates(heads=25),
             Setup(precision="bf16", norm="group", batch=2), Culprit(HEADS), onset=1),
    Scenario("ninth-rate-rpn-clipped", LR, GITHUB + "open-mmlab/mmdetection/issues/3446", rates(rpn=2000, clip=35.0),
             Setup(norm="batch", model="faster"), RPN, onset=1),
    Scenario("ninth-rate-thawed", LR, GITHUB + "facebookresearch/maskrcnn-benchmark/issues/721", thaw_at_full_rate,
             Setup(norm="batch"), BACKBONE, onset=8),
    Scenario("ninth-rate-heads-points", LR, GITHUB + "facebookresearch/Detectron/issues/267",
             rates(heads=300, clip=10.0), Setup("adamw", model="keypoint"),
             Culprit(("box_head", "keypoint_head")), onset=1),
    Scenario("ninth-rate-late-milestone", LR, GITHUB + "open-mmlab/mmdetection/issues/7789", late(15, 300.0, 0.0),
             Setup(model="fcos", norm="group"), onset=15),
    Scenario("ninth-rate-late-heads-clipped", LR, GITHUB + "facebookresearch/meshrcnn/issues/29",
             late(10, 3000.0, 10.0, HEADS), Setup("adamw", model="faster", batch=2), Culprit(HEADS), onset=10),
)  # fmt: skip
SUMS = (
    Scenario("ninth-undivided-later", ACC, GITHUB + "ultralytics/yolov5/issues/464", undivided(6, 0.03),
             Setup(accumulate=4, model="faster"), onset=6, verdict=True, needs=("undivided",)),
)  # fmt: skip
NINTH_TRAIN: tuple[Scenario, ...] = (*WHOLE, *PARTS, *SUMS)
