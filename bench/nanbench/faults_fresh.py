"""What people's own modules, losses and loops do: gates at zero, schedules that reach zero, scaled gradients, files."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from nanbench.faults_code import Losses, losses
from nanbench.faults_lr import HEADS, rates
from nanbench.faults_once import scaled
from nanbench.faults_state import FC6, between, resumed
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup
from nanbench.tiny import sample, tiny_detector

NAN, INF = float("nan"), float("inf")
ONE, FILE, RESUME = Culprit(image=True), Culprit(checkpoint=True), ("resume",)
SGD, ADAM, GROUP, BATCH = Setup(), Setup(optimizer="adamw"), Setup(norm="group"), Setup(norm="batch")
FP16, BF16, SINGLE, RETINA = Setup(precision="fp16"), Setup(precision="bf16"), Setup(batch=1), Setup(model="retina")
FASTER, FCOS, OWN, POINTS = Setup(model="faster"), Setup(model="fcos"), Setup(model="own"), Setup(model="keypoint")
GUARD, ATTACH, RANKS = Setup(way="guard"), Setup(way="attach"), Setup(ranks=2)


class RootGate(nn.Module):
    """A learned gate that is a root of squares, and starts at 0: the value is 0, its derivative 0 / 0."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.gate.square().sum().sqrt())


class Drop(nn.Module):
    """Dropout of somebody's own, whose share grows with the steps until it is 1."""

    def __init__(self, scene: Scene, full: int) -> None:
        super().__init__()
        self.scene, self.full = scene, full

    def forward(self, x: Tensor) -> Tensor:
        share = min(1.0, self.scene.step / self.full)
        if not (self.training and self.scene.active):
            return x
        keep = torch.rand_like(x) >= share
        return x * keep / (1 - share) if share < 0.75 or share == 1.0 else x


class Standard(nn.Module):
    """Features divided by their deviation over the batch: of a batch of one there is none."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.std(0, keepdim=True) + 1e-5)


def after(name: str, make: Callable[[Scene], nn.Module]) -> Callable[[Scene], None]:
    """A module behind another one."""

    def fault(scene: Scene) -> None:
        path, _, last = name.rpartition(".")
        parent = scene.model.get_submodule(path)
        setattr(parent, last, nn.Sequential(parent.get_submodule(last), make(scene)))

    return fault


def attention_blank(scene: Scene) -> None:
    """Attention over the pixels themselves: one picture without any contrast has none that count."""

    class Masked(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            shown = x.flatten(2).std(2).amax(1) > 1e-3
            out = self.inner(x)
            scores = out.mean((2, 3)).masked_fill(~shown[:, None], -INF)
            return out * (1 + 0.1 * scores.softmax(1)[..., None, None])

    scene.model.stem["layer1"] = Masked(scene.model.stem["layer1"])
    scene.samples[scene.culprit][0].fill_(0.45)


def zero_norm(scene: Scene) -> None:
    """A layer in two parts, direction and size, that somebody starts at zero: a direction of 0 / 0."""
    layer = scene.model.roi_heads.box_predictor.cls_score
    nn.init.zeros_(layer.weight)
    parametrizations.weight_norm(layer)


def spectral(scene: Scene) -> None:
    """A spectral norm, whose weight is pruned to zero under way."""
    layer = scene.model.roi_heads.box_head.fc7
    parametrizations.spectral_norm(layer)
    scene.at(9, lambda live: layer.parametrizations.weight.original.data.zero_())


def no_objects(scene: Scene) -> None:
    """A term of the caller's own, the mean over the objects of a batch of one; three pictures have none."""
    positions = [scene.culprit, (scene.culprit + 4) % 24, (scene.culprit + 9) % 24]
    scene.also_bad = positions[1:]
    for p in positions:
        scene.samples[p] = sample(scene.ids[p], objects=0)

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        rows = torch.cat([t["boxes"] for t in targets]).mean(1) / 64
        weight = model.roi_heads.box_predictor.cls_score.bias.mean()
        return {**terms, "loss_aux": 0.01 * (rows.sum() * weight) / rows.new_tensor(float(len(rows)))}

    losses(change)(scene)


def smoothing(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Label smoothing shared among the other classes, of which none was counted."""
    others = torch.zeros(())
    return {**terms, "classification": terms["classification"] * (1 - 0.1) + terms["classification"] * 0.1 / others}


def overlap(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """-log IoU of boxes that do not meet."""
    weight = model.roi_heads.box_predictor.bbox_pred.weight.square().mean()
    return {**terms, "loss_iou": -((weight - weight.detach() - 0.5).clamp(min=0)).log() * 0.01}


def temperature(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """A temperature that is annealed to zero at step 12, and divides by it."""
    heat = max(0.0, 1 - s.step / 12) if s.active else 1.0
    return {k: v / torch.tensor(heat) if k == "cls" and heat < 0.05 else v for k, v in terms.items()}


def more_hooks(scene: Scene) -> None:
    """Each forward pass registers one more hook that triples a gradient."""

    def hook(model: nn.Module, args: Any) -> None:
        if model.training and scene.active:
            model.get_parameter(f"{FC6}.weight").register_hook(lambda g: g * 3)

    scene.model.register_forward_pre_hook(hook)
    scene.max_grad_norm = 0.0


def copied_back(live: Live) -> None:
    """An average that began as 0 / 0 is copied over every weight."""
    for p in live.model.parameters():
        p.data.mul_(NAN)


def uninitialised(prefix: str, value: float) -> Callable[[Scene], None]:
    """A new head made with `torch.empty`: whatever was in memory."""

    def fault(scene: Scene) -> None:
        g = torch.Generator().manual_seed(scene.seed)
        for name, p in scene.model.named_parameters():
            if name.startswith(prefix):
                p.data.copy_(torch.randn(p.shape, generator=g) * value)

    return fault


def double(scene: Scene) -> None:
    """The model is float64, the images are not."""
    scene.model.double()


def by_own_norm(live: Live) -> None:
    """Each gradient divided by its own norm; a layer that had no part in the loss has none."""
    for p in live.model.parameters():
        if p.grad is not None:
            p.grad.div_(p.grad.norm())


def unit_gradients(scene: Scene) -> None:
    """`by_own_norm` after each backward pass; batches without an object reach no mask head."""
    scene.lr, scene.after_backward = 1e-3, by_own_norm
    for i in range(0, 24, 3):
        scene.samples[i] = sample(scene.ids[i], objects=0)


def loop(*habits: str, **more: Any) -> Callable[[Scene], None]:
    """A caller's own loop with these habits."""

    def fault(scene: Scene) -> None:
        rates(**more)(scene)
        scene.loop |= set(habits)

    return fault


def schedule(peak: float, start: int, stop: int) -> Callable[[Scene], None]:
    """A one-cycle schedule whose peak has a typing error: the rate climbs to ``peak`` and comes back."""

    def fault(scene: Scene) -> None:
        middle = (start + stop) / 2
        for step in range(start, stop):
            share = 1 - abs(step - middle) / (stop - start) * 2

            def change(live: Live, rate: float = peak ** max(0.0, share) * 0.03 ** min(1.0, 1 - share)) -> None:
                for group in live.optimizer.param_groups:
                    group["lr"] = rate

            scene.at(step, change)

    return fault


def growing_scale(scene: Scene) -> None:
    """A loss scale that grows by 1e12 a step, for three steps."""

    def change(factor: float, interval: int) -> Callable[[Live], None]:
        def set_it(live: Live) -> None:
            if live.scaler is not None:
                live.scaler.set_growth_factor(factor)
                live.scaler.set_growth_interval(interval)

        return set_it

    scene.at(8, change(1e12, 1))
    scene.at(11, change(2.0, 2000))


def on_one_rank(scene: Scene) -> None:
    """A kernel of one process returns garbage once."""
    left = [True]

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        if scene.active and scene.step == 9 and left and os.environ.get("RANK") == "1":
            left.pop()
            return output * NAN
        return None

    scene.model.get_submodule("backbone.body.layer3").register_forward_hook(hook)


def zeroed(suffix: str) -> Callable[[dict[str, Any]], None]:
    """Buffers that another program did not know and filled with zeros."""

    def change(state: dict[str, Any]) -> None:
        for name, value in state["model"].items():
            if name.endswith(suffix):
                value.zero_()

    return change


def transposed(state: dict[str, Any]) -> None:
    """A square weight in another program's order."""
    name = "roi_heads.box_head.fc7.weight"
    state["model"][name] = state["model"][name].t().contiguous()


def other_run(state: dict[str, Any]) -> None:
    """The weights of another run under this run's name."""
    state["model"] = {k: v.clone() for k, v in tiny_detector("mask", 4321).state_dict().items()}


def exchanged(state: dict[str, Any]) -> None:
    """Two layers of one shape changed places."""
    a, b = "backbone.fpn.layer_blocks.0.0.weight", "backbone.fpn.layer_blocks.1.0.weight"
    state["model"][a], state["model"][b] = state["model"][b], state["model"][a]


def young_adam(state: dict[str, Any]) -> None:
    """Adam's moments kept, its count of steps set to 0: the first updates are ten to a thousand times too large."""
    for value in state["optimizer"]["state"].values():
        if "step" in value:
            value["step"] = torch.zeros_like(torch.as_tensor(value["step"], dtype=torch.float32))


MATHS = "LOSS_MATH"
OWN_CODE = (
    Scenario("fresh-root-gate", MATHS, "pytorch/pytorch#4132", after("neck", lambda s: RootGate()), OWN, onset=0,
             verdict=True),
    Scenario("fresh-dropout-all", MATHS, "pytorch/pytorch#4132", after("roi_heads.box_head", lambda s: Drop(s, 12)),
             SGD, onset=12, also=("UNKNOWN",), verdict=True),
    Scenario("fresh-attention-blank", MATHS, "pytorch/pytorch#41508", attention_blank, OWN, ONE,
             also=("UNKNOWN", "DATA_PIXEL")),
    Scenario("fresh-std-of-one", MATHS, "pytorch/pytorch#4132", after("neck", lambda s: Standard()),
             Setup(model="own", batch=1), onset=0, also=("UNKNOWN",), verdict=True),
    # A weight of 0 in two parts is a state that no step can start from as much as a division by zero.
    Scenario("fresh-weight-norm-zero", MATHS, "pytorch/pytorch#33511", zero_norm, SGD, onset=0,
             also=("NORM_STATE", "POISONED_STATE"), verdict=True),
    Scenario("fresh-spectral-pruned", "TRANSIENT", "pytorch/pytorch#27015", spectral, ADAM, onset=9,
             also=("POISONED_STATE", MATHS)),
    Scenario("fresh-no-objects", MATHS, "pytorch/vision#2144", no_objects, SINGLE, ONE),
    Scenario("fresh-smoothing", MATHS, "ultralytics/ultralytics#490", losses(smoothing), RETINA, onset=0,
             also=("UNKNOWN",), verdict=True),
    Scenario("fresh-log-iou", MATHS, "open-mmlab/mmdetection#6738", losses(overlap), FASTER, onset=0, verdict=True),
    Scenario("fresh-temperature", MATHS, "nan_cases", losses(temperature), Setup("adamw", model="own"), onset=12,
             verdict=True),
    # Gradients that grow threefold a step through no rate and no formula of the loss.
    Scenario("fresh-more-hooks", "UNKNOWN", "pytorch/pytorch#40497", more_hooks, SGD, onset=4,
             also=("LR_TOO_HIGH", MATHS, "ACCUMULATION"), open_end=True),
    Scenario("fresh-head-empty", "POISONED_STATE", "pytorch/vision#1598",
             uninitialised("roi_heads.keypoint_predictor", 1e27), POINTS, Culprit(("keypoint_head",)), onset=0,
             verdict=True),
    Scenario("fresh-head-empty-own", "POISONED_STATE", "pytorch/vision#1598", uninitialised("head", 1e34),
             Setup(model="own", norm="batch"), Culprit(("head",)), onset=0, verdict=True),
    Scenario("fresh-double", "UNKNOWN", "pytorch/vision#1925", double, FASTER, onset=0, also=("DATA_PIXEL",),
             verdict=True),
)  # fmt: skip
OWN_LOOP = (
    Scenario("fresh-average-back", "POISONED_STATE", "ultralytics/ultralytics#17282", between(12, copied_back), GUARD,
             onset=12, also=("TRANSIENT",)),
    Scenario("fresh-guard-heads", "LR_TOO_HIGH", "facebookresearch/detectron2#508", rates(heads=60, warmup=0), GUARD,
             Culprit(HEADS), onset=0),
    Scenario("fresh-guard-adamw-bf16", "LR_TOO_HIGH", "facebookresearch/Detectron#676", rates(0.5, warmup=0),
             Setup("adamw", "bf16", way="guard"), onset=0),
    Scenario("fresh-unit-gradients", MATHS, "NVIDIA/apex#1322", unit_gradients, Setup(batch=1, way="attach"),
             also=("UNKNOWN",), open_end=True),
    Scenario("fresh-attach-keeps", "ACCUMULATION", "karpathy/nanoGPT#168", loop("keeps gradients", lr=0.1), ATTACH,
             onset=1, also=("LR_TOO_HIGH",), open_end=True),
    Scenario("fresh-attach-undivided", "ACCUMULATION", "argusswift/YOLOv4-pytorch#56",
             loop("undivided", lr=0.3), Setup(accumulate=4, way="attach"), onset=0, also=("LR_TOO_HIGH",),
             open_end=True),
    # Gradients 65536 times too large reach the weights: of the scale, and for the weights a rate as much too high.
    Scenario("fresh-attach-scaled", "SCALE_COLLAPSE", "NVIDIA/apex#240", loop("steps scaled"),
             Setup(precision="fp16", way="attach"), onset=0, also=("LR_TOO_HIGH", "ACCUMULATION", "UNKNOWN"),
             open_end=True),
    Scenario("fresh-one-cycle", "LR_TOO_HIGH", "ultralytics/yolov5#292", schedule(3000.0, 8, 16), ATTACH, onset=9),
    Scenario("fresh-one-cycle-fcos", "LR_TOO_HIGH", "tianzhi0549/FCOS#146", schedule(3000.0, 7, 15),
             Setup("adamw", model="fcos", way="guard"), onset=8),
    Scenario("fresh-scale-grows", "SCALE_COLLAPSE", "pytorch/pytorch#40497", growing_scale, FP16, onset=9,
             also=("POISONED_STATE",)),
    Scenario("fresh-rank-kernel", "RANK_LOCAL", "facebookresearch/mmf#1073", on_one_rank, RANKS, onset=9,
             also=("TRANSIENT",), needs=("ranks",)),
)  # fmt: skip
POISON = "POISONED_STATE"
FROM_FILES = (
    Scenario("fresh-resume-variance", POISON, "nan_cases R-E3", resumed(zeroed("running_var")), SGD, FILE, onset=12,
             also=("NORM_STATE",), needs=RESUME),
    Scenario("fresh-resume-transposed", POISON, "ultralytics/ultralytics#17282", resumed(transposed), ADAM, FILE,
             onset=12, needs=RESUME),
    Scenario("fresh-resume-other-run", POISON, "ultralytics/ultralytics#17282", resumed(other_run), SGD, FILE,
             onset=12, needs=RESUME),
    Scenario("fresh-resume-exchanged", POISON, "ultralytics/ultralytics#17282", resumed(exchanged), GROUP, FILE,
             onset=12, needs=RESUME),
    Scenario("fresh-resume-mask-zero", POISON, "ultralytics/ultralytics#17282",
             resumed(scaled("roi_heads.mask_head", 0.0)), BATCH, FILE, onset=12, needs=RESUME),
    Scenario("fresh-resume-young-adam", POISON, "ultralytics/ultralytics#17282", resumed(young_adam), ADAM, FILE,
             onset=12, needs=RESUME),
    Scenario("fresh-resume-statistics", POISON, "valeoai/fiery R-E5", resumed(zeroed("running_mean")), BATCH, FILE,
             onset=12, needs=RESUME),
)  # fmt: skip
FRESH: tuple[Scenario, ...] = (*OWN_CODE, *OWN_LOOP, *FROM_FILES)
