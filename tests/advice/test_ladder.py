"""The ladder: rungs in order from one state, the first unsafe one marked, a plot that parses."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from toy import quadratic

from maskrcnn_coco.advice.ladder import climb, first_unsafe, svg, table
from maskrcnn_coco.advice.limits import settle
from maskrcnn_coco.advice.trials import Trials

CURVES = {"backbone": 1.0, "rpn": 1.0, "box_head": 50.0, "mask_head": 5.0}
"""The box head stands 0.04 without momentum: between 3 and 5 times a backbone rate of 0.01."""


def test_first_unsafe_multiplier_is_marked_and_blamed():
    trials = Trials(quadratic(CURVES))
    settled = settle(trials, dict.fromkeys(CURVES, 1e-3), 6)
    said: list[str] = []
    rungs = climb(trials, settled, dict.fromkeys(CURVES, 0.01), multipliers=(3, 5.5, 7, 10), steps=40, say=said.append)
    assert [r.multiplier for r in rungs] == [3, 5.5, 7, 10] and len(said) == 4
    assert [r.safe for r in rungs] == [True, False, False, False]
    worst = first_unsafe(rungs)
    assert worst is rungs[1] and rungs[1].blame == "box_head"
    header, rows = table(rungs)
    assert all(len(row) == len(header) for row in rows)
    assert [("first" in row[1]) for row in rows] == [False, True, False, False]


def test_every_rung_starts_from_the_same_state():
    trials = Trials(quadratic(CURVES, momentum=0.9))
    settled = settle(trials, dict.fromkeys(CURVES, 1e-3), 6)
    rungs = climb(trials, settled, dict.fromkeys(CURVES, 1e-3), multipliers=(3, 3), steps=8)
    assert rungs[0].losses == rungs[1].losses
    assert first_unsafe(rungs) is None


def test_the_plot_has_one_line_for_each_rung():
    trials = Trials(quadratic(CURVES))
    settled = settle(trials, dict.fromkeys(CURVES, 1e-3), 6)
    rungs = climb(trials, settled, dict.fromkeys(CURVES, 0.01), steps=30)
    root = ET.fromstring(svg(rungs))
    lines = [p for p in root.findall("{http://www.w3.org/2000/svg}path") if "line" in p.get("class", "").split()]
    assert len(lines) == len(rungs)
    assert sum("undone" in line.get("class", "") for line in lines) == 1
    assert {"10", "30", "step"} <= {text.text for text in root.findall("{http://www.w3.org/2000/svg}text")}
    assert svg([]).startswith("<svg")
