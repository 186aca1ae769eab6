"""Optimizers that people bring along: by sign, by orthogonal steps, by trust ratios, by a distance they estimate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Own(torch.optim.Optimizer):
    """What they share: a step for each weight that has a gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore
        """One step; ``closure`` as in torch."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            self.begin(group)
            for p in group["params"]:
                if p.grad is not None:
                    self.move(p, p.grad, group, self.state[p])
        return loss

    def begin(self, group: dict[str, Any]) -> None:
        """Before the weights of a group."""

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        """The step of one weight."""
        raise NotImplementedError


def moments(g: Tensor, state: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Running means of a gradient and of its square, with one more step counted in ``state``."""
    first = state.setdefault("exp_avg", torch.zeros_like(g))
    second = state.setdefault("exp_avg_sq", torch.zeros_like(g))
    state["step"] = state.get("step", 0) + 1
    return first.lerp_(g, 0.1), second.lerp_(g * g, 0.01)


class Lion(Own):
    """The sign of an interpolated momentum."""

    def __init__(self, params: Any, lr: float = 1e-4, betas: Any = (0.9, 0.99), weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        average = state.setdefault("exp_avg", torch.zeros_like(p))
        first, second = group["betas"]
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_((average * first + g * (1 - first)).sign(), alpha=-group["lr"])
        average.mul_(second).add_(g, alpha=1 - second)


def orthogonal(m: Tensor) -> Tensor:
    """The nearest matrix with orthonormal rows or columns, by five steps of Newton and Schulz."""
    x = m / (m.norm() + 1e-7)
    turned = x.shape[0] > x.shape[1]
    x = x.t() if turned else x
    for _ in range(5):
        a = x @ x.t()
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.t() if turned else x


class Muon(Own):
    """Momentum made orthogonal for matrices and filters; for vectors its direction."""

    def __init__(self, params: Any, lr: float = 0.02, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        buffer = state.setdefault("momentum_buffer", torch.zeros_like(p))
        buffer.mul_(group["momentum"]).add_(g)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        if p.ndim > 1:
            update = orthogonal(buffer.reshape(len(p), -1)).view_as(p)
        else:
            update = buffer / (buffer.norm() + 1e-7)
        p.add_(update, alpha=-group["lr"])


class Lars(Own):
    """SGD whose rate for a layer is the ratio of its norm and its gradient's."""

    def __init__(
        self, params: Any, lr: float = 0.03, momentum: float = 0.9, weight_decay: float = 0.0, eps: float = 1e-8
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eps": eps})

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        g = g + group["weight_decay"] * p
        size = p.norm()
        if size > 0:
            g = g * (size / (g.norm() + group["eps"]))
        buffer = state.setdefault("momentum_buffer", torch.zeros_like(p))
        buffer.mul_(group["momentum"]).add_(g)
        p.add_(buffer, alpha=-group["lr"])


class Distance(Own):
    """Adam whose rate is a distance that it estimates itself; ``growth`` bounds how fast the estimate may grow."""

    def __init__(self, params: Any, lr: float = 1.0, weight_decay: float = 0.0, growth: float = 1.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "growth": growth, "d": 3e-3})

    def begin(self, group: dict[str, Any]) -> None:
        group["d"] *= group["growth"]

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        first, second = moments(g, state)
        size = (second / (1 - 0.99 ** state["step"])).sqrt() + 1e-8
        p.add_(first / (1 - 0.9 ** state["step"]) / size, alpha=-group["lr"] * group["d"])


class Counted(Own):
    """Adam that counts its steps from 1; ``behind`` is subtracted from that count where the averages are corrected."""

    def __init__(self, params: Any, lr: float = 3e-3, weight_decay: float = 0.0, behind: int = 0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "behind": behind})

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        first, second = moments(g, state)
        count = state["step"] - group["behind"]
        p.sub_(group["lr"] * (first / (1 - 0.9**count)) / ((second / (1 - 0.99**count)).sqrt() + 1e-8))


OWN_OPTIMIZERS: dict[str, Any] = {"lion": Lion, "muon": Muon, "lars": Lars, "distance": Distance, "counted": Counted}
