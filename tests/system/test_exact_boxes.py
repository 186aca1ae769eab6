"""Coordinates under bf16 and fp16 autocast are those of the float32 run, bit for bit, for any torchvision detector.

Networks are stood in for by ones whose answers half precision can hold exactly, so that whatever differs from the
float32 run was lost in box arithmetic: losses of boxes, and detections, must then be equal too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign

from maskrcnn_coco.data.batch import Batch, SampleKey
from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.system.exact_boxes import exact_boxes
from maskrcnn_coco.system.precision import autocast

STRIDES = (4, 8, 16, 32, 64)
CLASSES = 7  # so that only coordinates come in fours
CPU = torch.device("cpu")


def in_autocast(x: Tensor) -> Tensor:
    """As a layer under autocast would answer."""
    return x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x


def exactly_representable(shape: Any, seed: int) -> Tensor:
    """Numbers of -1 to 1 in steps of 1/32: the same in float16, bfloat16 and float32."""
    return torch.randint(-32, 33, tuple(shape), generator=torch.Generator().manual_seed(seed)) / 32


class Backbone(nn.Module):
    out_channels: Any = 6

    def __init__(self, strides: tuple[int, ...] = STRIDES) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.strides = strides

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for n, stride in enumerate(self.strides):
            shape = (len(x), 6, -(-x.shape[2] // stride), -(-x.shape[3] // stride))
            maps[str(n)] = in_autocast(exactly_representable(shape, n) * self.weight)
        return maps


class Head(nn.Module):
    """An RPN's head: objectness and deltas of ``anchors`` anchors a place."""

    def __init__(self, anchors: int) -> None:
        super().__init__()
        self.anchors = anchors

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        def answer(n: int, m: Tensor, channels: int) -> Tensor:
            return in_autocast(exactly_representable((len(m), channels, *m.shape[2:]), 50 + n) / 4)

        return (
            [answer(n, m, self.anchors) for n, m in enumerate(maps)],
            [answer(9 + n, m, 4 * self.anchors) for n, m in enumerate(maps)],
        )


class Predictor(nn.Module):
    """A box predictor of the caller's own: logits and deltas of each box."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(in_autocast(exactly_representable((len(x), n * CLASSES), n)) for n in (1, 4))  # type: ignore


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :8]


class OneStage(nn.Module):
    """A head of RetinaNet, FCOS or SSD whose networks are stood in for; the losses stay the true head's."""

    def __init__(self, true: nn.Module, per_place: int) -> None:
        super().__init__()
        self.true = true
        self.per_place = per_place

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        places = sum(m.shape[2] * m.shape[3] for m in maps) * self.per_place
        widths = {"cls_logits": CLASSES, "bbox_regression": 4, "bbox_ctrness": 1}
        made = {k: exactly_representable((len(maps[0]), places, w), w) for k, w in widths.items()}
        made["bbox_regression"] = made["bbox_regression"].abs() if self.per_place == 1 else made["bbox_regression"]
        return {k: in_autocast(v) for k, v in made.items()}

    def compute_loss(self, *args: Any) -> Any:
        return self.true.compute_loss(*args)  # type: ignore[operator]


def anchors() -> AnchorGenerator:
    return AnchorGenerator(tuple((s,) for s in (12, 32, 64, 128, 512)), ((0.5, 1.0, 2.0),) * 5)


def two_stage(kind: type, size: int, **more: Any) -> nn.Module:
    return kind(
        Backbone(),
        rpn_anchor_generator=anchors(),
        rpn_head=Head(3),
        rpn_pre_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=100,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 3, 2),
        box_head=Flat(),
        box_predictor=Predictor(),
        box_score_thresh=0.2,
        min_size=size,
        max_size=2 * size,
        **more,
    )


class Masks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return in_autocast(exactly_representable((len(x), CLASSES, 28, 28), 5))


class Keypoints(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return in_autocast(exactly_representable((len(x), 3, 56, 56), 5))


def build(name: str, size: int) -> nn.Module:
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    if name in ("mask", "ours"):
        model = two_stage(
            MaskRCNN, size, mask_roi_pool=pool, mask_head=nn.Identity(), mask_predictor=Masks(), num_classes=None
        )
        return accelerate(model) if name == "ours" else model
    if name in ("faster", "our boxes"):
        model = two_stage(FasterRCNN, size)
        return accelerate(model) if name == "our boxes" else model
    if name == "keypoint":
        kwargs = {"keypoint_roi_pool": pool, "keypoint_head": nn.Identity(), "keypoint_predictor": Keypoints()}
        return two_stage(KeypointRCNN, size, **kwargs)
    sizes = {"min_size": size, "max_size": 2 * size, "score_thresh": 0.7}
    if name == "retina":
        model = RetinaNet(Backbone(), CLASSES, anchor_generator=anchors(), **sizes)
        model.head = OneStage(model.head, 3)
    elif name == "fcos":
        model = FCOS(Backbone(), CLASSES, head=OneStage(FCOSHead(32, 1, CLASSES), 1), **sizes)
    else:
        maker = DefaultBoxGenerator([[2]] * 5)
        backbone = Backbone()
        backbone.out_channels = [6] * 5
        model = SSD(backbone, maker, (size, size), CLASSES, score_thresh=0.2)
        model.head = OneStage(model.head, 4)
    return model


def data(height: int, width: int, *, empty: bool = False) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """One image with a box of 0.8 pixels and a large one at its far end, and one image with a box or none."""
    x, y = width - 40.3, height - 31.7
    boxes = [torch.tensor([[x, y, x + 0.8, y + 0.8], [x / 3, y / 2, x, y]]), torch.tensor([[3.3, 4.7, x / 2, y]])]
    boxes[1] = boxes[1][: 0 if empty else 1]
    targets = [
        {
            "boxes": b,
            "labels": torch.arange(1, len(b) + 1),
            "masks": torch.ones(len(b), height, width, dtype=torch.uint8),
            "keypoints": torch.cat((b.repeat(1, 2)[:, :6].reshape(-1, 3, 2), torch.ones(len(b), 3, 1)), 2),
        }
        for b in boxes
    ]
    return [exactly_representable((3, height, width), 7).abs() for _ in boxes], targets


class HalfCoordinates(TorchDispatchMode):
    """Half-precision tensors of four (boxes, deltas) or five (boxes with their image) columns, that operators gave."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside_heads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            half = isinstance(leaf, Tensor) and leaf.dtype in (torch.float16, torch.bfloat16)
            if half and leaf.dim() in (2, 3) and leaf.shape[-1] in (4, 5) and not self.inside_heads:
                self.found.append(f"{func} {tuple(leaf.shape)}")
        return out


@contextmanager
def looked_at(model: nn.Module) -> Iterator[HalfCoordinates]:
    """What networks answer inside their own forward pass is not yet anybody's coordinate."""
    mode = HalfCoordinates()

    def enter(*_: Any) -> None:
        mode.inside_heads += 1

    def leave(*_: Any) -> None:
        mode.inside_heads -= 1

    handles = []
    for module in model.modules():
        if isinstance(module, (Head, OneStage, Predictor)):
            # Hooks run in order: `exact_boxes`, which came first, casts before the head is left.
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    with mode:
        yield mode
    for handle in handles:
        handle.remove()


def run(model: nn.Module, images: list[Tensor], targets: Any, precision: str, *, train: bool) -> tuple[Any, list[str]]:
    """Losses, or detections, and the half-precision coordinates met on the way."""
    torch.manual_seed(0)
    model.train(train)
    with autocast(precision, CPU), looked_at(model) as mode, torch.set_grad_enabled(train):
        out = model(images, copy.deepcopy(targets) if train else None)
    return out, mode.found


def check(name: str, height: int, width: int, *, empty: bool = False, precisions: tuple[str, ...] = ("bf16", "fp16")):
    size = min(height, width)
    model = exact_boxes(build(name, size))
    images, targets = data(height, width, empty=empty)
    for train in (True, False):
        wanted, _ = run(model, images, targets, "fp32", train=train)
        for precision in precisions:
            got, half = run(model, images, targets, precision, train=train)
            assert not half, (precision, train, half[:5])
            same(wanted, got, f"{name} {height}x{width} {precision} train={train}")


def same(wanted: Any, got: Any, what: str) -> None:
    if isinstance(wanted, dict):
        for key in wanted:
            same(wanted[key], got[key], f"{what} {key}")
    elif isinstance(wanted, list):
        assert len(wanted) == len(got), what
        for n, pair in enumerate(zip(wanted, got, strict=True)):
            same(*pair, f"{what}[{n}]")
    else:
        assert got.dtype == wanted.dtype, what
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True, msg=lambda m: f"{what}: {m}")


KINDS = ("ours", "mask", "faster", "keypoint", "retina", "fcos", "ssd")


@pytest.mark.parametrize("name", KINDS)
def test_losses_and_detections_are_those_of_float32(name):
    check(name, 320, 448)


@pytest.mark.parametrize("name", KINDS[:3])
def test_an_image_without_objects_beside_one_with_a_tiny_one(name):
    check(name, 320, 352, empty=True)


@pytest.mark.parametrize("name", ("our boxes", "retina"))
def test_a_large_image(name):
    check(name, 1024, 2048, precisions=("bf16",))


@settings(max_examples=15, deadline=None)
@given(height=st.integers(256, 2048), width=st.integers(256, 2048), half=st.sampled_from(("bf16", "fp16")))
@example(height=800, width=1344, half="bf16")
@example(height=2048, width=2048, half="fp16")
def test_anchors_are_those_of_float32_at_any_size(height, width, half):
    class Images:
        tensors = torch.empty(()).expand(2, 3, height, width)
        image_sizes = ((height, width), (height // 2, width))

    for name in ("ours", "retina", "ssd"):
        model = exact_boxes(build(name, 320))
        part: Any = getattr(model, "rpn", model)
        maps = [torch.empty(()).expand(2, 6, -(-height // s), -(-width // s)) for s in STRIDES]
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[half]
        wanted = part.anchor_generator(Images, maps)
        found = part.anchor_generator(Images, [m.to(dtype) for m in maps])
        same(wanted, found, f"{name} {height}x{width} {half}")


class OwnGenerator(AnchorGenerator):
    """A caller's own, which reads the maps themselves."""

    def forward(self, image_list: Any, feature_maps: list[Tensor]) -> list[Tensor]:
        return [a + float(feature_maps[0].sum()) for a in super().forward(image_list, feature_maps)]


def test_a_generator_of_the_callers_own_sees_the_true_maps_in_float32():
    class Images:
        tensors = torch.empty(1, 3, 800, 1344)
        image_sizes = ((800, 1344),)

    model: Any = build("faster", 320)
    model.rpn.anchor_generator = OwnGenerator(((32,),), ((1.0,),))
    exact_boxes(model)
    maps = [torch.ones(1, 1, 50, 84)]
    found = model.rpn.anchor_generator(Images, [m.bfloat16() for m in maps])
    same(model.rpn.anchor_generator(Images, maps), found, "own generator")
    assert found[0][:, 0].unique().numel() == 84


def test_parts_exchanged_later_are_found_and_none_is_hooked_twice():
    model: Any = exact_boxes(build("mask", 320))
    exact_boxes(copy.deepcopy(model))
    model.roi_heads.box_predictor = Predictor()
    for _ in range(3):
        exact_boxes(model)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert sum(hooks) == 4 and max(hooks) == 1


def test_a_model_of_another_kind_is_left_as_it_is():
    model = nn.Sequential(nn.Linear(2, 2))
    assert exact_boxes(model) is model and not model._forward_hooks and not model[0]._forward_hooks


def test_a_callers_model_in_bf16_loses_no_tiny_object_through_forward():
    model = build("mask", 320)
    images, targets = data(320, 448)
    forward = Forward(model, device=CPU, precision="bf16", seed=0)
    model.train()
    losses = forward(Batch(images, targets, [SampleKey(0, n, n + 1) for n in range(2)]))
    assert all(torch.isfinite(v) for v in losses.values()), losses


def test_this_test_sees_what_torchvision_rounds(monkeypatch):
    monkeypatch.setitem(globals(), "exact_boxes", lambda m: m)
    for name in KINDS:
        with pytest.raises(AssertionError):
            check(name, 320, 448)
