"""torchvision's own modules are the slow twin: outputs, gradients and random draws must be the same."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torchvision
from torch.overrides import TorchFunctionMode
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from maskrcnn_coco.model.build import build_model
from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.model.fast.mask_targets import mask_targets
from maskrcnn_coco.model.fast.norm import FastFrozenNorm
from maskrcnn_coco.model.fast.roi_align import FastPool
from maskrcnn_coco.model.fast.sampler import FastMatcher, draw
from maskrcnn_coco.model.optim import apply_lr, build_optimizer

SIDE = 128


def boxes_in(side: float, count: int, generator: torch.Generator) -> torch.Tensor:
    center = torch.rand(count, 2, generator=generator) * side
    half = torch.exp(torch.rand(count, 2, generator=generator) * 4.5) / 2
    boxes = torch.cat((center - half, center + half), 1)
    return boxes.clamp(0, side)


def detection_batch(counts: tuple[int, ...], seed: int = 0, side: int = SIDE):
    g = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for count in counts:
        images.append(torch.rand(3, side, side, generator=g))
        low = torch.rand(count, 2, generator=g) * side * 0.6
        boxes = torch.cat((low, low + 8 + torch.rand(count, 2, generator=g) * side * 0.3), 1).clamp(max=side)
        masks = torch.zeros(count, side, side, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        labels = torch.randint(1, 4, (count,), generator=g)
        targets.append({"boxes": boxes, "labels": labels, "masks": masks})
    return images, targets


@pytest.mark.parametrize("size", [7, 14, (7, 5)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_pool_equals_torchvision(size, channels_last):
    g = torch.Generator().manual_seed(1)
    levels = {str(i): torch.randn(2, 16, SIDE // s, SIDE // s, generator=g) for i, s in enumerate((4, 8, 16, 32))}
    if channels_last:
        levels = {k: v.contiguous(memory_format=torch.channels_last) for k, v in levels.items()}
    levels["pool"] = torch.randn(2, 16, 2, 2, generator=g)
    edge = torch.tensor([[0.0, 0, SIDE, SIDE], [SIDE - 0.5, 3, SIDE, 3.2], [-9, -9, -5, -5], [120, 120, 150, 150]])
    boxes = [torch.cat((boxes_in(SIDE, 40, g), edge)), boxes_in(SIDE, 7, g)]
    slow = MultiScaleRoIAlign(["0", "1", "2", "3"], size, 2, canonical_scale=64)
    fast = FastPool(["0", "1", "2", "3"], size, 2, canonical_scale=64)
    results = []
    for pool in (slow, fast):
        own = {k: v.clone().requires_grad_() for k, v in levels.items()}
        out = pool(own, boxes, [(SIDE, SIDE)] * 2)
        weight = torch.sin(torch.arange(out.numel())).view(out.shape)
        (out * weight).sum().backward()
        results.append((out.detach(), [own[k].grad for k in "0123"]))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)
    for got, wanted in zip(results[1][1], results[0][1], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_pool_without_boxes_and_with_boxes_that_are_not_finite():
    levels = {str(i): torch.randn(1, 4, 32 // 2**i, 32 // 2**i) for i in range(4)}
    pool = FastPool(["0", "1", "2", "3"], 7, 2)
    assert pool(levels, [torch.zeros(0, 4)], [(128, 128)]).shape == (0, 4, 7, 7)
    bad = torch.tensor([[0, 0, 10, 10], [math.nan, 0, 10, 10], [0, 0, math.inf, 10], [0, 0, 1e30, 1e30]])
    out = pool(levels, [bad], [(128, 128)])
    finite = torch.isfinite(out).flatten(1).all(1).tolist()
    assert finite[0] and not finite[1] and not finite[2]


def test_mask_targets_equal_torchvision():
    g = torch.Generator().manual_seed(2)
    masks = (torch.rand(5, 90, 140, generator=g) < 0.5).to(torch.uint8)
    edge = torch.tensor([[0.0, 0, 140, 90], [139, 89, 140, 90], [-0.5, -0.5, 0.2, 0.1], [3, 3, 3.5, 80]])
    boxes = torch.cat((boxes_in(90, 60, g), edge))
    matched = torch.randint(0, 5, (len(boxes),), generator=g)
    wanted = project_masks_on_boxes(masks, boxes, matched, 28)
    torch.testing.assert_close(mask_targets(masks, boxes, matched, 28), wanted, rtol=1e-4, atol=1e-4)


def test_mask_targets_do_not_lose_precision_under_autocast():
    masks = (torch.rand(1, 40, 40) < 0.5).to(torch.uint8)
    boxes = torch.tensor([[3.3, 4.4, 31.7, 29.1]])
    wanted = mask_targets(masks, boxes, torch.tensor([0]), 28)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mask_targets(masks, boxes, torch.tensor([0]), 28), wanted)


@pytest.mark.parametrize("seed", range(5))
def test_sampler_draws_what_torchvision_draws(seed):
    g = torch.Generator().manual_seed(seed)
    sizes = [0, 200, 40, 0, 300]
    labels = [torch.randint(-1, 4, (n,), generator=g) for n in sizes]
    labels[2].zero_()
    slow = BalancedPositiveNegativeSampler(64, 0.25)
    torch.manual_seed(seed)
    positives, negatives = (torch.cat(m).nonzero()[:, 0] for m in slow(labels))
    after = torch.get_rng_state()
    torch.manual_seed(seed)
    sample = draw(torch.cat(labels), sizes, 64, 0.25)
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(sample.positive_indices, positives)
    assert torch.equal(sample.negative_indices, negatives)
    assert torch.equal(sample.indices, torch.cat((positives, negatives)).sort().values)
    assert torch.equal(sample.indices[sample.positives], positives)
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    for i, count in enumerate(sample.sizes):
        assert count == ((sample.indices >= ends[i]) & (sample.indices < ends[i + 1])).sum()


def test_matcher_equals_torchvision_with_ties():
    g = torch.Generator().manual_seed(3)
    quality = (torch.rand(6, 500, generator=g) * 20).round() / 20
    slow, fast = (kind(0.7, 0.3, allow_low_quality_matches=True) for kind in (Matcher, FastMatcher))
    assert torch.equal(fast(quality.clone()), slow(quality.clone()))


def reference(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "small":
        return build_model("maskrcnn_resnet18_fpn", 4, small=True, min_size=64, max_size=64, fast=False)
    # torchvision's own heads at their full width, and batch norms, as it builds a network without weights.
    norm = torch.nn.BatchNorm2d
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=norm)
    net = MaskRCNN(body, 4, min_size=64, max_size=64, rpn_post_nms_top_n_train=100)
    # Fewer samples than torchvision's defaults: the test is about equality.
    net.roi_heads.fg_bg_sampler.batch_size_per_image = 16
    return net


@pytest.mark.parametrize(("kind", "counts"), [("small", (3, 0)), ("small", (1, 5)), ("torchvision", (2, 0))])
def test_losses_and_gradients_equal_torchvision(kind, counts):
    slow = reference(kind).double().train()
    fast = accelerate(copy.deepcopy(slow))
    assert list(fast.state_dict()) == list(slow.state_dict())
    images, targets = detection_batch(counts, side=64)
    results = []
    for net in (slow, fast):
        torch.manual_seed(7)
        losses = net([i.double() for i in images], [{**t, "boxes": t["boxes"].double()} for t in targets])
        sum(losses.values()).backward()
        results.append((losses, torch.get_rng_state()))
    (wanted, state), (got, own_state) = results
    assert torch.equal(state, own_state)
    assert list(got) == list(wanted)
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-6)
    for (name, p), q in zip(slow.named_parameters(), fast.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            scale = p.grad.abs().max().clamp(min=1e-6)
            assert float((q.grad - p.grad).abs().max() / scale) < 2e-3, name


def test_a_fused_step_in_channels_last_moves_the_weights_as_a_plain_one():
    # The fused kernel pairs weights, gradients and momentum by their place in memory, whatever their strides say.
    slow = reference("small").train()
    fast = accelerate(copy.deepcopy(slow))
    plain = torch.optim.SGD(slow.parameters(), lr=1e-2, momentum=0.9, foreach=False)
    fused = build_optimizer(fast, weight_decay=0.0)
    apply_lr(fused, {"backbone": 1e-2})
    images, targets = detection_batch((2,))
    before = {k: v.clone() for k, v in slow.state_dict().items()}
    for net, optimizer in ((slow, plain), (fast, fused)):
        torch.manual_seed(7)
        sum(net(images, [dict(t) for t in targets]).values()).backward()
        optimizer.step()
    for name, after in fast.state_dict().items():
        wanted = slow.state_dict()[name] - before[name]
        scale = wanted.abs().max().clamp(min=1e-8)
        assert float((after - before[name] - wanted).abs().max() / scale) < 0.02, name


def test_detections_equal_torchvision():
    slow = reference("small").eval()
    slow.roi_heads.score_thresh = 0.0
    fast = accelerate(copy.deepcopy(slow))
    images, _ = detection_batch((1, 1))
    with torch.no_grad():
        for got, wanted in zip(fast(images), slow(images), strict=True):
            assert torch.equal(got["labels"], wanted["labels"])
            torch.testing.assert_close(got["boxes"], wanted["boxes"], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(got["masks"], wanted["masks"], rtol=1e-3, atol=1e-3)


def test_resizing_equals_torchvision():
    slow = reference("small").train()
    slow.transform.min_size, slow.transform.max_size = (96,), 150
    fast = accelerate(copy.deepcopy(slow))
    g = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 60, 130, generator=g), torch.rand(3, 96, 96, generator=g)]
    targets = [
        {"boxes": torch.tensor([[1.0, 2, 30, 40]]), "masks": (torch.rand(1, *i.shape[1:], generator=g) < 0.5).byte()}
        for i in images
    ]
    (a, ta), (b, tb) = (m.transform(images, [dict(t) for t in targets]) for m in (slow, fast))
    torch.testing.assert_close(b.tensors, a.tensors)
    assert a.image_sizes == b.image_sizes
    for x, y in zip(ta, tb, strict=True):
        torch.testing.assert_close(y["boxes"], x["boxes"])
        assert torch.equal(y["masks"], x["masks"])


def test_frozen_norm_equals_torchvision_and_stays_in_half_precision():
    slow = FrozenBatchNorm2d(8)
    for buffer in slow.buffers():
        buffer.uniform_(0.1, 2.0)
    fast = FastFrozenNorm(8)
    fast.load_state_dict(slow.state_dict())
    x = torch.randn(2, 8, 5, 5)
    grads = []
    for norm in (slow, fast):
        own = x.clone().requires_grad_()
        norm(own).square().sum().backward()
        grads.append(own.grad)
    torch.testing.assert_close(fast(x), slow(x))
    torch.testing.assert_close(grads[1], grads[0])
    assert fast(x.bfloat16()).dtype == torch.bfloat16


class HostReads(TorchFunctionMode):
    """Counts what would make a GPU wait: values, lists, and results whose size depends on values."""

    NAMES = ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero", "where", "nms", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        masked = name == "__getitem__" and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool
        if masked or (name in self.NAMES and not (name == "where" and len(args) + len(kwargs or {}) == 3)):
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_sampling_and_losses_of_the_roi_heads_read_once_for_any_batch():
    fast = accelerate(reference("small").train())
    counts = []
    for images in (1, 4):
        _, targets = detection_batch((2,) * images)
        proposals = [torch.cat((t["boxes"], t["boxes"] + 3)) for t in targets]
        with HostReads() as reads:
            fast.roi_heads._training_samples(proposals, targets)
        counts.append(reads.count)
    assert counts == [1, 1]


def test_other_models_are_left_alone():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
    assert accelerate(net) is net
    retina = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    assert accelerate(retina) is retina
