"""A loop of the caller's own, with `Guard` or `train_one_epoch`: what keeps it from learning is said, once, by name."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from nanbench.tiny import tiny_detector, tiny_model
from silent.scene import HEIGHT, WIDTH, Scene
from torch import nn

from maskrcnn_coco import FindingWarning, Guard, train_one_epoch
from maskrcnn_coco.findings.facts import Facts
from maskrcnn_coco.findings.judge import judge
from maskrcnn_coco.findings.parameters import far_anchors, parameters_of


def model() -> Any:
    net = tiny_model()
    net.transform.min_size, net.transform.max_size = (HEIGHT,), WIDTH
    return net


def loader(scene: Scene, batch: int = 4) -> Any:
    return torch.utils.data.DataLoader(scene, batch, collate_fn=lambda b: tuple(zip(*b, strict=True)))


def sgd(net: nn.Module, lr: float = 0.005) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr, momentum=0.9)


def said(run: Any) -> list[str]:
    """The codes of the findings that ``run`` warns of, in order."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run()
    return [w.message.code for w in seen if isinstance(w.message, FindingWarning)]


def test_an_honest_epoch_says_nothing():
    net = model()
    optimizer = sgd(net)
    data = loader(Scene(24))
    assert said(lambda: [train_one_epoch(net, data, optimizer, "cpu") for _ in range(2)]) == []


def test_a_head_that_was_replaced_after_the_optimizer_is_named_once():
    net = model()
    optimizer = sgd(net)
    net.roi_heads.box_predictor.cls_score = nn.Linear(32, 4)
    data = loader(Scene(8))
    with pytest.warns(FindingWarning, match=r"roi_heads.box_predictor.cls_score.weight") as seen:
        train_one_epoch(net, data, optimizer, "cpu")
        train_one_epoch(net, data, optimizer, "cpu")
    assert [w.message.code for w in seen if isinstance(w.message, FindingWarning)] == ["NOT_TRAINED"]


def test_an_optimizer_of_another_model_is_named():
    net, other = model(), model()
    assert said(lambda: train_one_epoch(net, loader(Scene(4)), sgd(other), "cpu"))[0] == "NOT_TRAINED"


def test_weights_frozen_on_purpose_are_not_accused():
    net = model()
    for parameter in net.backbone.fpn.parameters():  # trained enough to have another spread than at the start
        parameter.data *= 1.7
    net.backbone.requires_grad_(False)
    for parameter in net.backbone.body.parameters():
        parameter.data = parameter.data.sign() * parameter.data.abs().sqrt()
    assert said(lambda: train_one_epoch(net, loader(Scene(8)), sgd(net), "cpu")) == []


def test_labels_from_0_are_said_though_every_step_is_refused():
    scene = Scene(8, classes=1, change=lambda i, t: (i, t | {"labels": t["labels"] - 1}))
    net = model()
    assert "CLASSES" in said(lambda: train_one_epoch(net, loader(scene), sgd(net), "cpu"))


def test_a_scheduler_stepped_in_every_iteration_is_named():
    net = model()
    optimizer = sgd(net)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.1)
    guard = Guard(net, optimizer)

    def run() -> None:
        for images, targets in [b for _ in range(6) for b in loader(Scene(24))]:
            guard.step(lambda b: net(*b), (list(images), list(targets)))
            scheduler.step()

    assert said(run) == ["LR_TOO_LOW"]


def test_a_cosine_to_zero_is_no_fault():
    net = nn.Linear(4, 4)
    optimizer = sgd(net, 0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    guard = Guard(net, optimizer)

    def run() -> None:
        for _ in range(200):
            guard.step(lambda b: net(b).square().mean(), torch.ones(2, 4))
            scheduler.step()

    assert said(run) == []


class Parted(nn.Module):
    """Two parts, of which one is in no loss, or has a Dropout and a BatchNorm."""

    def __init__(self, used: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.side = nn.Linear(4, 4)
        self.used = used

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, side = self.body(x), self.side(x)
        return (out + side if self.used else out + 0 * side).square().mean()


def steps(net: nn.Module, count: int = 25) -> None:
    guard = Guard(net, sgd(net, 0.01))
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        guard.step(net, torch.randn(8, 4, generator=generator))


def test_a_part_without_gradient_is_named():
    with pytest.warns(FindingWarning, match=r"NOT_TRAINED: side: no gradient"):
        steps(Parted(used=False))
    assert said(lambda: steps(Parted())) == []


def test_a_model_left_in_eval_mode_is_named():
    with pytest.warns(FindingWarning, match=r"in eval mode while it is trained: body.1, body.2"):
        steps(Parted().eval(), 3)


def test_norms_that_were_handed_over_in_eval_mode_stay_so():
    net = model()
    net.roi_heads.mask_head.append(nn.BatchNorm2d(16))
    norm = net.roi_heads.mask_head[-1]
    norm.eval()
    optimizer = sgd(net)
    before = norm.running_mean.clone()
    for _ in range(2):
        train_one_epoch(net, loader(Scene(4)), optimizer, "cpu")
        net.eval()
    assert torch.equal(norm.running_mean, before)


def test_a_rate_of_zero_is_named():
    assert said(lambda: steps_at_zero()) == ["LR_TOO_LOW"]


def steps_at_zero() -> None:
    net = nn.Linear(4, 4)
    guard = Guard(net, sgd(net, 0.0))
    for _ in range(25):
        guard.step(lambda b: net(b).square().mean(), torch.ones(2, 4))


def test_samples_that_cannot_be_read_are_named_by_their_form():
    """Not as a set without objects, which it only seems to be."""
    scene, net = Scene(4, change=lambda i, t: (i, t | {"masks": t["masks"][:, ::2, ::2]})), model()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train_one_epoch(net, loader(scene), sgd(net), "cpu")
    texts = [str(w.message) for w in seen if isinstance(w.message, FindingWarning)]
    assert any("(32, 48)" in t for t in texts) and not any("nothing to learn" in t for t in texts)


@pytest.mark.parametrize(
    ("sizes", "far"), [(((16,), (5000,)), "5000 pixels (level 1)"), (((16,), (700,)), None), (((0,), (0,)), None)]
)
def test_anchors_that_no_box_can_match_are_said_and_merely_large_ones_are_not(sizes: Any, far: str | None):
    """Images here are 96 pixels wide: an anchor of 512 made for large images is common and harms nobody."""
    net = tiny_detector("mask", 0, "frozen", sizes)
    net.transform.min_size, net.transform.max_size = (HEIGHT,), WIDTH
    found = [f for f in judge(Facts(parameters=parameters_of(net, sgd(net)))) if f.detail["what"] == "anchors"]
    assert [(f.severity, f.code) for f in found] == ([("warning", "NOT_TRAINED")] if far else [])
    assert all(far in f.message for f in found if far)


@pytest.mark.parametrize("kind", ["faster", "retina", "fcos", "ssd", "keypoint", "own"])
def test_no_other_detector_is_accused_of_its_anchors(kind: str):
    assert far_anchors(tiny_detector(kind, 0))[0] == {}


@pytest.mark.parametrize(("momentum", "codes"), [(0.99, []), (1.0, ["NOT_TRAINED"]), (1.2, ["NOT_TRAINED"])])
def test_a_momentum_that_forgets_nothing_is_told_before_it_harms(momentum: float, codes: list[str]):
    """A net with norms learns on for a while: their scale hides how large the weights become."""
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=momentum)
    found = judge(Facts(parameters=parameters_of(net, optimizer)))
    assert [f.code for f in found] == codes
    assert all("forgets no gradient" in f.message for f in found)
