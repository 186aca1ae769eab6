"""Cause, culprit, proof and recovery in anybody's training: models that are no detectors, loops that are not ours."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nanbench.tiny import sample, tiny_detector
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_coco import Guard, attach
from maskrcnn_coco.anywhere.told import told
from maskrcnn_coco.errors import ConfigError, DataError, GuardStop, GuardWarning
from maskrcnn_coco.records import Incident
from maskrcnn_coco.replay.state import digest
from maskrcnn_coco.system.backends import use_fused_attention

NAN = math.nan
AT = 20


class Net(nn.Module):
    """Two parts with a parameter group each; its loss is made outside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class OwnLoss(Net):
    """As a Hugging Face model: the loss comes with the output."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        out = super().forward(x)
        return {"loss": F.cross_entropy(out, labels), "logits": out}


class Idle(OwnLoss):
    """The same, with a bias that the loss does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.body.register_parameter("idle", nn.Parameter(torch.zeros(1)))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        return super().forward(x + 0.0 * self.body.idle, labels)


class HalfNet(OwnLoss):
    """Weights in half precision, the loss in single."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        return {"loss": F.cross_entropy(self.head(self.body(x)).float(), labels)}


def data(seed: int, n: int = 16) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=g)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def ids(step: int) -> list[int]:
    return list(range(16 * step, 16 * step + 16))


def classify(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def regress(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0])[:, 0] - batch[0].sum(1)).square().mean()


def optimizer_of(model: Any, body: float = 1e-2, head: float = 1e-2) -> torch.optim.Optimizer:
    groups = [{"params": model.body.parameters(), "lr": body}, {"params": model.head.parameters(), "lr": head}]
    return torch.optim.SGD(groups, momentum=0.9)


Change = Callable[[int, Any], Any]
Before = Callable[[int, Any, torch.optim.Optimizer], None]


def at(step: int, change: Callable[[Any], None]) -> Change:
    def changed(i: int, batch: Any) -> Any:
        if i == step:
            change(batch)
        return batch

    return changed


def put(where: str, value: float) -> Before:
    def before(i: int, model: Any, optimizer: torch.optim.Optimizer) -> None:
        if i != AT:
            return
        with torch.no_grad():
            if where == "momentum":
                optimizer.state[model.head.weight]["momentum_buffer"][0, 0] = value
            elif where == "weight":
                model.head.weight[1, 1] = value
            else:
                model.head.weight.mul_(value)

    return before


def measured(model: nn.Module, batch: Any) -> Tensor:
    """Numbers to predict beside the classes, as a third tensor."""
    return F.cross_entropy(model(batch[0]), batch[1]) + (model(batch[0])[:, 0] - batch[2]).square().mean()


WEIGHTS = 1 / torch.tensor([1.0, 1.0, 0.0])


def weighed(model: nn.Module, batch: Any) -> Tensor:
    """Weights of 1 / count, of a count that had no object of the last class."""
    return F.cross_entropy(model(batch[0]), batch[1], WEIGHTS)


def rare(i: int, batch: Any) -> Any:
    """The last class comes once."""
    batch[1].clamp_(max=1)
    if i == AT:
        batch[1][3] = 2
    return batch


def with_numbers(value: float) -> Change:
    """A third tensor of the first one's sums; at step `AT` one of them is ``value``."""

    def change(i: int, batch: Any) -> Any:
        numbers = batch[0].sum(1)
        numbers[5] = value if i == AT else numbers[5]
        return *batch, numbers

    return change


def once_bad(model: nn.Module, batch: Any) -> Tensor:
    loss = classify(model, batch)
    if once_bad.armed:  # type: ignore[attr-defined]
        once_bad.armed = False  # type: ignore[attr-defined]
        return loss * NAN
    return loss


def arm(i: int, _model: Any, _optimizer: Any) -> None:
    once_bad.armed = i == AT  # type: ignore[attr-defined]


def rooted(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """The root of nothing, on batches where one class is frequent."""
    out = model(batch[0])
    some = bool((batch[1] == 2).sum() > 7)
    spread = (out[:, 0] - out[:, 0].detach()).square().sum().sqrt() if some else out.sum() * 0
    return {"main": F.cross_entropy(out, batch[1]), "spread": spread}


def half(model: Any, batch: Any) -> Tensor:
    """From step `AT` on the first layer's values pass what half precision holds, and are divided right after it."""
    gain = 3e4 if half.hot else 1.0  # type: ignore[attr-defined]
    with torch.autocast("cpu", dtype=torch.float16):
        hidden = model.body[0](batch[0] * gain) / gain
        out = model.head(model.body[1:](hidden))
    return F.cross_entropy(out.float(), batch[1])


def heat(i: int, _model: Any, _optimizer: Any) -> None:
    half.hot = i >= AT  # type: ignore[attr-defined]


class Case:
    def __init__(
        self,
        cause: str,
        *,
        change: Change | None = None,
        before: Before | None = None,
        forward: Callable[[nn.Module, Any], Any] = classify,
        samples: list[int] | None = None,
        component: str | None = None,
        action: str = "skip",
        rates: tuple[float, float] = (1e-2, 1e-2),
        word: str = "",
    ) -> None:
        self.cause, self.change, self.before, self.forward = cause, change, before, forward
        self.samples, self.component, self.action, self.rates, self.word = samples, component, action, rates, word


def spoil(position: int, value: float) -> Change:
    return at(AT, lambda b: b[0][position].__setitem__(2, value))


CASES = {
    "a NaN": Case("DATA_PIXEL", change=spoil(5, NAN), samples=[325], action="quarantine", word="sample 325"),
    "a value out of scale": Case(
        "DATA_PIXEL", change=at(AT, lambda b: b[0][5].mul_(1e8)), samples=[325], action="quarantine"
    ),
    "a label out of range": Case(
        "DATA_LABEL", change=at(AT, lambda b: b[1].__setitem__(3, 7)), samples=[323], action="quarantine"
    ),
    "a target that is no number": Case(
        "DATA_LABEL", change=with_numbers(NAN), forward=measured, samples=[325], action="quarantine", word="sample 325"
    ),
    "a target without end": Case(
        "DATA_LABEL", change=with_numbers(-math.inf), forward=measured, samples=[325], action="quarantine"
    ),
    "a target out of scale": Case(
        "DATA_LABEL", change=with_numbers(1e9), forward=measured, samples=[325], action="quarantine"
    ),
    "a target that stands for none": Case(
        "DATA_LABEL", change=with_numbers(-99999.0), forward=measured, samples=[325], action="quarantine"
    ),
    "a target whose square overflows": Case(
        "DATA_LABEL", change=with_numbers(1e20), forward=measured, samples=[325], action="quarantine"
    ),
    "a weight of a class that nobody counted": Case(
        "LOSS_MATH", change=rare, forward=weighed, samples=[323], action="quarantine", word="test_diagnosis.py"
    ),
    "the head's rate": Case(
        "LR_TOO_HIGH",
        forward=regress,
        component="head",
        action="lower_lr",
        rates=(1e-3, 5.0),
        word='optimizer.param_groups[1]["lr"]',
    ),
    "the body's rate": Case(
        "LR_TOO_HIGH",
        forward=regress,
        component="body",
        action="lower_lr",
        rates=(5.0, 1e-3),
        word='optimizer.param_groups[0]["lr"]',
    ),
    "momentum": Case("POISONED_STATE", before=put("momentum", NAN), component="head", action="rollback"),
    "a flipped bit": Case("TRANSIENT", before=put("weight", 1e30), component="head", action="rollback"),
    "a glitch": Case("TRANSIENT", before=arm, forward=once_bad, action="rollback"),
    "half precision": Case(
        "FP16_OVERFLOW", before=heat, forward=half, action="precision", word="run body.0 in float32"
    ),
    "a root of zero": Case("LOSS_MATH", forward=rooted, word="test_diagnosis.py"),
}


def run(case: Case, folder: Path, steps: int = 40) -> tuple[Any, int, list[str]]:
    model = Net()
    optimizer = optimizer_of(model, *case.rates)
    guard = Guard(
        model, optimizer, forward=case.forward, diagnose=True, max_grad_norm=None, logdir=folder, measure_every=1
    )
    applied = 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", GuardWarning)
        for i in range(steps):
            if case.before is not None:
                case.before(i, model, optimizer)
            batch = data(i) if case.change is None else case.change(i, data(i))
            applied += guard.step(batch, ids(i)).applied
    return guard, applied, [str(w.message) for w in said if w.category is GuardWarning]


@pytest.mark.parametrize("name", CASES)
def test_cause_culprit_action_and_words(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    guard, applied, said = run(case, tmp_path)
    incident: Incident = guard.incidents[0]
    assert incident.cause == case.cause, incident.evidence
    assert incident.confidence >= 0.9
    assert incident.action.kind == case.action
    if case.samples is not None:
        assert incident.culprit.image_ids == case.samples
    if case.component is not None:
        assert incident.culprit.component == case.component
    assert case.word in incident.fix
    assert "--" not in incident.fix and "check --data" not in json.dumps(incident.fix)
    assert applied >= 38
    assert all(bool(p.isfinite().all()) for p in guard.model.parameters())
    assert guard.finding is not None
    assert said and case.cause in said[0]
    written = json.loads((tmp_path / "incidents" / "0001.json").read_text())
    assert written["cause"] == case.cause and written["evidence"]


def test_a_sample_left_out_never_comes_back() -> None:
    model = Net()
    guard = Guard(model, optimizer_of(model), forward=classify, diagnose=True, logdir=None)
    x, y = data(0)
    bad = x.clone()
    bad[5, 2] = NAN
    for i in range(30):
        batch, names = ((bad, y), list(range(16))) if i >= 12 and i % 3 == 0 else (data(i), ids(i + 1))
        guard.step(batch, names)
    assert [r.applied for r in guard.responder.history].count(False) == 1
    assert guard.responder.left_out == {5}
    assert len(guard.responder.history[-3].image_ids) == 15


class Inverse(Net):
    """A term of 1 / x beside the class's."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out = super().forward(x)
        return F.cross_entropy(out, y) + 1e-4 * (out[:, 0] / x[:, 7]).mean()


def test_parts_of_a_batch_are_not_guilty_by_a_norm_that_the_loop_clips() -> None:
    """At step 1 the only norm that is known of healthy steps is the clipped one."""
    model = Inverse()
    optimizer = optimizer_of(model)
    guard: Any = attach(model, optimizer, diagnose=True, logdir=None)
    for i in range(3):
        x, y = data(i)
        x[:, 7] = 0.0 if i == 1 else 1.0
        x[:5, 7] = x[6:, 7] = 1.0
        optimizer.zero_grad()
        model(x, y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.02)
        optimizer.step()
    assert [(n.cause, n.culprit.image_ids) for n in guard.incidents] == [("LOSS_MATH", [21])]


class UnitLength(nn.Module):
    """Divides by the length, which may be 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().sum(1, keepdim=True))


@pytest.mark.parametrize("all_of_it", [False, True])
def test_a_module_that_divides_by_nothing_is_the_maths_of_the_model(all_of_it: bool) -> None:
    """For one sample on sound weights, or for every batch from the first step on."""
    model = Net()
    model.body = nn.Sequential(UnitLength(), *model.body)
    guard = Guard(model, optimizer_of(model), forward=classify, diagnose=True, logdir=None)
    for i in range(6):
        x, y = data(i)
        x[5] = 0.0 if i == 4 else x[5]
        with contextlib.suppress(GuardStop):
            guard.step((x * (not all_of_it), y), ids(i))
    assert {(n.cause, n.culprit.module) for n in guard.incidents} == {("LOSS_MATH", "body.0")}
    assert guard.incidents[0].culprit.image_ids == ([] if all_of_it else [ids(4)[5]])


def test_what_overflows_before_any_module_is_the_input_s() -> None:
    class Scaled(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 40.0)

    model = Scaled()
    guard = Guard(model, optimizer_of(model), forward=classify, diagnose=True, logdir=None)
    for i in range(12):
        x, y = data(i)
        x[5] *= 1e38 if i == 10 else 1.0
        guard.step((x, y), ids(i))
    assert [(n.cause, n.culprit.image_ids) for n in guard.incidents] == [("DATA_PIXEL", [ids(10)[5]])]


def test_a_second_sample_out_of_scale_is_not_measured_by_the_first() -> None:
    model = Net()
    guard = Guard(model, optimizer_of(model, 1e-3, 1e-3), forward=regress, diagnose=True, logdir=None)
    for i in range(30):
        x, y = data(i)
        if i in (15, 22):
            x[i % 7] *= 1e20
        guard.step((x, y), ids(i))
    assert [(n.cause, n.culprit.image_ids) for n in guard.incidents] == [
        ("DATA_PIXEL", [ids(15)[1]]),
        ("DATA_PIXEL", [ids(22)[1]]),
    ]


def test_an_attached_guard_diagnoses_a_model_that_returns_its_loss() -> None:
    model = OwnLoss()
    optimizer = optimizer_of(model)
    guard: Any = attach(model, optimizer, diagnose=True, logdir=None)
    for i in range(30):
        x, y = data(i)
        if i == AT:
            x[5, 2] = NAN
        optimizer.zero_grad()
        model(x, labels=y)["loss"].backward()
        optimizer.step()
    assert [(n.cause, n.culprit.image_ids, n.action.kind) for n in guard.incidents] == [("DATA_PIXEL", [325], "skip")]
    assert [r.applied for r in guard.records].count(False) == 1
    before = digest(model, optimizer)
    step = guard.rollback()
    assert step == AT and digest(model, optimizer) != before


def test_an_attached_guard_diagnoses_a_loss_of_the_loop_s_own_and_lowers_one_rate() -> None:
    model = Net()
    optimizer = optimizer_of(model, 1e-3, 5.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 1)
    guard: Any = attach(model, optimizer, diagnose=True, forward=regress, logdir=None)
    for i in range(40):
        batch = guard.batch(data(i), ids(i))
        optimizer.zero_grad()
        guard.see(regress(model, batch)).backward()
        optimizer.step()
        schedule.step()
    assert guard.incidents[0].cause == "LR_TOO_HIGH" and guard.incidents[0].culprit.component == "head"
    assert optimizer.param_groups[1]["lr"] == 5.0, "the schedule's rate is the schedule's"
    assert guard.records[-1].lr["head"] < 0.5, "what was used is less"
    assert guard.records[-1].loss < 20
    assert len(guard.incidents) == 1


def test_a_step_that_cannot_be_taken_again_is_said_to_be_so() -> None:
    """The loss is made outside, and nobody said how."""
    model = Net()
    optimizer = optimizer_of(model)
    guard: Any = attach(model, optimizer, diagnose=True, logdir=None)
    for i in range(8):
        optimizer.zero_grad()
        loss = guard.see(classify(model, data(i)) * (NAN if i == 5 else 1.0))
        loss.backward()
        optimizer.step()
    assert [r.applied for r in guard.records] == [i != 5 for i in range(8)]
    assert guard.incidents[0].cause == "UNKNOWN" and guard.incidents[0].confidence < 0.9


class Pooled(nn.Module):
    """Norms that refuse a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)).relu())


class Linked(nn.Module):
    """Rows point at each other: no part of a batch can be taken alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 12), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).relu()
        return self.head(h + h[torch.arange(16).flip(0)])


class Waved(nn.Module):
    """Complex weights, and a loss that is far below its start when the fault comes."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.zeros(4, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=6)


@pytest.mark.parametrize("kind", [Pooled, Linked, Waved])
def test_a_huge_sample_is_named(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind()
    optimizer = torch.optim.SGD(model.parameters(), 0.3 if kind is Waved else 0.05, momentum=0.9)

    def loss_of(m: nn.Module, b: Any) -> Tensor:
        return (m(b[0]) - (b[0] if kind is Waved else b[0].sum(1, keepdim=True))).square().mean()

    guard: Any = attach(model, optimizer, diagnose=True, forward=loss_of, logdir=None, say=False)
    for step in range(41):
        x = torch.randn(16, 6)
        if step == 40:
            x[5] *= 1e5
        (shown,) = guard.batch((x,), ids(step))
        optimizer.zero_grad()
        guard.see(loss_of(model, (shown,))).backward()
        optimizer.step()
    assert [i.step for i in guard.incidents] == [40]
    assert guard.finding.culprit.image_ids == [ids(40)[5]] and guard.finding.cause == "DATA_PIXEL"
    assert kind is not Linked or guard.finding.confidence < 0.9, "by its scale alone: no replay can prove it"


def test_a_broken_complex_state_is_found_and_put_back() -> None:
    torch.manual_seed(0)
    model = Waved()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    guard: Any = attach(model, optimizer, diagnose=True, forward=regress_itself, logdir=None, say=False)
    for step in range(25):
        if step == 20:
            optimizer.state[model.filter]["exp_avg"][1] = complex(math.nan, 0.0)
        guard.batch((torch.randn(8, 6),))
        optimizer.zero_grad()
        guard.see(regress_itself(model, (torch.randn(8, 6),))).backward()
        optimizer.step()
    assert [(i.step, i.cause) for i in guard.incidents] == [(20, "POISONED_STATE")] and not guard.refused


def regress_itself(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[0]).square().mean()


def test_groups_that_come_later_are_diagnosed_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[2].parameters(), 1e-3)
    guard: Any = attach(model, optimizer, diagnose=True, forward=regress_itself, logdir=None, say=False)
    for step in range(40):
        if step == 12:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 1e-3})
        x = torch.randn(16, 6)
        if step == 30:
            x[3, 2] = math.nan
        if step == 35:
            optimizer.state[model[0].weight]["exp_avg_sq"][0, 0] = math.nan
        guard.batch((x,), ids(step))
        optimizer.zero_grad()
        guard.see(regress_itself(model, (x,))).backward()
        optimizer.step()
    found = [(i.step, i.cause, i.culprit.image_ids) for i in guard.incidents]
    assert found == [(30, "DATA_PIXEL", [ids(30)[3]]), (35, "POISONED_STATE", [])]
    assert len(guard.instruments.groups) == 2 and all(bool(p.isfinite().all()) for p in model.parameters())


def test_healthy_trainings_are_the_same_with_and_without() -> None:
    digests = []
    for diagnose in (False, True):
        model = Net()
        optimizer = optimizer_of(model)
        guard = Guard(model, optimizer, forward=classify, diagnose=diagnose, logdir=None)
        torch.manual_seed(1)  # dropout draws: copies and kept batches must draw nothing
        for i in range(30):
            assert guard.step(data(i), ids(i)).applied
        assert not guard.incidents
        digests.append(digest(model, optimizer))
    assert digests[0] == digests[1]


def test_what_it_needs_is_said() -> None:
    model = Net()
    with pytest.raises(ConfigError, match=r"share no parameters(.|\n)*got: 6 parameters in more than one"):
        attach(model, [optimizer_of(model), optimizer_of(model)], diagnose=True)
    with pytest.raises(ConfigError, match="diagnose=True"):
        Guard(model, optimizer_of(model)).rollback()
    with pytest.raises(TypeError, match=r"got tuple for forward: .* or Guard\(…, forward=…\) and step\(batch, ids\)"):
        Guard(model, optimizer_of(model)).step((torch.zeros(2, 8), torch.zeros(2)), [0, 1])


def test_importing_it_brings_neither_torchvision_nor_data_code() -> None:
    code = (
        "import sys; from maskrcnn_coco import Guard, attach\n"
        "import maskrcnn_coco.anywhere.diagnosing_guard, maskrcnn_coco.diagnosis.experiments\n"
        "import maskrcnn_coco.replay.replay\n"
        "bad = [m for m in sys.modules if m.split('.')[0] == 'torchvision' or m.startswith(('maskrcnn_coco.data',"
        " 'maskrcnn_coco.model', 'maskrcnn_coco.config', 'maskrcnn_coco.training'))]\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("divided", ["nowhere", "by the loss", "by the loop"])
def test_gradients_that_were_added_and_not_averaged(divided: str) -> None:
    """Only where nobody divides is the sum to blame; a loop that divides somewhere has a rate that is too high."""
    model, k = Net(), 4
    optimizer = torch.optim.SGD(model.parameters(), 0.02 if divided == "nowhere" else 0.08, momentum=0.9)
    share = k if divided == "by the loss" else 1
    guard: Any = attach(
        model, optimizer, diagnose=True, logdir=None, say=False, forward=lambda m, b: regress(m, b) / share
    )
    for i in range(40):
        if i == AT:
            optimizer.param_groups[0]["lr"] *= 4 if divided == "nowhere" else 6
        optimizer.zero_grad()
        for j in range(k):
            loss = guard.see(regress(model, guard.batch(data(1000 * i + j))) / share)
            (loss / (k if divided == "by the loop" else 1)).backward()
        optimizer.step()
        if guard.incidents:
            break
    incident = guard.incidents[0]
    assert incident.cause == ("ACCUMULATION" if divided == "nowhere" else "LR_TOO_HIGH")
    assert incident.confidence >= 0.9
    assert incident.action.kind == "lower_lr"
    if divided == "nowhere":
        assert incident.action.detail["factor"] == 0.25
        assert "divide the loss of each micro-batch" in incident.fix


@pytest.mark.parametrize("count", [1, 2])
def test_gradients_that_are_left_over_from_a_refused_step(count: int) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.003, momentum=0.9)
    guard: Any = attach(model, optimizer, diagnose=True, logdir=None, say=False, forward=regress)
    for i in range(14):
        if not guard.refused:
            optimizer.zero_grad()  # as some do: only after a step that was taken
        for j in range(count):
            x, y = data(100 * i + j)
            if i == 12 and j == count - 1:
                x[2] = NAN
            guard.see(regress(model, guard.batch((x, y)))).backward()
        optimizer.step()
    assert [i.cause for i in guard.incidents] == ["DATA_PIXEL", "ACCUMULATION"]


def habitual(
    habit: str, *, steps: int = 40, batch: int = 16, lr: Callable[[int], float] = lambda step: 0.02, clip: float = 1.0
) -> Any:
    """An attached loop that clips by itself, with one bad habit; its guard, when it is over or stopped."""
    model = OwnLoss()
    optimizer = optimizer_of(model, 0.02, 0.02)
    guard = attach(model, optimizer, diagnose=True, logdir=None, say=False)
    with warnings.catch_warnings(), contextlib.suppress(GuardStop):
        warnings.simplefilter("ignore")
        for step in range(steps):
            x, y = data(step, batch)
            if habit == "an empty part":
                x = x * (step % 9 != 8)
            for group in optimizer.param_groups:
                group["lr"] = lr(step)
            if habit != "keeps":
                optimizer.zero_grad()
            model(x, labels=y)["loss"].backward()
            if habit == "an empty part":
                model.body[0].weight.grad.div_(model.body[0].weight.grad.norm())
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    return guard


def test_a_loop_that_clips_by_itself_is_replayed_as_it_clips():
    """Its recorded norms are cut off: an unclipped replay is another step, and was taken for a glitch."""
    guard = habitual("", lr=lambda step: 0.02 if step < 20 else 400.0, clip=0.5)
    assert guard.incidents and {i.cause for i in guard.incidents} == {"LR_TOO_HIGH"}
    assert guard.incidents[0].confidence >= 0.9
    assert max(r.grad_norm for r in guard.records) <= 0.5001


def test_gradients_that_are_never_cleared_are_named():
    guard = habitual("keeps", lr=lambda step: 0.5, clip=1e9)
    assert guard.incidents and guard.incidents[0].cause == "ACCUMULATION"
    assert "zero_grad" in guard.incidents[0].fix


def test_what_a_loop_does_to_gradients_is_not_replayed_and_no_glitch():
    """A division by a norm of 0: the loss is sound, the replay too, and it comes back with every such batch."""
    guard = habitual("an empty part")
    assert guard.incidents and {i.cause for i in guard.incidents} == {"UNKNOWN"}


def test_a_lowered_rate_counts_in_what_an_update_may_do():
    """The bound on an update is of the rate that will be taken, not of the one that the schedule asks for."""
    model = Net()
    optimizer = optimizer_of(model)
    guard = Guard(model, optimizer, forward=classify, diagnose=True, logdir=None, say=False)
    guard.step(data(0), ids(0))
    guard.instruments.lowered.factors = dict.fromkeys(("body", "head"), 1e-9)
    for group in optimizer.param_groups:
        group["lr"] = 1e7
    assert guard.step(data(1), ids(1)).applied
    guard.instruments.lowered.factors = {}
    assert not guard.step(data(2), ids(2)).applied


@pytest.mark.parametrize("over", [True, False])
def test_a_rate_comes_back_once_the_spike_of_the_schedule_is_over(over: bool):
    """What was too high is a rate, not the share of one: after the spike the schedule's own rate is the sound one."""
    spike = range(20, 24 if over else 36)
    guard = habitual("", steps=36, lr=lambda step: 400.0 if step in spike else 0.02, clip=0.5)
    assert guard.incidents and {i.cause for i in guard.incidents} == {"LR_TOO_HIGH"}
    assert guard.records[-1].lr["body"] == pytest.approx(0.02), "for as long as it lasts, what the rate was before"
    assert guard.optimizer.param_groups[0]["lr"] == (0.02 if over else 400.0), "the schedule's own is never touched"


def through(
    setting: str, value: float, steps: range, *, only: int | None = None, optimizer: Any = None, idle: bool = False
) -> Any:
    """An attached loop in which somebody sets one setting of the optimizer at these steps; its guard afterwards.

    ``idle``: a bias whose gradient is 0.
    """
    model = Idle() if idle else OwnLoss()
    optimizer = optimizer or torch.optim.SGD
    groups = [{"params": model.body.parameters(), "lr": 0.02}, {"params": model.head.parameters(), "lr": 0.02}]
    made = optimizer(groups, weight_decay=1e-4, **({"momentum": 0.9} if optimizer is torch.optim.SGD else {}))
    usual = made.param_groups[0][setting]
    guard = attach(model, made, diagnose=True, logdir=None, say=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(40):
            for i, group in enumerate(made.param_groups):
                group[setting] = value if step in steps and only in (None, i) else usual
            made.zero_grad()
            x, y = data(step, 16)
            model(x, labels=y)["loss"].backward()
            made.step()
    return guard


def learns(guard: Any) -> bool:
    """Whether the last losses are about those of a run in which nobody set anything."""
    last, usual = ([r.loss for r in list(g.records)[-8:]] for g in (guard, through("momentum", 0.9, range(0))))
    return sum(last) < 1.2 * sum(usual)


@pytest.mark.parametrize("value", [2.0, 3.0])
def test_a_momentum_that_forgets_nothing_is_what_is_lowered(value: float) -> None:
    """No rate is too high: with the momentum that everybody trains with the same steps hold."""
    guard = through("momentum", value, range(15, 40))
    (incident,) = guard.incidents
    assert incident.cause == "LR_TOO_HIGH" and incident.confidence >= 0.9
    assert incident.action.detail["momentum"] == 0.9 and incident.fix == "momentum=0.9 in the optimizer"
    assert "momentum 0.9: stays bounded" in f"{incident.evidence[0].test}: {incident.evidence[0].outcome}"
    assert not guard.instruments.lowered.factors
    assert guard.records[-1].lr["body"] == pytest.approx(0.02) and learns(guard)


@pytest.mark.parametrize("only", [None, 1])
def test_a_weight_decay_set_by_a_hook_is_kept_low_for_as_long_as_it_is_set(only: int | None) -> None:
    guard = through("weight_decay", 300.0, range(15, 40), only=only)
    (incident,) = guard.incidents
    assert incident.cause == "LR_TOO_HIGH" and incident.action.detail["weight_decay"] == 1e-4
    assert incident.culprit.component == ("head" if only else None)
    assert not guard.instruments.lowered.factors and learns(guard)


@pytest.mark.parametrize(("setting", "value"), [("momentum", 0.99), ("weight_decay", 0.5)])
def test_high_but_usual_settings_are_nobody_s_fault(setting: str, value: float) -> None:
    assert not through(setting, value, range(15, 40)).incidents


class Attends(nn.Module):
    """One block with fused attention, whose kernel is wrong where a batch carries a mark."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read, self.head = nn.Linear(8, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.read(x)[:, None].chunk(3, 2)
        seen = F.scaled_dot_product_attention(q, k, v)[:, 0]
        broken = torch.backends.cuda.flash_sdp_enabled() and bool((x[:, 7] > 50).any())
        return self.head(seen * NAN if broken else seen)


def test_a_fused_attention_kernel_is_named_and_turned_off() -> None:
    model = Attends()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    guard: Any = attach(model, optimizer, diagnose=True, forward=classify, logdir=None, say=False)
    refused = []
    try:
        for step in range(AT + 10):
            x, y = data(step)
            x[3, 7] = 60.0 if step >= AT else x[3, 7]
            batch = guard.batch((x, y), ids(step))
            optimizer.zero_grad()
            guard.see(classify(model, batch)).backward()
            optimizer.step()
            refused += [step] if guard.refused else []
        incident = guard.incidents[0]
        assert (incident.cause, incident.action.kind) == ("BACKEND", "precision") and incident.confidence >= 0.9
        assert "SDPBackend.MATH" in incident.fix and incident.action.detail["attention"] is False
        assert refused == [AT] and len(guard.incidents) == 1, "from then on by plain maths"
        assert not torch.backends.cuda.flash_sdp_enabled()
        saved = json.loads(json.dumps(guard.state_dict()))
        use_fused_attention(True)
        again: Any = attach(Attends(), torch.optim.AdamW(model.parameters()), diagnose=True, logdir=None, say=False)
        again.load_state_dict(saved)
        assert not torch.backends.cuda.flash_sdp_enabled(), "a run taken up from its checkpoint goes on without it"
    finally:
        use_fused_attention(True)


@pytest.mark.parametrize(("settings", "key"), [
    ({"alpha": 0.0, "centered": True}, "alpha"),
    ({"alpha": 0.0, "centered": True, "eps": 1e-7, "momentum": 0.5}, "alpha"),
])  # fmt: skip
def test_a_setting_with_which_an_optimizer_makes_nan_of_sound_gradients_is_named(settings: Any, key: str) -> None:
    """A variance of one value is 0, or below it by rounding: the root of that. No replay of a loss shows it."""
    model = Net()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, **settings)
    guard = Guard(model, optimizer, forward=classify, diagnose=True, logdir=None, say=False)
    with contextlib.suppress(GuardStop):
        for step in range(6):
            guard.step(data(step))
    incident = guard.incidents[0]
    assert incident.cause == "POISONED_STATE" and incident.confidence >= 0.9, incident.evidence
    assert incident.fix.startswith("correct the optimizer") and f"{key} is" in incident.fix


class Kernel:
    """A compiler whose code is wrong from some step on."""

    def __init__(self) -> None:
        self.wrong = False

    def __call__(self, graph: Any, _: Any) -> Callable[..., Any]:
        return lambda *args: tuple(o * NAN for o in graph.forward(*args)) if self.wrong else graph.forward(*args)


@pytest.mark.parametrize("own_loop", [False, True])
def test_a_compiled_module_whose_code_is_wrong_runs_as_plain_code_in_any_loop(own_loop: bool) -> None:
    """It was named, and every step from there on was refused: only `train` knew how to go without it."""
    model, kernel = Net(), Kernel()
    model.body.compile(backend=kernel, dynamic=False)
    optimizer = optimizer_of(model)
    guard: Any = (
        attach(model, optimizer, diagnose=True, forward=classify, logdir=None, say=False)
        if own_loop
        else Guard(model, optimizer, forward=classify, diagnose=True, logdir=None, say=False)
    )
    applied = []
    for step in range(AT + 10):
        kernel.wrong = step >= AT
        if own_loop:
            batch = guard.batch(data(step), ids(step))
            optimizer.zero_grad()
            guard.see(classify(model, batch)).backward()
            optimizer.step()
            applied.append(not guard.refused)
        else:
            applied.append(guard.step(data(step), ids(step)).applied)
    (incident,) = guard.incidents
    assert (incident.step, incident.cause, incident.action.kind) == (AT, "BACKEND", "precision")
    assert incident.culprit.module == "body" and [i for i, a in enumerate(applied) if not a] == [AT]
    assert "body runs as eager code" in told(incident)
    saved = json.loads(json.dumps(guard.state_dict()))
    assert saved["decisions"]["eager_modules"] == ["body"]


def test_what_was_decided_goes_into_a_checkpoint_of_the_training_s_own() -> None:
    """A rate that was lowered, a module in float32, a sample left out; an older state that comes back undoes none."""
    model = Net()
    guard = Guard(model, optimizer_of(model), forward=classify, diagnose=True, logdir=None, say=False)
    for step in range(3):
        guard.step(data(step), ids(step))
    responder: Any = guard.responder
    responder.put_in_force(
        {
            "fp32_modules": ["body.0"],
            "attention": True,
            "factors": {"head": 0.1},
            "limits": {"body": {"momentum": 0.9}},
            "held": {"head": 1e-3},
            "left_out": [7],
        }
    )
    guard.rollback()
    saved = json.loads(json.dumps(guard.state_dict()))
    other = Net()
    again = Guard(other, optimizer_of(other), forward=classify, diagnose=True, logdir=None, say=False)
    again.load_state_dict(saved)
    for each, net in ((guard, model), (again, other)):
        assert each.instruments.lowered.factors == {"head": 0.1} and each.responder.left_out == {7}  # type: ignore[union-attr]
        assert each.responder.decisions() == saved["decisions"]  # type: ignore[union-attr]
        assert net.body[0]._kept_fp32
    plain = Guard(Net(), optimizer_of(Net()), forward=classify, say=False)
    plain.load_state_dict(saved)
    assert "decisions" not in plain.state_dict()


@pytest.mark.parametrize("peak", [3e2, 3e4, 3e6])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_typing_error_in_the_peak_of_a_schedule_is_named_whatever_its_size(peak: float, clip: float) -> None:
    """From 0.01 up and back within eight steps: 0.1 or 0.0001 of it diverge as well, the rate it came from does not."""
    net = Net()
    optimizer = optimizer_of(net)
    guard = attach(net, optimizer, diagnose=True, forward=classify, logdir=None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(50):
            share = max(0.0, 1 - abs(step - 24) / 4)
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (peak / 1e-2) ** share
            batch = data(step)
            guard.batch(batch)
            optimizer.zero_grad()
            loss = guard.see(classify(net, batch))
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
    assert {i.cause for i in guard.incidents} == {"LR_TOO_HIGH"}
    first = guard.incidents[0]
    assert "look at what sets it" in first.fix and "times that of the steps before" in first.evidence[0].outcome
    assert not any("LR_TOO_LOW" in str(w.message) for w in said)
    assert loss.item() < 1.2


@pytest.mark.parametrize("times", [1e6, 1e9])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_rate_that_leaps_for_one_step_is_named_though_its_update_was_refused(times: float, accumulate: int) -> None:
    """A tenth or a ten-thousandth of it throws the weights away as well; nothing was wrong with the steps before."""
    net = Net()
    optimizer = optimizer_of(net)
    guard = Guard(net, optimizer, forward=classify, diagnose=True, logdir=None, say=False, max_grad_norm=None)
    for step in range(30):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (times if step == AT else 1.0)
        parts = [data(accumulate * step + i) for i in range(accumulate)]
        guard.step(parts if accumulate > 1 else parts[0], micro_batches=accumulate > 1)
    (incident,) = guard.incidents
    assert (incident.step, incident.cause, incident.action.kind) == (AT, "LR_TOO_HIGH", "lower_lr")
    assert incident.confidence >= 0.9 and "times that of the steps before" in incident.evidence[0].outcome


@pytest.mark.parametrize("at", [0, 8])
def test_a_loss_scale_beyond_any_search_is_named_and_replaced(at: int):
    """It was a glitch, proved: replays of a loop's step did not know its scale; and nothing put it right.

    Nor is there a state to go back to at the first step, which is nothing to stop for.
    """
    model = Net()
    optimizer = optimizer_of(model)
    scaler = torch.amp.GradScaler("cpu")
    guard = Guard(model, optimizer, forward=classify, diagnose=True, scaler=scaler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuardWarning)
        for step in range(16):
            if step == at:
                scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**90})
            guard.step(data(step))
    assert [(i.step, i.cause) for i in guard.incidents] == [(at, "POISONED_STATE")]
    assert guard.completed[-1].applied and scaler.get_scale() <= 2.0**16


def test_a_batch_that_would_kill_the_process_leaves_a_verdict_behind_an_attached_guard():
    """Where no sound sample is known yet, nothing but an error keeps a loop's own forward pass from running."""
    model = tiny_detector("faster", 0)
    guard = attach(model, torch.optim.SGD(model.parameters(), lr=0.01), diagnose=True, say=False)
    pairs = [sample(1)]
    pairs[0][1]["boxes"] = pairs[0][1]["boxes"][:, [2, 3, 0, 1]]
    with warnings.catch_warnings(), pytest.raises(DataError, match="image 1, annotation 10"):
        warnings.simplefilter("ignore", GuardWarning)
        model([i for i, _ in pairs], [t for _, t in pairs])
    assert [(i.cause, i.confidence >= 0.9) for i in guard.incidents] == [("DATA_BOX", True)]
    assert guard.incidents[0].culprit.image_ids == [1]


@pytest.mark.parametrize(("key", "change", "cause"), [
    ("boxes", lambda b: b[:, [2, 3, 0, 1]], "DATA_BOX"),
    ("labels", lambda v: v + 7, "DATA_LABEL"),
    ("masks", lambda m: m * 255, "DATA_MASK"),
])  # fmt: skip
def test_a_bad_sample_of_an_attached_loop_is_named_once_and_gives_way_from_then_on(key, change, cause):
    """Its batch was refused whenever it came, until the budget of incidents was spent, or the loop was ended."""
    model = tiny_detector("mask", 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = attach(model, optimizer, diagnose=True, say=False, logdir=None)
    pairs = [sample(n) for n in range(6)]
    pairs[3][1][key] = change(pairs[3][1][key])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuardWarning)
        for step in range(12):
            mine = pairs[step % 3 * 2 :][:2]
            optimizer.zero_grad()
            torch.stack(list(model([i for i, _ in mine], [t for _, t in mine]).values())).sum().backward()
            optimizer.step()
    assert [(i.step, i.cause, i.culprit.image_ids, i.action.kind) for i in guard.incidents] == [(1, cause, [3], "skip")]
    assert [r.step for r in guard.records if not r.applied] == [1]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(("key", "change", "cause"), [
    ("masks", lambda m: m * 255, "DATA_MASK"),
    ("image", lambda i: i * 255, "DATA_PIXEL"),
])  # fmt: skip
def test_a_bad_sample_is_named_in_whichever_micro_batch_of_an_attached_loop(place, key, change, cause):
    """In all but the first it was a suspicion only, of a loss that is not finite: masks of 255 were trained on."""
    model = tiny_detector("mask", 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = attach(model, optimizer, diagnose=True, say=False, logdir=None)
    for step in range(4):
        pairs = [sample(4 * step + n) for n in range(4)]
        if step == 2:
            image, target = pairs[place]
            pairs[place] = (change(image), target) if key == "image" else (image, {**target, key: change(target[key])})
        optimizer.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GuardWarning)
            for image, target in pairs:
                (torch.stack(list(model([image], [target]).values())).sum() / 4).backward()
            optimizer.step()
    assert [(i.step, i.cause, i.culprit.image_ids) for i in guard.incidents] == [(2, cause, [8 + place])]


def test_what_a_model_raises_in_an_attached_loop_leaves_a_verdict_and_goes_on_to_the_loop():
    """Nobody but the loop can answer it; a loop that catches it and goes on is not rolled back for it."""
    model = tiny_detector("faster", 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = attach(model, optimizer, diagnose=True, say=False)
    raised = []
    for step in range(8):
        pairs = [sample(10 * step + n) for n in range(3)]
        if step in (2, 4, 5, 6):
            pairs[1][1]["boxes"] = pairs[1][1]["boxes"].tolist()
        before = digest(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GuardWarning)
            try:
                losses = model([i for i, _ in pairs], [t for _, t in pairs])
            except AssertionError as e:
                raised.append(e)
                assert digest(model) == before
                continue
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
    assert len(raised) == 4, "the model's own error, each time"
    (incident,) = guard.incidents
    assert (incident.cause, incident.action.kind, incident.culprit.image_ids) == ("DATA_BOX", "skip", [21])
    assert incident.confidence >= 0.9 and not guard.refused


def test_memory_that_ran_out_is_no_case_for_a_diagnosis():
    net = OwnLoss()
    guard = attach(net, torch.optim.SGD(net.parameters(), lr=0.1), diagnose=True, say=False)
    net.head.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("4 GiB")))
    with pytest.raises(torch.OutOfMemoryError):
        net(*data(0))
    assert guard.incidents == []


def test_a_detector_left_in_evaluation_mode_is_no_glitch() -> None:
    """Replays train their copy, and found the step sound; the run's own model gives detections at every batch."""
    model = tiny_detector("faster", 0)
    model.train()
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.01), forward=lambda m, b: m(*b), diagnose=True)
    image, target = sample(1)
    batch = [image], [target]
    guard.step(batch)
    model.eval()
    with pytest.raises(GuardStop, match=r"model\.train"):
        guard.step(batch)
    assert [(i.cause, i.action.kind) for i in guard.incidents] == [("UNKNOWN", "stop")]


def quiet(guard: Guard, batch: Any, **more: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuardWarning)
        return guard.step(batch, **more)


@pytest.mark.parametrize("way", ["detached", "switched off"])
def test_losses_without_any_gradient_are_no_training(way: str) -> None:
    """A run went on to its end after `detach()`, or a library's `set_grad_enabled(False)`, and learned nothing."""
    net, late = Net(), [False]

    def forward(model: nn.Module, batch: Any) -> Tensor:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        return loss.detach() if late[0] and way == "detached" else loss

    guard = Guard(net, torch.optim.SGD(net.parameters(), lr=0.1), forward=forward, diagnose=True)
    for step in range(4):
        quiet(guard, data(step))
    late[0] = True
    words = "no loss has had a gradient for 3 steps" if way == "detached" else "autograd is switched off"
    with torch.set_grad_enabled(way == "detached"), pytest.raises(GuardStop, match=words):
        for step in range(4, 12):
            quiet(guard, data(step))
    (incident,) = guard.incidents
    assert (incident.cause, incident.action.kind) == ("UNKNOWN", "stop") and "None" not in incident.fix


@pytest.mark.parametrize("kind", ["nothing", "own backward"])
def test_a_loss_of_nothing_and_a_backward_pass_of_the_forwards_own_are_trained(kind: str) -> None:
    net = Net()

    def forward(model: nn.Module, batch: Any) -> Tensor:
        if kind == "nothing":
            return torch.zeros(())  # batches without anything to find, twelve in a row
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss.detach()

    guard = Guard(net, torch.optim.SGD(net.parameters(), lr=0.1), forward=forward, diagnose=True)
    for step in range(12):
        quiet(guard, data(step))
    assert guard.incidents == []


def test_the_first_copies_of_the_state_lie_close_together() -> None:
    """Most runs diverge early, and must not begin anew for it."""
    net = Net()
    optimizer = optimizer_of(net)
    guard: Any = attach(net, optimizer, diagnose=True, forward=classify, logdir=None)
    kept = {}
    for step in range(24):
        batch = guard.batch(data(step))
        optimizer.zero_grad()
        guard.see(classify(net, batch)).backward()
        optimizer.step()
        kept[step] = [s.step for s in guard.responder.ring.items]
    assert (kept[3], kept[9], kept[10]) == ([0], [8, 4, 0], [10, 8, 4, 0])
    assert kept[23][0] == 20
    assert guard.rollback() == 20


@pytest.mark.parametrize("onset", [0, 15])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_a_setting_that_no_step_is_finite_with_has_its_default_from_then_on(kind: Any, onset: int) -> None:
    """Somebody sets it before every step: within each it is what the update was proved to be finite with."""
    guard = through("eps", 0.0, range(onset, 40), optimizer=kind, idle=True)
    (incident,) = guard.incidents
    assert (incident.cause, incident.action.kind) == ("POISONED_STATE", "rollback")
    assert incident.confidence >= 0.9
    assert incident.action.detail["usual"] == {"eps": 1e-8}
    assert "eps is 0" in incident.fix and "on with eps 1e-08" in told(incident)
    assert [r.applied for r in guard.records].count(False) == 1
    assert guard.optimizer.param_groups[0]["eps"] == 0.0, "the loop's own is never touched"
    assert guard.state_dict()["decisions"]["usual"] == {"eps": 1e-8}


@pytest.mark.parametrize("onset", [0, 15])
@pytest.mark.parametrize(
    ("kind", "setting", "value", "usual"),
    [
        (torch.optim.SGD, "momentum", NAN, 0.9),
        (torch.optim.SGD, "weight_decay", -NAN, 1e-4),
        (torch.optim.AdamW, "betas", (0.9, 1.0), (0.9, 0.999)),
        (torch.optim.Adam, "betas", (1.5, 0.999), (0.9, 0.999)),
        (torch.optim.RMSprop, "eps", -1.0, 1e-8),
    ],
)
def test_an_impossible_setting_that_comes_back_is_what_the_last_sound_step_had(
    kind: Any, setting: str, value: Any, usual: Any, onset: int
) -> None:
    guard = through(setting, value, range(onset, 40), optimizer=kind)
    assert {(i.cause, i.action.kind) for i in guard.incidents} == {("POISONED_STATE", "rollback")}
    if onset == 0:  # no step was sound: what the class has by itself, at once
        usual = {"momentum": 0, "weight_decay": 0}.get(setting, usual)
    else:
        assert "usual" not in guard.incidents[0].action.detail, "a slip may be over by then"
    assert len(guard.incidents) == (2 if onset else 1)
    assert guard.incidents[-1].action.detail["usual"] == {setting: usual}
    assert [r.applied for r in guard.records].count(False) == len(guard.incidents)
    assert losses_fall(guard) or (setting, onset) == ("momentum", 0), "without momentum 40 steps show little"


def losses_fall(guard: Any) -> bool:
    losses = [r.loss for r in guard.records]
    return sum(losses[-8:]) < sum(losses[:8])


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("value", [NAN, -0.1, math.inf, (-0.01) ** 0.9, torch.tensor(NAN)], ids=str)
def test_where_a_schedule_has_no_rate_the_last_sound_one_holds_until_it_has(kind: Any, value: Any) -> None:
    """A polynomial decay past its end is a complex number. The rates that the schedule does have are its own."""
    guard = through("lr", value, range(15, 30), optimizer=kind)
    assert {(i.cause, i.action.kind) for i in guard.incidents} == {("POISONED_STATE", "rollback")}
    assert len(guard.incidents) == 2 and guard.incidents[0].fix.startswith("correct the schedule: lr is")
    assert guard.incidents[-1].action.detail["usual"]["lr"] == {"body": 0.02, "head": 0.02}
    assert "last sound learning rates" in told(guard.incidents[-1])
    assert [r.applied for r in guard.records].count(False) == 2
    assert guard.instruments.rates() == {"body": 0.02, "head": 0.02}
    for group in guard.optimizer.param_groups:
        group["lr"] = 0.3
    assert guard.instruments.rates() == {"body": 0.3, "head": 0.3}


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_an_eps_that_is_0_in_half_precision_is_named_and_raised(kind: Any) -> None:
    """``model.half()`` and Adam: NaN after the first step, wherever a gradient is 0 or its square is."""
    model = HalfNet()
    model.half()
    optimizer = kind(model.parameters(), lr=1e-3)
    guard = attach(model, optimizer, diagnose=True, logdir=None, say=False)
    for step in range(60):
        x, y = data(step, 16)
        optimizer.zero_grad()
        model(x.half(), labels=y)["loss"].backward()
        optimizer.step()
    (incident,) = guard.incidents
    assert (incident.cause, incident.action.detail.get("usual")) == ("POISONED_STATE", {"eps": 1e-4})
    assert incident.confidence >= 0.9 and "in half precision 0" in incident.fix
    assert "with eps=0.0001 the step is finite" in incident.fix
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert losses_fall(guard)
