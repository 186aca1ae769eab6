"""The average of the weights: what it is, what it does not touch, and that it goes back with the run."""

from __future__ import annotations

import json

import pytest
import torch
from runs import config, loadable_model, narrow
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from maskrcnn_coco import train
from maskrcnn_coco.checkpoint.store import load
from maskrcnn_coco.model.build import load_for_inference
from maskrcnn_coco.model.ema import Ema, decay_for


def bits(weights) -> list:
    """Every value as it is, to be compared bit for bit."""
    values = [(k, v.detach()) for k, v in sorted(weights.items()) if v.dim()]
    return [(k, v.clone().view(-1).view(torch.uint8).numpy().tobytes()) for k, v in values]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def walk(model: nn.Module, ema: Ema, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=generator))
        ema.update(model)


def test_it_is_torchs_own_average_once_it_is_warm():
    model = net()
    ema = Ema(model, 0.5)
    twin = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    twin.update_parameters(model)
    ema.updates = 100
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=generator))
        ema.update(model)
        twin.update_parameters(model)
    for name, value in twin.module.state_dict().items():
        torch.testing.assert_close(ema.weights[name], value)


def test_the_model_has_its_own_weights_again_bit_for_bit():
    model = net()
    ema = Ema(model, 0.9)
    walk(model, ema, 3)
    before, tensors = bits(model.state_dict()), [p.data_ptr() for p in model.parameters()]
    with ema.in_place(model):
        assert torch.equal(model[0].weight, ema.weights["0.weight"])
    assert bits(model.state_dict()) == before and [p.data_ptr() for p in model.parameters()] == tensors


def test_it_goes_back_and_comes_to_the_same_bits():
    model = net()
    ema = Ema(model, 0.9)
    walk(model, ema, 4)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    ema.remember(4, [0, 4])
    walk(model, ema, 3, seed=1)
    there = bits(ema.weights)
    model.load_state_dict(weights)
    ema.go_back(4, model)
    assert ema.updates == 4
    walk(model, ema, 3, seed=1)
    assert bits(ema.weights) == there
    ema.go_back(2, model)
    assert torch.equal(ema.weights["0.weight"], model[0].weight)


@pytest.mark.parametrize(
    ("setting", "steps", "decay"), [("none", 99, None), (0.9, 99, 0.9), ("auto", 1000, 1 - 1 / 70)]
)
def test_the_horizon_fits_the_run(setting, steps, decay):
    assert decay_for(setting, steps) == (None if decay is None else pytest.approx(decay))


@narrow()
def test_a_resumed_run_has_the_average_of_the_straight_one(tiny_shapes, tmp_path):
    def one(name: str, **more) -> dict:
        settings = config(tiny_shapes.root, tmp_path / name, epochs=2, ema=0.8, **more)
        train(settings, model=loadable_model(), quiet=True)
        return load(tmp_path / name / "checkpoints" / "last.pth")

    straight = one("a")
    train(config(tiny_shapes.root, tmp_path / "b", epochs=2, ema=0.8), model=loadable_model(), quiet=True, stop_after=7)
    resumed = one("b", resume="auto")
    assert straight["ema"]["updates"] == resumed["ema"]["updates"] == 12
    assert bits(straight["ema"]["weights"]) == bits(resumed["ema"]["weights"])
    assert bits(straight["model"]) == bits(resumed["model"]) != bits(straight["ema"]["weights"])
    result = json.loads((tmp_path / "a" / "run" / "result.json").read_text())
    assert "segm/AP" in result["metrics"]
    best = load(tmp_path / "a" / "checkpoints" / "best.pth")
    model, _ = load_for_inference(tmp_path / "a" / "checkpoints" / "best.pth")
    wanted = best["ema"]["weights"] if best["use_ema"] else best["model"]
    assert torch.equal(model.state_dict()["rpn.head.cls_logits.bias"], wanted["rpn.head.cls_logits.bias"])
