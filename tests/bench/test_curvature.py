"""The exact curvature that the limits are compared with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.advice.curvature import top_eigenvalue


def test_top_eigenvalue_against_the_full_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, y = torch.randn(16, 3).double(), torch.randn(16, 1).double()
    parameters = list(model[2].parameters())

    def loss() -> torch.Tensor:
        return ((model(x) - y) ** 2).mean()

    hidden = torch.cat([model[1](model[0](x)), torch.ones(16, 1).double()], 1).detach()
    exact = torch.linalg.eigvalsh(2 * hidden.T @ hidden / 16)[-1].item()
    value, change = top_eigenvalue(loss, parameters, iterations=60)
    assert value == pytest.approx(exact, rel=1e-4)
    assert change < 1e-4
