"""`explain CODE`, and the chain with the run's own figures."""

from __future__ import annotations

import math

import pytest

from maskrcnn_coco.diagnosis.explain import DECISION_TREE, chain, explain
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.records import CAUSES, StepRecord


@pytest.mark.parametrize("code", CAUSES)
def test_each_code_says_what_why_proof_and_fix(code: str):
    text = explain(code)
    assert text.startswith(code)
    for part in ("What happens:", "Why:", "How it is proved:", "What the guard does:", "How to fix it:"):
        assert part in text
    assert DECISION_TREE in text
    assert max(map(len, text.splitlines())) <= 120


def test_lower_case_is_understood_and_nonsense_is_not():
    assert explain("lr_too_high") == explain("LR_TOO_HIGH")
    with pytest.raises(ConfigError, match="LR_TOO_HIGH"):
        explain("LR_TO_HIGH")


def test_lr_text_holds_the_whole_chain():
    text = explain("LR_TOO_HIGH")
    for link in (
        "learning rate too high",
        "large updates",
        "extreme activations",
        "overflow to inf",
        "NaN in the loss",
    ):
        assert link in " ".join(text.split())
    assert "1000 scaled to 10" in " ".join(text.split())


def record(step: int, loss: float, norm: float, applied: bool = True) -> StepRecord:
    ratio = {"box_head": 0.2} if step == 1 else {}
    losses = {"loss_classifier": loss}
    lr = {"backbone": 0.005, "box_head": 0.05}
    return StepRecord(step, 0, losses, loss, norm, {"box_head": norm}, lr, None, [1], applied, None, ratio)


def test_the_chain_shows_the_run_s_own_figures():
    history = [record(0, 3.5, 12.0), record(1, 8.0, 150.0), record(2, 4e3, 9e4), record(3, math.nan, math.nan, False)]
    text = "\n".join(chain(history, max_grad_norm=10.0))
    for figure in ("0.05", "0.2", "12 → 150 → 9e+04 → nan", "3.5 → 8 → 4e+03 → nan", "scaled to 10", "loss_classifier"):
        assert figure in text
    assert "refused" in text
    assert "off" in "\n".join(chain(history, max_grad_norm=0))
    assert chain([]) == []
