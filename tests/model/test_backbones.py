"""Bodies of many kinds under one FPN: recognised, loaded, frozen, and trained for a step."""

from __future__ import annotations

import pytest
import torch
import torchvision

from maskrcnn_coco.components import components
from maskrcnn_coco.config.settings import COCO_WEIGHTS, MODELS, Config
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.model import weights
from maskrcnn_coco.model.backbones import BODIES
from maskrcnn_coco.model.build import build_model

NEW = ("maskrcnn_resnext50_32x4d_fpn", "maskrcnn_convnext_tiny_fpn", "maskrcnn_swin_t_fpn")


@pytest.mark.parametrize("name", MODELS)
def test_each_model_is_recognised_by_its_names_and_shapes(name: str):
    with torch.device("meta"):
        state = build_model(name, 5, fast=False).state_dict()
    found = weights.describe(state)
    assert found is not None and (found.model, found.num_classes) == (name, 5)
    assert set(BODIES) == set(MODELS) and set(COCO_WEIGHTS) <= set(MODELS)


@pytest.mark.parametrize("name", NEW)
def test_a_step_trains_every_component_and_evaluation_finds_boxes_on_the_image(name: str):
    torch.manual_seed(0)
    net = build_model(name, 3, min_size=64, max_size=96).train()
    image = torch.rand(3, 64, 80)
    mask = torch.zeros(1, 64, 80, dtype=torch.uint8)
    mask[0, 10:40, 20:60] = 1
    target = {"boxes": torch.tensor([[20.0, 10, 60, 40]]), "labels": torch.tensor([1]), "masks": mask}
    losses = net([image], [target])
    torch.stack(list(losses.values())).sum().backward()
    for component, parameters in components(net).items():
        norm = sum(float(p.grad.norm()) for p in parameters.values() if p.grad is not None)
        assert norm > 0, component
    net.eval()
    with torch.no_grad():
        (found,) = net([image])
    assert (found["boxes"][:, 2] <= 80.01).all() and found["masks"].shape[-2:] == (64, 80)
    features = net.backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(f.shape[-2:]) for f in features.values()] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]


@pytest.mark.parametrize(("name", "make"), [(NEW[1], "convnext_tiny"), (NEW[2], "swin_t"), (NEW[0], "resnext50_32x4d")])
def test_imagenet_weights_load_and_the_first_stages_stay(name: str, make: str, tmp_path, monkeypatch):
    theirs = getattr(torchvision.models, make)(weights=None).state_dict()
    torch.save(theirs, tmp_path / "body.pth")
    net = build_model(name, 3, backbone_weights=tmp_path / "body.pth", min_size=64, max_size=64)
    own = net.backbone.body.state_dict()
    same = [k for k in own if torch.equal(own[k], theirs.get("features." + k, theirs.get(k, torch.zeros(0))))]
    assert len(same) == len(own)
    frozen = {k.split(".")[0] for k, p in net.backbone.body.named_parameters() if not p.requires_grad}
    assert frozen == ({"0", "1"} if make != "resnext50_32x4d" else {"conv1", "bn1", "layer1"} & frozen)
    monkeypatch.setattr("maskrcnn_coco.model.build._fetch", lambda source, what, flag: theirs)
    fetched = build_model(name, 3, weights="imagenet", min_size=64, max_size=64)
    assert torch.equal(next(iter(fetched.backbone.body.state_dict().values())), next(iter(own.values())))
    with pytest.raises(ConfigError, match="no COCO weights"):
        build_model(name, 3, weights="coco")
    assert Config(model=name).model == name
