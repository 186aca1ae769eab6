"""One golden case a rule: the facts of a run that would be lost in silence, and the finding they must lead to."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from maskrcnn_coco.diagnosis.explain import explain
from maskrcnn_coco.findings.facts import (
    BatchTrial,
    Content,
    Facts,
    Labels,
    Memory,
    Parameters,
    Rates,
    RateTrial,
    Stage,
    Still,
    Targets,
)
from maskrcnn_coco.findings.judge import RULES, judge
from maskrcnn_coco.records import FINDING_CODES, plain

CONTENT = Content(24, 0.5, 0.5, 0.0, readings={"read as percent": 0.9})
SHIFTED = Labels({1: 32}, 20, num_classes=3, shift=1, unknown=28)
CASES = Path(__file__).parents[1] / "findings_cases"


@pytest.mark.parametrize("code", FINDING_CODES)
def test_golden_case(code: str):
    facts = msgspec.convert(json.loads((CASES / code / "facts.json").read_text("utf-8")), type=Facts, strict=False)
    expected = json.loads((CASES / code / "finding.json").read_text("utf-8"))
    found = judge(facts)
    assert plain(found[0]) == expected
    assert found[0].code == code
    assert found[0].evidence, "a finding without a proof is a guess"
    assert found[0].fix


def test_every_code_has_one_rule_and_every_rule_a_code():
    assert sorted(r.CODE for r in RULES) == sorted(FINDING_CODES)
    assert all(r.__name__.endswith(r.CODE.lower()) for r in RULES)


@pytest.mark.parametrize("code", FINDING_CODES)
def test_explain_teaches_a_code(code: str):
    text = explain(code.lower())
    assert text.startswith(f"{code}: ")
    for part in ("What happens:", "Why:", "How it is proved:", "What is done:", "How to fix it:"):
        assert part in text


def test_no_rule_speaks_where_nothing_was_measured():
    assert judge(Facts()) == []


@pytest.mark.parametrize(
    "facts",
    [
        # slow on purpose: the loss falls, or so many steps come that the weights get far
        Facts(rate_trial=RateTrial(24, 2.0, {"1": 1.8, "10": 1.0})),
        Facts(rate_trial=RateTrial(24, 2.0, {"1": 1.99, "10": 1.0}, reach=0.3)),
        # good to begin with: no rate lowers the loss
        Facts(rate_trial=RateTrial(24, 0.3, {"1": 0.3, "10": 0.29, "100": 0.5})),
        # a validation set that is harder; one of a few objects
        Facts(memory=Memory(0.9, 0.3, 30, 100, objects=300)),
        Facts(memory=Memory(0.9, 0.0, 2, 100, objects=5)),
        # a first epoch under warm-up, and a run that falls though AP is 0 still
        Facts(batch_trial=BatchTrial(1, 2.0, 2.0, 0.0, 24, 2.0, 0.5)),
        Facts(batch_trial=BatchTrial(3, 2.0, 1.2, 0.0, 24, 2.0, 0.5)),
        # real crowds, and specks
        Facts(targets=[Targets(10, [Stage("annotated", 100), Stage("no crowd", 40), Stage("large enough", 40)])]),
        Facts(targets=[Targets(10, [Stage("annotated", 100), Stage("large enough", 80)])]),
        Facts(parameters=Parameters(60, owned=60)),
        Facts(still=Still(20)),
        Facts(rates=Rates(100)),
    ],
)
def test_honest_figures_are_not_accused(facts: Facts):
    assert judge(facts) == []


def stages(*counts: int) -> list[Targets]:
    names = ("annotated", "mask not empty", "usable", "no crowd", "large enough")
    return [Targets(20, [Stage(n, c) for n, c in zip(names, counts, strict=True)])]


@pytest.mark.parametrize(
    ("facts", "codes"),
    [
        # outlines read as percent are small, and some of their masks empty
        (Facts(targets=stages(60, 54, 54, 54, 54), contents=[CONTENT]), ["GEOMETRY"]),
        (Facts(targets=stages(60, 54, 54, 54, 54)), ["NO_TARGETS"]),
        # ids one too low leave the last class without a name; beyond it something else is wrong too
        (Facts(targets=stages(60, 60, 32, 32, 32), labels=SHIFTED), ["CLASSES"]),
        (Facts(targets=stages(60, 60, 12, 12, 12), labels=SHIFTED), ["NO_TARGETS", "CLASSES"]),
    ],
)
def test_what_follows_from_another_fault_is_not_said_as_one_of_its_own(facts: Facts, codes: list[str]):
    assert [f.code for f in judge(facts)] == codes
