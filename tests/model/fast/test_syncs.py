"""A training step on CUDA makes the host wait a fixed number of times; counted, and compared, on a pretended device."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from pretend_cuda import CUDA, Counts, OnDevice, pretend_cuda, to_device
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import boxes as box_ops
from torchvision.ops.boxes import _batched_nms_vanilla

from maskrcnn_coco.data.batch import Batch
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.model.fast import nms
from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.model.fast.roi_align import FastPool
from maskrcnn_coco.model.fast.rpn import FastRPN
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.model.optim import apply_lr, build_optimizer
from maskrcnn_coco.replay.snapshot import take
from tests.model.fast.test_accelerate import boxes_in, detection_batch, reference

READS = 3
"""RPN (NMS and sampler together), sampler of the RoI heads, boxes of each pyramid level."""


def on_host(value: Any) -> torch.Tensor:
    assert isinstance(value, OnDevice)
    return value.held


def send(images, targets):
    moved = [{k: v.to("cuda", non_blocking=True) for k, v in t.items()} for t in targets]
    return [i.to("cuda", non_blocking=True) for i in images], moved


def batch_of(images: int) -> Batch:
    pictures, targets = detection_batch((3, 0, 1, 2)[:images], side=64)
    return Batch(pictures, targets, [SampleKey(0, i, i) for i in range(images)], resized=True)


def guarded(scaled: bool) -> tuple[Guard, Forward]:
    model = to_device(accelerate(reference("small").train()))
    optimizer = build_optimizer(model)
    apply_lr(optimizer, {"backbone": 1e-3})
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None
    guard = Guard(model, optimizer, scaler=scaler, deferred=True, measure_every=1)
    return guard, Forward(model, device=CUDA, precision="fp32", seed=0)


def counted_step(guard: Guard, forward: Forward, images: int, step: int) -> Counts:
    with pretend_cuda() as counts:
        guard.step(forward.begin(step), batch_of(images), step=step)
    assert guard.alarm is None
    return counts


@pytest.mark.parametrize("scaled", [False, True])
def test_a_guarded_step_reads_no_more_than_three_times_for_any_batch(scaled: bool) -> None:
    with pretend_cuda():
        guard, forward = guarded(scaled)
        counted_step(guard, forward, 2, 0)  # constants are sent once
        for step, images in enumerate((1, 2, 4), 1):
            counts = counted_step(guard, forward, images, step)
            assert counts.reads.total() == READS, counts
            assert counts.sends.total() == 0, counts
        with pretend_cuda() as counts:
            guard.flush()
        assert counts.reads.total() == 0, counts
    assert all(r.applied and math.isfinite(r.loss) for r in guard.completed)


def test_a_snapshot_reads_a_fixed_number_of_times() -> None:
    with pretend_cuda():
        guard, forward = guarded(scaled=False)
        counted_step(guard, forward, 1, 0)
        guard.flush()
        with pretend_cuda() as looked:
            assert guard.inspect() is None
        with pretend_cuda() as counts:
            snapshot = take(guard.model, guard.optimizer, None, step=1, epoch=0, guard=guard, inspected=True)
    assert snapshot.verified
    assert looked.reads.total() == 2, looked
    assert counts.reads.total() == 1, counts


@pytest.mark.parametrize(("images", "reads"), [(1, 22), (2, 33)])
def test_the_count_of_torchvision_itself_is_the_known_one(images: int, reads: int) -> None:
    """11 a step and 11 an image, as counted operator by operator elsewhere: the counter sees what there is."""
    model = to_device(reference("small").train())
    pictures, targets = detection_batch((2,) * images, side=64)
    with pretend_cuda():
        moved = send(pictures, targets)
        with pretend_cuda() as counts:
            losses = model(*moved)
            assert counts.reads.total() == reads, counts
            torch.stack(list(losses.values())).sum().backward()
    assert counts.reads.total() == reads, "backward read"
    assert counts.sends.total() >= 4 + 6 * images, counts
    assert any("generalized_rcnn.py" in line for line in counts.reads), counts


@pytest.mark.parametrize(("kind", "counts"), [("small", (3, 0)), ("small", (1, 5)), ("torchvision", (2, 0))])
def test_losses_and_gradients_equal_torchvision(kind: str, counts: tuple[int, ...]) -> None:
    slow = reference(kind).double().train()
    fast = to_device(accelerate(copy.deepcopy(slow)))
    images, targets = detection_batch(counts, side=64)
    images, targets = [i.double() for i in images], [{**t, "boxes": t["boxes"].double()} for t in targets]
    torch.manual_seed(7)
    wanted = slow(images, [dict(t) for t in targets])
    torch.stack(list(wanted.values())).sum().backward()
    state = torch.get_rng_state()
    with pretend_cuda() as found:
        torch.manual_seed(7)
        got = fast(*send(images, targets))
        torch.stack(list(got.values())).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert found.reads.total() == READS, found
    assert list(got) == list(wanted)
    for name in wanted:
        torch.testing.assert_close(on_host(got[name].detach()), wanted[name].detach(), rtol=1e-9, atol=1e-12)
    for (name, p), q in zip(slow.named_parameters(), fast.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            scale = p.grad.abs().max().clamp(min=1e-6)
            assert float((on_host(q.grad) - p.grad).abs().max() / scale) < 1e-6, name


@pytest.mark.parametrize("clusters", [400, 20, 2])
def test_nms_keeps_what_torchvision_keeps(clusters: int) -> None:
    g = torch.Generator().manual_seed(clusters)
    which = torch.randint(clusters, (3, 400), generator=g)
    center = torch.rand(3, clusters, 2, generator=g).mul(500).gather(1, which[:, :, None].expand(-1, -1, 2))
    half = 40 * torch.exp(0.2 * torch.randn(3, 400, 2, generator=g))
    center = center + 8 * torch.randn(3, 400, 2, generator=g)
    boxes = torch.cat((center - half, center + half), -1)
    fit = torch.rand(3, 400, generator=g) < 0.9
    stay, settled = nms.suppress(nms.overlaps(boxes, 0.7), fit, fit)
    assert settled
    order = torch.arange(400, 0, -1, dtype=torch.float32)
    for group in range(3):
        places = fit[group].nonzero()[:, 0]
        wanted = places[box_ops.nms(boxes[group, places], order[places], 0.7)]
        assert torch.equal(stay[group].nonzero()[:, 0], wanted)


def test_nms_compares_in_parts_what_does_not_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = torch.stack([boxes_in(100, 50, torch.Generator().manual_seed(i)) for i in range(5)])
    whole = nms.overlaps(boxes, 0.3)
    assert whole.sum() > 0
    monkeypatch.setattr(nms, "PAIRS", 2 * 50 * 50)
    assert torch.equal(nms.overlaps(boxes, 0.3), whole)
    assert torch.equal(nms.overlaps(boxes.half(), 0.3), nms.overlaps(boxes.half().float(), 0.3))


def proposals_of(kind: type[RegionProposalNetwork], boxes, scores, per_level, shapes, training: bool = True):
    rpn = reference("small").get_submodule("rpn").train(training)
    rpn.__class__ = kind
    assert isinstance(rpn, RegionProposalNetwork)
    return rpn.filter_proposals(boxes, scores, shapes, per_level)


@pytest.mark.parametrize("training", [True, False])
def test_proposals_equal_torchvision(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(5)
    per_level, shapes = [900, 300, 40, 3], [(90, 110), (100, 64)]
    boxes = torch.stack([boxes_in(120, sum(per_level), g) - 8 for _ in shapes])
    scores = torch.randn(2, sum(per_level), 1, generator=g)
    boxes[0, :3], scores[1, 5] = math.nan, math.nan
    # torchvision's other way adds offsets to keep levels apart, which rounds the boxes.
    monkeypatch.setattr("torchvision.ops.boxes.batched_nms", _batched_nms_vanilla)
    wanted = proposals_of(RegionProposalNetwork, boxes, scores, per_level, shapes, training)
    with pretend_cuda() as counts:
        got = proposals_of(FastRPN, OnDevice(boxes), OnDevice(scores), per_level, shapes, training)
    assert counts.reads.total() == 1, counts
    for mine, theirs in zip(got, wanted, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert len(b) > 20
            assert torch.equal(on_host(a), b)


def test_proposals_of_a_long_chain_take_more_reads_and_are_the_same() -> None:
    """Neighbours that score alike in the order of their places: each decides over the next."""
    x = torch.arange(300.0)
    boxes = torch.stack((x, 0 * x, x + 40, 0 * x + 40), 1)[None]
    scores = torch.linspace(5, 1, 300)[None, :, None]
    wanted = proposals_of(RegionProposalNetwork, boxes, scores, [300], [(400, 400)])
    with pretend_cuda() as counts:
        got = proposals_of(FastRPN, OnDevice(boxes), OnDevice(scores), [300], [(400, 400)])
    assert torch.equal(on_host(got[0][0]), wanted[0][0])
    assert 1 < counts.reads.total() <= 5, counts


@pytest.mark.parametrize("empty", [False, True])
def test_pool_equals_torchvision(empty: bool) -> None:
    g = torch.Generator().manual_seed(1)
    levels = {str(i): torch.randn(2, 4, 128 // s, 128 // s, generator=g) for i, s in enumerate((4, 8, 16, 32))}
    boxes = [boxes_in(128, 0 if empty else 40, g), boxes_in(128, 0 if empty else 7, g)]
    slow, fast = (kind(["0", "1", "2", "3"], 7, 2, canonical_scale=64) for kind in (MultiScaleRoIAlign, FastPool))
    own = {k: v.clone().requires_grad_() for k, v in levels.items()}
    wanted = slow(own, boxes, [(128, 128)] * 2)
    weight = torch.sin(torch.arange(wanted.numel())).view(wanted.shape)
    (wanted * weight).sum().backward()
    with pretend_cuda() as counts:
        moved = {k: OnDevice(v).requires_grad_() for k, v in levels.items()}
        got = fast(moved, [OnDevice(b) for b in boxes], [(128, 128)] * 2)
        (got * OnDevice(weight)).sum().backward()
    assert counts.reads.total() == 1, counts
    assert torch.equal(on_host(got.detach()), wanted.detach())
    for name, leaf in own.items():
        assert leaf.grad is not None
        assert torch.equal(on_host(moved[name].grad), leaf.grad)


def test_a_box_without_width_is_refused_with_torchvisions_words() -> None:
    images, targets = detection_batch((2, 3), side=64)
    targets[1]["boxes"][2, 2] = targets[1]["boxes"][2, 0]
    slow = reference("small").train()
    with pytest.raises(AssertionError) as wanted:
        slow(images, [dict(t) for t in targets])
    with pretend_cuda(), pytest.raises(AssertionError) as got:
        to_device(accelerate(slow))(*send(images, targets))
    assert str(got.value) == str(wanted.value)


def test_the_pretended_device_counts_what_waits_and_nothing_else() -> None:
    with pretend_cuda() as counts:
        x = torch.arange(6.0, device="cuda")
        mask = x > 2
        x[mask] = 0.0  # is masked_fill
        x = torch.where(mask, x, 1.0).sort().values + torch.tensor(2.0)
        assert x.device == CUDA
        assert not counts.reads
        assert not counts.sends
        waits = [lambda: x[mask], lambda: bool(mask.any()), lambda: x.tolist(), lambda: x.cpu(), lambda: mask.nonzero()]
        for n, wait in enumerate(waits, 1):
            wait()
            assert counts.reads.total() == n, counts
        for n, send_ in enumerate((lambda: torch.tensor([1.0], device="cuda"), lambda: x[torch.tensor([0])]), 1):
            send_()
            assert counts.sends.total() == n, counts
        torch.ones(3).to("cuda", non_blocking=True)
        assert counts.sends.total() == 2
        with pytest.raises(RuntimeError, match="same device"):
            x.add(torch.ones(6))
    assert all("test_syncs.py" in line for line in [*counts.reads, *counts.sends])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("images", [1, 4])
def test_on_a_gpu_losses_equal_torchvisions_and_waits_are_as_counted(images: int) -> None:
    slow = reference("small").double().train().cuda()
    fast = accelerate(copy.deepcopy(slow))
    batch = batch_of(images).to("cuda")
    pictures = [i.double() for i in batch.images]
    targets = [{**t, "boxes": t["boxes"].double()} for t in batch.targets]
    found = []
    for net in (slow, fast, fast):
        torch.manual_seed(7)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                losses = net(pictures, [dict(t) for t in targets])
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found.append((losses, sum("synchronizing" in str(w.message) for w in seen)))
    assert found[2][1] == READS
    for name, wanted in found[0][0].items():
        torch.testing.assert_close(found[2][0][name], wanted, rtol=1e-7, atol=1e-9)
