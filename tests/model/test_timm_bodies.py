"""Bodies of timm: built, loaded, frozen, recognised in a checkpoint, and refused where they do not fit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from maskrcnn_coco.components import components
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.model import build, timm_bodies
from maskrcnn_coco.model.build import build_from_state, build_model
from maskrcnn_coco.model.weights import describe

SIZES = {"min_size": 64, "max_size": 96}
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


def test_without_timm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timm_bodies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="timm is not installed") as caught:
        build_model("timm/resnet18", 3)
    assert "maskrcnn-coco[timm]" in str(caught.value.fix)
    with pytest.raises(ConfigError, match="timm/NAME"):
        build_model("tim/resnet18", 3)


def test_a_file_that_names_no_network_names_none():
    odd = {timm_bodies.KEY: torch.tensor([300.0, -1.0])}
    assert timm_bodies.name_in(odd) == "timm/" and timm_bodies.name_in({}) is None
    assert timm_bodies.name_in({timm_bodies.KEY: torch.tensor(list(b"a\xff"), dtype=torch.uint8)}) == "timm/a\ufffd"


@needs_timm
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050"])
def test_a_step_trains_every_component_and_the_weights_say_what_they_are_of(name: str):
    torch.manual_seed(0)
    net = build_model("timm/" + name, 3, **SIZES).train()
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in net.modules())
    mask = torch.zeros(1, 64, 80, dtype=torch.uint8)
    mask[0, 10:40, 20:60] = 1
    target = {"boxes": torch.tensor([[20.0, 10, 60, 40]]), "labels": torch.tensor([1]), "masks": mask}
    torch.stack(list(net([torch.rand(3, 64, 80)], [target]).values())).sum().backward()
    assert list(components(net)) == ["backbone", "rpn", "box_head", "mask_head"]
    for component, parameters in components(net).items():
        assert sum(float(p.grad.norm()) for p in parameters.values() if p.grad is not None) > 0, component
    features = net.eval().backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(f.shape[-2:]) for f in features.values()] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    state = net.state_dict()
    found = describe(state)
    assert found is not None and (found.model, found.body_norm) == ("timm/" + name, "group")
    again = build_from_state(state, **SIZES)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in state.items())


@needs_timm
@pytest.mark.parametrize(
    ("name", "stays"), [("resnet18", {"conv1", "layer1"}), ("convnext_atto", {"stem_0", "stem_1", "stages_0"})]
)
def test_a_classifier_s_weights_load_with_frozen_norms_and_the_first_stages_stay(
    name: str, stays: set[str], tmp_path: Path, monkeypatch
):
    import timm  # pyright: ignore[reportMissingImports]

    torch.manual_seed(1)
    theirs = timm.create_model(name).state_dict()
    torch.save(theirs, tmp_path / "body.pth")
    net = build_model("timm/" + name, 3, backbone_weights=tmp_path / "body.pth", **SIZES)
    body = net.get_submodule("backbone.body")
    own = {
        k.removeprefix("net.").replace("stages_", "stages.").replace("stem_", "stem."): v
        for k, v in body.state_dict().items()
    }
    assert all(torch.equal(v, theirs[k]) for k, v in own.items() if k != "timm_name") and len(own) > 50
    frozen = {k.split(".")[1] for k, p in body.named_parameters() if not p.requires_grad}
    assert frozen == stays
    found = describe(net.state_dict())
    assert found is not None and found.body_norm == ("frozen" if name == "resnet18" else "group")
    create = timm_bodies.create

    def fetched(name: str, *, pretrained: bool = False):
        made = create(name)
        made.load_state_dict({k: torch.full_like(v, 2) for k, v in made.state_dict().items()})
        return made

    monkeypatch.setattr(build, "create", fetched)
    net = build_model("timm/" + name, 3, weights="imagenet", **SIZES)
    assert all((p == 2).all() for k, p in net.backbone.body.named_parameters())
    assert build_model("timm/" + name, 3, weights="imagenet", freeze_stages=5, **SIZES) is not None


@needs_timm
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnet9999", "is not known"),
        ("hf-hub:somebody/else", "is not known"),
        ("../resnet18", "is not known"),
        ("vit_tiny_patch16_224", "cannot be the body"),
        ("swin_tiny_patch4_window7_224", "cannot be the body"),
    ],
)
def test_what_is_no_body_for_an_fpn_is_refused_by_name(name: str, sentence: str):
    with pytest.raises(ConfigError, match=sentence) as caught:
        build_model("timm/" + name, 3)
    assert name in str(caught.value)
