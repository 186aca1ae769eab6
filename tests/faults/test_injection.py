"""A slice of the fault sweep of bench/guard/faults.py, of every kind of place."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def sweep() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_guard_faults", BENCH / "guard" / "faults.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_guard_faults"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "sgd_loop"])
def test_no_injected_fault_reaches_the_state(sweep: ModuleType, optimizer: str) -> None:
    results = sweep.sweep(every=17, optimizers=(optimizer,))
    counts = Counter(results.values())
    assert not [f for f, outcome in results.items() if outcome == "REACHED"]
    assert counts["refused"] > 0.3 * len(results)
    assert len({f.kind for f in results}) >= 9


def test_the_judge_sees_a_fault_that_is_let_through(sweep: ModuleType) -> None:
    """The sweep proves something only if it fails without the guard's checks."""
    rig = sweep.Rig("sgd_loop")
    rig.guard.mode = "observe"
    fault = sweep.Fault("gradient", "roi_heads.box_predictor.cls_score.weight", float("nan"), "middle", "sgd_loop")
    assert sweep.judge(rig, fault) == "REACHED"
