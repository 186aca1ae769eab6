"""What only a CUDA device can show; skipped without one. ``make gpu`` runs this first.

Every case has a twin on the CPU elsewhere: here it is asked whether the device's own kernels do the same.
``GPU_TESTS_DEVICE=cpu`` tries the file itself on a machine without one.
"""

from __future__ import annotations

import copy
import math
import os
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import boxes as box_ops

from maskrcnn_coco.data.batch import Batch
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.distributed.buckets import empty, fill
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.model.build import build_model
from maskrcnn_coco.model.fast import nms
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.model.optim import apply_lr, build_optimizer
from maskrcnn_coco.replay import snapshot
from maskrcnn_coco.replay.state import digest
from maskrcnn_coco.system import memory
from maskrcnn_coco.system.environment import fingerprint
from maskrcnn_coco.system.precision import make_scaler

GPU = torch.device(os.environ.get("GPU_TESTS_DEVICE", "cuda:0"))
pytestmark = pytest.mark.skipif(GPU.type == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device")
on_cuda_only = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PRECISIONS = ("fp32", "fp16", "bf16")


def small() -> nn.Module:
    torch.manual_seed(0)
    return build_model("maskrcnn_resnet18_fpn", 3, small=True, min_size=128, max_size=128).to(GPU).train()


def batch(seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    masks = torch.zeros(2, 128, 128, dtype=torch.uint8)
    masks[0, 10:60, 20:80] = masks[1, 50:120, 40:100] = 1
    target = {
        "boxes": torch.tensor([[20.0, 10, 80, 60], [40, 50, 100, 120]]),
        "labels": torch.tensor([1, 2]),
        "masks": masks,
    }
    images = [torch.rand(3, 128, 128, generator=g) for _ in range(2)]
    return Batch(images, [dict(target) for _ in images], [SampleKey(0, n, n) for n in range(2)], resized=True)


class Faulty(Forward):
    """Losses that are NaN, or whose gradient is infinite, at chosen steps."""

    fault, at = "none", ()

    def losses(self, model: nn.Module, batch: Batch, step: int, micro: int, precision: str | None = None) -> Any:
        found = super().losses(model, batch, step, micro, precision)
        if step in self.at:
            name = next(iter(found))
            extra = {"loss": math.nan, "gradient": 0.0}[self.fault]
            weight = next(p for p in model.parameters() if p.requires_grad)
            # sqrt at 0: a finite loss, an infinite gradient.
            found[name] = found[name] + extra + ((weight - weight.detach()).abs().sum().sqrt() if not extra else 0.0)
        return found


def trained(precision: str, fault: str, at: tuple[int, ...], *, deferred: bool, kind: str = "sgd") -> tuple[Any, ...]:
    model = small()
    optimizer = build_optimizer(model, kind=kind)
    apply_lr(optimizer, {"backbone": 1e-3})
    scaler = make_scaler(precision, GPU)
    guard = Guard(model, optimizer, scaler=scaler, deferred=deferred)
    forward = Faulty(model, device=GPU, precision=precision, seed=0)
    forward.fault, forward.at = fault, at
    records = []
    for step in range(6):
        guard.step(forward.begin(step), batch(step), step=step)
        records += guard.completed
    if deferred:
        guard.flush()
        records += guard.completed
    return model, optimizer, scaler, records


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("at", [(0,), (4,)])
def test_found_inf_leaves_weights_momentum_and_step_to_the_bit(kind, at):
    """torch 2.11's fused SGD is said to advance momentum on an overflow."""
    model, optimizer, _, _ = trained("fp32", "none", (), deferred=True, kind=kind)
    for p in model.parameters():
        p.grad = torch.full_like(p, math.inf) if p.requires_grad else None
    before = digest(model, optimizer)
    optimizer.found_inf = torch.ones((), device=GPU)
    for _ in at:
        optimizer.step()
    assert digest(model, optimizer) == before


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_a_guard_that_reads_late_refuses_what_one_that_reads_at_once_refuses(precision, fault):
    late, now = (trained(precision, fault, (0, 3), deferred=d) for d in (True, False))
    assert all(p.isfinite().all() for p in late[0].parameters())
    if precision == "fp32":
        assert [r.applied for r in late[3]] == [r.applied for r in now[3]] or fault == "gradient"
    for (name, a), b in zip(late[0].named_parameters(), now[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(256, 320), (800, 1344), (2048, 2048)])
def test_anchors_are_float32_whatever_the_maps(half, size):
    class Images:
        tensors = torch.empty((), device=GPU).expand(2, 3, *size)
        image_sizes = (size, size)

    generator = small().rpn.anchor_generator
    maps = [torch.empty((), device=GPU).expand(2, 8, -(-size[0] // s), -(-size[1] // s)) for s in (4, 8, 16, 32, 64)]
    for wanted, found in zip(generator(Images, maps), generator(Images, [m.to(half) for m in maps]), strict=True):
        assert found.dtype == torch.float32 and torch.equal(found, wanted)


def test_nms_keeps_what_torchvision_keeps_on_many_random_sets():
    g = torch.Generator().manual_seed(1)
    for trial in range(200):
        size = 1 + int(torch.randint(0, 400, (), generator=g))
        corner = torch.rand(1, size, 2, generator=g) * 200
        boxes = torch.cat((corner, corner + 60 * torch.rand(1, size, 2, generator=g)), 2).to(GPU)
        fit = torch.ones(1, size, dtype=torch.bool, device=GPU)
        table, stay, final = nms.overlaps(boxes, 0.5), fit, torch.zeros((), dtype=torch.bool)
        while not final:
            stay, final = nms.suppress(table, fit, stay, 32)
        kept = box_ops.nms(boxes[0], torch.linspace(1, 0, size, device=GPU), 0.5)
        assert stay[0].nonzero().flatten().tolist() == sorted(kept.tolist()), trial


@on_cuda_only
def test_a_step_on_the_device_is_a_step_on_the_cpu_to_rounding():
    model = small()
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    on_cpu = copy.deepcopy(model).cpu()
    found = Forward(model, device=GPU, precision="fp32", seed=0).begin(1)(batch())
    wanted = Forward(on_cpu, device=torch.device("cpu"), precision="fp32", seed=0).begin(1)(batch())
    # Draws differ: CUDA's generator is another one. Losses of a random network are alike, not equal.
    for name, value in wanted.items():
        assert float(found[name]) == pytest.approx(float(value), rel=0.35, abs=0.15), name


@pytest.mark.parametrize("host", [False, True])
def test_a_snapshot_is_put_back_to_the_bit_from_either_memory(host):
    model, optimizer, scaler, _ = trained("fp16", "none", (), deferred=False)
    before = digest(model, optimizer, scaler)
    kept = snapshot.take(model, optimizer, scaler, step=6, epoch=0, host=host)
    where = {t.device.type for t in kept.model.values()}
    assert where == {"cpu" if host else GPU.type} and kept.verified
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    snapshot.restore(kept, model, optimizer, scaler)
    assert digest(model, optimizer, scaler) == before


def test_a_gradient_from_elsewhere_is_laid_out_for_the_fused_kernel():
    weight = nn.Parameter(torch.randn(4, 3, 5, 5, device=GPU).contiguous(memory_format=torch.channels_last))
    bucket = torch.randn(weight.numel(), device=GPU)
    fill(torch.empty_like(bucket), [weight])
    empty(bucket, [weight], {id(weight): 1})
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=True)
    wanted = weight.detach() - 0.1 * bucket.view(4, 3, 5, 5)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), wanted)


@on_cuda_only
def test_running_out_is_known_and_what_is_free_is_told():
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device=GPU)
    assert memory.ran_out(caught.value)
    left = memory.free(GPU)
    assert left and 0 < left <= (memory.total(GPU) or 0)
    block = torch.empty(1 << 28, dtype=torch.uint8, device=GPU)
    del block
    most = memory.peak(GPU)
    memory.reset_peak(GPU)
    assert memory.peak(GPU) < most


@on_cuda_only
def test_the_fingerprint_knows_the_device():
    found = fingerprint(device=GPU)
    assert found["device"] == torch.cuda.get_device_name(GPU)
    assert {"cudnn_tf32", "cudnn_deterministic", "driver"} <= found.keys()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_second_device_reads_its_own_numbers():
    device = torch.device("cuda", 1)
    model = small().to(device)
    optimizer = build_optimizer(model)
    apply_lr(optimizer, {"backbone": 1e-3})
    guard = Guard(model, optimizer, deferred=True)
    forward = Forward(model, device=device, precision="fp32", seed=0)
    records = []
    for step in range(4):
        guard.step(forward.begin(step), batch(step), step=step)
        records += guard.completed
    guard.flush()
    records += guard.completed
    assert len(records) == 4 and all(math.isfinite(r.loss) for r in records)
