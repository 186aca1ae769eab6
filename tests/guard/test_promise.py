"""Nothing non-finite is ever applied, and nothing sound is refused: the odd models, tensors, losses and optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.replay.state import digest

NAN, INF = math.nan, math.inf


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def data(seed: int = 0, n: int = 32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=g)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def loss_of(model: nn.Module, factor: float = 1.0) -> Callable[[Any], Tensor]:
    return lambda b: F.cross_entropy(model(b[0]).float(), b[1]) * factor


def finite(model: nn.Module) -> bool:
    return all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_layer_frozen_and_another_thawed_with_as_many_tensors() -> None:
    model = net()
    model[0].requires_grad_(False)
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert guard.step(loss_of(model), data(0)).applied
    model[0].requires_grad_(True)
    model[2].requires_grad_(False)
    record = guard.step(loss_of(model), data(1))
    assert record.group_grad_norm.keys() == {"0"} and record.grad_norm > 0
    before = digest(model, guard.optimizer)
    assert not guard.step(loss_of(model, NAN), data(2)).applied
    assert digest(model, guard.optimizer) == before


def test_complex_weights_and_states() -> None:
    class Fourier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.w = nn.Parameter(torch.randn(5, 3, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return (torch.fft.rfft(x) @ self.w).abs()

    model = Fourier()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    guard = Guard(model, optimizer)
    for i in range(3):
        assert guard.step(loss_of(model), data(i)).applied
    optimizer.state[model.w]["exp_avg"][0, 0] = complex(NAN, 0)
    before = digest(model, optimizer)
    assert guard.step(loss_of(model), data(4)).symptom == "optimizer_nonfinite"
    assert digest(model, optimizer) == before
    optimizer.state[model.w]["exp_avg"][0, 0] = 0
    assert guard.step(loss_of(model), data(4)).applied
    assert not guard.step(loss_of(model, INF), data(5)).applied
    assert finite(model)


class Causal(nn.Module):
    """Buffers that are extreme by design, and an observer that starts at plus and minus infinity."""

    def __init__(self, hole: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = net()
        self.register_buffer("mask", torch.full((8, 8), hole).triu(1))
        self.register_buffer("low", torch.tensor(INF))
        self.register_buffer("high", torch.tensor(-INF))

    def forward(self, x: Tensor) -> Tensor:
        self.low.copy_(torch.minimum(self.low, x.detach().min()))
        self.high = torch.maximum(self.high, x.detach().max())
        return self.net(x @ (self.mask + 1).softmax(1))


@pytest.mark.parametrize("hole", [-INF, -1e9, torch.finfo(torch.float32).min])
def test_buffers_that_are_extreme_by_design(hole: float) -> None:
    model = Causal(hole)
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.05), check_every=1)
    for i in range(4):
        assert guard.step(loss_of(model), data(i)).applied
    assert guard.inspect() is None
    before = digest(model, guard.optimizer)
    assert not guard.step(loss_of(model), (data(5)[0] * NAN, data(5)[1])).applied
    assert digest(model, guard.optimizer) == before, "the observers are put back"
    model.mask[3, 2] = NAN
    record = guard.step(loss_of(model), data(6))
    assert record.symptom == "buffer_nonfinite"
    model.mask[3, 2] = 0.0
    model.mask = model.mask * 1e12  # on purpose
    guard.accept_buffers(["mask"])
    assert guard.inspect() is None


def test_inputs_with_holes_by_design() -> None:
    """A mask of -inf among the inputs, and targets that are ignored where they are NaN."""
    model = net()
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.05))
    mask = torch.zeros(8, 8).masked_fill(torch.ones(8, 8).triu(1).bool(), -INF)

    def forward(batch: Any) -> Tensor:
        x, y, m = batch
        out = model(x @ m.softmax(1))[:, 0]
        return (out[~y.isnan()] - y[~y.isnan()]).square().mean()

    target = data(0)[0][:, 0].clone()
    target[3] = NAN
    assert guard.step(forward, (data(0)[0], target, mask)).applied
    record = guard.step(forward, (data(0)[0] * NAN, target, mask))
    assert record.symptom == "loss_nonfinite" and not record.applied, "holes are usual here, and accuse nobody"


def test_sparse_gradients_with_nan_are_no_crash() -> None:
    torch.manual_seed(0)
    model = nn.EmbeddingBag(10, 4, sparse=True)
    guard = Guard(model, torch.optim.SparseAdam(model.parameters(), lr=0.1))
    tokens = torch.tensor([[1, 2, 2], [3, 1, 4]])
    assert guard.step(lambda b: model(b).square().sum(), tokens).applied
    before = digest(model, guard.optimizer)
    for factor in (NAN, INF):
        record = guard.step(lambda b, f=factor: {"a": model(b).sum() * f, "b": model(b).sum()}, tokens)
        assert record.symptom == "loss_nonfinite"
    assert digest(model, guard.optimizer) == before


class Relative(torch.optim.Optimizer):
    """As Adafactor: works its rate out by itself, so that ``lr`` is None."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": None})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad / (p.grad.norm() + 1e-6) * 0.01 * p.norm())


def test_a_rate_of_none_odd_precisions_and_tensors_that_hold_nothing() -> None:
    model = net()
    model.narrow = nn.Linear(3, 3, dtype=torch.bfloat16)
    model.wide = nn.Linear(3, 3, dtype=torch.float64)
    model.register_buffer("meta", torch.zeros(4, device="meta"))
    model.register_buffer("eight", torch.zeros(4).to(torch.float8_e4m3fn))
    model.register_buffer("ints", torch.zeros(4, dtype=torch.int8))

    def forward(b: Any, factor: float = 1.0) -> Tensor:
        out = model[2](model[1](model[0](b[0])))
        return F.cross_entropy(model.wide(model.narrow(out.bfloat16()).double()), b[1]) * factor

    for optimizer in (Relative(model.parameters()), torch.optim.AdamW(model.parameters(), lr=1e-3)):
        guard = Guard(model, optimizer)
        for i in range(3):
            record = guard.step(forward, data(i))
            assert record.applied, guard.alarm
        assert record.lr == {} or set(record.lr.values()) == {1e-3}
        before = digest_weights(model)
        assert not guard.step(lambda b: forward(b, NAN), data(4)).applied
        assert digest_weights(model) == before
        assert guard.inspect() is None


def digest_weights(model: nn.Module) -> list[Any]:
    return [p.detach().double().clone().tolist() for p in model.parameters()]


@pytest.mark.parametrize(
    "make",
    {
        "adam eps 0": lambda p: torch.optim.Adam(p, lr=1e-3, eps=0.0),
        "adamw fused eps 0": lambda p: torch.optim.AdamW(p, lr=1e-3, eps=0.0, fused=True),
        "adagrad eps 0": lambda p: torch.optim.Adagrad(p, lr=1e-2, eps=0.0),
        "rmsprop eps 0": lambda p: torch.optim.RMSprop(p, lr=1e-3, eps=0.0),
        "adam half": lambda p: torch.optim.Adam(p, lr=1e-3),
        "adagrad half": lambda p: torch.optim.Adagrad(p, lr=1e-2),
        "rmsprop half": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    }.items(),
    ids=lambda m: m[0],
)
def test_a_step_that_breaks_by_itself_is_undone(make: tuple[str, Callable[[Any], Any]]) -> None:
    name, build = make
    dtype = torch.float16 if "half" in name else torch.float32
    model = net().to(dtype)
    optimizer = build(model.parameters())
    guard = Guard(model, optimizer)

    with torch.no_grad():
        model[0].bias[0] = -100.0  # a unit without gradient: 0 / (sqrt(0) + 0)
    refused = 0
    for i in range(4):
        before = digest(model, optimizer)
        record = guard.step(lambda b: F.cross_entropy(model(b[0].to(dtype)).float(), b[1]), data(i))
        assert finite(model), name
        if not record.applied:
            refused += 1
            assert digest(model, optimizer) == before
            assert record.symptom in ("param_nonfinite", "optimizer_nonfinite")
    assert refused, "the fault was not there"


def test_an_optimizer_of_ones_own_that_leaps_is_undone() -> None:
    class Wild(Relative):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["n"] = self.state[p].get("n", 0) + 1
                    p.mul_(1e7 if self.state[p]["n"] == 3 else 1.01)

    model = net()
    guard = Guard(model, Wild(model.parameters()))
    assert [guard.step(loss_of(model), data(i)).applied for i in range(3)] == [True, True, False]
    assert guard.alarm is not None and guard.alarm.symptom == "diverged"
    assert guard.optimizer.state[model[0].weight]["n"] == 2


def test_losses_below_zero_and_of_any_size_are_healthy() -> None:
    for size in (-1.0, -1e5, 1e8, 1e-7):
        model = net()
        guard = Guard(model, torch.optim.Adam(model.parameters(), lr=1e-3))
        for i in range(30):
            record = guard.step(lambda b, s=size, m=model: -loss_of(m)(b) * s if s < 0 else loss_of(m)(b) * s, data(i))
            assert record.applied, (size, guard.alarm)


def test_a_loss_that_starts_at_zero_by_construction_may_leave_it() -> None:
    """PPO's first ratio is 1 and its advantages have mean 0."""
    model = net()
    old = loss_of(model)(data(0)).item()
    guard = Guard(model, torch.optim.Adam(model.parameters(), lr=1e-3))
    for _ in range(60):
        assert guard.step(lambda b: loss_of(model)(b) - old, data(0)).applied, guard.alarm


def test_a_classifier_that_diverges_far_below_a_hundred() -> None:
    """From 1.1 to tens, in a few steps from the first update on: no absolute limit sees it."""
    model = net()
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=30.0), max_grad_norm=None)
    records = [guard.step(loss_of(model), data(i)) for i in range(40)]
    assert any(r.symptom == "diverged" for r in records)


def test_a_loss_re_weighted_on_purpose_is_accepted_when_said() -> None:
    model = net()
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=1e-4))
    for i in range(20):
        assert guard.step(loss_of(model), data(i)).applied
    refused = [guard.step(loss_of(model, 5e4), data(i)).symptom for i in range(5)]
    assert "diverged" in refused
    guard.new_regime()
    assert all(guard.step(loss_of(model, 5e4), data(i)).applied for i in range(20))


def test_clamped_and_renewed_weights_cost_no_step() -> None:
    model = net()
    guard = Guard(model, torch.optim.RMSprop(model.parameters(), lr=1e-3))
    for i in range(40):
        assert guard.step(lambda b: -model(b[0])[:, 0].mean(), data(i)).applied, guard.alarm
        for p in model.parameters():
            p.data.clamp_(-0.01, 0.01)  # WGAN
        if i % 13 == 5:
            model[2].reset_parameters()
            guard.new_regime()


@pytest.mark.parametrize("check_every", [1, 10])
def test_weights_that_were_ruined_between_two_steps_are_seen_at_every_step(check_every: int) -> None:
    for at in range(3, 9):
        model = net()
        guard = Guard(model, torch.optim.AdamW(model.parameters(), lr=1e-3), check_every=check_every)
        for i in range(at):
            assert guard.step(loss_of(model), data(i)).applied
        model[2].weight.data.mul_(1e4)
        record = guard.step(loss_of(model), data(20))
        assert not record.applied
        assert guard.alarm is not None and "changed_outside" in guard.alarm.measured


@pytest.mark.parametrize("way", ["in place", "data", "replaced"])
def test_optimizer_state_that_was_ruined_is_seen_at_every_step(way: str) -> None:
    for at in range(3, 9):
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        guard = Guard(model, optimizer)
        for i in range(at):
            guard.step(loss_of(model), data(i))
        state = optimizer.state[model[0].weight]
        if way == "in place":
            state["exp_avg"][3, 3] = NAN
        elif way == "data":
            state["exp_avg_sq"].data[2, 2] = INF
        else:
            state["exp_avg"] = torch.full_like(state["exp_avg"], NAN)
        before = digest(model, optimizer)
        assert guard.step(loss_of(model), data(20)).symptom == "optimizer_nonfinite"
        assert digest(model, optimizer) == before


def test_momentum_above_one_is_seen() -> None:
    model = net()
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=1e-2, momentum=1.25))
    records = [guard.step(loss_of(model), data(i)) for i in range(60)]
    bad = next(r.step for r in records if r.symptom == "diverged")
    assert bad < 40 and records[bad].loss < 1e6


def test_three_acts_are_one_step() -> None:
    digests = []
    for acts in (False, True):
        model = net()
        guard = Guard(model, torch.optim.AdamW(model.parameters(), lr=1e-2), max_grad_norm=0.5)
        for i in range(6):
            factor = NAN if i == 3 else 1.0
            if not acts:
                record = guard.step(loss_of(model, factor), data(i))
            else:
                guard.optimizer.zero_grad()
                assert guard.begin(data(i))
                loss = loss_of(model, factor)(data(i))
                loss.backward()
                assert guard.judge(loss) is (i != 3)
                record = guard.apply()
            assert record.applied is (i != 3)
            assert (guard.alarm is None) is (i != 3)
        digests.append(digest(model, guard.optimizer))
    assert digests[0] == digests[1]
    with pytest.raises(RuntimeError, match="after judge"):
        guard.apply()


def test_gradients_of_parameters_that_are_another_optimizer_s_are_left_alone() -> None:
    model = net()
    guard = Guard(model, torch.optim.SGD(model[0].parameters(), lr=0.1))
    model[2].weight.grad = torch.ones_like(model[2].weight)
    guard.step(loss_of(model), data(0))
    assert model[2].weight.grad is not None and model[2].bias.grad is None
