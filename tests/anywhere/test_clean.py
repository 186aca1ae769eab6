"""Long honest trainings, in short: nothing refused, nothing said, the plain run's bits. The long ones: in bench."""

from __future__ import annotations

import pytest
from anywhere.clean import OWN_LOOP, SETTINGS, tried


@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_is_refused_and_nothing_said(name: str) -> None:
    assert tried(name, 90) == ([], True)


@pytest.mark.parametrize("name", [n for n in SETTINGS if n not in OWN_LOOP])
def test_nor_by_a_guard_that_takes_the_steps(name: str) -> None:
    said, _ = tried(name, 60, way="bare")  # without the loop's own clipping
    assert said == []
