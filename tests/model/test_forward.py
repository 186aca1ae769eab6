"""The forward pass is a pure function of weights, batch and counters; modules can be kept in float32."""

from __future__ import annotations

import torch
from torch import nn

from maskrcnn_coco.data.batch import make_batch
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.plan import Plan
from maskrcnn_coco.model.build import build_model
from maskrcnn_coco.model.forward import Forward, step_seed
from maskrcnn_coco.system.precision import keep_fp32


def batch_of(table):
    source = CocoDataset(table, train=True, min_size=64, max_size=64)
    return make_batch(source, Plan(0, source.image_ids, 2).step(0)[1][0])


def test_seeds_differ_by_every_counter_and_by_nothing_else():
    seeds = {step_seed(s, t, m, r) for s in (0, 1) for t in (0, 1) for m in (0, 1) for r in (0, 1)}
    assert len(seeds) == 16
    assert step_seed(3, 141, 5, 9) == step_seed(3, 141, 5, 9)


def test_the_same_step_gives_the_same_losses_whatever_was_drawn_before(tiny_table):
    torch.manual_seed(0)
    model = build_model("maskrcnn_resnet18_fpn", 4, small=True, min_size=64, max_size=64).train()
    forward = Forward(model, device=torch.device("cpu"), precision="fp32", seed=0)
    batch = batch_of(tiny_table)
    first = {k: v.item() for k, v in forward.begin(7)(batch).items()}
    torch.rand(1000)
    again = {k: v.item() for k, v in forward.begin(7)(batch).items()}
    other = {k: v.item() for k, v in forward.begin(8)(batch).items()}
    assert first == again
    assert first != other


def test_micro_batches_are_counted(tiny_table):
    torch.manual_seed(0)
    model = build_model("maskrcnn_resnet18_fpn", 4, small=True, min_size=64, max_size=64).train()
    forward = Forward(model, device=torch.device("cpu"), precision="fp32", seed=0)
    batch = batch_of(tiny_table)
    forward.begin(0)(batch)
    second = forward(batch)["loss_classifier"].item()
    assert second == forward.losses(model, batch, 0, 1)["loss_classifier"].item()


def test_a_module_kept_in_float32_neither_computes_nor_answers_in_half_precision():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    keep_fp32(model, "1")
    keep_fp32(model, "1")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model[0](torch.ones(2, 4)).dtype == torch.bfloat16
        out = model(torch.ones(2, 4))
    assert out.dtype == torch.float32
    exact = model[1]._parameters["weight"] @ model[0](torch.ones(2, 4))[0] + model[1].bias
    assert torch.allclose(out[0], exact, atol=2e-2)
