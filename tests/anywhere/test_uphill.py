"""A sign that is turned under way: the loss or its gradients are less than 0 times what they should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_coco import attach
from maskrcnn_coco.errors import GuardStop

STEPS, FROM = 120, 50


class Net(nn.Module):
    """Gives its own loss, as models that are handed labels do; ``turns``: from this pass on times -1."""

    def __init__(self, turns: int = STEPS) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
        self.turns, self.passes = turns, 0

    def forward(self, x: Tensor) -> Tensor:
        loss = F.cross_entropy(self.body(x), x[:, :3].argmax(1))
        if self.training:
            self.passes += 1
        return -loss if self.passes > self.turns else loss


Change = Callable[[int, Tensor], Tensor]
KINDS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.003),
}


def trained(
    kind: str, where: str, *, since: int = FROM, clip: float = 0.0, divided: int = 1
) -> tuple[Any, list[float], str]:
    """A guard behind a loop that has one sign wrong from step ``since`` on; the losses it saw; how it ended.

    Args:
        where: "loss", "model" (by a count of its own), "gradients" or "" (nothing is wrong).
        clip: of the gradients' norm, behind it.
        divided: micro-batches of a step.
    """
    torch.manual_seed(0)
    model = Net(since * divided if where == "model" else STEPS * divided)
    optimizer = KINDS[kind](model.parameters())
    guard: Any = attach(model, optimizer, diagnose=True, logdir=None, say=False)
    losses: list[float] = []
    try:
        for step in range(STEPS):
            optimizer.zero_grad()
            for _ in range(divided):
                loss = model(torch.randn(32, 4)) / divided
                losses.append(loss.item() * divided)
                (-loss if where == "loss" and step >= since else loss).backward()
            for p in model.parameters() if where == "gradients" and step >= since else ():
                assert p.grad is not None
                p.grad.neg_()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    except GuardStop as e:
        return guard, losses, str(e)
    return guard, losses, ""


@pytest.mark.parametrize("clip", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["loss", "model", "gradients"])
def test_it_is_proved_and_the_run_stops(where: str, kind: str, clip: float) -> None:
    guard, losses, ended = trained(kind, where, clip=clip)
    assert [(i.cause, i.action.kind) for i in guard.incidents] == [("LOSS_MATH", "stop")], guard.incidents
    incident = guard.incidents[0]
    assert incident.confidence >= 0.95 and "LOSS_MATH" in ended
    assert FROM <= incident.step < FROM + 40 and abs(losses[-1]) < 8 * losses[0]
    word = {"loss": "the sign of the loss", "model": "changes loss", "gradients": "the sign of gradients"}[where]
    assert word in incident.fix and "clamp" not in incident.fix


def test_of_several_micro_batches_too() -> None:
    guard, _, _ = trained("sgd", "gradients", divided=4)
    assert [(i.cause, i.action.kind) for i in guard.incidents] == [("LOSS_MATH", "stop")]


@pytest.mark.parametrize("where", ["loss", ""])
def test_a_number_that_is_to_grow_from_the_first_step_on_is_left_alone(where: str) -> None:
    guard, losses, ended = trained("sgd", where, since=0, clip=0.01)
    assert not guard.incidents and not ended and len(losses) == STEPS


def curriculum(step: int, loss: Tensor) -> Tensor:
    """Harder and harder."""
    return loss * (1 + max(0, step - FROM) / 30)


def bonus(step: int, loss: Tensor) -> Tensor:
    """A reward that grows and carries the sum below 0, by and by."""
    return loss - 0.03 * step


def constant(step: int, loss: Tensor) -> Tensor:
    """A constant that is taken off at once: the sign is another, and gradients are what they were."""
    return loss - (2.0 if step >= FROM else 0.0)


def around(step: int, loss: Tensor) -> Tensor:
    """As of advantages: mostly more than 0, at times less."""
    return loss * (-1.0 if 40 <= step < 45 or step % 17 == 3 else 1.0)


@pytest.mark.parametrize("change", [curriculum, bonus, constant, around])
@pytest.mark.parametrize("kind", KINDS)
def test_honest_losses_that_rise_or_change_their_sign_are_left_alone(kind: str, change: Change) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer, now = KINDS[kind](model.parameters()), 0

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        return change(now, F.cross_entropy(model(x), x[:, :3].argmax(1)))

    guard: Any = attach(model, optimizer, diagnose=True, forward=forward, logdir=None, say=False)
    for now in range(STEPS):  # noqa: B007
        x = guard.batch(torch.randn(32, 4))
        optimizer.zero_grad()
        guard.see(forward(model, x)).backward()
        optimizer.step()
    assert not guard.incidents
