"""Architectures, weights from files, components. Nothing is downloaded."""

from __future__ import annotations

import copy
import urllib.error

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn_coco.components import component_of, components, plain_name
from maskrcnn_coco.config.settings import MODELS
from maskrcnn_coco.errors import CheckpointError, ConfigError
from maskrcnn_coco.model import weights
from maskrcnn_coco.model.build import build_from_state, build_model, load_for_inference
from maskrcnn_coco.records import COMPONENTS

SMALL = "maskrcnn_resnet18_fpn"
MOBILE = "maskrcnn_mobilenet_v2_fpn"


def small(classes: int = 4, **options) -> nn.Module:
    return build_model(SMALL, classes, small=True, min_size=64, max_size=64, **options)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(small().state_dict(), path)
    return path


# The larger twins differ by depth alone: `test_bodies` recognises them without building them twice.
@pytest.mark.parametrize("name", [m for m in MODELS if "101" not in m and "small" not in m and "swin_s" not in m])
def test_every_architecture_is_recognised_and_rebuilt_from_its_own_weights(name):
    net = build_model(name, 4, min_size=64, max_size=64)
    found = weights.describe(net.state_dict())
    assert found is not None and (found.model, found.num_classes, found.small) == (name, 4, False)
    again = build_from_state(net.state_dict())
    for key, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    # Nothing in the model has statistics that training would change.
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn"])
def test_torchvision_weights_load_unchanged_with_heads_replaced(name, tmp_path):
    norm = {"norm_layer": FrozenBatchNorm2d} if name == "maskrcnn_resnet50_fpn" else {}
    make = getattr(torchvision.models.detection, name)
    theirs = make(weights=None, weights_backbone=None, num_classes=7)
    state = {k: v for k, v in theirs.state_dict().items() if norm == {} or not k.endswith("num_batches_tracked")}
    for key in state:
        if key.endswith("running_var"):
            state[key] = torch.rand_like(state[key]) + 0.1
    torch.save(state, tmp_path / "theirs.pth")
    net = build_model(name, 3, weights=str(tmp_path / "theirs.pth"), min_size=64, max_size=64)
    own = net.state_dict()
    replaced = {k for k in own if own[k].shape != state[k].shape}
    assert {k.rsplit(".", 1)[0] for k in replaced} == {
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
        "roi_heads.mask_predictor.mask_fcn_logits",
    }
    assert all(torch.equal(own[k], state[k]) for k in own if k not in replaced)
    assert any("7 classes" in note and "start at random" in note for note in net.notes)
    # The norms that came with statistics are frozen, and the stem and first stage do not train.
    assert any(isinstance(m, FrozenBatchNorm2d) for m in net.backbone.modules())
    assert not net.backbone.body.conv1.weight.requires_grad
    assert not any(p.requires_grad for p in net.backbone.body.layer1.parameters())
    assert all(p.requires_grad for p in net.backbone.body.layer2.parameters())


def test_old_names_of_torchvision_files_are_understood(small_file):
    state = torch.load(small_file, weights_only=True)
    old = {}
    for name, value in state.items():
        for now, then in (
            ("mask_head.0.0.", "mask_head.mask_fcn1."),
            ("mask_head.1.0.", "mask_head.mask_fcn2."),
            ("rpn.head.conv.0.0.", "rpn.head.conv."),
            ("fpn.inner_blocks.2.0.", "fpn.inner_blocks.2."),
        ):
            name = name.replace(now, then)
        old[name] = value
    assert set(old) != set(state)
    again = small()
    weights.load_detector(again, old, "old.pth")
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())


def test_eps_zero_numbers_are_kept_for_healthy_channels_and_refused_for_dead_ones():
    norm = FrozenBatchNorm2d(4)
    norm.running_var.copy_(torch.tensor([0.5, 3e-6, 0.0, 1e-42]))
    norm.weight.copy_(torch.tensor([2.0, 0.01, 1.0, 1.0]))
    norm.running_mean.normal_()
    theirs = copy.deepcopy(norm)
    theirs.eps = 0.0
    x = torch.randn(1, 4, 3, 3)
    notes = weights.keep_eps_zero_numbers(nn.Sequential(norm))
    got, wanted = norm(x), theirs(x)
    torch.testing.assert_close(got[:, :2], wanted[:, :2], rtol=1e-4, atol=1e-4)
    assert not torch.isfinite(wanted[:, 2:]).all()
    assert float(got.abs().max()) < 1e4
    assert "2 norm channels" in notes[0]


def test_failed_download_names_the_file_and_the_flag(monkeypatch):
    def fail(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(ConfigError, match="maskrcnn_resnet50_fpn_coco") as e:
        build_model("maskrcnn_resnet50_fpn", 4, weights="coco")
    assert "--weights PATH" in str(e.value)
    with pytest.raises(ConfigError, match="--backbone-weights PATH"):
        build_model(SMALL, 4, weights="imagenet")


@pytest.mark.parametrize(("stages", "frozen"), [(0, ""), (2, "conv1 layer1"), (3, "conv1 layer1 layer2")])
def test_frozen_stages_build_no_graph_and_have_no_backward(stages, frozen, small_file):
    net = small(weights=str(small_file), freeze_stages=stages).train()
    kept: dict[str, int] = dict.fromkeys(("conv1", "layer1", "layer2", "layer3", "layer4"), 0)
    seen: dict[str, bool] = {}
    inside: list[str] = []

    def leave(name, output):
        inside.remove(name)
        seen[name] = output.requires_grad

    for name in kept:
        stage = net.get_submodule(f"backbone.body.{name}")
        stage.register_forward_pre_hook(lambda *_, name=name: inside.append(name))
        stage.register_forward_hook(lambda _, __, output, name=name: leave(name, output))

    def keep(tensor):
        for name in inside:
            kept[name] += tensor.nbytes
        return tensor

    image, box = torch.rand(3, 64, 64), torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    target = {"boxes": box, "labels": torch.tensor([1]), "masks": torch.ones(1, 64, 64, dtype=torch.uint8)}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = net([image], [target])
    sum(losses.values()).backward()
    trains = {name: name not in frozen.split() for name in kept}
    assert seen == trains
    assert {name: size > 0 for name, size in kept.items()} == trains, "activations kept for a backward"
    for name, wanted in trains.items():
        for p in net.get_submodule(f"backbone.body.{name}").parameters():
            assert (p.grad is not None) == wanted, name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "resnet50"}, "not known"),
        ({"num_classes": 1}, "2 or more"),
        ({"weights": "coco"}, "no COCO weights"),
        ({"weights": "/nowhere/w.pth"}, "no weights file"),
        ({"freeze_stages": 2}, "never trained"),
        ({"name": MOBILE, "small": True}, "small variant"),
    ],
)
def test_wrong_arguments(arguments, says):
    with pytest.raises(ConfigError, match=says):
        build_model(**{"name": SMALL, "num_classes": 4, **arguments})


def test_bad_files(tmp_path, small_file):
    whole = small_file.read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("hello")
    state = torch.load(small_file, weights_only=True)
    torch.save({**state, "rpn.head.bbox_pred.bias": torch.full((12,), torch.nan)}, tmp_path / "nan.pth")
    torch.save({"model": print}, tmp_path / "code.pth")
    for name, says in (
        ("half.pth", "damaged or cut short"),
        ("text.pth", "not a file of weights|no model file|damaged"),
        ("nan.pth", "rpn.head.bbox_pred.bias has NaN"),
        ("code.pth", "weights only"),
    ):
        with pytest.raises(CheckpointError, match=says):
            build_model(SMALL, 4, weights=str(tmp_path / name))
    with pytest.raises(ConfigError, match=f"--model {SMALL}"):
        build_model(MOBILE, 4, weights=str(small_file))


def test_inference_from_a_file(small_file):
    net, extra = load_for_inference(small_file, num_classes=4, min_size=64, max_size=64)
    assert not net.training and extra == {}
    with torch.no_grad():
        (result,) = net([torch.rand(3, 64, 64)])
    assert set(result) == {"boxes", "labels", "scores", "masks"}
    with pytest.raises(ConfigError, match="other classes") as e:
        load_for_inference(small_file, num_classes=9)
    assert "4 classes" in str(e.value) and "9 classes" in str(e.value)


def test_fine_tuning_from_a_small_checkpoint_stays_small(small_file):
    net = build_model(SMALL, 6, weights=str(small_file), min_size=64, max_size=64)
    assert weights.describe(net.state_dict()).small
    assert any("4 classes" in n for n in net.notes)


def test_mobilenet_backbone_file(shared_data):
    path = shared_data.parent / "weights" / "mobilenet_v2_features_imagenet_bnfolded.pth"
    net = build_model(MOBILE, 3, backbone_weights=path, min_size=64, max_size=64)
    theirs = torch.load(path, weights_only=True)
    body = net.backbone.body.state_dict()
    assert all(torch.equal(body[k], theirs[k]) for k in body)
    assert all(isinstance(m, FrozenBatchNorm2d) for n, m in net.backbone.body.named_modules() if n.endswith("0.1"))
    frozen = {int(n.split(".")[0]) for n, p in net.backbone.body.named_parameters() if not p.requires_grad}
    assert frozen == {0, 1, 2, 3}
    features = net.backbone(torch.rand(1, 3, 64, 64))
    assert [f.shape[-1] for f in features.values()] == [16, 8, 4, 2, 1]
    with pytest.raises(ConfigError, match="another backbone"):
        build_model(SMALL, 3, backbone_weights=path)


def test_components_partition_the_trainable_parameters():
    net = small()
    parts = components(net)
    assert tuple(parts) == COMPONENTS
    named = [p for part in parts.values() for p in part.values()]
    assert len({id(p) for p in named}) == len(named)
    assert {id(p) for p in named} == {id(p) for p in net.parameters()}
    assert all(n.startswith("roi_heads.mask_") for n in parts["mask_head"])


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch 2.10's own compiler uses it
def test_components_under_wrappers():
    class Wrapped(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    plain = small()
    for net in (Wrapped(plain), torch.compile(plain)):
        assert tuple(components(net)) == COMPONENTS
    assert component_of("module._orig_mod.roi_heads.box_head.fc6.weight") == "box_head"
    assert component_of("backbone._orig_mod.body.conv1.weight") == "backbone"
    assert plain_name("module.rpn.head") == "rpn.head"


def test_components_of_other_models():
    shared = nn.Linear(2, 2)
    net = nn.ModuleDict({"encoder": shared, "decoder": nn.Sequential(shared, nn.Linear(2, 1))})
    net.register_parameter("scale", nn.Parameter(torch.ones(1)))
    parts = components(net)
    assert {k: len(v) for k, v in parts.items()} == {"model": 1, "encoder": 2, "decoder": 2}
    detector = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    assert tuple(components(detector)) == COMPONENTS[:3]


def test_training_from_scratch_starts_finite_and_trains():
    torch.manual_seed(0)
    net = small().train()
    image = torch.rand(3, 64, 64)
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[:, 10:40, 10:40] = 1
    target = {"boxes": torch.tensor([[10.0, 10, 40, 40]]), "labels": torch.tensor([1]), "masks": masks}
    optimizer = torch.optim.SGD(net.parameters(), lr=2e-3, momentum=0.9)
    totals = []
    for _ in range(12):
        losses = net([image], [target])
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        totals.append(float(total.detach()))
    assert all(0 < t < 1e3 for t in totals)
    assert min(totals[-3:]) < totals[0]
