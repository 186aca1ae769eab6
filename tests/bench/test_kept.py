"""What a divergence costs: what is lowered is no more than was wrong, and the way back no longer than it must be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
pytestmark = pytest.mark.skipif(not (BENCH / "nanbench").is_dir(), reason="the bench is not part of the package")
sys.path.insert(0, str(BENCH))

if (BENCH / "nanbench").is_dir():
    from nanbench.scenarios import BY_ID
    from nanbench.worker import run_job


def of(scenario: str, seed: int, folder: Path) -> dict[str, Any]:
    """The outcome of one scenario, and ``clean``: the loss of its twin without a fault."""
    job = {"system": "ours", "setup": vars(BY_ID[scenario].setup), "seed": seed}
    clean = run_job(job | {"scenario": "clean"}, folder / "clean")
    return run_job(job | {"scenario": scenario}, folder / "fault") | {"clean": clean["evaluation"]}


@pytest.mark.parametrize(
    ("scenario", "seed", "lost", "worse"),
    [
        # The rate is 10,000 times its own at two steps: the state after the first is lost, the one before it is not.
        ("third-cyclic-ssd", 1, 4, 1.1),
        # Doubles and doubles: what helps is what the rate was before, not a share of what it becomes.
        ("fourth-exponential-adam", 0, 7, 1.5),
        # A momentum of 3 for six steps, a decay of 300 in one group: no rate is too high.
        ("third-momentum-3", 0, 5, 1.2),
        ("fifth-decay-of-heads", 0, 5, 1.3),
        # Every rate is 700 times too high, and clipping hides it in all but one component.
        ("wild-lr-fcos", 0, 4, 1.1),
    ],
)
def test_a_run_comes_back_to_what_it_would_have_learned(
    scenario: str, seed: int, lost: int, worse: float, tmp_path: Path
) -> None:
    outcome = of(scenario, seed, tmp_path)
    assert outcome["finished"] and outcome["finite"]
    assert {i["cause"] for i in outcome["incidents"]} == {"LR_TOO_HIGH"}
    assert sum(i.get("lost_steps", lost) for i in outcome["incidents"]) <= lost
    assert outcome["evaluation"] < worse * outcome["clean"]
