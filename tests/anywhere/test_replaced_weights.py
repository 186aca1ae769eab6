"""Other weights come into model and optimizer while the loop runs: an embedding grows, a head is exchanged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_coco import attach
from maskrcnn_coco.replay.optimizer_state import saved_state


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """Cross entropy of rows whose class is their largest entry."""
    return F.cross_entropy(model(batch), batch[:, :3].argmax(1))


def exchange(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    """A wider head in the model, and in the group; the old one's moments stay in the optimizer's state."""
    old, new = model[2], nn.Linear(16, 3)
    model[2] = new
    params = optimizer.param_groups[0]["params"]
    params[:] = [p for p in params if all(p is not q for q in old.parameters())] + list(new.parameters())


def trained(kind: Any, diagnose: bool | None, poison: int | None = None) -> tuple[Any, list[float]]:
    """60 steps; at 30 the head is another one. ``diagnose`` None: without a guard."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = kind(model.parameters(), lr=0.01)
    guard: Any = None
    if diagnose is not None:
        guard = attach(model, optimizer, forward=loss_of, diagnose=diagnose, logdir=None, say=False)
    losses = []
    for step in range(60):
        if step == 30:
            exchange(model, optimizer)
        batch = torch.randn(16, 4)
        if step == poison:
            batch[3] = torch.nan
        optimizer.zero_grad()
        given = batch if guard is None else guard.batch(batch)
        loss = loss_of(model, given)
        (loss if guard is None else guard.see(loss)).backward()
        optimizer.step()
        losses.append(loss.item())
    return guard, losses


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("diagnose", [False, True])
def test_the_loop_goes_on_as_without_a_guard(kind: Any, diagnose: bool) -> None:
    # `Optimizer.state_dict` raises KeyError where its state holds what no group holds any more
    guard, losses = trained(kind, diagnose)
    assert guard.incidents == [] if diagnose else True
    assert losses == trained(kind, None)[1]


def test_a_bad_step_is_refused_afterwards() -> None:
    guard, losses = trained(torch.optim.AdamW, True, poison=45)
    assert [i.step for i in guard.incidents] == [45] and all(map(torch.isfinite, map(torch.tensor, losses[46:])))


def test_state_of_weights_that_are_in_no_group_is_left_out_and_stays_where_it_is() -> None:
    kept, gone = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([gone, kept])
    (kept.sum() + gone.sum()).backward()
    optimizer.step()
    optimizer.param_groups[0]["params"] = [kept]
    before = list(optimizer.state)
    saved = saved_state(optimizer)
    assert list(saved["state"]) == [0] and saved["state"][0]["exp_avg"].shape == (2,)
    assert list(map(id, optimizer.state)) == list(map(id, before))
