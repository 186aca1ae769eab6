"""Every recipe of a real report, on a real detector in miniature: the cause and the culprit must come out."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_faults import BAD, FAULTS, WithLosses, pixels, put, strange_image
from tiny_run import TinyRun, rates
from torch import Tensor

from maskrcnn_coco.data.batch import Batch
from maskrcnn_coco.diagnosis import experiments
from maskrcnn_coco.diagnosis.experiments import Experiments
from maskrcnn_coco.diagnosis.facts import Facts, InputFault, TargetFault
from maskrcnn_coco.diagnosis.investigate import investigate, next_test
from maskrcnn_coco.recovery import History, decide
from maskrcnn_coco.replay.state import digest

RPN = "rpn.head.conv.0.0.weight"
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
"""torch's compiler looks at it, and says so."""


@pytest.mark.parametrize("name", FAULTS)
def test_cause_and_culprit(name: str):
    make, cause, culprit = FAULTS[name]
    case = make().until_alarm()
    experiments = Experiments(case)
    findings = investigate(case, tests=experiments)
    top = findings[0]
    assert top.cause == cause, [(f.cause, f.confidence) for f in findings]
    assert {k: getattr(top.culprit, k) for k in culprit} == culprit
    assert top.confidence >= (0.5 if cause == "UNKNOWN" else 0.9)
    assert all(f.confidence < 0.9 for f in findings[1:]), "two causes cannot both be proved here"
    assert top.evidence
    if cause.startswith("DATA_"):
        assert experiments.replay.steps <= 4, "a fault that a scan names needs next to no replays"


def test_an_investigation_leaves_the_run_as_it_was():
    run = TinyRun(lr=rates(box_head=0.3), max_grad_norm=0)
    case = run.until_alarm()

    def state():
        return (
            digest(run.model, run.optimizer),
            torch.get_rng_state().numpy().tobytes(),
            random.getstate(),
            np.random.get_state()[1].tobytes(),
            run.model.training,
            [h for m in run.model.modules() for h in m._forward_hooks],
            [p.grad is None for p in run.model.parameters()],
        )

    before = state()
    now = {k: v.clone() for k, v in case.now.model.items()}
    assert investigate(case)[0].cause == "LR_TOO_HIGH"
    assert state() == before
    assert all(torch.equal(v, now[k]) for k, v in case.now.model.items())


def test_a_run_goes_on_as_if_nothing_had_been_replayed():
    """Twin runs with a NaN image, one of them investigated: the steps after it are equal bit for bit."""

    def go(look: bool) -> str:
        run = TinyRun(spoil=pixels(put((0, 3, 4), float("nan"))))
        for step in range(8):
            alarm, batches = run.step(step)
            if alarm is not None and look:
                assert investigate(run.case(alarm, batches))[0].cause == "DATA_PIXEL"
        return digest(run.model, run.optimizer)

    assert go(True) == go(False)


def test_a_budget_of_nothing_still_gives_a_finding():
    case = TinyRun(lr=rates(box_head=0.3), max_grad_norm=0).until_alarm()
    findings = investigate(case, budget_steps=0)
    assert findings[-1].cause == "UNKNOWN" and all(f.confidence < 0.9 for f in findings)


def test_without_a_batch_the_scans_still_speak():
    make, cause, _ = FAULTS["H1 background row"]
    case = make().until_alarm()
    case.batches, case.earlier, case.tape = None, [], []
    assert investigate(case)[0].cause == cause


def test_scans_come_before_replays_and_lethal_samples_are_never_replayed():
    case = FAULTS["B6 inf"][0]().until_alarm()
    experiments = Experiments(case)
    seen: list[list[int]] = []
    inner = experiments.replay.rig.forward
    experiments.replay.rig.forward = lambda m, b, s, i, p: (seen.append(b.image_ids), inner(m, b, s, i, p))[1]
    investigate(case, tests=experiments)
    assert seen and all(BAD not in ids for ids in seen)


def test_the_prior_orders_the_tests_and_is_no_verdict():
    facts = Facts("loss_nonfinite", 50, 3, 50, can={"same", "earlier", "other"}, image_ids=[1, 2])
    assert next_test(facts) == "same"
    facts.done |= {"same"}
    facts.growing = True
    assert next_test(facts) == "earlier"
    facts.growing = False
    assert next_test(facts) == "other"


class Sick:
    """A laboratory in which every test fails to find anything."""

    def __init__(self) -> None:
        self.facts = Facts("loss_nonfinite", 1, 0, 1, can={"same", "locate", "again"})
        self.asked: list[str] = []

    @property
    def steps(self) -> float:
        return 0.0

    def scan_all(self) -> Facts:
        return self.facts

    def run(self, name: str) -> None:
        self.asked.append(name)
        self.facts.done.add(name)


def test_every_test_is_asked_at_most_once_and_unknown_is_honest():
    experiments = Sick()
    findings = investigate(None, tests=experiments)
    assert [f.cause for f in findings] == ["UNKNOWN"] and findings[0].confidence < 0.5
    assert len(experiments.asked) == len(set(experiments.asked)) > 0


def test_a_budget_that_runs_out_in_the_middle_leaves_an_honest_answer():
    case = TinyRun(lr=rates(box_head=0.3), max_grad_norm=0).until_alarm()
    experiments = Experiments(case)
    walk, walked = experiments.replay.walk, []

    def slow(*args, **kwargs):
        walked.append(args[0])
        outcome = walk(*args, **kwargs)
        if len(walked) == 2:
            experiments.replay.most_steps = experiments.replay.steps
        return outcome

    experiments.replay.walk = slow
    findings = investigate(case, tests=experiments)
    top = findings[0]
    assert top.cause == "LR_TOO_HIGH" and 0.5 < top.confidence < 0.9
    assert len(walked) <= 3


def test_two_heads_that_are_both_too_hot_are_lowered_together():
    """Lowering one holds up to the failing step; past it only lowering both does, and a walk shows that."""
    case = TinyRun(lr=rates(box_head=0.9, mask_head=0.9), max_grad_norm=0).until_alarm()
    experiments = Experiments(case)
    top = investigate(case, tests=experiments)[0]
    assert top.cause == "LR_TOO_HIGH" and set(top.detail["components"]) == {"box_head", "mask_head"}
    verdict = experiments.facts.lr_verdict
    held = [t for t in verdict.trials if t.beyond and t.bounded]
    assert all(set(t.lowered) == {"box_head", "mask_head"} for t in held)
    assert any(t.factor == pytest.approx(top.detail["factor"]) for t in held), "shown to hold, not guessed"
    alone = [t for t in verdict.trials if t.beyond and len(t.lowered) == 1]
    assert alone and not any(t.bounded for t in alone)
    assert any("8 more" in e.test for e in top.evidence)


def test_a_weight_decay_that_shrinks_every_weight_is_lowered_and_no_rate_is():
    case = TinyRun(weight_decay=300.0, lr=dict.fromkeys(rates(), 0.02), max_grad_norm=0).until_alarm()
    top = investigate(case)[0]
    assert (top.cause, top.fix, top.culprit.component) == ("LR_TOO_HIGH", "--weight-decay 0.0001", None)
    assert top.detail["weight_decay"] == 1e-4 and "weight decay 0.0001" in top.evidence[0].test
    action = decide([top], History(step=case.alarm.step, images=24))
    assert (action.kind, action.detail["factor"], action.detail["weight_decay"]) == ("lower_lr", 1.0, 1e-4)


def test_a_momentum_above_1_is_lowered_from_before_it_took_hold_and_no_rate_is():
    """By the alarm the newest states are full of it: an older one is asked, and the same steps hold from there."""
    case = TinyRun(momentum=1.25, lr=dict.fromkeys(rates(), 0.02)).until_alarm()
    top = investigate(case)[0]
    assert (top.cause, top.fix, top.culprit.component) == ("LR_TOO_HIGH", "--momentum 0.9", None)
    action = decide([top], History(step=case.alarm.step, images=24))
    assert (action.kind, action.detail["factor"], action.detail["momentum"]) == ("lower_lr", 1.0, 0.9)


def test_a_momentum_that_somebody_sets_under_way_is_gone_back_from_to_before_it_was_set():
    """A newer state holds too, and what the momentum did until then is in it."""

    def hook(run, step):
        if step >= 6:
            for group in run.optimizer.param_groups:
                group["momentum"] = 1.4

    case = TinyRun(lr=dict.fromkeys(rates(), 0.02), before_step=hook, max_grad_norm=0).until_alarm()
    assert any(6 < s.step < case.alarm.step for s in case.earlier)
    top = investigate(case)[0]
    assert top.cause == "LR_TOO_HIGH" and "['momentum']" in top.fix and top.detail["momentum"] == 0.9
    action = decide([top], History(step=case.alarm.step, images=24))
    assert action.detail["to_step"] <= 6 and action.detail["momentum"] == 0.9


@pytest.mark.parametrize("names", [["backbone.body.layer2.0.weight"], ["backbone.fpn.inner_blocks.0.0.weight", RPN]])
def test_a_gradient_that_was_wrong_once_is_named_by_its_component_where_it_was_one_s(names: list[str]) -> None:
    run = TinyRun(max_grad_norm=0)
    at, left = [0], list(names)

    def before(run: TinyRun, step: int) -> None:
        at[0] = step

    def spoil(name: str) -> Any:
        def hook(gradient: Tensor) -> Tensor:
            if at[0] == 7 and name in left:
                left.remove(name)
                return gradient * 1e9
            return gradient

        return hook

    run.before_step = before
    for name in names:
        run.model.get_parameter(name).register_hook(spoil(name))
    top = investigate(run.until_alarm())[0]
    assert top.cause == "TRANSIENT" and top.confidence >= 0.9
    assert top.culprit.component == ("backbone" if len(names) == 1 else None)


def test_what_only_the_guard_s_input_check_saw_is_named_too():
    def lose_a_mask(step, batch):
        for position, key in enumerate(batch.keys):
            if key.image_id == BAD:
                own = batch.targets[position]
                batch.targets[position] = {**own, "masks": own["masks"][:1]}

    top = investigate(TinyRun(spoil=lose_a_mask).until_alarm())[0]
    assert (top.cause, top.culprit.image_ids) == ("DATA_MASK", [BAD]) and top.confidence >= 0.9


def test_no_memory_for_a_copy_still_leaves_the_scans(monkeypatch):
    import copy

    case = FAULTS["H1 background row"][0]().until_alarm()

    def full(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(copy, "deepcopy", full)
    top = investigate(case)[0]
    assert top.cause == "POISONED_STATE"


def strange_first(model: Any, losses: dict[str, Tensor], targets: Any) -> dict[str, Tensor]:
    """The bad image's first annotation makes a loss infinite."""
    hit = any(int(a) == BAD * 10 for t in targets for a in t["annotation_ids"])
    return losses | {"loss_mask": losses["loss_mask"] * float("inf")} if hit else losses


def one_object(step: int, batch: Batch) -> None:
    """Of the bad image only its first annotation is left."""
    for i, image_id in enumerate(batch.image_ids):
        if image_id == BAD:
            gone = [int(a) for a in batch.targets[i]["annotation_ids"][1:]]
            batch.targets[i] = batch.drop_annotations(i, gone).targets[i]


@pytest.mark.parametrize(("strange", "named"), [(strange_image, []), (strange_first, [BAD * 10])])
def test_the_only_annotation_of_an_image_is_named_where_the_image_without_it_is_sound(strange, named):
    case = TinyRun(model=WithLosses(strange), spoil=one_object).until_alarm()
    experiments = Experiments(case)
    investigate(case, tests=experiments)
    if "annotations" not in experiments.facts.done:
        experiments.run("annotations")
    assert experiments.facts.guilty_images == [BAD] and experiments.facts.guilty_annotations == named


@pytest.mark.parametrize(
    ("bad", "code", "widespread"),
    [
        ([1, 2, 1], "DATA_PIXEL", False),  # a third of a set: few batches of four are without any
        ([1, 2, 1], "DATA_LABEL", True),  # classes that are counted from 0: images without the last one are right
        ([4, 3, 4], "DATA_PIXEL", True),
        ([4, 0, 4], "DATA_PIXEL", False),
        ([4, 0, 4], "DATA_LABEL", False),
    ],
)
def test_a_fault_is_the_data_set_s_where_most_images_of_every_other_batch_have_it(bad, code, widespread, monkeypatch):
    looking: Any = Experiments.__new__(Experiments)
    looking.facts = Facts("input_nonfinite", 5, 0, 5)
    if code == "DATA_LABEL":
        looking.facts.targets = [TargetFault(code, 3, 1, "label 9", lethal=False)]
    else:
        looking.facts.inputs = [InputFault(3, "not finite", "before", lethal=False)]
    batches = [SimpleNamespace(image_ids=[10 * n + i for i in range(4)], bad=k) for n, k in enumerate(bad, 1)]
    looking._other_entries = lambda: batches
    looking.replay = SimpleNamespace(model=None, batches_of=lambda entry: [entry])

    def scan(batch: Any, *_: Any) -> tuple[list[Any], list[Any]]:
        ids = batch.image_ids[: batch.bad]
        targets = [TargetFault(code, i, 1, "label 9", lethal=False) for i in ids] if code == "DATA_LABEL" else []
        return targets, [InputFault(i, "not finite", "before", lethal=False) for i in ids] if not targets else []

    monkeypatch.setattr(experiments.scan_batch, "scan_values", scan)
    looking._peek()
    assert looking.facts.widespread == widespread
