"""The recipes R-… of real NaN reports, on the miniature run: each function returns a run that will break."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from nanbench.tiny import tiny_model
from nanbench.tiny_parts import CLASSES
from tiny_run import TinyRun, rates
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn_coco.data.batch import Batch

NAN, INF = math.nan, math.inf
BAD = 17
"""The image that the data recipes break; it is first met in step 4 with batches of 4."""


def target(key: str, change: Callable[[Tensor], Tensor], image_id: int | None = BAD) -> Callable[[int, Batch], None]:
    def spoil(step: int, batch: Batch) -> None:
        for position, k in enumerate(batch.keys):
            if image_id is None or k.image_id == image_id:
                own = dict(batch.targets[position])
                own[key] = change(own[key].clone())
                batch.targets[position] = own

    return spoil


def pixels(change: Callable[[Tensor], Tensor], image_id: int | None = BAD) -> Callable[[int, Batch], None]:
    def spoil(step: int, batch: Batch) -> None:
        for position, k in enumerate(batch.keys):
            if image_id is None or k.image_id == image_id:
                batch.images[position] = change(batch.images[position].clone())

    return spoil


def put(index: Any, value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor[index] = value
        return tensor

    return change


def before(step: int, change: Callable[[TinyRun], None]) -> Callable[[TinyRun, int], None]:
    return lambda run, s: change(run) if s == step else None


def norms(variance: float, eps: float = 0.0) -> nn.Module:
    model = tiny_model()
    for m in model.modules():
        if isinstance(m, FrozenBatchNorm2d):
            m.eps = eps
            m.running_var[0] = variance
    return model


def identity_norms() -> nn.Module:
    """R-E1: a random net whose frozen norms do nothing, deep enough (here: wide enough) to blow up."""
    model = tiny_model()
    for m in model.modules():
        if isinstance(m, FrozenBatchNorm2d):
            m.running_var.fill_(1.0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("backbone.body") and p.ndim == 4:
                p.mul_(40)
    return model


def poisoned(name: str, index: Any) -> nn.Module:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter(name)[index] = NAN
    return model


def nan_momentum(run: TinyRun) -> None:
    parameter = run.model.get_parameter("backbone.body.layer2.0.weight")
    run.optimizer.state[parameter]["momentum_buffer"][0, 0] = NAN


def half_moments(run: TinyRun) -> None:
    for state in run.optimizer.state.values():
        state["exp_avg_sq"] = state["exp_avg_sq"].half().float()


def nan_lr(run: TinyRun) -> None:
    run.optimizer.param_groups[0]["lr"] = NAN


def flipped_bit(name: str, value: float) -> Callable[[TinyRun], None]:
    def change(run: TinyRun) -> None:
        with torch.no_grad():
            run.model.get_parameter(name).view(-1)[7] = value

    return change


class WithLosses(nn.Module):
    """A detector whose losses are changed by ``change(model, losses, targets)``."""

    def __init__(self, change: Callable[[Any, dict[str, Tensor], Any], dict[str, Tensor]]) -> None:
        super().__init__()
        inner = tiny_model()
        self.transform, self.backbone, self.rpn, self.roi_heads = (
            inner.transform,
            inner.backbone,
            inner.rpn,
            inner.roi_heads,
        )
        self.change = change

    def forward(self, images: Any, targets: Any) -> dict[str, Tensor]:
        sizes = [tuple(i.shape[-2:]) for i in images]
        batch, targets = self.transform(images, targets)
        features = self.backbone(batch.tensors)
        proposals, rpn = self.rpn(batch, features, targets)
        _, roi = self.roi_heads(features, proposals, batch.image_sizes, targets)
        del sizes
        return self.change(self, {**roi, **rpn}, targets)


def sqrt_at_zero(model: Any, losses: dict[str, Tensor], targets: Any) -> dict[str, Tensor]:
    """R-G2: finite (0.0), but its derivative is 0 / 0."""
    bias = model.roi_heads.mask_predictor.mask_fcn_logits.bias
    return {**losses, "loss_aux": (bias - bias.detach()).pow(2).sum().sqrt()}


def class_weight(model: Any, losses: dict[str, Tensor], targets: Any) -> dict[str, Tensor]:
    """R-G3: a class weight of 1/0."""
    weight = losses["loss_classifier"].detach() * 0
    return {**losses, "loss_classifier": losses["loss_classifier"] * weight / weight}


def mean_of_nothing(model: Any, losses: dict[str, Tensor], targets: Any) -> dict[str, Tensor]:
    """R-G1 with a gradient: a term divided by the number of objects of a class that few images have."""
    count = sum(0 if int(t["image_id"]) == BAD else 1 for t in targets) if _has_bad(targets) else 1
    zero = losses["loss_mask"].new_tensor(0.0 if _has_bad(targets) else float(count))
    return {**losses, "loss_mask": losses["loss_mask"] * zero / zero}


def strange_image(model: Any, losses: dict[str, Tensor], targets: Any) -> dict[str, Tensor]:
    """One image whose losses are all infinite for no reason that a scan can see."""
    return {k: v * (INF if _has_bad(targets) else 1.0) for k, v in losses.items()}


def strange_annotation(model: Any, losses: dict[str, Tensor], targets: Any) -> dict[str, Tensor]:
    """One annotation that makes loss_mask infinite for no reason that a scan can see."""
    hit = any(int(a) == BAD * 10 + 1 for t in targets for a in t["annotation_ids"])
    return {**losses, "loss_mask": losses["loss_mask"] * (INF if hit else 1.0)}


def _has_bad(targets: Any) -> bool:
    return any(int(t["image_id"]) == BAD for t in targets)


class Overflowing(nn.Module):
    """A head whose inner values pass 65504 in half precision, and 7e4 in float32 is nothing."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Conv2d(16, 16, 1, bias=False)
        with torch.no_grad():
            self.scale.weight.copy_(torch.eye(16).reshape(16, 16, 1, 1) * 1e7)
        self.scale.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.inner(x)) / 1e7


class Rounded(nn.Module):
    """Divides by a difference that is exact in float32 and zero in bfloat16: as the width of a far, narrow box."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.edge = nn.Linear(32, 32, bias=False)
        nn.init.eye_(self.edge.weight)
        self.edge.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        ones = torch.ones_like(x)
        return x * 0.5 / (self.edge(ones * 300.5) - self.edge(ones * 300.0))


def rounded() -> nn.Module:
    model = tiny_model()
    model.roi_heads.box_head = Rounded(model.roi_heads.box_head)
    return model


def overflowing() -> nn.Module:
    """R-F1, as a module of its own."""
    model = tiny_model()
    model.roi_heads.mask_head = Overflowing(model.roi_heads.mask_head)
    return model


def dead_scale(run: TinyRun) -> None:
    assert run.scaler is not None
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 0.0})


def tiny_scale(run: TinyRun) -> None:
    """Not zero, but every gradient rounds to zero: training stands still with a normal loss."""
    assert run.scaler is not None
    run.scaler.update(2.0**-40)


def sick_device(run: TinyRun) -> None:
    """R-J1: wrong on this device every time; the reference model, elsewhere, is sound."""
    run.model.backbone.body["layer3"].register_forward_hook(lambda m, a, o: o * NAN)
    run.reference = tiny_model


def negative_variance(run: TinyRun) -> None:
    """Training does not read it, so every loss stays healthy; evaluation is NaN."""
    run.model.get_submodule("backbone.body.layer3.1").running_var[:2] = -1.0


def wrong_library(run: TinyRun) -> None:
    """One module's vendor kernel is wrong; torch's own is right."""

    def hook(m: nn.Module, a: Any, o: Tensor) -> Tensor | None:
        return o * NAN if torch._C._get_mkldnn_enabled() else None

    run.model.backbone.body["layer3"].register_forward_hook(hook)


def wrong_compiler(run: TinyRun) -> None:
    """The code that a compiler made of one module is wrong; a deep copy of the model is eager, and right."""

    def compiler(graph: Any, _: Any) -> Any:
        return lambda *args: tuple(o * NAN for o in graph.forward(*args))

    run.model.backbone.body["layer2"].compile(backend=compiler, dynamic=False)


def once_wrong(run: TinyRun) -> None:
    """One wrong result, never again."""
    left = [1]

    def hook(m: nn.Module, a: Any, o: Tensor) -> Tensor:
        if left:
            left.pop()
            return o * NAN
        return o

    run.model.backbone.body["layer3"].register_forward_hook(hook)


def sums_gradients(run: TinyRun) -> None:
    """R-I3: this loop does not divide by the number of micro-batches; the guard's own division is undone."""
    inner = run.forward.losses
    k = run.accumulate
    run.forward.losses = lambda model, batch, step, micro, precision=None: {  # type: ignore[method-assign]
        n: v * k for n, v in inner(model, batch, step, micro, precision).items()
    }


def zero_width(boxes: Tensor) -> Tensor:
    boxes[0, 2] = boxes[0, 0]
    return boxes


SMALL = dict.fromkeys(("backbone", "rpn", "box_head", "mask_head"), 1e-4)
ALL = ("backbone", "rpn", "box_head", "mask_head")
FC6 = "roi_heads.box_head.fc6.weight"


# name → (a run that breaks, cause, culprit)
def once(module: str, call: int, factor: float) -> nn.Module:
    """A model one of whose modules returns garbage, finite, in its ``call``-th training pass and never again."""
    model, calls = tiny_model(), [0]

    def hook(_m: nn.Module, _a: Any, output: Tensor) -> Tensor | None:
        calls[0] += 1
        return output * factor if calls[0] == call else None

    model.get_submodule(module).register_forward_hook(hook)
    return model


def formula(term: str, factor: float, start: int) -> nn.Module:
    """A model one of whose losses (``term`` "": all) is multiplied from its ``start``-th training pass on."""
    model, calls = tiny_model(), [0]

    def hook(_m: nn.Module, _a: Any, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        calls[0] += 1
        return {k: v * (factor if term in (k, "") and calls[0] >= start else 1.0) for k, v in losses.items()}

    model.register_forward_hook(hook)
    return model


FAULTS: dict[str, tuple[Callable[[], TinyRun], str, dict[str, Any]]] = {
    "A1 backbone": (lambda: TinyRun(lr=rates(backbone=0.3), max_grad_norm=0), "LR_TOO_HIGH", {"component": "backbone"}),
    "A1 backbone, clipped": (lambda: TinyRun(lr=rates(backbone=3.0)), "LR_TOO_HIGH", {"component": "backbone"}),
    "A1 box head": (lambda: TinyRun(lr=rates(box_head=0.3), max_grad_norm=0), "LR_TOO_HIGH", {"component": "box_head"}),
    "A1 box head, clipped": (lambda: TinyRun(lr=rates(box_head=3.0)), "LR_TOO_HIGH", {"component": "box_head"}),
    "A1 mask head": (
        lambda: TinyRun(lr=rates(mask_head=3.0), max_grad_norm=0),
        "LR_TOO_HIGH",
        {"component": "mask_head"},
    ),
    "A2 everything": (lambda: TinyRun(lr=dict.fromkeys(ALL, 2.0), max_grad_norm=0), "LR_TOO_HIGH", {}),
    "A3 warm-up": (
        lambda: TinyRun(lr=rates(box_head=3.0), warmup=60, max_grad_norm=0),
        "LR_TOO_HIGH",
        {"component": "box_head"},
    ),
    "A5 momentum": (lambda: TinyRun(momentum=1.2), "LR_TOO_HIGH", {}),
    "A6 weight decay": (lambda: TinyRun(weight_decay=300.0, lr=dict.fromkeys(ALL, 0.02)), "LR_TOO_HIGH", {}),
    "A fp16": (
        lambda: TinyRun(precision="fp16", lr=rates(box_head=0.5), max_grad_norm=0),
        "LR_TOO_HIGH",
        {"component": "box_head"},
    ),
    "A accumulated": (
        lambda: TinyRun(accumulate=4, batch_size=1, lr=rates(mask_head=5.0), max_grad_norm=0),
        "LR_TOO_HIGH",
        {"component": "mask_head"},
    ),
    "B1 inverted": (
        lambda: TinyRun(spoil=target("boxes", lambda b: b[:, [2, 3, 0, 1]])),
        "DATA_BOX",
        {"image_ids": [BAD], "annotation_ids": [170, 171]},
    ),
    "B2 zero width": (
        lambda: TinyRun(spoil=target("boxes", zero_width)),
        "DATA_BOX",
        {"image_ids": [BAD], "annotation_ids": [170]},
    ),
    "B3 NaN": (
        lambda: TinyRun(spoil=target("boxes", put((1, 2), NAN))),
        "DATA_BOX",
        {"image_ids": [BAD], "annotation_ids": [171]},
    ),
    "B6 inf": (
        lambda: TinyRun(spoil=target("boxes", put((0, 2), INF))),
        "DATA_BOX",
        {"image_ids": [BAD], "annotation_ids": [170]},
    ),
    "B7 1e9": (lambda: TinyRun(spoil=target("boxes", put((0, 2), 1e9))), "DATA_BOX", {"image_ids": [BAD]}),
    "B accumulated": (
        lambda: TinyRun(accumulate=4, batch_size=1, spoil=target("boxes", put((1, 2), NAN))),
        "DATA_BOX",
        {"image_ids": [BAD], "annotation_ids": [171]},
    ),
    "C1 past the end": (
        lambda: TinyRun(spoil=target("labels", put(0, CLASSES))),
        "DATA_LABEL",
        {"image_ids": [BAD], "annotation_ids": [170]},
    ),
    "C label 0": (lambda: TinyRun(spoil=target("labels", put(1, 0))), "DATA_LABEL", {"image_ids": [BAD]}),
    "D1 one image 0..255": (lambda: TinyRun(spoil=pixels(lambda i: i * 255)), "DATA_PIXEL", {"image_ids": [BAD]}),
    "D1 all images 0..255": (lambda: TinyRun(spoil=pixels(lambda i: i * 255, None)), "DATA_PIXEL", {}),
    "D2 16 bit": (lambda: TinyRun(spoil=pixels(lambda i: i * 65535, None)), "DATA_PIXEL", {}),
    "D3 constant image": (lambda: TinyRun(spoil=pixels(lambda i: (i - i) / 0)), "DATA_PIXEL", {"image_ids": [BAD]}),
    "D4 NaN pixel": (lambda: TinyRun(spoil=pixels(put((0, 3, 4), NAN))), "DATA_PIXEL", {"image_ids": [BAD]}),
    "F formula, late": (lambda: TinyRun(model=formula("loss_mask", 1e3, 9)), "LOSS_MATH", {}),
    "F formula, huge": (lambda: TinyRun(model=formula("loss_box_reg", 1e6, 6)), "LOSS_MATH", {}),
    "F formula, whole": (lambda: TinyRun(model=formula("", 1e3, 9)), "LOSS_MATH", {}),
    "F formula, turned": (
        lambda: TinyRun(model=formula("", -1.0, 7), kind="adamw", lr=dict.fromkeys(ALL, 0.01)),
        "LOSS_MATH",
        {},
    ),
    "G activations once": (lambda: TinyRun(model=once("backbone.body.layer3", 8, 1e6)), "TRANSIENT", {}),
    "G head once, accumulated": (
        lambda: TinyRun(model=once("roi_heads.box_head", 8, 1e7), accumulate=2, batch_size=2),
        "TRANSIENT",
        {},
    ),
    "E1 identity": (lambda: TinyRun(model=identity_norms(), max_grad_norm=0), "NORM_STATE", {}),
    "E2 eps 0": (lambda: TinyRun(model=norms(0.0)), "NORM_STATE", {"component": "backbone"}),
    "E2 tiny variance": (lambda: TinyRun(model=norms(1e-14)), "NORM_STATE", {"component": "backbone"}),
    "E3 negative": (lambda: TinyRun(model=norms(-2e-5, 1e-5)), "NORM_STATE", {"module": "backbone.body.layer1.1"}),
    "E4 negative, trainable": (
        lambda: TinyRun(model=tiny_model(norm=nn.BatchNorm2d), before_step=before(7, negative_variance)),
        "NORM_STATE",
        {"module": "backbone.body.layer3.1"},
    ),
    "E5 trainable norm": (
        lambda: TinyRun(model=tiny_model(norm=nn.BatchNorm2d), spoil=pixels(put((0, 3, 4), NAN))),
        "DATA_PIXEL",
        {"image_ids": [BAD]},
    ),
    "F1 module": (
        lambda: TinyRun(model=overflowing(), precision="fp16"),
        "FP16_OVERFLOW",
        {"module": "roi_heads.mask_head.scale", "component": "mask_head"},
    ),
    "F1 before the scale is found": (
        lambda: TinyRun(model=overflowing(), precision="fp16", scale=2.0**16),
        "FP16_OVERFLOW",
        {"module": "roi_heads.mask_head.scale", "component": "mask_head"},
    ),
    "F2 bf16": (
        lambda: TinyRun(model=rounded(), precision="bf16"),
        "FP16_OVERFLOW",
        {"component": "box_head"},
    ),
    "F3 tiny scale": (lambda: TinyRun(precision="fp16", before_step=before(5, tiny_scale)), "SCALE_COLLAPSE", {}),
    "F3 scale 0": (lambda: TinyRun(precision="fp16", before_step=before(5, dead_scale)), "SCALE_COLLAPSE", {}),
    "G1 mean of nothing": (
        lambda: TinyRun(model=WithLosses(mean_of_nothing)),
        "LOSS_MATH",
        {"image_ids": [BAD]},
    ),
    "G2 sqrt": (lambda: TinyRun(model=WithLosses(sqrt_at_zero)), "LOSS_MATH", {}),
    "G3 class weight": (lambda: TinyRun(model=WithLosses(class_weight)), "LOSS_MATH", {}),
    "H1 backbone": (
        lambda: TinyRun(
            model=poisoned("backbone.body.layer2.0.weight", (0, 0, 0, 0)), settings={"resume_path": "last.pth"}
        ),
        "POISONED_STATE",
        {"module": "backbone.body.layer2.0", "checkpoint": "last.pth"},
    ),
    "H1 background row": (
        lambda: TinyRun(model=poisoned("roi_heads.box_predictor.bbox_pred.weight", (0, 0))),
        "POISONED_STATE",
        {"module": "roi_heads.box_predictor.bbox_pred", "component": "box_head"},
    ),
    "H2 momentum": (
        lambda: TinyRun(before_step=before(1, nan_momentum)),
        "POISONED_STATE",
        {"component": "backbone", "module": "backbone.body.layer2.0"},
    ),
    "H3 half moments": (
        lambda: TinyRun(kind="adamw", lr=SMALL, before_step=before(4, half_moments)),
        "POISONED_STATE",
        {},
    ),
    "H4 lr": (lambda: TinyRun(before_step=before(5, nan_lr)), "POISONED_STATE", {"component": "backbone"}),
    "J1 backend": (
        lambda: TinyRun(before_step=before(6, sick_device)),
        "BACKEND",
        {"module": "backbone.body.layer3"},
    ),
    "J1 library": (
        lambda: TinyRun(before_step=before(6, wrong_library)),
        "BACKEND",
        {"module": "backbone.body.layer3"},
    ),
    "J1 compiled": (
        lambda: TinyRun(before_step=before(6, wrong_compiler)),
        "BACKEND",
        {"module": "backbone.body.layer2", "component": "backbone"},
    ),
    "J1 once": (lambda: TinyRun(before_step=before(6, once_wrong)), "TRANSIENT", {}),
    "J2 flipped bit": (
        lambda: TinyRun(before_step=before(6, flipped_bit(FC6, 6.8e36))),
        "TRANSIENT",
        {"component": "box_head", "module": "roi_heads.box_head.fc6"},
    ),
    "K1 anchors": (lambda: TinyRun(model=tiny_model(anchors=((1,), (1,)))), "ANCHORS", {"component": "rpn"}),
    "L1 all masks 0/255": (lambda: TinyRun(spoil=target("masks", lambda m: m * 255, None)), "DATA_MASK", {}),
    "L1 one image 0/255": (
        lambda: TinyRun(spoil=target("masks", lambda m: m * 255)),
        "DATA_MASK",
        {"image_ids": [BAD]},
    ),
    "strange image": (lambda: TinyRun(model=WithLosses(strange_image)), "UNKNOWN", {"image_ids": [BAD]}),
    "strange image of 8": (
        lambda: TinyRun(model=WithLosses(strange_image), batch_size=8),
        "UNKNOWN",
        {"image_ids": [BAD]},
    ),
    "strange annotation": (
        lambda: TinyRun(model=WithLosses(strange_annotation)),
        "LOSS_MATH",
        {"image_ids": [BAD]},
    ),
    "I3 not divided": (
        lambda: TinyRun(
            accumulate=8, batch_size=1, before_step=before(0, sums_gradients), max_grad_norm=0, lr=rates(backbone=0.05)
        ),
        "ACCUMULATION",
        {},
    ),
}
