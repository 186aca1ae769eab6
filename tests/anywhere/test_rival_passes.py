"""A rival's forward pass through a guarded model is no input that the model was trained on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_coco import attach


def test_a_nan_that_came_through_a_rival_s_pass_is_a_fault_the_next_time_too() -> None:
    """An actor is judged by a critic that has a guard of its own; one state is NaN, once in each epoch."""
    torch.manual_seed(0)
    nets = nn.ModuleDict({"critic": nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), "actor": nn.Linear(2, 1)})

    def valued(_: Any, b: Any) -> Tensor:
        return F.mse_loss(nets["critic"](torch.cat(b, 1)), b[0].sum(1))

    def acts(_: Any, b: Any) -> Tensor:
        return -nets["critic"](torch.cat([b[0], nets["actor"](b[0])], 1)).mean()

    rivals = [(n, f, torch.optim.Adam(nets[n].parameters(), 1e-3)) for n, f in (("critic", valued), ("actor", acts))]
    guards: list[Any] = [attach(nets[n], o, forward=f, diagnose=True, logdir=None, say=False) for n, f, o in rivals]
    states = torch.randn(32, 2)
    states[5] = math.nan
    for step in range(16):
        batch = (states[8 * (step % 4) : 8 * (step % 4) + 8], torch.randn(8, 1))
        for (_, loss_of, optimizer), guard in zip(rivals, guards, strict=True):
            optimizer.zero_grad()
            guard.see(loss_of(nets, guard.batch(batch, [8 * (step % 4) + i for i in range(8)]))).backward()
            optimizer.step()
    for guard in guards:
        told = [(i.step, i.cause, i.culprit.image_ids) for i in guard.incidents]
        assert told == [(s, "DATA_PIXEL", [5]) for s in (0, 4, 8, 12)]
