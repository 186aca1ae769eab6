"""One golden case a rule: the facts of a real failing run, and the finding they must lead to."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from pathlib import Path

import msgspec
import pytest

from maskrcnn_coco import recovery
from maskrcnn_coco.diagnosis import investigate
from maskrcnn_coco.diagnosis.explain import RULES, codes
from maskrcnn_coco.diagnosis.facts import Drift, Facts, Location, Reference, StateFault, TargetFault
from maskrcnn_coco.diagnosis.rules import lr_too_high, transient, unknown
from maskrcnn_coco.records import CAUSES
from maskrcnn_coco.replay.outcome import Outcome

CASES = Path(__file__).parents[1] / "rules_cases"


def load_facts(code: str) -> Facts:
    data = json.loads((CASES / code / "facts.json").read_text(encoding="utf-8"))
    return msgspec.convert(data, type=Facts, strict=False)


@pytest.mark.parametrize("code", CAUSES)
def test_golden_case(code: str):
    expected = json.loads((CASES / code / "finding.json").read_text(encoding="utf-8"))
    found = investigate.rank(load_facts(code))[0]
    assert found.cause == code
    assert found.confidence == expected["confidence"]
    assert dataclasses.asdict(found.culprit) == expected["culprit"]
    assert found.fix == expected["fix"]
    assert found.evidence, "a cause without evidence is a guess"


@pytest.mark.parametrize("code", CAUSES)
def test_no_rule_speaks_up_on_an_unknown_fault(code: str):
    if code == "UNKNOWN":
        return
    rule = next(r for r in RULES if code == r.CODE)
    facts = Facts("loss_nonfinite", 5, 0, 5)
    assert rule.judge(facts) is None


def test_every_cause_has_one_rule_and_every_rule_a_cause():
    assert sorted(codes()) == sorted(CAUSES)
    assert len({r.CODE for r in RULES}) == len(RULES)


def test_rules_import_no_torch():
    import subprocess
    import sys

    names = ", ".join(f"maskrcnn_coco.diagnosis.rules.{r.CODE.lower()}" for r in RULES)
    code = f"import sys, {names}, maskrcnn_coco.diagnosis.investigate, maskrcnn_coco.recovery"
    code += "\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rule_modules_are_named_after_their_codes():
    for rule in RULES:
        assert importlib.import_module(f"maskrcnn_coco.diagnosis.rules.{rule.CODE.lower()}") is rule


def test_a_harmless_oddity_does_not_outrank_a_proved_cause():
    """A label of 0 in the batch of a run whose learning rate is proved too high: the label is mentioned, not blamed."""
    facts = load_facts("LR_TOO_HIGH")
    facts.targets = [TargetFault("DATA_LABEL", facts.image_ids[0], 7, "label 0, expected 1..3", False)]
    ranked = investigate.rank(facts)
    assert ranked[0].cause == "LR_TOO_HIGH"
    label = next(f for f in ranked if f.cause == "DATA_LABEL")
    assert label.confidence < 0.9


def test_fp16_is_not_blamed_where_float32_diverges_too():
    facts = load_facts("FP16_OVERFLOW")
    facts.reference = dataclasses.replace(facts.reference, loss=1.0, norm=1.0, count=20)
    facts.outcomes["fp32"] = Outcome("float32", True, loss=1e5, grad_norm=1e6)
    facts.outcomes.pop("module_fp32", None)
    assert investigate.rank(facts)[0].cause != "FP16_OVERFLOW"


def test_a_scan_alone_never_proves_a_suspicious_but_possible_value():
    facts = Facts("diverged", 9, 0, 9, image_ids=[1, 2])
    facts.targets = [TargetFault("DATA_MASK", 1, 5, "mask is empty", False)]
    assert all(f.confidence < 0.9 for f in investigate.rank(facts))


def test_rank_local_leads_and_names_the_inner_cause():
    facts = load_facts("DATA_BOX")
    facts.measured["per_rank_flags"] = [False, True]
    first, second = investigate.rank(facts)[:2]
    assert (first.cause, first.culprit.rank, first.detail["inner"]) == ("RANK_LOCAL", 1, "DATA_BOX")
    assert first.culprit.image_ids == second.culprit.image_ids != []


@pytest.mark.parametrize(
    ("moved", "most"), [({"box_head": 2.5}, 0.04), ({"box_head": 900.0}, 1e-3), ({"rpn": 9.0}, None)]
)
def test_a_rate_that_throws_weights_about_is_lowered_until_it_does_not(moved: dict[str, float], most: float | None):
    """A walk may stay within bounds and throw on: that it holds is not all that the alarm asks for."""
    facts = load_facts("LR_TOO_HIGH")
    assert facts.lr_verdict is not None
    facts.lr_verdict.components, facts.lr_verdict.also, facts.lr_verdict.holds = ["box_head"], [], 0.1
    before = investigate.rank(facts)[0].detail["factor"]
    facts.measured["moved"] = moved
    assert before == 0.1
    assert investigate.rank(facts)[0].detail["factor"] == pytest.approx(before if most is None else most)


@pytest.mark.parametrize(("walked", "cause"), [(1.0, "TRANSIENT"), (1e20, None)])
def test_weights_that_are_off_after_steps_that_diverge_by_themselves_prove_no_glitch(walked: float, cause: str | None):
    facts = Facts("diverged", 15, 0, 13, reference=Reference(2.7, 8.0, 10), recorded_loss=1e22, recorded_norm=10.0)
    facts.drift = Drift("head.weight", "head", "head", 0.04, 10)
    path = [(step, walked, 8.0) for step in range(10, 16)]
    facts.outcomes["retrace"] = Outcome("retrace", True, loss=walked, grad_norm=8.0, path=path)
    found = transient.judge(facts)
    assert (found and found.cause) == cause


@pytest.mark.parametrize(("recorded", "cause"), [(4.1, None), (8.0, "TRANSIENT"), (2.8, "TRANSIENT")])
def test_weights_that_are_off_have_not_made_what_the_steps_as_they_were_lead_to(recorded: float, cause: str | None):
    """A key's bias has gradients of rounding alone, along which Adam takes whole steps: it never comes out the same."""
    facts = Facts("diverged", 40, 0, 33, reference=Reference(1.1, 1.0, 30), recorded_loss=recorded, recorded_norm=1.0)
    facts.drift = Drift("blocks.1.attn.qkv.bias", "blocks", "blocks.1.attn.qkv", 0.85, 30)
    loss = 4.09 if recorded > 3 else 2.8
    path = [(step, loss, 1.0) for step in range(30, 41)]
    facts.outcomes["retrace"] = Outcome("retrace", True, loss=loss, grad_norm=1.0, path=path)
    if recorded == 2.8:
        facts.reference = Reference(2.7, 1.0, 30)  # nothing is wrong with the loss: somebody changed a weight
    found = transient.judge(facts)
    assert (found and found.cause) == cause


@pytest.mark.parametrize(("other", "earlier", "ruined"), [(50.0, 2.0, True), (2.0, 2.0, False), (50.0, 50.0, False)])
def test_of_an_unknown_fault_it_is_said_whether_the_weights_are_ruined(other: float, earlier: float, ruined: bool):
    facts = Facts("diverged", 15, 0, 13, reference=Reference(2.7, 8.0, 10), growing=True)
    for name, loss in (("same", 50.0), ("other", other), ("earlier", earlier)):
        facts.outcomes[name] = Outcome(name, True, loss=loss, grad_norm=8.0)
    found = unknown.judge(facts)
    assert found is not None and bool(found.detail.get("ruined")) is ruined


def enormous(norm: float, inside: float) -> Facts:
    """The first step of a run: its loss is 5e30 at every batch, and so it is when replayed."""
    facts = Facts("grad_nonfinite", 0, 0, 0, recorded_loss=5e30, recorded_norm=float("inf"), inside=inside)
    for name in ("same", "other", "again", "reference"):
        facts.outcomes[name] = Outcome(name, True, {"a": 4e30, "b": 1e30}, 5e30, norm, digest="1")
    facts.done |= set(facts.outcomes)
    return facts


@pytest.mark.parametrize("inside", [60.0, 1e14])
def test_a_loss_as_enormous_again_is_no_glitch_though_its_norm_overflowed_where_it_was_recorded(inside: float):
    found = investigate.rank(enormous(5e30, inside))[0]
    assert (found.cause, found.confidence) == (("LOSS_MATH", 0.92) if inside < 1e3 else ("UNKNOWN", 0.1))


def test_a_loss_that_is_the_square_of_what_its_batches_hold_is_no_wrong_formula():
    facts = enormous(5e30, 60.0)
    facts.measured["given"] = 1e14
    found = investigate.rank(facts)[0]
    assert (found.cause, found.confidence) == ("UNKNOWN", 0.1)


@pytest.mark.parametrize(("inside", "earlier", "cause"), [(71.0, 1e18, "LOSS_MATH"), (1e14, 1e18, "UNKNOWN")])
def test_one_sample_s_loss_beyond_all_that_the_model_made_is_the_loss_s_own(inside: float, earlier: float, cause: str):
    """A division by the area of one object, as measured: finite, on healthy weights too, and of that image alone."""
    facts = Facts("diverged", 8, 1, 8, image_ids=[3, 4], guilty_images=[4], inside=inside)
    facts.reference = Reference(5.5, 19.0, 8)
    for name, loss in (("same", 1e18), ("earlier", earlier), ("other", 5.5), ("alone", 1e18)):
        facts.outcomes[name] = Outcome(name, True, {"a": 5.0, "own": loss - 5.0}, loss, loss)
    facts.done |= set(facts.outcomes)
    found = investigate.rank(facts)[0]
    assert (found.cause, found.culprit.image_ids) == (cause, [4])
    assert found.confidence < 0.9, "a number of the sample's own may be wrong instead"
    assert found.detail["proved_on_healthy_weights"]
    assert "own" in found.fix or cause == "UNKNOWN"


def test_a_norm_that_was_nan_and_is_a_number_now_is_a_glitch_at_a_loud_batch():
    assert investigate.rank(enormous(5e3, 1e14))[0].cause == "TRANSIENT"


@pytest.mark.parametrize(
    ("loss", "faithful", "cause"), [(2.5, True, "TRANSIENT"), (2.5, False, None), (2.5, None, None), (90.0, True, None)]
)
def test_a_step_that_was_a_billion_times_as_loud_is_a_glitch_though_its_gradients_are_not_calm(
    loss: float, faithful: bool | None, cause: str | None
):
    """A spike of the run's own just before it: gradients of a hundred where one is usual, both when it is replayed."""
    facts = Facts("diverged", 8, 0, 7, reference=Reference(1.8, 0.7, 7), recorded_loss=2.4e10, recorded_norm=2.8e11)
    facts.faithful, facts.growing = faithful, True
    for name in ("same", "again", "retrace"):
        facts.outcomes[name] = Outcome(name, True, loss=loss, grad_norm=115.0, digest="1")
    found = transient.judge(facts)
    assert (found and found.cause) == cause


@pytest.mark.parametrize(
    ("op", "precision", "cause"),
    [
        ("_to_copy in float16 (own.py:3, forward)", "fp32", "FP16_OVERFLOW"),
        ("mul in float16 (own.py:3, forward)", "bf16", "FP16_OVERFLOW"),
        ("div in float16 (own.py:3, forward)", "fp32", "LOSS_MATH"),
        ("_to_copy (own.py:3, forward)", "fp32", "LOSS_MATH"),
    ],
)
def test_a_block_that_computes_in_half_precision_by_itself_overflows_in_float32_runs_too(
    op: str, precision: str, cause: str
):
    facts = Facts("loss_nonfinite", 8, 0, 8, reference=Reference(1.8, 0.7, 7), precision=precision)
    facts.location = Location("neck.1", "neck", "forward", op)
    for name in ("same", "other", "earlier", "fp32"):
        facts.outcomes[name] = Outcome(name, False, {"a": float("nan"), "b": 1.0}, float("nan"), bad_losses=["a"])
    top = investigate.rank(facts)[0]
    assert (top.cause, top.confidence) == (cause, 0.93)
    assert cause != "FP16_OVERFLOW" or top.culprit.module == "neck.1"


@pytest.mark.parametrize(("again", "cause"), [(None, "TRANSIENT"), ("cuDNN error", "BACKEND")])
def test_an_error_that_is_raised_twice_and_then_no_more_is_a_flaky_device_s(again: str | None, cause: str):
    facts = Facts("crash", 8, 0, 8, reference=Reference(1.8, 3.2, 7), measured={"error": "cuDNN error"})
    for name, error in (("same", "cuDNN error"), ("again", again), ("reference", None)):
        facts.outcomes[name] = Outcome(name, error is None, loss=1.8, grad_norm=3.2, error=error)
    facts.attention = True
    top = investigate.rank(facts)[0]
    assert (top.cause, top.confidence >= 0.9) == (cause, True)


def test_steps_that_do_not_diverge_again_are_gone_back_for_to_where_they_were_walked_from():
    """A weight was overwritten at step 9; a copy of the state was made at step 10, before anything was noticed."""
    facts = Facts("diverged", 15, 2, 10, reference=Reference(2.6, 8.0, 9), recorded_loss=87.0, recorded_norm=2e3)
    facts.growing, facts.faithful, facts.astray = True, True, "rpn"
    facts.outcomes["same"] = Outcome("same", True, loss=87.0, grad_norm=2e3)
    path = [(step, 1.5, 8.0) for step in range(8, 16)]
    facts.outcomes["retrace"] = Outcome("retrace", True, loss=1.5, grad_norm=8.0, path=path)
    top = investigate.rank(facts)[0]
    assert (top.cause, top.confidence, top.culprit.component) == ("TRANSIENT", 0.92, "rpn")
    assert recovery.decide([top], recovery.History(step=15)).detail["to_step"] == 8


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (["backbone"], {"--lr 0.001", "--fpn-lr-multiplier 25", "--rpn-lr-multiplier 250"}),
        (
            ["backbone", "rpn", "box_head", "mask_head"],
            {"--lr 0.001", "--fpn-lr-multiplier 25", "--rpn-lr-multiplier 25"},
        ),
        (["rpn"], {"--rpn-lr-multiplier 2.5"}),
        (["box_head"], set()),
    ],
)
def test_multipliers_whose_default_follows_lr_are_said_with_a_lower_lr(named: list[str], expected: set[str]):
    """A backbone alone that is pretrained: its FPN and RPN have what --lr leaves to the top of the safe range."""
    facts = load_facts("LR_TOO_HIGH")
    facts.settings |= {"fpn_lr_multiplier": 25.0, "rpn_lr_multiplier": 25.0}
    assert facts.lr_verdict is not None
    facts.lr_verdict.components, facts.lr_verdict.also = named, []
    facts.lr_verdict.holds = 0.1
    flags = lr_too_high.fix_of(facts, facts.lr_verdict)
    assert expected <= {f"--{f.strip()}" for f in flags.split("--") if f}
    assert ("--fpn-lr-multiplier" in flags) == ("backbone" in named)


@pytest.mark.parametrize(("apart", "cause"), [(9.5, "ACCUMULATION"), (4e3, "TRANSIENT")])
def test_gradients_that_are_those_of_the_step_before_come_from_a_buffer_that_nobody_clears(apart: float, cause: str):
    facts = Facts("diverged", 6, 1, 6, reference=Reference(3.0, 8.0, 5), recorded_loss=3.8, recorded_norm=4.3e6)
    facts.settings, facts.since_last = {"own_gradients": True}, apart
    for name in ("same", "again"):
        facts.outcomes[name] = Outcome(name, True, loss=3.8, grad_norm=8.9, digest="1")
    assert investigate.rank(facts)[0].cause == cause


def test_gradients_that_were_clipped_before_they_were_unscaled_are_said_once_and_left_to_the_loop():
    facts = Facts("stalled", 6, 1, 6, measured={"clipped_scaled": 10.0, "norm": 1.5e-4})
    top = investigate.rank(facts)[0]
    assert (top.cause, top.confidence) == ("SCALE_COLLAPSE", 0.95)
    assert "unscale_" in top.fix
    assert recovery.decide([top], recovery.History(step=6)).kind == "skip"


@pytest.mark.parametrize(
    ("buffer", "bad_losses", "cause"),
    [("norm.running_var", [], "NORM_STATE"), ("norm.running_var", ["loss"], None), ("memory", [], None)],
)
def test_statistics_that_a_forward_pass_alone_makes_not_finite_are_the_norm_s(buffer, bad_losses, cause):
    same = Outcome("same", False, {"loss": 1.0}, 1.0, 1.0, bad_buffers=[buffer], bad_losses=bad_losses)
    facts = Facts("buffer_nonfinite", 9, 9, 9, outcomes={"same": same})
    found = [f for f in investigate.rank(facts) if f.cause == "NORM_STATE"]
    assert [f.cause for f in found] == ([cause] if cause else [])
    assert all(f.culprit.module == "norm" and f.detail["by_forward"] for f in found)


def test_what_is_finite_the_second_time_is_not_laid_on_what_was_drawn():
    facts = Facts("loss_nonfinite", 8, 0, 8, reference=Reference(1.8, 0.7, 7))
    facts.can = {"again", "chance"}
    for name in ("same", "other", "earlier", "again"):
        bad = name == "same"
        facts.outcomes[name] = Outcome(name, not bad, loss=float("nan") if bad else 1.8, grad_norm=0.7)
    facts.done = {*facts.outcomes}
    assert investigate.next_test(facts) is None
    facts.outcomes["again"] = facts.outcomes["same"]
    assert investigate.next_test(facts) == "chance"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ("KeyError: 'loss_clasifier' (script.py:7, in losses)", "UNKNOWN"),
        ("TypeError: 'tuple' object is not callable (script.py:9, in losses)", "UNKNOWN"),
        ("AssertionError: loss is not finite (script.py:9, in losses)", "NORM_STATE"),
        (None, "NORM_STATE"),
    ],
)
def test_frozen_norms_without_statistics_raise_no_error_of_the_code_s(error: str | None, cause: str):
    """Every batch fails with a slip in the loop's own lines, too."""
    norms = StateFault("norm", "identity", "all 20 frozen norm layers hold mean 0 and variance 1", certain=False)
    facts = Facts("crash" if error else "loss_nonfinite", 0, 0, 0, state=[norms])
    for name in ("same", "again", "other"):
        facts.outcomes[name] = Outcome(name, False, error=error, bad_losses=[] if error else ["loss"])
    assert investigate.rank(facts)[0].cause == cause


def test_a_weight_that_was_changed_is_gone_back_for_to_where_it_was_not_yet():
    """What was copied in between may hold it already."""
    facts = load_facts("TRANSIENT")
    assert facts.drift is not None
    found = transient.judge(facts)
    assert found is not None and found.detail["to_step"] == facts.drift.from_step <= facts.step
    assert recovery.decide([found], recovery.History(step=facts.step)).detail["to_step"] == facts.drift.from_step


@pytest.mark.parametrize(
    ("norms", "names", "component", "module"),
    [
        ({"backbone": 1.2, "rpn": math.nan}, ["rpn.head.bbox_pred.weight"], "rpn", "rpn.head.bbox_pred"),
        ({"backbone": 1.2, "rpn": math.inf}, ["rpn.head.conv.bias", "rpn.head.bbox_pred.bias"], "rpn", None),
        ({"backbone": math.nan, "rpn": math.nan}, ["rpn.head.conv.bias", "backbone.body.conv1.weight"], None, None),
        ({"group 0": math.nan}, ["net.0.weight"], None, None),
    ],
)
def test_a_glitch_of_some_gradients_alone_names_whose_they_are(norms, names, component, module):
    measured = {"group_grad_norm": norms, "parameters": names}
    facts = Facts("grad_nonfinite", 12, 2, 12, measured=measured, reference=Reference(1.2, 6.0, 10))
    facts.recorded_loss, facts.recorded_norm, facts.faithful = 1.1, math.nan, True
    facts.outcomes["same"] = facts.outcomes["again"] = Outcome("same", True, {"a": 1.1}, 1.1, 5.0, digest="a")
    found = transient.judge(facts)
    assert found is not None and found.cause == "TRANSIENT"
    assert (found.culprit.component, found.culprit.module) == (component, module)


@pytest.mark.parametrize(("walk", "cause"), [(1.2, "TRANSIENT"), (3e5, None)])
def test_an_update_that_was_refused_on_weights_thrown_about_once_is_the_glitch_s(walk: float, cause: str | None):
    """The steps before it, taken again, lead to where all is usual: whatever threw the weights, the rate did not."""
    facts = Facts("diverged", 12, 2, 11, measured={"update_bound": {"a": 5e5}}, reference=Reference(1.2, 6.0, 10))
    facts.recorded_loss, facts.recorded_norm, facts.faithful = 3e5, 2e6, True
    facts.outcomes["same"] = facts.outcomes["again"] = Outcome("same", True, {"a": 3e5}, 3e5, 2e6)
    facts.outcomes["retrace"] = Outcome("walk", True, {"a": walk}, walk, 6.0, path=[(8, 1.1, 6.0), (12, walk, 6.0)])
    found = transient.judge(facts)
    assert (found.cause if found else None) == cause


@pytest.mark.parametrize(("loss", "other", "maths"), [(0.16, 0.35, True), (0.16, 9.0, False), (5.0, 0.35, False)])
def test_gradients_alone_that_are_not_finite_at_a_usual_loss_are_no_divergence(loss: float, other: float, maths: bool):
    """The root of a distance of 0, after a small loss had doubled once: a lower rate only misses the very 0."""
    facts = Facts("grad_nonfinite", 8, 0, 7, components=["net"], reference=Reference(0.31, 2.6, 6), growing=True)
    facts.outcomes["same"] = Outcome("same", False, {"loss": loss}, loss, bad_grads=["net.weight"], bad_grad_count=7)
    facts.outcomes["other"] = Outcome("other", True, {"loss": other}, other, 1.5)
    facts.outcomes["earlier"] = Outcome("earlier", True, {"loss": 0.4}, 0.4, 3.0)
    facts.location = Location(None, None, "backward", "MmBackward0 (metric.py:31, distance)")
    assert investigate.proved(facts) is maths, "else a lower rate is tried"
    assert not maths or investigate.rank(facts)[0].cause == "LOSS_MATH"
