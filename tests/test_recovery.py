"""The policy: pure, and never the wrong medicine."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from tiny_faults import BAD, target
from tiny_run import TinyRun, rates

from maskrcnn_coco.diagnosis.investigate import investigate
from maskrcnn_coco.records import CAUSES, Action, Culprit, Evidence, Finding, Incident
from maskrcnn_coco.recovery import HOLD_STEPS, Budgets, History, decide, maybe_raise
from maskrcnn_coco.replay.snapshot import nonfinite_entries, restore, take


def finding(cause: str, confidence: float = 0.97, **rest) -> Finding:
    return Finding(cause, confidence, **rest)


def incident(number: int, step: int, cause: str, action: Action, lost: int = 0) -> Incident:
    return Incident(
        f"{number:04d}", step, 0, step, "diverged", cause, 0.97, Culprit(), [], action, "recovered", lost, "", "explain"
    )


LR = finding(
    "LR_TOO_HIGH",
    culprit=Culprit(component="box_head"),
    onset_step=30,
    detail={"components": ["box_head"], "factor": 0.3, "lr": rates(), "snapshots": [40, 30, 20, 0]},
)
BOX = finding("DATA_BOX", culprit=Culprit(image_ids=[17], annotation_ids=[171]), detail={"widespread": False})
UNKNOWN = finding("UNKNOWN", 0.1)


def test_bad_data_is_left_out_and_no_rate_is_touched():
    action = decide([BOX, LR], History(step=41, images=1000))
    assert action == Action("quarantine", {"image_ids": [17], "annotation_ids": [171]})


def test_one_component_is_lowered_and_the_run_goes_back_before_the_onset():
    action = decide([LR, UNKNOWN], History(step=41, images=1000))
    assert action.kind == "lower_lr"
    assert action.detail == {"component": "box_head", "components": ["box_head"], "factor": 0.3, "to_step": 30}


def test_of_a_loss_that_counts_more_than_the_rate_stands_the_rate_is_lowered_or_else_the_run_goes_back_once():
    heavy = finding("LOSS_MATH", onset_step=30, detail={"heavier": 1e3, "ruined": True})
    assert decide([heavy, LR, UNKNOWN], History(step=41)) == decide([LR], History(step=41))
    back = decide([heavy, UNKNOWN], History(step=41))
    assert back == Action("rollback", {"to_step": 30, "after_skips": True})
    past = [incident(1, 35, "LOSS_MATH", back, lost=5)]
    assert decide([heavy, UNKNOWN], History(past, step=41)).kind == "skip"


def test_rates_that_are_not_the_plans_are_put_back_and_not_lowered_and_a_third_time_stops():
    found = finding("LR_TOO_HIGH", onset_step=30, detail={**LR.detail, "foreign_rates": {"box_head": [31, 0.01, 20.0]}})
    assert decide([found], History(step=41)) == Action("rollback", {"to_step": 30, "by_plan": True})
    past = [incident(n, 35 + n, "LR_TOO_HIGH", Action("rollback", {"to_step": 30}), lost=5) for n in range(2)]
    for i in past:
        i.detail["foreign_rates"] = {"box_head": [31, 0.01, 20.0]}
    assert decide([found], History(past, step=41)).kind == "stop"


def test_a_second_time_lowers_more_and_goes_back_further():
    first = decide([LR], History(step=41, images=1000))
    history = History([incident(1, 41, "LR_TOO_HIGH", first, lost=11)], step=60, images=1000)
    again = decide([LR], history)
    assert again.detail["factor"] < first.detail["factor"]
    assert again.detail["to_step"] < first.detail["to_step"]


def test_what_was_shown_to_hold_is_not_lowered_further():
    first = decide([LR], History(step=41, images=1000))
    history = History([incident(1, 41, "LR_TOO_HIGH", first, lost=11)], step=60, images=1000)
    held = finding("LR_TOO_HIGH", onset_step=30, detail={**LR.detail, "factor": 0.1, "holds": True})
    assert decide([held], history).detail | {"factor": 0.1, "to_step": 30} == decide([held], history).detail


def test_another_component_starts_afresh():
    other = Action("lower_lr", {"component": "rpn", "components": ["rpn"], "factor": 0.3, "to_step": 1})
    action = decide([LR], History([incident(1, 20, "LR_TOO_HIGH", other)], step=41, images=1000))
    assert action.detail["factor"] == 0.3


def test_fault_of_the_whole_data_set_stops_with_its_name():
    every = finding("DATA_PIXEL", culprit=Culprit(image_ids=[1, 2]), detail={"widespread": True})
    action = decide([every], History(step=0, images=1000))
    assert action.kind == "stop" and "DATA_PIXEL" in action.detail["why"]


def test_the_quarantine_has_a_budget():
    gone = [incident(i, i, "DATA_BOX", Action("quarantine", {"image_ids": [100 + i]})) for i in range(20)]
    assert decide([BOX], History(gone, step=50, images=1000)).kind == "quarantine"
    assert decide([BOX], History(gone, step=50, images=100)).kind == "stop"


@pytest.mark.parametrize(("bad", "kind"), [(30, "quarantine"), (49, "quarantine"), (50, "stop")])
@pytest.mark.parametrize("cause", ["DATA_BOX", "DATA_PIXEL"])
def test_half_of_the_images_may_be_left_out_where_each_is_seen_to_be_bad(cause: str, bad: int, kind: str):
    """A second camera, another source: what replays alone name may be the model's doing, a NaN in a file is not."""
    gone = [incident(i, i, cause, Action("quarantine", {"image_ids": [100 + i]})) for i in range(bad)]
    seen = [Evidence("scan: input, image 17", "not finite", cause)]
    budgets, history = Budgets(max_incidents=100), History(gone, step=500, images=100)
    found = finding(cause, culprit=Culprit(image_ids=[17]), evidence=seen)
    assert decide([found], history, budgets).kind == kind
    label = finding("DATA_LABEL", culprit=Culprit(image_ids=[17]), evidence=seen)
    assert decide([label], history, budgets).kind == "stop"
    found.evidence = [Evidence("replay: image 17 alone", "diverges", cause)]
    assert decide([found], history, budgets).kind == "stop"


def test_an_image_that_is_left_out_already_is_not_left_out_twice():
    gone = [incident(1, 3, "DATA_BOX", Action("quarantine", {"image_ids": [17]}))]
    assert decide([BOX], History(gone, step=50, images=1000)).kind == "skip"


@pytest.mark.parametrize("found", [BOX, finding("LOSS_MATH", 0.93, culprit=Culprit(image_ids=[17]),
                                                 detail={"proved_on_healthy_weights": True})])  # fmt: skip
def test_an_image_that_a_loop_hands_out_again_costs_its_step_and_no_more(found: Finding):
    """Once an epoch of six steps: it was gone back for at the fourth time, and stopped for at the fifth."""
    past = [incident(0, 2, found.cause, Action("skip", {"why": "the loader is the loop's", "image_ids": [17]}))]
    for step in range(8, 600, 6):
        action = decide([found], History(past, step=step, images=10**9))
        assert (action.kind, action.detail) == ("skip", {"again": [17]})
        past.append(incident(step, step, found.cause, action))
    assert decide([UNKNOWN], History(past, step=601)) == Action("skip", {}), "and others are counted by themselves"
    often = [incident(s, s, found.cause, Action("skip", {"again": [17]})) for s in range(600, 630)]
    assert decide([found], History(past + often, step=630, images=10**9)).kind == "stop"


def test_maths_that_fails_for_some_batches_costs_their_steps_and_no_more():
    """A batch in ten has no object of a class, and the loss divides by their number: the fifth ended the run."""
    found = finding("LOSS_MATH", 0.93, fix="look at div (losses.py:7)")
    past: list[Incident] = []
    for step in range(7, 1000, 10):
        action = decide([found], History(past, step=step, images=10**9))
        assert action.kind == "skip" and ("again" in action.detail) is bool(past)
        past.append(dataclasses.replace(incident(step, step, found.cause, action), fix=found.fix))
    other = finding("LOSS_MATH", 0.93, fix="look at log (losses.py:9)")
    assert decide([other], History(past, step=1001)) == Action("skip", {}), "another line is another fault"


def test_maths_that_fails_for_every_batch_stops_after_one_way_back():
    found = finding("LOSS_MATH", 0.93, fix="look at div (losses.py:7)")
    past: list[Incident] = []
    kinds = []
    for step in range(5):
        action = decide([found], History(past, step=step, images=10**9))
        kinds.append(action.kind)
        past.append(dataclasses.replace(incident(step, step, found.cause, action), fix=found.fix))
    assert kinds == ["skip", "skip", "skip", "rollback", "stop"]


def test_maths_that_fails_beside_batches_that_are_sound_may_fail_several_times_in_a_row():
    top = finding("LOSS_MATH", fix="look at log (own.py:3)", detail={"sound_beside": True})
    earlier = [incident(n, 40 + n, "LOSS_MATH", Action("skip", {"again": []})) for n in range(10)]
    for i in earlier:
        i.fix = top.fix
    assert decide([top], History(earlier, 50)).kind == "skip"
    earlier += [incident(n, 10 + n, "LOSS_MATH", Action("skip", {"again": []})) for n in range(20)]
    assert decide([top], History(earlier, 50)).kind == "stop", "more than half of the last fifty steps"


def test_what_a_pass_fills_is_passed_on_and_not_for_ever():
    found = finding("LOSS_MATH", 0.93, fix="look at div (own.py:3)", detail={"passed": True})
    past: list[Incident] = []
    for step in range(3):
        assert decide([found], History(past, step=step)) == Action("skip", {"passed": True})
        past.append(incident(step, step, found.cause, Action("skip", {"passed": True})))
    assert decide([found], History(past, step=3)).kind == "rollback"
    assert decide([found], History(past, step=100)) == Action("skip", {"passed": True})


def test_half_proved_data_is_not_left_out():
    assert (
        decide([finding("DATA_MASK", 0.6, culprit=Culprit(image_ids=[17]))], History(step=9, images=100)).kind == "skip"
    )


def test_an_image_that_fails_on_healthy_weights_is_left_out_whatever_the_cause():
    proved = finding("UNKNOWN", 0.5, culprit=Culprit(image_ids=[17]), detail={"proved_on_healthy_weights": True})
    assert decide([proved], History(step=9, images=100)).kind == "quarantine"


def test_skips_then_back_then_stop():
    history: list[Incident] = []
    kinds = []
    for step in range(100, 112):
        action = decide([UNKNOWN], History(history, step=step, images=100))
        kinds.append(action.kind)
        history.append(incident(step, step, "UNKNOWN", action))
    assert kinds[:5] == ["skip", "skip", "skip", "rollback", "stop"]


def test_weights_on_which_no_batch_is_normal_are_not_kept_by_a_skip():
    ruined = finding("UNKNOWN", 0.1, onset_step=95, detail={"ruined": True})
    history: list[Incident] = []
    for step, kind in zip((100, 101, 102, 103, 104), ("rollback", "skip", "skip", "skip", "stop"), strict=True):
        action = decide([ruined], History(history, step=step, images=100))
        assert action.kind == kind and action.detail.get("to_step", 95) == 95
        history.append(incident(step, step, "UNKNOWN", action))


@pytest.mark.parametrize(("rise", "factor"), [(1e2, 1e-4), (1e7, 1e-8)])
def test_a_rate_that_leapt_comes_down_as_far_as_it_went_up(rise: float, factor: float):
    leapt = finding("LR_TOO_HIGH", detail={**LR.detail, "factor": 1e-9, "leapt": {"box_head": rise}})
    assert decide([leapt], History(step=41, images=1000)).detail["factor"] == pytest.approx(factor)


def test_rare_skips_go_on_for_ever():
    history = [incident(i, i * 100, "LOSS_MATH", Action("skip", {})) for i in range(10)]
    assert decide([finding("LOSS_MATH")], History(history, step=1000, images=100)).kind == "skip"


@pytest.mark.parametrize(
    ("cause", "detail", "kind"),
    [
        ("POISONED_STATE", {"at_load": True}, "reload"),
        ("POISONED_STATE", {"at_load": False}, "rollback"),
        ("NORM_STATE", {"at_load": True}, "stop"),
        ("NORM_STATE", {"at_load": False}, "rollback"),
        ("NORM_STATE", {"by_forward": True}, "skip"),
        ("FP16_OVERFLOW", {"fp32_modules": ["a.b"]}, "precision"),
        ("SCALE_COLLAPSE", {}, "precision"),
        ("TRANSIENT", {}, "rollback"),
        ("ANCHORS", {}, "stop"),
        ("BACKEND", {}, "skip"),
        ("ACCUMULATION", {}, "skip"),
        ("LOSS_MATH", {}, "skip"),
        ("UNKNOWN", {}, "skip"),
    ],
)
def test_first_action_of_each_cause(cause: str, detail: dict, kind: str):
    assert decide([finding(cause, detail=detail)], History(step=10, images=100)).kind == kind


def test_half_precision_is_given_up_for_what_comes_again_and_one_module_s_at_once():
    whole = finding("FP16_OVERFLOW", detail={"fp32_modules": [""]})
    assert decide([whole], History(step=10, images=100)).kind == "skip"
    once = [incident(1, 9, "FP16_OVERFLOW", Action("skip", {}))]
    again = decide([whole], History(once, step=10, images=100))
    assert again == Action("precision", {"module": "", "modules": [""], "dtype": "fp32"})
    assert decide([whole], History(once, step=900, images=100)).kind == "skip"


def test_a_transient_is_tried_again_twice_then_skipped():
    retry = decide([finding("TRANSIENT")], History(step=10, images=100))
    assert retry == Action("rollback", {"to_step": 10, "retry": True})
    tried = [incident(i, 10, "TRANSIENT", retry) for i in range(2)]
    assert decide([finding("TRANSIENT")], History(tried, step=10, images=100)).kind == "skip"


def test_budgets_stop_the_run():
    many = [incident(i, i * 60, "UNKNOWN", Action("skip", {})) for i in range(30)]
    assert decide([LR], History(many, step=5000, images=100)).kind == "stop"
    back = [incident(i, i * 60, "LR_TOO_HIGH", Action("rollback", {}), lost=5) for i in range(10)]
    assert decide([LR], History(back, step=5000, images=100), Budgets()).kind == "stop"
    assert decide([BOX], History(back, step=5000, images=100)).kind == "quarantine"
    assert decide([], History()).kind == "stop"


def test_wrong_code_is_done_without_once():
    compiled = finding("BACKEND", detail={"eager_modules": ["backbone.body"], "libraries": True})
    first = decide([compiled], History(step=9, images=100))
    assert first == Action("precision", {"module": "backbone.body", "eager_modules": ["backbone.body"]})
    again = decide([compiled], History([incident(1, 9, "BACKEND", first)], step=12, images=100))
    assert again.detail["libraries"] is False, "eager already: the library is what is left"
    known = [incident(1, 9, "BACKEND", first), incident(2, 12, "BACKEND", again)]
    assert decide([compiled], History(known, step=15, images=100)).kind == "skip"
    assert decide([finding("BACKEND")], History(step=9, images=100)).kind == "skip", "only the CPU is right"


def test_rank_local_acts_on_its_inner_cause():
    outer = finding("RANK_LOCAL", culprit=Culprit(rank=1, image_ids=[17]))
    assert decide([outer, BOX], History(step=3, images=100)).kind == "quarantine"
    assert decide([outer, UNKNOWN], History(step=3, images=100)).kind == "skip"


def test_an_inner_finding_that_is_not_proved_decides_nothing():
    outer = finding("RANK_LOCAL", 0.95, culprit=Culprit(rank=1))
    likely = Finding("LR_TOO_HIGH", 0.75, LR.culprit, [], 30, "", LR.detail)
    assert decide([outer, likely], History(step=41, images=1000)).kind == "skip"
    assert decide([outer, LR], History(step=41, images=1000)).kind == "lower_lr"


@pytest.mark.parametrize("cause", ["UNKNOWN", "LOSS_MATH", "DATA_LABEL", "ANCHORS"])
def test_what_every_batch_raises_stops_at_once(cause: str):
    raised = finding(cause, 0.6, fix="look at KeyError: 'area' (mine.py:7, in forward)", detail={"every_batch": True})
    if cause == "DATA_LABEL":
        raised.detail["widespread"] = True
    action = decide([raised], History(step=0, images=1000))
    assert action.kind == "stop"
    assert "mine.py:7" in action.detail["why"]


def test_a_loss_whose_formula_changed_stops_and_a_file_that_trains_is_loaded():
    changed = finding(
        "LOSS_MATH",
        0.95,
        fix="look at what changes loss_mask",
        detail={"stops": "the loss is not the one that this run began with"},
    )
    assert decide([changed], History(step=12, images=1000)).kind == "stop"
    older = finding("POISONED_STATE", 0.95, detail={"at_load": True, "file": "checkpoints/epoch_001.pth"})
    action = decide([older], History(step=12, images=1000))
    assert action == Action("reload", {"checkpoint": "checkpoints/epoch_001.pth"})
    only = finding("POISONED_STATE", 0.95, fix="start again", detail={"at_load": True, "only_file": True})
    assert decide([only], History(step=12, images=1000)).kind == "stop"


def test_a_rate_that_was_lowered_without_proof_comes_back_whole():
    lower = Action("lower_lr", {"component": "box_head", "components": ["box_head"], "factor": 0.1, "to_step": 10})
    likely, proved = incident(1, 10, "LR_TOO_HIGH", lower), incident(1, 10, "LR_TOO_HIGH", lower)
    likely.confidence = 0.75
    reached = {}
    for name, one in (("likely", likely), ("proved", proved)):
        factors = {"box_head": 0.1}
        for step in range(11, 1000):
            factors |= maybe_raise(History([one], step, images=100, total=480), factors)
        reached[name] = factors["box_head"]
    assert reached["likely"] == 1.0
    assert reached["proved"] == pytest.approx(0.3)


@pytest.mark.parametrize("cause", CAUSES)
def test_never_a_rate_for_what_is_not_a_rate_and_always_the_same_answer(cause: str):
    found = [
        finding(cause, culprit=Culprit(component="rpn", image_ids=[1]), detail={"components": ["rpn"]}, onset_step=4)
    ]
    history = History(step=10, images=100)
    first = decide(found, history)
    assert first == decide(found, history)
    assert (first.kind == "lower_lr") == (cause == "LR_TOO_HIGH")


def test_a_rate_is_raised_again_after_it_has_held_but_not_to_where_it_diverged():
    lowered = decide([LR], History(step=41, images=100))
    history = [incident(1, 41, "LR_TOO_HIGH", lowered, lost=11)]
    factor = {"box_head": 0.3}
    assert maybe_raise(History(history, step=41 + HOLD_STEPS - 1), factor) == {}
    raised = maybe_raise(History(history, step=41 + HOLD_STEPS), factor)
    assert 0.3 < raised["box_head"] <= 0.5
    assert maybe_raise(History(history, step=41 + 2 * HOLD_STEPS), {"box_head": 0.7}) == {}
    assert maybe_raise(History(history, step=41 + HOLD_STEPS), {"rpn": 0.3}) == {}


@pytest.mark.parametrize(("total", "hold"), [(24, 16), (480, 16), (1500, 50), (90_000, 100), (0, 100)])
def test_how_long_a_lowered_rate_has_to_hold_depends_on_the_plan(total: int, hold: int):
    lowered = [incident(1, 40, "LR_TOO_HIGH", decide([LR], History(step=40)))]
    steps = [s for s in range(1, 200) if maybe_raise(History(lowered, s, 100, total), {"box_head": 0.1})]
    assert steps == list(range(40 + hold, 200, hold))


def lowered_at(*steps: tuple[int, float, float]) -> list[Incident]:
    """Incidents of the box head: (step, factor of the plan at which it diverged, what it was multiplied by)."""
    found = []
    for number, (step, diverged, factor) in enumerate(steps):
        lowered = decide([finding("LR_TOO_HIGH", detail={**LR.detail, "factor": factor, "holds": True})], History())
        found.append(incident(number, step, "LR_TOO_HIGH", lowered))
        found[-1].detail["lr_factors"] = {"box_head": diverged} if diverged < 1 else {}
    return found


@pytest.mark.parametrize(
    ("lowered", "ceiling"),
    [
        ([(6, 1.0, 0.1)], 0.3),  # three times what held
        ([(6, 1.0, 0.5)], 0.7),  # well below what diverged
        ([(6, 1.0, 0.3), (20, 0.3, 0.3)], 0.21),
        ([(6, 1.0, 0.3), (20, 0.3, 0.1)], 0.09),
        ([(6, 1.0, 0.1), (60, 0.15, 0.3)], 0.105),
    ],
)
def test_a_rate_rises_to_near_what_held_and_stays_below_what_diverged(lowered: list, ceiling: float):
    incidents, factor, seen = lowered_at(*lowered), 0.03, []
    for step in range(lowered[-1][0], 2000):
        raised = maybe_raise(History(incidents, step, 100, 480), {"box_head": factor})
        factor = raised.get("box_head", factor)
        seen += list(raised.values())
    assert seen[-1] == pytest.approx(ceiling) and seen[0] == pytest.approx(0.045)
    assert all(b <= 1.5 * a + 1e-9 for a, b in itertools.pairwise(seen)), "gently"


def test_a_raise_that_failed_doubles_the_wait_and_incidents_close_together_do_not():
    def first(*steps: int) -> int:
        history = lowered_at(*((s, 1.0, 0.3) for s in steps))
        last = max(steps)
        found = (s for s in range(1, 500) if maybe_raise(History(history, last + s, 100, 480), {"box_head": 0.1}))
        return next(found, 0)

    assert (first(6), first(6, 20), first(6, 60), first(6, 60, 140)) == (16, 16, 32, 64)
    assert first(6, 60, 140, 260) == 0, "three times it did not hold: it stays where it is"


def recover(run: TinyRun, steps: int) -> list[Incident]:
    """The loop's response in miniature: restore, lower, leave out; no step count is lost."""
    history: list[Incident] = []
    factors = dict.fromkeys(run.lr, 1.0)
    planned = run.lr_at or (lambda step: dict(run.lr))
    run.lr_at = lambda step: {c: v * factors[c] for c, v in planned(step).items()}
    gone: set[int] = set()
    make = run.make_batch
    run.make_batch = lambda keys: make([k._replace(image_id=1) if k.image_id in gone else k for k in keys])  # type: ignore[method-assign]
    step = 0
    while step < steps:
        alarm, batches = run.step(step)
        if alarm is None:
            step += 1
            continue
        action = decide(investigate(run.case(alarm, batches)), History(history, step=step, images=run.images))
        assert action.kind != "stop", action
        back = step
        if action.kind in ("lower_lr", "rollback"):
            snapshot = run.ring.newest(action.detail["to_step"]) or run.ring.items[-1]
            restore(snapshot, run.model, run.optimizer, run.scaler, guard=run.guard)
            back = snapshot.step
            run.ring.drop_after(back)
            run.tape.drop_from(back)
            run.history = [r for r in run.history if r.step < back]
        for component in action.detail.get("components", []):
            factors[component] *= action.detail["factor"]
        gone |= set(action.detail.get("image_ids", []))
        history.append(incident(len(history), step, "?", action, lost=step - back))
        step = step + 1 if action.kind == "skip" else back
    return history


@pytest.mark.parametrize(
    "change", [{"box_head": 0.3}, {"mask_head": 3.0}, {"backbone": 0.3}, {"box_head": 0.5, "mask_head": 0.5}]
)
def test_a_diverging_run_is_brought_back_and_finishes(change: dict[str, float]):
    run = TinyRun(lr=rates(**change), max_grad_norm=0)
    history = recover(run, 40)
    assert 1 <= len(history) <= 6
    assert {c for i in history for c in i.action.detail["components"]} <= set(change) | {"backbone", "box_head"}
    assert nonfinite_entries(take(run.model, run.optimizer, None, step=40, epoch=0)) == []
    last = [r.loss for r in run.history[-5:]]
    assert sum(last) / 5 < run.history[0].loss


def test_a_bad_image_costs_one_incident_not_one_an_epoch():
    run = TinyRun(spoil=target("boxes", lambda b: b * torch.nan))
    history = recover(run, 24)
    assert [i.action.kind for i in history] == ["quarantine"]
    assert history[0].action.detail["image_ids"] == [BAD]
    assert all(r.applied for r in run.history[-12:])


def drawn(step: int, epoch: int, *, before: list[tuple[int, int]]) -> Action:
    """The decision on sample 3, image 7, bad in a draw of ``epoch`` at ``step`` after others at (step, epoch)."""

    def redraw(e: int) -> dict:
        return {"redraw": [[e, 3, 0]]}

    earlier = [incident(n, s, "DATA_PIXEL", Action("rollback", redraw(e))) for n, (s, e) in enumerate(before)]
    top = finding("DATA_PIXEL", culprit=Culprit(image_ids=[7]), detail=redraw(epoch))
    return decide([top], History(earlier, step, images=100))


def test_a_draw_that_is_bad_is_drawn_anew_until_the_sample_is_bad_however_it_comes():
    first = drawn(5, 0, before=[])
    assert (first.kind, first.detail) == ("rollback", {"to_step": 5, "redraw": [[0, 3, 0]]})
    assert drawn(5, 0, before=[(5, 0)]).kind == "rollback"
    assert drawn(5, 0, before=[(5, 0), (5, 0)]).kind == "quarantine", "three draws of one step"
    assert drawn(50, 2, before=[(10, 0), (30, 1)]).kind == "quarantine", "three epochs of three"
    assert drawn(50, 9, before=[(10, 0), (30, 4)]).kind == "rollback", "three epochs of ten"
    assert drawn(50, 9, before=[(s, 0) for s in range(40)]).kind == "rollback", "they spend no budget of incidents"
