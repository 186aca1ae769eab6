"""Decay, clipping, rates and losses that leave next to nothing of each step; honest settings that look like them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import OwnData, config, small_model
from silent.scenarios import pictures
from silent.ways import tiny_net
from torch import nn

from maskrcnn_coco import FindingWarning, Guard, train
from maskrcnn_coco.findings.facts import Facts, Lengths, Still
from maskrcnn_coco.findings.judge import judge
from maskrcnn_coco.findings.parameters import parameters_of
from maskrcnn_coco.findings.progress import Progress
from maskrcnn_coco.findings.watch import Watch
from maskrcnn_coco.records import StepRecord

SGD, ADAMW = torch.optim.SGD, torch.optim.AdamW
Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: SGD(p, 0.01, weight_decay=1.0), True),
        (lambda p: SGD(p, 0.01, momentum=0.9, weight_decay=0.1), True),
        (lambda p: ADAMW(p, 0.01, weight_decay=1.0), True),
        (lambda p: SGD(p, 0.1, momentum=0.9, weight_decay=5e-4), False),
        (lambda p: SGD(p, 0.02, momentum=0.9, weight_decay=1e-4), False),
        (lambda p: ADAMW(p, 1e-3, weight_decay=0.1), False),
        (lambda p: ADAMW(p, 3e-4, weight_decay=0.3), False),
        (lambda p: torch.optim.Adam(p, 0.01, weight_decay=1.0), False),  # scaled away with the gradient
    ],
)
def test_decay_that_takes_more_than_steps_give(make: Make, said: bool):
    net = nn.Linear(4, 4)
    found = judge(Facts(parameters=parameters_of(net, make(net.parameters()))))
    assert [f.detail["what"] for f in found] == ["decay"] * said


def test_a_warm_up_does_not_hide_the_decay_that_comes():
    net = nn.Linear(4, 4)
    optimizer = SGD(net.parameters(), 0.1, weight_decay=1.0)
    torch.optim.lr_scheduler.LinearLR(optimizer, 1e-6, 1.0, 1000)
    assert parameters_of(net, optimizer).decay == pytest.approx(0.1)


def test_heads_at_rate_0_are_frozen_and_random():
    net = tiny_net()
    optimizer = SGD([{"params": net.backbone.parameters()}, {"params": net.roi_heads.parameters(), "lr": 0.0}], 0.01)
    names = parameters_of(net, optimizer).frozen_random
    assert names and all(n.startswith("roi_heads.") for n in names)

    warming = SGD(net.parameters(), 0.01)
    torch.optim.lr_scheduler.LinearLR(warming, 1e-9, 1.0, 100)
    assert parameters_of(net, warming).frozen_random == []


class Changed(nn.Module):
    """A detector whose losses are changed on their way out, as a script of one's own may do."""

    def __init__(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__()
        self.net, self.change = tiny_net(), change

    def forward(self, images: Any, targets: Any = None) -> Any:
        return self.change(self.net(images, targets))


def guarded(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 22, **how: Any) -> list[str]:
    guard = Guard(net, optimizer, **how)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for step in range(steps):
            guard.step(lambda b: net(*b), pictures(step))
    return [str(w.message) for w in seen if isinstance(w.message, FindingWarning)]


def only_mask(losses: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    return {k: change(v) if k == "loss_mask" else v for k, v in losses.items()}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda v: only_mask(v, torch.Tensor.detach), "mask_head"),
        (lambda v: {k: x for k, x in v.items() if k != "loss_mask"}, "mask_head"),
        (lambda v: {k: x / 1e6 for k, x in v.items()}, "do not divide"),
    ],
)
def test_a_loss_that_is_lost_on_its_way(change: Any, word: str):
    net = Changed(change)
    said = guarded(net, SGD(net.parameters(), 0.01))
    assert len(said) == 1 and word in said[0]


@pytest.mark.parametrize(
    ("make", "bound", "word"),
    [
        (lambda p: SGD(p, 1e-9), 10.0, "raise the learning rate"),
        (lambda p: torch.optim.Adam(p, 1e-3, eps=1e6), 10.0, "stand still"),
        (lambda p: SGD(p, 0.01), 1e-6, "raise max_grad_norm"),
    ],
)
def test_steps_that_move_nothing(make: Make, bound: float, word: str):
    net = tiny_net()
    said = guarded(net, make(net.parameters()), max_grad_norm=bound)
    assert len(said) == 1 and said[0].startswith("LR_TOO_LOW") and word in said[0]


@pytest.mark.parametrize("make", [lambda p: SGD(p, 1e-5), lambda p: ADAMW(p, 1e-6, weight_decay=0.05)])
def test_small_steps_are_no_fault(make: Make):
    net = tiny_net()
    assert guarded(net, make(net.parameters()), max_grad_norm=0.1) == []


@pytest.mark.parametrize(("after", "stands"), [(1e-10, True), (1e-4, False)])
def test_what_counts_is_how_far_steps_go_after_the_warm_up(after: float, stands: bool):
    progress = Progress()
    for step in range(20):
        rate = 1e-9 * 10 ** min(step, 7)
        ratio = {"a": after if step > 7 else 1e-12}
        progress.add(StepRecord(step, 0, {}, 1.0, 5.0, {"a": 5.0}, {"a": rate}, None, [], True, update_ratio=ratio))
    assert [f.detail["what"] for f in judge(Facts(still=progress.still()))] == ["stands still"] * stands


def test_a_run_that_is_clipped_to_nothing_is_told(tmp_path: Path):
    """Its weights move all the same: by their decay alone."""
    settings = config(None, tmp_path, batch_size=2, epochs=1, lr=4e-3, max_grad_norm=1e-6)
    found = train(settings, model=small_model(classes=2), train_data=OwnData(50), quiet=True).findings
    assert [f.detail["what"] for f in found if f.code == "LR_TOO_LOW"] == ["clipped"]


@pytest.mark.parametrize(("rate", "stands"), [(1e-10, True), (1e-3, False)])
def test_a_long_warm_up_is_waited_for(rate: float, stands: bool):
    """Its own steps say nothing; the first one that is measured after it does, once."""
    said: list[str] = []
    watch = Watch(nn.Linear(1, 1), samples=False, say=lambda f: said.append(str(f.detail["what"])))
    for step in range(301):
        share = min(1.0, (step + 1) / 120)
        ratio = {"a": rate * share} if step % 50 == 0 or step == 20 else {}
        watch.record(
            StepRecord(step, 0, {}, 1.0, 5.0, {"a": 5.0}, {"a": 1e-2 * share}, None, [], True, update_ratio=ratio)
        )
        assert not (said and step < 120)
    assert said == ["stands still"] * stands


@pytest.mark.parametrize(
    "facts",
    [
        Facts(still=Still(20)),
        Facts(still=Still(20, moved=1e-7, rate=1e-4, gradient=0.01)),  # near its goal
        Facts(still=Still(20, moved=1e-9, rate=0.0, gradient=1.0)),
        Facts(still=Still(20, moved=1e-3, rate=0.1, gradient=500.0, clipped=5000.0)),  # Adam does not mind a clip
        Facts(lengths=Lengths(1000, 100, 0.01, 0.01)),
        Facts(lengths=Lengths(50, 60, 0.01, 0.008)),  # a short trial
        Facts(lengths=Lengths(1, 2, 4e-3, 4e-6)),  # whether everything works
    ],
)
def test_honest_runs_are_not_accused(facts: Facts):
    assert judge(facts) == []


def test_a_warm_up_that_the_run_never_leaves():
    found = judge(Facts(lengths=Lengths(12, 100_000, 4e-3, 4e-6)))
    assert [(f.code, f.detail["what"]) for f in found] == [("LR_TOO_LOW", "warm-up")]
    assert "--warmup-steps 1" in found[0].fix


@pytest.mark.parametrize(
    ("rates", "fell"), [((0.01, 3e5, 0.01), False), ((0.01, 3e5, 1e-4), True), ((3e-5, 0.03, 1e-10), True)]
)
def test_a_rate_that_was_thrown_up_and_came_back_did_not_fall(rates: tuple[float, float, float], fell: bool):
    progress = Progress()
    for step in range(60):
        rate = rates[(step >= 20) + (step >= 25)]
        progress.add(StepRecord(step, 0, {}, 1.0, 5.0, {"a": 5.0}, {"a": rate}, None, [], True))
    assert bool(progress.rates().fell) is fell
