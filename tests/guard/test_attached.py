"""The guard behind somebody else's `optimizer.step`: nothing but a bad step is different, and that is not taken."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_coco import attach
from maskrcnn_coco.errors import ConfigError, DataError, GuardStop, GuardWarning
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.replay.state import digest

NAN, INF = math.nan, math.inf


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def data(seed: int = 0, n: int = 32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=g)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


CALLS = 400
"""Calls of Python and from Python that the guard makes in a calm step of eight tensors: 306 when this was written.

Cold, each takes about half a microsecond; that number, unlike a time, is the same on every machine.
"""


def test_a_calm_step_of_a_small_network_is_cheap() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    guard, calls = attach(model, optimizer, say=False), 0

    def count(frame: Any, event: str, _: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call") and "/maskrcnn_coco/" in frame.f_code.co_filename.replace("\\", "/")

    for n in range(105):
        sys.setprofile(count if n == 104 else None)  # neither weights nor ratios are due at this one
        try:
            optimizer.zero_grad()
            guard.see(model(data(n)[0]).square().mean()).backward()
            optimizer.step()
        finally:
            sys.setprofile(None)
    assert 0 < calls < CALLS and not guard.alarms


def test_a_huge_sample_is_refused_where_a_step_evaluates_several_times() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8))
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=2, history_size=4)
    guard, refused = attach(model, optimizer, say=False), []
    for step in range(40):
        x = data(step)[0]
        aim = x * (1e10 if step == 30 else 1.0)

        def closure(x: Tensor = x, aim: Tensor = aim) -> Tensor:
            optimizer.zero_grad()
            loss = (model(x) - aim).square().mean()
            loss.backward()
            return loss

        before = digest(model, optimizer)
        optimizer.step(closure)
        if guard.refused:
            refused.append(step)
            assert digest(model, optimizer) == before
    assert refused == [30] and guard.records[0].grad_norm > 0


class SAM(torch.optim.Optimizer):
    """As published: a closure called in the middle of the step, and an optimizer inside."""

    def __init__(self, params: Any, base: Any, rho: float = 0.05, **kw: Any) -> None:
        super().__init__(params, {"rho": rho, **kw})
        self.base_optimizer = base(self.param_groups, **kw)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        closure = torch.enable_grad()(closure)
        loss = closure()
        params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        for p in params:
            self.state[p]["old"] = p.detach().clone()
            p.add_(p.grad * (0.05 / (norm + 1e-12)))
        closure()
        for p in params:
            p.copy_(self.state[p]["old"])
        self.base_optimizer.step()
        return loss


class Lion(torch.optim.Optimizer):
    """Not torch's own: nobody has proved what its step does."""

    def __init__(self, params: Any, lr: float = 1e-3, divide_by: float = 1.0) -> None:
        super().__init__(params, {"lr": lr, "divide_by": divide_by})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    m.mul_(0.9).add_(p.grad, alpha=0.1)
                    p.sub_(m.sign() / group["divide_by"], alpha=group["lr"])
        return loss


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "lion": lambda p: Lion(p),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "sam": lambda p: SAM(p, torch.optim.SGD, lr=0.05, momentum=0.9),
}
WITH_CLOSURE = ("lbfgs", "sam")


def train_step(model: nn.Module, optimizer: Any, batch: Any, factor: float = 1.0, *, how: str = "plain") -> Any:
    """One step as people write it. ``factor`` makes the loss of it bad."""

    def loss_of(b: Any) -> Tensor:
        return F.cross_entropy(model(b[0]), b[1]) * factor

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        return loss

    if how == "closure":
        return optimizer.step(closure)
    if how == "accumulate":
        optimizer.zero_grad()
        for half in (slice(0, 16), slice(16, 32)):
            (loss_of((batch[0][half], batch[1][half])) / 2).backward()
    else:
        closure()
    return optimizer.step()


@pytest.mark.parametrize(
    ("kind", "how"),
    [(k, "closure") for k in OPTIMIZERS] + [(k, h) for k in list(OPTIMIZERS)[:4] for h in ("plain", "accumulate")],
)
def test_a_healthy_run_is_the_same_bit_for_bit_and_a_bad_step_changes_nothing(kind: str, how: str) -> None:
    runs = []
    for attached in (False, True):
        model = net()
        optimizer = OPTIMIZERS[kind](model.parameters())
        guard = attach(model, optimizer) if attached else None
        for i in range(8):
            train_step(model, optimizer, data(i), how=how)
        runs.append(digest(model, optimizer))
    assert runs[0] == runs[1]
    assert guard is not None and [r.applied for r in guard.records] == [True] * 8
    for bad in (NAN, INF):
        before = digest(model, optimizer)
        train_step(model, optimizer, data(9), bad, how=how)
        assert digest(model, optimizer) == before
        assert guard.refused and guard.alarm is not None
        assert guard.alarm.symptom in ("loss_nonfinite", "grad_nonfinite"), guard.alarm
        train_step(model, optimizer, data(10), how=how)
        assert not guard.refused
    assert all(bool(t.isfinite().all()) for t in model.state_dict().values())


def test_the_loss_is_seen_where_it_is_plain_or_shown() -> None:
    class Output(dict):  # as Hugging Face's ModelOutput
        @property
        def loss(self) -> Tensor:
            return self["loss"]

    model = net()
    forms: list[Callable[[Any], Any]] = [
        lambda b: F.cross_entropy(model(b[0]), b[1]),
        lambda b: Output(loss=F.cross_entropy(model(b[0]), b[1]), logits=model(b[0]), hidden=None),
        lambda b: (F.cross_entropy(model(b[0]), b[1]), model(b[0])),
        lambda b: {"a": F.cross_entropy(model(b[0]), b[1]), "b": None},
        lambda b: F.cross_entropy(model(b[0]), b[1], reduction="none"),
        lambda b: SimpleNamespace(loss=F.cross_entropy(model(b[0]), b[1])),
        lambda b: -F.cross_entropy(model(b[0]), b[1]),
    ]

    class Whole(nn.Module):
        def __init__(self, form: Any) -> None:
            super().__init__()
            self.inner, self.form = model, form

        def forward(self, batch: Any) -> Any:
            return self.form(batch)

    for form in forms:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        assert Guard(model, optimizer).step(form, data(0)).applied
        whole = Whole(form)
        guard = attach(whole, optimizer)
        out = whole(data(1))
        loss = out if isinstance(out, Tensor) else out[0] if isinstance(out, tuple) else getattr(out, "loss", None)
        loss = out["a"] if loss is None else loss.mean()
        loss.backward()
        optimizer.step()
        assert guard.records[-1].applied
        if not (isinstance(out, Tensor) and out.ndim):  # one value a sample is nobody's loss until it is averaged
            assert guard.records[-1].losses["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
        guard.detach()
        assert "step" not in vars(optimizer)


def test_gradients_are_the_loops_own() -> None:
    """Accumulated before the guard was there, of another optimizer's parameters, or refused: never dropped."""
    model, other = net(), nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = attach(nn.Sequential(model, other), optimizer)
    loss = other(model(data(0)[0])).square().mean() * NAN
    loss.backward()
    before = [p.grad.clone() for p in (*model.parameters(), *other.parameters()) if p.grad is not None]
    optimizer.step()
    assert guard.refused
    after = [p.grad for p in (*model.parameters(), *other.parameters())]
    assert len(after) == len(before) == 8
    assert all(
        torch.equal(
            a,
            b,
        )
        or bool((a.isnan() == b.isnan()).all())
        for a, b in zip(after, before, strict=True)
    )


def test_schedulers_made_before_and_after_go_on_without_a_warning() -> None:
    for first in (True, False):
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2) if first else None
        attach(model, optimizer)
        schedule = schedule or torch.optim.lr_scheduler.StepLR(optimizer, 2)
        for i, factor in enumerate((NAN, 1.0, 1.0)):
            train_step(model, optimizer, data(i), factor)
            schedule.step()  # warnings are errors here
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_copies_and_pickles_of_model_and_optimizer_are_free_of_the_guard() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    guard = attach(model, optimizer)
    train_step(model, optimizer, data(0))
    twin, file = copy.deepcopy(model), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for m in (twin, loaded):
        m(data(1)[0])
    assert len(guard.records) == 1
    copied = copy.deepcopy(optimizer)
    assert type(copied.step).__name__ == "method" and "step" not in vars(copied)
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    train_step(model, optimizer, data(1), NAN)
    assert guard.refused


@pytest.mark.parametrize("fullgraph", [False, True])
def test_compiled_models(fullgraph: bool) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=fullgraph)
    guard = attach(model, optimizer)  # what is inside is hooked, and then compiled
    for i in range(3):
        train_step(compiled, optimizer, data(i))
    before = digest(model, optimizer)
    train_step(compiled, optimizer, data(3), NAN)
    assert guard.refused and digest(model, optimizer) == before  # its BatchNorm was put back without a hook
    torch._dynamo.reset()


def test_a_gan_with_a_guard_each() -> None:
    torch.manual_seed(0)
    maker, critic = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    a, b = (torch.optim.Adam(m.parameters(), lr=1e-3) for m in (maker, critic))
    guards = attach(maker, a), attach(critic, b)
    for i in range(12):
        real, noise = data(i)[0], torch.randn(32, 4)
        factor = NAN if i == 7 else 1.0
        before = digest(maker, a), digest(critic, b)
        b.zero_grad()
        loss = F.softplus(-critic(real)).mean() + F.softplus(critic(maker(noise).detach())).mean()
        (loss * factor).backward()
        b.step()
        a.zero_grad()
        (F.softplus(-critic(maker(noise))).mean() * factor).backward()
        a.step()
        if i == 7:
            assert digest(maker, a) == before[0]
            assert [g.refused for g in guards] == [True, True]
    assert sum(r.applied for r in guards[0].records) == sum(r.applied for r in guards[1].records) == 11


def test_several_optimizers_step_together_or_not_at_all() -> None:
    model = net()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizers = [torch.optim.SGD(matrices, lr=0.01, momentum=0.9), torch.optim.AdamW(rest, lr=0.01)]
    guard = attach(model, optimizers)
    for i in range(6):
        bad = i == 3
        before = digest(model, optimizers[0]), digest(model, optimizers[1])
        for o in optimizers:
            o.zero_grad()
        loss = F.cross_entropy(model(data(i)[0]), data(i)[1])
        # Only the biases' gradients are bad: the matrices' optimizer alone would step.
        (loss + (model[3].bias * 0).square().sum().sqrt() if bad else loss).backward()
        for o in optimizers:
            o.step()
        assert ((digest(model, optimizers[0]), digest(model, optimizers[1])) == before) is bad
    assert [r.applied for r in guard.records] == [True, True, True, False, True, True]


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_a_scaler_searches_in_peace_and_a_bad_loss_is_not_its_fault(shown: bool, fused: bool) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0, growth_interval=1000)
    guard = attach(model, optimizer, scaler=scaler if shown else None)

    class Half(torch.autograd.Function):
        """A gradient that passes half precision's range is infinite."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
            return torch.where(g.abs() > 64, g * INF, g)

    def step(i: int, factor: float = 1.0) -> None:
        optimizer.zero_grad()
        loss = guard.see(F.cross_entropy(Half.apply(model(data(i)[0])), data(i)[1]) * factor)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer) if i % 2 else None
        scaler.step(optimizer)
        scaler.update()

    for i in range(12):
        step(i)
    assert not guard.alarms and guard.records[-1].applied
    before, scale = digest(model, optimizer), scaler.get_scale()
    step(12, NAN)
    assert [a.symptom for a in guard.alarms] == (["loss_nonfinite"] if shown or fused else [])
    if shown or fused:
        assert digest(model, optimizer) == before
    if shown:
        assert scaler.get_scale() == scale
    step(13)
    step(14)
    assert all(bool(t.isfinite().all()) for t in model.state_dict().values())


def test_it_says_so_once_a_kind_or_calls_back() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    attach(model, optimizer)
    with pytest.warns(GuardWarning, match=r"step 0 refused .grad_nonfinite.: .*not finite") as said:
        train_step(model, optimizer, data(0), NAN)
        train_step(model, optimizer, data(0), NAN)
    assert len(said) == 1
    model, heard = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    attach(model, optimizer, on_alarm=heard.append)
    train_step(model, optimizer, data(0), NAN)
    assert [a.step for a in heard] == [0]


def test_what_it_cannot_guard_it_refuses_to_start_with() -> None:
    class Shard(nn.Parameter):
        def to_local(self) -> Tensor:
            return self

    model = nn.Module()
    model.weight = Shard(torch.ones(3))
    with pytest.raises(ConfigError, match="shards"):
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ConfigError, match="torch optimizer"):
        attach(net(), [])


def test_boxes_that_would_kill_the_interpreter_are_an_error() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, images: Any, targets: Any) -> dict[str, Tensor]:
            return {"loss": (self.w * sum(t["boxes"].sum() for t in targets)).sum()}

    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = attach(model, optimizer)
    target = {"boxes": torch.tensor([[0.0, 0.0, INF, 4.0]]), "labels": torch.tensor([1]), "image_id": torch.tensor(7)}
    with pytest.raises(DataError, match="image 7"):
        model([torch.rand(3, 8, 8)], [target])
    assert guard.alarm is not None and guard.alarm.symptom == "input_nonfinite"
    target["boxes"] = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    model([torch.rand(3, 8, 8)], [target])["loss"].backward()
    optimizer.step()
    assert guard.records[-1].applied


@pytest.mark.parametrize("stacked", [False, True])
def test_a_sample_that_would_kill_the_interpreter_gives_way_to_a_sound_one(stacked: bool) -> None:
    """An error was all that kept the loop's own forward pass from running, and it ended loops that could go on."""
    seen: list[list[Tensor]] = []

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, images: Any, targets: Any) -> dict[str, Tensor]:
            seen.append([t["boxes"] for t in targets])
            return {
                "loss": (self.w * sum(t["boxes"].mean() + i.mean() for i, t in zip(images, targets, strict=True))).sum()
            }

    def batch(*boxes: float) -> tuple[Any, list[dict[str, Any]]]:
        images = [torch.rand(3, 8, 8) for _ in boxes]
        targets = [
            {"boxes": torch.tensor([[0.0, 0.0, b, 4.0]]), "labels": torch.tensor([1]), "image_id": i}
            for i, b in enumerate(boxes)
        ]
        return (torch.stack(images) if stacked else images), targets

    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    guard = attach(model, optimizer, say=False)
    steps = [batch(4.0, 5.0), batch(4.0, INF), batch(INF), batch(6.0, 7.0)]
    for images, targets in steps:
        before = model.w.detach().clone()
        optimizer.zero_grad()
        model(images, targets)["loss"].backward()
        optimizer.step()
        assert torch.equal(before, model.w) == guard.refused
    assert [r.applied for r in guard.records] == [True, False, False, True]
    assert [a.symptom for a in guard.alarms] == ["input_nonfinite"] * 2
    assert [len(boxes) for boxes in seen] == [2, 2, 1, 2], "as many samples as the loop gave"
    assert all(bool(b.isfinite().all()) for boxes in seen for b in boxes)
    assert steps[1][1][1]["boxes"][0, 2] == INF, "the loop's own batch is as it was"


@pytest.mark.parametrize(("shown", "told"), [(False, 1), (True, 0)])
def test_a_loss_that_is_not_seen_is_asked_for_once(shown: bool, told: int) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    guard = attach(model, optimizer)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(40):
            x, y = data(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            (guard.see(loss) if shown else loss).backward()
            optimizer.step()
    assert sum("guard.see(loss)" in str(w.message) for w in said) == told


class GivesLoss(nn.Module):
    """Gives its loss: half of it is a logarithm of less than 0, whose gradient is finite all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.matrix = net(), nn.Parameter(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.net(x), y) - self.matrix.logdet()}


@pytest.mark.parametrize("used", [True, False])
def test_a_loss_of_the_models_own_that_is_none_is_refused_where_it_is_trained_on(used: bool) -> None:
    model = GivesLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    guard = attach(model, optimizer, say=False)
    optimizer.zero_grad()
    given = model(*data())["loss"]
    loss = given if used else model.net(data()[0]).square().mean()
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    optimizer.step()
    assert guard.refused is used
    assert [a.symptom for a in guard.alarms] == (["loss_nonfinite"] if used else [])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_loop_that_climbs_the_models_loss_is_said_to(sign: float) -> None:
    class Gives(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.net(x), y)

    model = Gives()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    guard = attach(model, optimizer, say=False, diagnose=True, logdir=None)
    with contextlib.suppress(GuardStop):
        for i in range(60):
            optimizer.zero_grad()
            (sign * model(*data(i))).backward()
            optimizer.step()
    assert bool(guard.incidents) is (sign < 0)
    assert all(i.cause == "UNKNOWN" for i in guard.incidents)
    assert all("climbs" in a.measured for a in guard.alarms)
