"""Faults that no recipe has: the optimizer's own arithmetic, settings that somebody changes, hooks, counters."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from nanbench.tiny import tiny_model
from tiny_faults import FC6, WithLosses, before
from tiny_run import TinyRun
from torch import nn

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.investigate import investigate, rank
from maskrcnn_coco.model.rig import reference_of
from maskrcnn_coco.recovery import History, decide
from maskrcnn_coco.replay.outcome import Outcome
from maskrcnn_coco.replay.tape import TapeEntry

ALL = ("backbone", "rpn", "box_head", "mask_head")


def every_group(key: str, value: Any):
    def change(run: TinyRun) -> None:
        for group in run.optimizer.param_groups:
            group[key] = value

    return change


def buffer_filled(name: str, value: float):
    return lambda run: run.model.get_buffer(name).fill_(value)


def grouped(eps: float) -> nn.Module:
    model = tiny_model(norm=lambda channels: nn.GroupNorm(4, channels))
    for m in model.modules():
        if isinstance(m, nn.GroupNorm):
            m.eps = eps
    return model


def swinging(momentum: float) -> nn.Module:
    model = tiny_model(norm=nn.BatchNorm2d)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = momentum
    return model


def new_term(run: TinyRun) -> None:
    def hook(model: nn.Module, args: Any, output: Any) -> Any:
        return {**output, "own": 1e8 * model.roi_heads.box_head.fc6.weight.square().mean()} if model.training else None

    run.model.register_forward_hook(hook)


def gradient_hook(run: TinyRun) -> None:
    run.model.get_parameter(FC6).register_hook(lambda g: g * math.inf)


WILD: dict[str, tuple[Any, str, float]] = {
    "a rate a thousand times too high": (
        lambda: TinyRun(lr=dict.fromkeys(ALL, 300.0), max_grad_norm=0),
        "LR_TOO_HIGH",
        0.9,
    ),
    "a term that was not there": (lambda: TinyRun(before_step=before(6, new_term)), "LOSS_MATH", 0.9),
    "every loss times 1e30 from the start": (
        lambda: TinyRun(model=WithLosses(lambda m, losses, targets: {k: v * 1e30 for k, v in losses.items()})),
        "LOSS_MATH",
        0.9,
    ),
    "eps 0": (lambda: TinyRun(kind="adamw", before_step=before(0, every_group("eps", 0.0))), "POISONED_STATE", 0.9),
    "betas of 1": (
        lambda: TinyRun(kind="adamw", before_step=before(4, every_group("betas", (1.0, 1.0)))),
        "POISONED_STATE",
        0.9,
    ),
    "weight decay below zero": (
        lambda: TinyRun(before_step=before(4, every_group("weight_decay", -60.0))),
        "POISONED_STATE",
        0.9,
    ),
    "a frozen norm's mean leaps": (
        lambda: TinyRun(before_step=before(10, buffer_filled("backbone.body.layer2.1.running_mean", -1e9))),
        "NORM_STATE",
        0.9,
    ),
    "a group norm's eps below zero": (lambda: TinyRun(model=grouped(-1e3)), "NORM_STATE", 0.9),
    "statistics that swing": (lambda: TinyRun(model=swinging(3.0)), "NORM_STATE", 0.9),
    "a scale beyond any search": (
        lambda: TinyRun(precision="fp16", before_step=before(5, lambda run: run.scaler.update(1e38))),
        "POISONED_STATE",
        0.9,
    ),
}


@pytest.mark.parametrize("name", WILD)
def test_the_cause(name: str):
    make, cause, confidence = WILD[name]
    top = investigate(make().until_alarm())[0]
    assert (top.cause, top.confidence >= confidence) == (cause, True), (top, top.evidence)
    assert top.evidence and top.fix


def test_a_hook_that_ruins_gradients_is_not_the_backends_doing():
    """The reference on the CPU has the hook too; a plain copy had not, and 'proved' a wrong kernel."""
    run = TinyRun(before_step=before(6, gradient_hook))
    run.reference = lambda: reference_of(run.model)
    top = investigate(run.until_alarm())[0]
    assert top.cause in ("LOSS_MATH", "UNKNOWN")


def test_the_reference_keeps_hooks_once_and_shares_nothing():
    model, calls = tiny_model(), []
    model.get_parameter(FC6).register_hook(lambda g: calls.append(1))
    twin = reference_of(model)
    twin.get_parameter(FC6).sum().backward()
    assert calls == [1]
    assert model.get_parameter(FC6).grad is None


def test_rates_that_somebody_set_are_named_and_the_plan_is_kept():
    run = TinyRun(max_grad_norm=0, before_step=lambda r, s: every_group("lr", 20.0)(r) if s >= 8 else None)
    case = run.until_alarm()
    case.planned = lambda step: TapeEntry(step, 0, [], run.rates(step), None, applied=False)
    had = {e.step: e.record.lr for e in case.tape}
    assert max(had[8].values()) == 20.0, "the record says what the optimizer had"
    case.tape = [dataclasses.replace(e, lr={**e.lr, **e.record.lr}) for e in case.tape]
    top = investigate(case)[0]
    assert top.cause == "LR_TOO_HIGH" and top.detail["foreign_rates"]
    assert "somebody set another" in top.evidence[0].outcome
    assert decide([top], History(step=case.alarm.step)).kind == "rollback"


def test_one_term_more_is_no_new_formula_where_it_is_small():
    run = TinyRun(model=WithLosses(lambda m, losses, targets: {**losses, "own": losses["loss_mask"] * 0.1}))
    for step in range(6):
        alarm, _ = run.step(step)
        assert alarm is None


class Hidden(nn.Module):
    """Its state goes on to the next batch, with the graph of this one."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.state = nn.Parameter(torch.tensor(0.1)), torch.zeros(())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.state = self.gate * self.state + x.mean()
        return x + 0.01 * self.state


def test_a_state_that_is_kept_with_its_graph_is_the_code_s_and_no_device_s():
    model = tiny_model()
    model.backbone.body["layer2"] = nn.Sequential(model.backbone.body["layer2"], Hidden())
    run = TinyRun(model=model)
    for step, kind in ((1, "skip"), (2, "stop")):
        alarm, batches = (run.step(0), run.step(1))[1] if step == 1 else run.step(step)
        assert alarm is not None and "second time" in alarm.message
        found = investigate(run.case(alarm, batches))
        assert found[0].cause == "UNKNOWN" and "detach()" in found[0].fix
        assert decide(found, History(step=step, images=24)).kind == kind


def summed_in_half() -> nn.Module:
    """A penalty on what the box head gives, in a line of the loss: its sum passes 65504."""
    model, seen = tiny_model(), []
    model.get_submodule("roi_heads.box_head.fc7").register_forward_hook(lambda m, args, out: seen.append(out))

    def penalty(m: nn.Module, args: Any, output: Any) -> Any:
        return {**output, "size": 1e-8 * (100 * seen.pop()).square().sum()} if m.training else None

    model.register_forward_hook(penalty)
    return model


def test_what_overflows_in_a_line_of_the_loss_is_kept_in_float32_with_the_whole_model():
    found = investigate(TinyRun(model=summed_in_half(), precision="fp16").until_alarm())
    assert (found[0].cause, found[0].detail["fp32_modules"]) == ("FP16_OVERFLOW", [""])
    assert found[0].confidence > 0.9 and found[0].culprit.module is None


@pytest.mark.parametrize("grown", [1e7, 1e12])
def test_a_number_that_counts_is_no_broken_buffer(grown: float):
    model = tiny_model()
    model.register_buffer("seen", torch.zeros(()))
    model.register_forward_hook(lambda m, a, o: m.seen.add_(grown) and None)
    run = TinyRun(model=model)
    assert [run.step(s)[0] for s in range(4)] == [None] * 4
    assert float(run.model.seen) == pytest.approx(4 * grown, rel=1e-5)


def test_hooks_that_pile_up_are_no_glitch():
    """Each forward pass registers one more: two replays of one step are two steps, so neither tells of the run."""
    model = tiny_model()

    def one_more(m: nn.Module, args: Any) -> None:
        if m.training:
            m.get_parameter(FC6).register_hook(lambda g: g * 3)

    model.register_forward_pre_hook(one_more)
    top = investigate(TinyRun(model=model, max_grad_norm=0).until_alarm())[0]
    assert top.cause in ("UNKNOWN", "LR_TOO_HIGH") and top.confidence < 0.9, top
    if top.cause == "UNKNOWN":
        assert "hooks registered again" in top.fix


@pytest.mark.parametrize(("before_it", "sure"), [([], True), ([3], True), ([3, 4], False), ([6], False)])
def test_a_glitch_that_comes_back_is_less_and_less_one(before_it: list[int], sure: bool):
    facts = Facts("loss_nonfinite", 6, 0, 6, recorded_loss=math.nan, settings={"glitches": before_it})
    facts.outcomes = {name: Outcome(name, True, {"loss_a": 1.0}, 1.0, 2.0, digest="d") for name in ("same", "again")}
    top = rank(facts)[0]
    assert top.cause == "TRANSIENT"
    assert (top.confidence >= 0.9) is sure
    assert any("no glitch comes so often" in e.outcome for e in top.evidence) is not sure


def misordered(run: TinyRun) -> None:
    saved = run.optimizer.state_dict()
    keys = sorted(saved["state"])
    saved["state"] = {k: saved["state"][keys[(i + 3) % len(keys)]] for i, k in enumerate(keys)}
    run.optimizer.load_state_dict(saved)


def test_optimizer_state_of_another_order_is_named_and_put_back():
    """A fused AdamW walks past the end of the shorter tensor: the process dies, with no traceback."""
    run = TinyRun(kind="adamw", before_step=before(6, misordered))
    case = run.until_alarm()
    top = investigate(case)[0]
    assert (top.cause, top.confidence >= 0.9) == ("POISONED_STATE", True), (top, top.evidence)
    assert "another order" in case.alarm.message or "other ones" in case.alarm.message
    assert decide([top], History(step=case.alarm.step)).kind == "rollback"


class Paths(nn.Module):
    """The mean of the paths that were kept; with the random numbers in ``lost`` none was."""

    def __init__(self, lost: list[int]) -> None:
        super().__init__()
        self.lost = lost

    def forward(self, x: Any) -> Any:
        keep = torch.tensor(0.0 if torch.initial_seed() in self.lost else 1.0)
        return x * keep / keep


def test_what_chance_has_drawn_is_no_samples_fault():
    """Each sample alone fails with the same random numbers: three of four images were left out, and the run stopped."""
    model, seeds, lost = tiny_model(), [], []
    model.roi_heads.box_head = nn.Sequential(model.roi_heads.box_head, Paths(lost))

    def seventh(m: nn.Module, args: Any) -> None:
        seeds.append(torch.initial_seed())
        lost.extend(seeds[6:7])

    model.register_forward_pre_hook(seventh)
    case = TinyRun(model=model).until_alarm()
    assert case.alarm.step == 6
    findings = investigate(case)
    assert not findings[0].culprit.image_ids and decide(findings, History(step=6)).kind == "skip"
    assert "drawn at random" in next(f for f in findings if f.cause == "UNKNOWN").fix


def test_an_image_of_one_colour_is_named_where_a_norm_divides_by_its_contrast():
    class Contrast(nn.Module):
        def forward(self, x: Any) -> Any:
            return x / x.std((2, 3), keepdim=True)

    def spoil(step: int, batch: Any) -> None:
        for image, key in zip(batch.images, batch.keys, strict=True):
            if key.image_id == 9:
                image.fill_(0.5)

    model = tiny_model()
    body: Any = model.backbone.body
    body["layer1"] = nn.Sequential(Contrast(), body["layer1"])
    top = investigate(TinyRun(model=model, spoil=spoil).until_alarm())[0]
    assert (top.cause, top.culprit.image_ids) == ("DATA_PIXEL", [9]), (top, top.evidence)
    assert top.confidence >= 0.9 and decide([top], History(images=100)).kind == "quarantine"
