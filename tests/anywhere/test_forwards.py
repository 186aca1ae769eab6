"""Forward passes that name the live model are replayed on its copy; where they cannot be, it is said."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_coco import attach
from maskrcnn_coco.errors import GuardStop


def run(forward_of: Callable[[nn.Module], Callable[..., Tensor]]) -> Any:
    """A classifier whose rate is a thousand times too high from step 20 on; its guard."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    forward = forward_of(model)
    guard: Any = attach(model, optimizer, diagnose=True, forward=forward, logdir=None, say=False, on_alarm=print)
    for step in range(24):
        x = torch.randn(16, 8)
        batch = guard.batch((x, x[:, :3].argmax(1)), range(16 * step, 16 * step + 16))
        optimizer.param_groups[0]["lr"] = 0.1 if step < 20 else 100.0
        optimizer.zero_grad()
        guard.see(F.cross_entropy(model(batch[0]), batch[1])).backward()
        try:
            optimizer.step()
        except GuardStop:
            break
    return guard


def named_in_the_script(model: nn.Module) -> Callable[..., Tensor]:
    names: dict[str, Any] = {"model": model, "F": F}
    exec("def loss(m, b):\n    return F.cross_entropy(model(b[0]), b[1])", names)
    return names["loss"]


@pytest.mark.parametrize(
    "forward_of",
    [
        lambda model: lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        lambda model: lambda m, b: F.cross_entropy(model(b[0]), b[1]),
        lambda model: lambda b: F.cross_entropy(model(b[0]), b[1]),
        named_in_the_script,
    ],
)
def test_a_forward_pass_that_names_the_live_model_is_replayed_on_the_copy(forward_of: Any):
    guard = run(forward_of)
    assert [(i.cause, i.confidence) for i in guard.incidents[:1]] == [("LR_TOO_HIGH", 0.97)]


def test_where_the_copy_is_not_reached_it_is_said():
    guard = run(
        lambda model: (held := SimpleNamespace(net=model)) and (lambda m, b: F.cross_entropy(held.net(b[0]), b[1]))
    )
    first = guard.incidents[0]
    assert first.cause == "UNKNOWN" and any("no gradient in the model" in e.outcome for e in first.evidence)
