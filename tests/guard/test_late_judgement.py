"""What a guard that reads late refuses, and why, beside one that reads at once: random faults, and kinds of them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.guard.outside_changes import Witness
from maskrcnn_coco.replay.state import digest

Losses = dict[str, Tensor]
RATES = {"sgd": 0.05, "nesterov": 0.02, "adamw": 0.01}


def optimizer_of(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=RATES[kind], fused=True)
    return torch.optim.SGD(model.parameters(), lr=RATES[kind], momentum=0.9, nesterov=kind == "nesterov", fused=True)


def net(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.ReLU(), nn.Linear(16, 3))


def data(seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] > 0).long()


@dataclass
class Played:
    steps: dict[int, tuple[bool, str | None]] = field(default_factory=dict)
    state: str = ""
    alarm: Any = None
    """After the last step, before what is under way is waited for."""
    guard: Any = None


def play(
    deferred: bool,
    *,
    kind: str = "sgd",
    steps: int = 24,
    clip: float | None = 10.0,
    scaled: bool = False,
    norm: bool = True,
    before: Callable[[int, nn.Sequential, torch.optim.Optimizer], None] = lambda *_: None,
    losses: Callable[[int, Losses, Tensor], Losses] = lambda _i, terms, _out: terms,
    batch: Callable[[int, Tensor], Tensor] = lambda _i, x: x,
) -> Played:
    model = net(norm)
    optimizer = optimizer_of(kind, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=5) if scaled else None
    guard = Guard(model, optimizer, scaler=scaler, max_grad_norm=clip, deferred=deferred, say=False)
    found = Played(guard=guard)

    def take(records: list[Any]) -> None:
        found.steps.update((r.step, (r.applied, r.symptom)) for r in records)

    for i in range(steps):
        before(i, model, optimizer)

        def forward(b: tuple[Tensor, Tensor], i: int = i) -> Losses:
            out = model(b[0])
            loss = F.cross_entropy(out, b[1])
            return losses(i, {"a": loss, "b": 0.1 * loss}, out)

        x, y = data(i)
        guard.step(forward, (batch(i, x), y))
        take(guard.completed)
    found.alarm = guard.alarm
    guard.flush()
    take(guard.completed if deferred else [])
    found.state = digest(model, optimizer, scaler)
    return found


def both(**how: Any) -> tuple[Played, Played]:
    return play(False, **how), play(True, **how)


def same(now: Played, late: Played) -> None:
    """Equal to the first divergence, which a late guard names, a step later perhaps (of unclipped gradients that leap
    it has bounds alone), and cannot undo: its caller goes back."""
    for step in sorted(now.steps):
        if now.steps[step][1] == "diverged":
            assert "diverged" in {late.steps[s][1] for s in (step, min(step + 1, max(late.steps)))}
            return
        assert now.steps[step] == late.steps[step], (step, now.steps[step], late.steps[step])
    assert now.state == late.state


def put(tensor: Tensor, value: float) -> None:
    with torch.no_grad():
        tensor.view(-1)[0] = value


def moment_of(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> Tensor:
    state = optimizer.state[model[3].weight]
    return state["momentum_buffer"] if "momentum_buffer" in state else state["exp_avg"]


IN_STATE: dict[str, Callable[[nn.Sequential, torch.optim.Optimizer, float], None]] = {
    "weight NaN": lambda m, _o, _a: put(m[0].weight, math.nan),
    "mean NaN": lambda m, _o, _a: put(m[1].running_mean, math.nan),
    "variance below zero": lambda m, _o, a: put(m[1].running_var, -a),
    "moment NaN": lambda m, o, _a: put(moment_of(m, o), math.nan),
    "rate NaN": lambda _m, o, _a: o.param_groups[0].update(lr=math.nan),
    "rate": lambda _m, o, a: o.param_groups[0].update(lr=a),
}
IN_LOSS: dict[str, Callable[[Losses, Tensor, float], Losses]] = {
    "loss NaN": lambda t, _o, _a: {k: v * math.nan for k, v in t.items()},
    "loss inf": lambda t, _o, _a: {**t, "b": t["b"] * math.inf},
    "loss huge": lambda t, _o, a: {**t, "a": t["a"] * a},
    "NaN without a graph": lambda t, _o, _a: {**t, "c": torch.tensor(math.nan)},
    "gradient NaN": lambda t, o, _a: (o.register_hook(lambda g: g * math.nan), t)[1],
    "gradient inf": lambda t, o, _a: (o.register_hook(lambda g: g * math.inf), t)[1],
    "gradient huge": lambda t, o, a: (o.register_hook(lambda g: g * a), t)[1],
}
IN_DATA: dict[str, Callable[[Tensor, float], Tensor]] = {
    "input NaN": lambda x, _a: torch.where(x == x[0, 0], math.nan, x),
    "input huge": lambda x, a: x * a * 1e3,
}


@pytest.mark.parametrize("seed", range(60))
def test_random_faults_are_judged_alike(seed: int):
    rng = random.Random(seed)
    kinds = [*IN_STATE, *IN_LOSS, *IN_DATA]
    # Apart from each other: what is wrong with the state by then is looked at when a step's numbers have come.
    plan = {at: (rng.choice(kinds), 10 ** rng.uniform(1, 8)) for at in rng.sample(range(3, 20, 4), 2)}

    def before(i: int, model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["lr"] = RATES[kind]
        if i in plan and plan[i][0] in IN_STATE:
            IN_STATE[plan[i][0]](model, optimizer, plan[i][1])

    def losses(i: int, terms: Losses, out: Tensor) -> Losses:
        return IN_LOSS[plan[i][0]](terms, out, plan[i][1]) if i in plan and plan[i][0] in IN_LOSS else terms

    def batch(i: int, x: Tensor) -> Tensor:
        return IN_DATA[plan[i][0]](x, plan[i][1]) if i in plan and plan[i][0] in IN_DATA else x

    kind = rng.choice(list(RATES))
    how = {"kind": kind, "clip": rng.choice([None, 1.0, 10.0]), "scaled": rng.random() < 0.3}
    same(*both(before=before, losses=losses, batch=batch, **how))


@pytest.mark.parametrize("kind", RATES)
@pytest.mark.parametrize("what", ["input huge", "variance below zero"])
def test_statistics_that_a_step_ruins_are_refused_on_the_device(kind: str, what: str):
    def before(i: int, model: nn.Sequential, _o: torch.optim.Optimizer) -> None:
        if i == 9 and what == "variance below zero":
            put(model[1].running_var, -50.0)

    now, late = both(kind=kind, before=before, batch=lambda i, x: x * 1e6 if (i, what) == (9, "input huge") else x)
    assert late.steps[9] == (False, "buffer_nonfinite")
    same(now, late)


def test_statistics_of_raw_features_are_taken_as_they_come():
    now, late = both(batch=lambda _i, x: x * 3e4 + 1e5)
    assert all(applied for applied, _ in late.steps.values())
    same(now, late)


@pytest.mark.parametrize("kind", RATES)
def test_a_figure_beside_the_losses_that_is_always_nan_stops_no_training(kind: str):
    """A metric in the dict of losses, which no gradient knows of: every step was skipped, and nobody was told."""
    now, late = both(kind=kind, losses=lambda _i, t, _o: {**t, "accuracy": torch.tensor(math.nan)})
    assert all(applied for applied, _ in late.steps.values())
    same(now, late)


def test_a_mean_over_nothing_in_every_step_costs_the_first_ones_alone():
    late = play(True, losses=lambda _i, t, out: {**t, "c": out[:0].mean()})
    assert [step for step, (applied, _) in late.steps.items() if not applied] in ([0], [0, 1], [0, 1, 2])
    assert all(symptom is None for _, symptom in late.steps.values())
    assert late.guard.doubted == 0


def test_a_nan_that_is_added_to_a_loss_is_a_fault_once_it_is_looked_at():
    late = play(True, losses=lambda i, t, _o: {**t, "a": t["a"] + (math.nan if i in (8, 9, 10, 11, 12) else 0.0)})
    assert [s for s in (8, 9, 10, 11, 12) if late.steps[s][0]] == []
    assert late.steps[12] == (False, "loss_nonfinite")


@pytest.mark.parametrize("detach", [True, False])
def test_losses_without_a_gradient_are_a_fault_for_both(detach: bool):
    def before(i: int, model: nn.Sequential, _o: torch.optim.Optimizer) -> None:
        if not detach and i == 6:
            model.requires_grad_(False)

    def losses(i: int, terms: Losses, _out: Tensor) -> Losses:
        return {k: v.detach() for k, v in terms.items()} if detach and i >= 6 else terms

    now, late = both(before=before, losses=losses, steps=9)
    assert late.steps[8] == (False, "crash")
    assert {s: v[1] for s, v in now.steps.items()} == {s: v[1] for s, v in late.steps.items()}


def test_of_two_alarms_that_arrive_together_the_first_counts():
    def losses(i: int, terms: Losses, _out: Tensor) -> Losses:
        if i == 6:
            raise KeyError("a crash is known at once, the numbers of the step before it arrive with it")
        return {k: v * math.inf if i == 5 else v for k, v in terms.items()}

    late = play(True, losses=losses, steps=7)
    assert (late.alarm.step, late.alarm.symptom) == (5, "loss_nonfinite")
    assert late.steps[6] == (False, "crash")


@pytest.mark.parametrize("deferred", [False, True])
def test_a_run_that_throws_its_weights_in_its_first_steps_is_an_alarm(deferred: bool):
    def before(_i: int, _m: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["lr"] = 3.0

    found = play(deferred, kind="adamw", before=before, norm=False)
    assert "diverged" in {symptom for _, symptom in found.steps.values()}


@pytest.mark.parametrize("deferred", [False, True])
def test_a_model_that_is_nan_as_built_is_named_at_the_first_step(deferred: bool):
    def before(i: int, model: nn.Sequential, _o: torch.optim.Optimizer) -> None:
        if i == 0:
            put(model[3].weight, math.nan)

    assert play(deferred, before=before, steps=2).steps[0] == (False, "param_nonfinite")


def test_a_look_at_tensors_of_which_only_marks_were_noted():
    witness, tensors = Witness(), [torch.zeros(3), torch.ones(2)]
    witness.note_marks(tensors)
    witness.note(tensors)
    assert not witness.changed(tensors)
    tensors[1].data[0] = 5.0
    assert witness.changed(tensors) and witness.which(tensors) == [1]
