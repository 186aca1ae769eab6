"""All scenarios of the bench, in one order."""

from __future__ import annotations

from nanbench.decoys import DECOYS
from nanbench.faults_code import CODE
from nanbench.faults_data import DATA
from nanbench.faults_lr import ACCUMULATION, HALF, LR
from nanbench.faults_state import STATE
from nanbench.scenario import Scenario
from nanbench.scene import Setup

SCENARIOS: tuple[Scenario, ...] = (*DATA, *LR, *ACCUMULATION, *HALF, *STATE, *CODE, *DECOYS)
BY_ID = {s.id: s for s in SCENARIOS}


def setups(scenarios: tuple[Scenario, ...] = SCENARIOS) -> list[Setup]:
    """The different clean runs that the scenarios are compared with."""
    return list(dict.fromkeys(s.setup for s in scenarios))
