"""Replays: bit for bit where nothing is changed, private always."""

from __future__ import annotations

import pytest
import torch
from nanbench.tiny import tiny_model
from tiny_faults import BAD, pixels, put
from tiny_run import TinyRun, rates

from maskrcnn_coco.records import Alarm
from maskrcnn_coco.replay.isolation import own
from maskrcnn_coco.replay.replay import Replay
from maskrcnn_coco.system.precision import keep_fp32


@pytest.fixture(scope="module")
def healthy():
    """A healthy run of ten steps, with a made-up alarm at step 9."""
    run = TinyRun()
    for step in range(9):
        run.step(step)
    return run, run.case(Alarm("diverged", 9, 0, 9, "made up"), run.batches(9))


def test_the_same_step_again_is_equal_bit_for_bit(healthy):
    _, case = healthy
    replay = Replay(case)
    first = replay.run("same", digest=True)
    second = replay.run("same", digest=True)
    assert first.digest == second.digest is not None
    assert first.finite and first.losses == second.losses


def test_a_replay_gives_what_the_run_then_gets(healthy):
    _, case = healthy
    replayed = Replay(case).run("same")
    record = TinyRun()
    for step in range(10):
        record.step(step)
    taken = record.history[9]
    assert replayed.losses == taken.losses
    assert replayed.grad_norm == taken.grad_norm
    assert replayed.group_grad_norm == taken.group_grad_norm


def moved_settings(run: TinyRun, step: int) -> None:
    """A schedule of momentum and weight decay, as one-cycle's and others' are."""
    for group in run.optimizer.param_groups:
        group["weight_decay"] = 1e-4 * step
        if "momentum" in group:
            group["momentum"] = 0.5 + 0.05 * step
        else:
            group["betas"] = (0.5 + 0.05 * step, 0.99)


@pytest.mark.parametrize("scheduled", [None, moved_settings])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_walk_over_the_tape_ends_in_the_run_s_own_weights(kind: str, scheduled):
    slow = dict.fromkeys(rates(), 1e-3)
    run = TinyRun(kind=kind, lr=slow, max_grad_norm=5.0, accumulate=2, batch_size=2, before_step=scheduled)
    for step in range(7):
        run.step(step)
    case = run.case(Alarm("diverged", 7, 0, 7, "made up"), run.batches(7))
    start = next(s for s in case.earlier if s.step == 0)
    ends: list[bool] = []

    def visit(model):
        ends.extend(torch.equal(p, case.now.model[n]) for n, p in model.named_parameters())

    outcome = Replay(case).walk("again", start, visit=visit)
    assert all(ends) and len(outcome.path) == 8
    assert [p[1] for p in outcome.path[:7]] == [r.loss for r in run.history]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_walk_of_a_run_whose_fpn_has_a_rate_of_its_own_ends_in_its_weights_too(kind: str):
    def at(step: int, **other: float) -> dict[str, float]:
        return dict.fromkeys(rates(), 1e-3 * (0.3 + 0.1 * step))

    run = TinyRun(kind=kind, lr_at=at, max_grad_norm=5.0, fpn_times=3.7)
    for step in range(7):
        run.step(step)
    assert all(r.lr == at(r.step) for r in run.history), "the records say the component's rate"
    case = run.case(Alarm("diverged", 7, 0, 7, "made up"), run.batches(7))
    replay, start, ends = Replay(case), next(s for s in case.earlier if s.step == 0), {}

    def visit(model):
        ends.update({n: torch.equal(p, case.now.model[n]) for n, p in model.named_parameters()})

    outcome = replay.walk("again", start, visit=visit)
    assert all(ends.values()) and [p[1] for p in outcome.path[:7]] == [r.loss for r in run.history]
    ends.clear()
    replay.walk("no more than it had", start, lr_most={"backbone": at(6)["backbone"]}, visit=visit)
    assert ends and all(ends.values())
    run.step(7)
    assert replay.run("the step itself").losses == run.history[7].losses
    replay.walk("a frozen backbone", start, lr_factor={"backbone": 0.0}, visit=visit)
    assert not any(ends.values())
    moved = {n for n, p in run.model.named_parameters() if not torch.equal(p, start.model[n])}
    replay.walk(
        "nothing moves the backbone",
        start,
        lr_factor={"backbone": 0.0},
        visit=lambda m: ends.update({n: torch.equal(p, start.model[n]) for n, p in m.named_parameters()}),
    )
    assert {n for n in moved if ends[n]} == {n for n in moved if n.startswith("backbone.")} != set()


def test_lowering_one_component_changes_only_what_it_should(healthy):
    _, case = healthy
    start = next(s for s in case.earlier if s.step == 8)
    moved: dict[str, set[str]] = {}

    def moves(name):
        def visit(model):
            moved[name] = {n for n, p in model.named_parameters() if not torch.equal(p, start.model[n])}

        return visit

    replay = Replay(case)
    replay.walk("frozen box head", start, lr_factor={"box_head": 0.0}, visit=moves("frozen"))
    replay.walk("as it was", start, visit=moves("all"))
    still = moved["all"] - moved["frozen"]
    assert still and all(n.startswith("roi_heads.box_") for n in still)


def test_weights_of_steps_before(healthy):
    _, case = healthy
    old = next(s for s in case.earlier if s.step == 0)
    replay = Replay(case)
    assert replay.run("old", snapshot=old).loss > replay.run("now").loss


def test_what_the_model_raises_is_an_outcome():
    run = TinyRun()
    for step in range(3):
        run.step(step)
    batches = run.batches(3)
    batches[0].targets[1] = {**batches[0].targets[1], "labels": torch.tensor([1, 99])}
    outcome = Replay(run.case(Alarm("crash", 3, 0, 3, "made up"), batches)).run("same")
    assert not outcome.finite and "IndexError" in (outcome.error or "")


def test_locate_names_module_op_and_line():
    model = tiny_model()
    model.roi_heads.mask_head.register_forward_hook(lambda m, a, o: o / torch.zeros(()))
    case = TinyRun(model=model).until_alarm()
    outcome = Replay(case).run("watched", locate=True)
    assert outcome.first_bad_module == "roi_heads.mask_head"
    assert (outcome.first_bad_op or "").startswith("div (test_replay.py:")
    assert not any(m._forward_hooks for m in Replay(case).model.roi_heads.mask_head.children())


def test_locate_names_the_backward_op():
    from tiny_faults import WithLosses, sqrt_at_zero

    case = TinyRun(model=WithLosses(sqrt_at_zero)).until_alarm()
    outcome = Replay(case).run("watched", locate=True)
    assert outcome.phase == "backward" and "Backward" in (outcome.first_bad_op or "")
    assert "tiny_faults.py" in (outcome.first_bad_op or "")


def test_a_module_in_float32_under_autocast(healthy):
    run = TinyRun(precision="fp16")
    for step in range(3):
        run.step(step)
    case = run.case(Alarm("diverged", 3, 0, 3, "made up"), run.batches(3))
    replay = Replay(case)
    half = replay.run("half")
    mixed = replay.run("box head in float32", fp32_modules=["roi_heads.box_head"])
    full = replay.run("full", precision="fp32")
    assert half.losses["loss_classifier"] != mixed.losses["loss_classifier"]
    assert full.loss == pytest.approx(half.loss, rel=0.05)
    # The change does not stay.
    assert replay.run("half").losses == half.losses


def test_an_unsettled_loss_scale_is_lowered_as_the_run_s_search_would():
    """At 2^24 the scaled gradients of a healthy step overflow: that is the scale's fault, not the batch's."""
    run = TinyRun(precision="fp16", scale=2.0**24)
    case = run.case(Alarm("loss_nonfinite", 0, 0, 0, "made up"), run.batches(0))
    replay = Replay(case)
    asked = replay.run("at a given scale", loss_scale=2.0**24)
    assert not asked.finite and not asked.bad_losses, "what is asked for by name is not changed"
    found = replay.run("same")
    assert found.finite and (found.loss_scale or 0) < 2.0**24 and "at loss scale" in found.describe()
    assert found.grad_norm == pytest.approx(replay.run("full", precision="fp32").grad_norm, rel=0.1)
    spent = replay.steps
    replay.run("same")
    assert replay.steps == spent + 1, "a scale that was found is kept"


def test_a_gradient_that_overflows_at_every_scale_stays_bad():
    run = TinyRun(precision="fp16", scale=2.0**16)
    run.model.roi_heads.mask_head.register_full_backward_hook(lambda m, a, o: (a[0] * float("inf"),))
    case = run.case(Alarm("scale_collapse", 0, 0, 0, "made up"), run.batches(0))
    outcome = Replay(case).run("same")
    assert not outcome.finite and outcome.bad_grad_count and not outcome.bad_losses


def test_a_private_copy_does_not_call_into_the_run_s_model():
    """`keep_fp32` patches `forward` with a closure over the original module; a copy must not follow it."""
    import copy

    model = tiny_model()
    keep_fp32(model, "roi_heads.box_head")
    twin = own(copy.deepcopy(model))
    with torch.no_grad():
        for p in model.roi_heads.box_head.parameters():
            p.fill_(float("nan"))
    out = twin.roi_heads.box_head(torch.ones(2, 16, 7, 7))
    assert bool(torch.isfinite(out).all())
    assert twin.roi_heads.box_head._kept_fp32


def test_cost_is_counted_in_steps():
    case = TinyRun(spoil=pixels(put((0, 3, 4), float("nan")))).until_alarm()
    replay = Replay(case)
    replay.run("one of four", batches=[case.batches[0].subset([0])])
    replay.run("all", batches=[case.batches[0].subset([0, 2, 3, 0])])
    assert replay.count == 2 and replay.steps == pytest.approx(1.25) and replay.spent > 0
    assert BAD in case.batches[0].image_ids


def test_a_loop_s_own_check_of_gradients_does_not_stop_a_replay():
    """Autograd's anomaly mode raises at the first NaN: the run met an error, a replay measures what it was."""
    from tiny_faults import WithLosses, sqrt_at_zero

    with torch.autograd.set_detect_anomaly(True):
        case = TinyRun(model=WithLosses(sqrt_at_zero)).until_alarm()
        outcome = Replay(case).run("same")
        assert case.alarm.symptom == "crash" and "returned nan" in case.alarm.measured["error"]
        assert outcome.error is None and outcome.bad_grad_count and not outcome.bad_losses
        assert torch.is_anomaly_enabled()
