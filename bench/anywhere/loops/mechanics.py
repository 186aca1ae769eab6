"""Loops by how they step: optimizers, schedules, precision, accumulation, hooks, and what a model holds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from anywhere.loops.harness import Run
from anywhere.loops.kinds import GPT, classify, labelled, mlp, rand, tokens
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.optim import lr_scheduler as plans
from torch.utils.checkpoint import checkpoint

Make = Callable[[nn.Module], torch.optim.Optimizer]


class Lion(torch.optim.Optimizer):
    """An optimizer of somebody's own: the sign of a moving average."""

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                one, two = group["betas"]
                p.add_((one * m + (1 - one) * p.grad).sign(), alpha=-group["lr"])
                m.lerp_(p.grad, 1 - two)
        return loss


class Lookahead(torch.optim.Optimizer):
    """Another optimizer inside; every fifth step its weights are drawn towards slow ones."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base, self.param_groups, self.defaults = base, base.param_groups, base.defaults
        self.state, self.taken = base.state, 0
        self.slow = [p.detach().clone() for g in self.param_groups for p in g["params"]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        out = self.base.step(closure)
        self.taken += 1
        if self.taken % 5 == 0:
            with torch.no_grad():
                for slow, p in zip(self.slow, (p for g in self.param_groups for p in g["params"]), strict=True):
                    slow.lerp_(p, 0.5)
                    p.copy_(slow)
        return out


class SAM(torch.optim.Optimizer):
    """Two gradients a step by a closure: uphill, then the step of the base optimizer there."""

    def __init__(self, params: Any, rho: float = 0.05, **base: Any) -> None:
        super().__init__(params, {"rho": rho, **base})
        self.base = torch.optim.SGD(self.param_groups, **base)
        self.param_groups = self.base.param_groups

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        closure = torch.enable_grad()(closure)
        params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in params]).norm() + 1e-12
            kept = [p.clone() for p in params]
            for p in params:
                p.add_(p.grad * self.param_groups[0]["rho"] / norm)
        self.zero_grad()
        loss = closure()
        with torch.no_grad():
            for p, old in zip(params, kept, strict=True):
                p.copy_(old)
        self.base.step()
        return loss


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices."""

    def __init__(self, params: Any, lr: float = 0.02) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                m = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                m.mul_(0.95).add_(p.grad)
                x = m / (m.norm() + 1e-7)
                for _ in range(5):
                    a = x @ x.T
                    x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
                p.add_(x, alpha=-group["lr"])


@dataclass(frozen=True)
class Simple:
    """The plain loop with one thing of its own. ``plan``: optimizer → schedule; ``zero``: how gradients are cleared."""

    make: Make
    model: Callable[[], nn.Module] = mlp
    plan: Callable[[torch.optim.Optimizer], Any] | None = None
    zero: dict[str, Any] | None = None

    def __call__(self, run: Run) -> None:
        """The loop."""
        model = self.model()
        o = self.make(model)
        plan = None if self.plan is None else self.plan(o)
        guard = run.guard(model, o, classify)
        for _ in run.steps():
            batch = run.data(guard, labelled(12))
            o.zero_grad(**(self.zero or {}))
            loss = run.see(guard, classify(model, batch))
            loss.backward()
            o.step()
            if isinstance(plan, plans.ReduceLROnPlateau):
                plan.step(float(loss.detach()))
            elif plan is not None:
                plan.step()


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 3e-3)


def _frozen_base() -> nn.Module:
    """A frozen base and a low-rank part beside its first layer (B starts at zero)."""

    class Low(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = mlp().requires_grad_(False)
            self.a, self.b = nn.Parameter(0.1 * rand(12, 4)), nn.Parameter(torch.zeros(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + x @ self.a @ self.b

    return Low()


def _parametrized() -> nn.Module:
    model = mlp()
    torch.nn.utils.parametrizations.weight_norm(model[0])
    torch.nn.utils.parametrizations.spectral_norm(model[2])
    torch.nn.utils.parametrizations.orthogonal(model[4])
    return model


def _pruned() -> nn.Module:
    model = mlp()
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def _mixed() -> nn.Module:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = mlp(12, 16).bfloat16(), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.bfloat16()).float())

    return Mixed()


def _complex() -> nn.Module:
    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.head = nn.Parameter(0.3 * torch.randn(7, 16, dtype=torch.cfloat)), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((torch.fft.rfft(x) @ self.w).abs())

    return Waves()


def _counting() -> nn.Module:
    """Whole-number buffers that count, a mask of -inf, a buffer of very large numbers, NaN in an unused weight."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.spare = mlp(), nn.Parameter(torch.full((3,), math.nan))
            self.spare.unused = True  # type: ignore[attr-defined]
            self.register_buffer("seen", torch.zeros((), dtype=torch.long))
            self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, 0.0]))
            self.register_buffer("low", torch.full((4,), -math.inf), persistent=False)
            self.register_buffer("largest", torch.full((4,), torch.finfo(torch.float32).min))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += len(x)
            return self.net(x) + torch.where(self.mask > 1, self.low, self.mask)

    return Counting()


def _observed() -> nn.Module:
    """Fake quantisation: observers that start at ±inf and move."""
    from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

    fake = FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255)
    return nn.Sequential(nn.Linear(12, 32), fake, nn.ReLU(), nn.Linear(32, 4))


def _batchnorm() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))


def _one_cycle(o: torch.optim.Optimizer) -> Any:
    return plans.OneCycleLR(o, 0.2, total_steps=300)


def _in_turn(o: torch.optim.Optimizer) -> Any:
    return plans.SequentialLR(o, [plans.LinearLR(o, 0.01, total_iters=10), plans.CosineAnnealingLR(o, 190)], [10])


SIMPLE: dict[str, Simple] = {
    "sgd_nesterov": Simple(
        lambda m: torch.optim.SGD(m.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    ),
    "adam_foreach": Simple(lambda m: torch.optim.Adam(m.parameters(), 3e-3, foreach=True)),
    "adamw_fused": Simple(lambda m: torch.optim.AdamW(m.parameters(), 3e-3, fused=True)),
    "adam_amsgrad": Simple(lambda m: torch.optim.Adam(m.parameters(), 3e-3, amsgrad=True, maximize=False)),
    "rate_tensor": Simple(lambda m: torch.optim.AdamW(m.parameters(), torch.tensor(3e-3), foreach=False)),
    "rate_each": Simple(
        lambda m: torch.optim.SGD([{"params": [p], "lr": 0.02 * (1 + i)} for i, p in enumerate(m.parameters())], 0.1)
    ),
    "rprop": Simple(lambda m: torch.optim.Rprop(m.parameters(), 1e-3)),
    "asgd": Simple(lambda m: torch.optim.ASGD(m.parameters(), 0.1)),
    "adadelta": Simple(lambda m: torch.optim.Adadelta(m.parameters())),
    "adafactor": Simple(lambda m: torch.optim.Adafactor(m.parameters(), 1e-2)),
    "radam": Simple(lambda m: torch.optim.RAdam(m.parameters(), 3e-3)),
    "rmsprop_centered": Simple(lambda m: torch.optim.RMSprop(m.parameters(), 1e-3, centered=True, momentum=0.9)),
    "adagrad": Simple(lambda m: torch.optim.Adagrad(m.parameters(), 3e-2)),
    "lion": Simple(lambda m: Lion(m.parameters(), 1e-3)),
    "lookahead": Simple(lambda m: Lookahead(torch.optim.Adam(m.parameters(), 3e-3))),
    "zeroed_in_place": Simple(_sgd, zero={"set_to_none": False}),
    "one_cycle": Simple(_sgd, plan=_one_cycle),
    "plateau": Simple(_sgd, plan=lambda o: plans.ReduceLROnPlateau(o, patience=3)),
    "restarts": Simple(_adamw, plan=lambda o: plans.CosineAnnealingWarmRestarts(o, 20)),
    "in_turn": Simple(_sgd, plan=_in_turn),
    "cyclic": Simple(_sgd, plan=lambda o: plans.CyclicLR(o, 1e-3, 0.1, step_size_up=15)),
    "low_rank": Simple(lambda m: torch.optim.AdamW((p for p in m.parameters() if p.requires_grad), 1e-2), _frozen_base),
    "frozen_inside": Simple(_adamw, _frozen_base),
    "parametrized": Simple(_sgd, _parametrized),
    "pruned": Simple(_sgd, _pruned),
    "mixed_dtypes": Simple(_adamw, _mixed),
    "complex": Simple(_adamw, _complex),
    "double": Simple(_adamw, lambda: _Double()),
    "odd_buffers": Simple(_adamw, _counting),
    "fake_quantised": Simple(_sgd, _observed),
    "batchnorm": Simple(_sgd, _batchnorm),
}


class _Double(nn.Module):
    """Everything inside in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp().double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.double())


def lbfgs(run: Run) -> None:
    """A closure that is evaluated many times; the whole data each step."""
    model = mlp()
    o = torch.optim.LBFGS(model.parameters(), 0.5, max_iter=4)
    guard = run.guard(model, o)
    x, y = labelled(12, size=64)
    for _ in run.steps():
        batch = run.data(guard, (x, y))

        def closure(batch: Any = batch) -> Tensor:
            o.zero_grad()
            loss = classify(model, batch) + 1e-3 * sum(p.square().sum() for p in model.parameters())
            loss = run.see(None, loss)
            loss.backward()
            return loss

        o.step(closure)


def sam(run: Run) -> None:
    """An optimizer with another inside and two gradients a step."""
    model = mlp()
    o = SAM(model.parameters(), lr=0.05, momentum=0.9)
    guard = run.guard(model, o)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))

        def closure(batch: Any = batch) -> Tensor:
            o.zero_grad()
            loss = run.see(None, classify(model, batch))
            loss.backward()
            return loss

        closure()
        o.step(closure)


def sam_by_hand(run: Run) -> None:
    """The same without a closure: weights are moved uphill and back between two backward passes."""
    model = mlp()
    o = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    guard = run.guard(model, o)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        with torch.no_grad():
            kept = [p.clone() for p in model.parameters()]
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm() + 1e-12
            for p in model.parameters():
                p.add_(0.05 * p.grad / norm)
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        with torch.no_grad():
            for p, old in zip(model.parameters(), kept, strict=True):
                p.copy_(old)
        o.step()


def closure_adam(run: Run) -> None:
    """A closure with an optimizer that evaluates it once."""
    model = mlp()
    o = torch.optim.Adam(model.parameters(), 3e-3)
    guard = run.guard(model, o)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))

        def closure(batch: Any = batch) -> Tensor:
            o.zero_grad()
            loss = run.see(None, classify(model, batch))
            loss.backward()
            return loss

        o.step(closure)


def recomputed(run: Run) -> None:
    """Gradient checkpointing: modules run again during the backward pass."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.deep, self.last = nn.Linear(12, 32), mlp(32, 32), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(checkpoint(self.deep, self.first(x), use_reentrant=False))

    model = Deep()
    o = _adamw(model)
    guard = run.guard(model, o, classify)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()


def compiled(run: Run) -> None:
    """torch.compile around the model."""
    model = torch.compile(_batchnorm(), backend="eager")
    o = _sgd(model)
    guard = run.guard(model, o, classify)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()


def autocast_bf16(run: Run) -> None:
    """bfloat16 in the forward pass."""
    model = mlp()
    o = _adamw(model)

    def loss(m: nn.Module, b: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return classify(m, b)

    guard = run.guard(model, o, loss)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, loss(model, batch)).backward()
        o.step()


def scaled(run: Run, shown: bool = True) -> None:
    """fp16 with a GradScaler, unscaled and clipped by the loop."""
    model = mlp()
    o = _adamw(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    guard = run.guard(model, o, **({"scaler": scaler} if shown else {}))
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = run.see(guard, classify(model, batch))
        scaler.scale(loss).backward()
        scaler.unscale_(o)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(o)
        scaler.update()


def scaled_unseen(run: Run) -> None:
    """The same with a scaler that the guard was not shown."""
    scaled(run, shown=False)


def sparse(run: Run) -> None:
    """Sparse gradients of an embedding, two optimizers for one backward pass."""

    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.EmbeddingBag(50, 16, sparse=True), nn.Linear(16, 4)

        def forward(self, words: Tensor, weights: Tensor) -> Tensor:
            return self.head(self.words(words)) * weights[:, None]

    model = Bags()
    one, two = torch.optim.SparseAdam(model.words.parameters(), 1e-2), torch.optim.Adam(model.head.parameters(), 1e-2)
    guard = run.guard(model, [one, two])
    for _ in run.steps():
        words = torch.randint(50, (16, 5))
        weights, words = run.data(guard, (torch.ones(16), words))
        one.zero_grad()
        two.zero_grad()
        run.see(guard, F.cross_entropy(model(words, weights), words[:, 0] % 4)).backward()
        one.step()
        two.step()


def muon_and_adamw(run: Run) -> None:
    """Two optimizers that step together."""
    model = GPT(tied=False)
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "blocks" in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "blocks" in n)]
    one, two = Muon(inner, 0.005), torch.optim.AdamW(rest, 3e-3)
    guard = run.guard(model, [one, two])
    for _ in run.steps():
        batch = run.data(guard, tokens())
        for o in (one, two):
            o.zero_grad()
        run.see(guard, model(*batch)["loss"]).backward()
        for o in (one, two):
            o.step()


def groups_added(run: Run) -> None:
    """Layers thawed one by one: groups come, then one is taken away again."""
    model = mlp().requires_grad_(False)
    model[4].requires_grad_(True)
    o = torch.optim.AdamW(model[4].parameters(), 3e-3)
    guard = run.guard(model, o)
    for step in run.steps():
        if step in (15, 30):
            layer = model[2] if step == 15 else model[0]
            layer.requires_grad_(True)
            o.add_param_group({"params": list(layer.parameters()), "lr": 1e-3})
        if step == 60:
            gone = o.param_groups.pop()
            for p in gone["params"]:
                p.requires_grad_(False)
                p.grad = None
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()


def many_backwards(run: Run) -> None:
    """Two losses, two backward passes, one step; neither is shown to the guard."""
    model = mlp()
    o = _adamw(model)
    guard = run.guard(model, o)
    for _ in run.steps():
        x, y = run.data(guard, labelled(12))
        o.zero_grad()
        out = model(x)
        run.see(None, F.cross_entropy(out, y)).backward(retain_graph=True)
        (0.1 * out.square().mean()).backward()
        o.step()


def several_passes(run: Run) -> None:
    """The model sees each batch twice, and is evaluated every tenth step; BatchNorm."""
    model = _batchnorm()
    o = _sgd(model)

    def loss(m: nn.Module, b: Any) -> Tensor:
        return classify(m, b) + F.mse_loss(m(b[0] + 0.1), m(b[0] - 0.1))

    guard = run.guard(model, o, loss)
    for step in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, loss(model, batch)).backward()
        o.step()
        if step % 10 == 0:
            model.eval()
            with torch.no_grad():
                model(rand(64, 12))
            model.train()


def swapped(run: Run) -> None:
    """The average of the weights is put in for evaluation, and the weights back after it."""
    model = _batchnorm()
    o = _sgd(model)
    average = copy.deepcopy(model.state_dict())
    guard = run.guard(model, o, classify)
    for step in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()
        now = model.state_dict()
        average = {k: v.lerp(now[k], 0.05) if v.is_floating_point() else now[k].clone() for k, v in average.items()}
        if step % 10 == 9:
            kept = copy.deepcopy(now)
            model.load_state_dict(average)
            model.eval()
            with torch.no_grad():
                model(rand(64, 12))
            model.load_state_dict(kept)
            model.train()


def averaged(run: Run) -> None:
    """SWA: a schedule of its own, an average, BatchNorm's statistics made anew at the end."""
    model = _batchnorm()
    o = _sgd(model)
    guard = run.guard(model, o, classify)
    average, plan = torch.optim.swa_utils.AveragedModel(model), torch.optim.swa_utils.SWALR(o, 0.02)
    for step in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()
        if step > 20:
            average.update_parameters(model)
            plan.step()
    torch.optim.swa_utils.update_bn([rand(16, 12) for _ in range(4)], average)


def in_backward(run: Run) -> None:
    """Each weight has an optimizer of its own that steps during the backward pass."""
    model = mlp()
    each = {p: torch.optim.SGD([p], 0.05) for p in model.parameters()}
    guards = {p: run.guard(nn.ParameterList([p]), o) for p, o in each.items()}

    def stepped(p: Tensor) -> None:
        each[p].step()  # type: ignore[index]
        each[p].zero_grad()  # type: ignore[index]

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(stepped)
    first = next(iter(guards.values()))
    for _ in run.steps():
        batch = run.data(None, labelled(12))
        loss = classify(model, batch)
        loss = run.see(first, loss)
        for g in list(guards.values())[1:]:
            if g is not None:
                g.see(loss)
        loss.backward()


def at_times_nothing(run: Run) -> None:
    """Every seventh step has no gradients at all, every ninth no loss."""
    model = mlp()
    o = _adamw(model)
    guard = run.guard(model, o)
    for step in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        if step % 9 == 8:
            continue
        if step % 7 != 6 or step == 40:
            run.see(guard, classify(model, batch)).backward()
        o.step()


class Output(dict):
    """As Hugging Face's ModelOutput: a mapping with attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def outputs(run: Run) -> None:
    """The model returns its loss in an output, a tuple or not at all; nobody shows it."""

    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = mlp(), 0

        def forward(self, x: Tensor, y: Tensor) -> Any:
            loss = F.cross_entropy(self.net(x), y)
            self.calls += 1
            return [Output(loss=loss, logits=None), (loss, None), {"a": 0.5 * loss, "b": 0.5 * loss}, loss][
                self.calls % 4
            ]

    model = Changing()
    o = _adamw(model)
    guard = run.guard(model, o, lambda m, b: m(*b))
    for _ in run.steps():
        out = model(*run.data(guard, labelled(12)))
        loss = out[0] if isinstance(out, tuple) else out if isinstance(out, Tensor) else out.get("loss")
        loss = out["a"] + out["b"] if loss is None else loss
        o.zero_grad()
        run.see(None, loss).backward()
        o.step()


def loss_heavier(run: Run) -> None:
    """A term's weight is doubled every twenty steps, up to 64."""
    model = mlp()
    o = _adamw(model)
    guard = run.guard(model, o)
    for step in run.steps():
        x, y = run.data(guard, labelled(12))
        o.zero_grad()
        loss = F.cross_entropy(model(x), y)
        run.see(guard, loss + 2.0 ** min(step // 20, 6) * 0.1 * model(x).square().mean()).backward()
        o.step()


def fitted(run: Run) -> None:
    """A small set learned by heart: the loss falls to nothing, a hinge is exactly zero at times, then new data come."""
    model = mlp()
    o = _adamw(model)
    guard = run.guard(model, o)
    x, y = labelled(12, size=8)
    for step in run.steps():
        if step % 60 == 59:
            x, y = labelled(12, size=8)
        a, b = run.data(guard, (x, y))
        o.zero_grad()
        run.see(guard, F.multi_margin_loss(model(a), b)).backward()
        o.step()


def summed(run: Run) -> None:
    """Losses are sums of squares over large numbers: millions, then less."""
    model = mlp(12, 12)
    o = torch.optim.Adam(model.parameters(), 1e-2)
    guard = run.guard(model, o)
    for _ in run.steps():
        (x,) = run.data(guard, (rand(16, 12),))
        o.zero_grad()
        run.see(guard, (model(x) - 300 * x).square().sum()).backward()
        o.step()


def reinforce(run: Run) -> None:
    """One episode a step: a loss of either sign and any size."""
    model = mlp()
    o = torch.optim.Adam(model.parameters(), 3e-3)
    guard = run.guard(model, o)
    for _ in run.steps():
        (x,) = run.data(guard, (rand(16, 12),))
        logits = model(x)
        spread = torch.distributions.Categorical(logits=logits, validate_args=False)
        action = (logits - (-torch.rand_like(logits).log()).log()).argmax(1)
        returned = ((action == x[:, :4].argmax(1)).float() - 0.25) * (10 * torch.rand(())) + torch.randn(())
        o.zero_grad()
        run.see(guard, -(spread.log_prob(action) * returned).sum()).backward()
        o.step()


MECHANICS: dict[str, Any] = SIMPLE | {
    f.__name__: f
    for f in (
        *(lbfgs, sam, sam_by_hand, closure_adam, recomputed, compiled, autocast_bf16, scaled, scaled_unseen, sparse),
        *(muon_and_adamw, groups_added, many_backwards, several_passes, swapped, averaged, in_backward),
        *(at_times_nothing, outputs, loss_heavier, fitted, summed, reinforce),
    )
}
