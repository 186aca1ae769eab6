"""Curves: spikes survive thinning, what is not finite is marked, ticks are round, everything is escaped."""

from __future__ import annotations

import itertools
import math
import re
import xml.dom.minidom

import pytest

from maskrcnn_coco.report.svg import Chart, Level, Marker, Series, linear_ticks, log_ticks, render, smoothed, thin


def svg(html: str):
    return xml.dom.minidom.parseString(re.search(r"<svg.*</svg>", html, re.S).group(0))  # type: ignore[union-attr]


def line(n: int) -> list[tuple[float, float]]:
    return [(float(i), 1.0 + 0.1 * math.sin(i / 50)) for i in range(n)]


def test_thinning_keeps_spikes_ends_and_bad_values() -> None:
    points = line(50_000)
    points[31_234] = (31_234.0, 999.0)
    points[40_000] = (40_000.0, math.nan)
    out = thin(points)
    assert len(out) <= 802
    assert (31_234.0, 999.0) in out
    assert any(math.isnan(y) for _, y in out)
    assert out[0] == points[0]
    assert out[-1] == points[-1]
    assert [x for x, _ in out] == sorted(x for x, _ in out)
    assert thin(points[:500]) == points[:500]


def test_a_long_run_stays_small() -> None:
    assert len(render(Chart("loss", [Series("total", line(100_000))], smooth=True))) < 40_000


def test_not_finite_values_are_gaps_with_a_cross() -> None:
    points = [(0.0, 1.0), (1.0, math.nan), (2.0, math.inf), (3.0, 1.0), (4.0, 2.0)]
    html = render(Chart("loss", [Series("total", points)]))
    assert html.count('class="cross') == 2
    path = re.search(r'class="line s0" d="([^"]+)"', html)
    assert path
    assert path.group(1).count("M") == 2
    assert "nan" not in path.group(1)


def test_wide_ranges_get_a_log_axis_and_narrow_ones_do_not() -> None:
    wide = [(float(i), 10.0**i) for i in range(6)]
    assert "log scale" in render(Chart("a", [Series("x", wide)]))
    assert "log scale" not in render(Chart("a", [Series("x", line(10))]))
    assert "log scale" not in render(Chart("a", [Series("x", wide)], log=False))


def test_what_was_taken_back_does_not_squash_what_was_kept() -> None:
    chart = Chart("loss", [Series("x", line(50)), Series("x", [(5.0, 1.0), (6.0, 1e9)], undone=True)])
    assert "log scale" not in render(chart)
    chart.whole = True
    assert "log scale" in render(chart)


def test_everything_is_escaped() -> None:
    evil = '"><script>alert(1)</script>'
    chart = Chart(evil, [Series(evil, line(5)), Series("b", line(5), 1)], evil, [Marker(2, evil)], [Level(1.0, evil)])
    html = render(chart)
    assert "<script" not in html
    svg(html)


def test_markers_outside_are_left_out_and_no_data_is_no_chart() -> None:
    html = render(Chart("a", [Series("x", line(10))], markers=[Marker(3, "in"), Marker(300, "out")]))
    assert html.count('class="marker') == 1
    assert render(Chart("a", [])) == ""
    assert render(Chart("a", [Series("x", [(0.0, math.nan)])])) == ""


@pytest.mark.parametrize(
    "points", [[(0.0, 0.0)], [(5.0, -3.0)], [(0.0, 1e-300), (1.0, 1e300)], [(0.0, 7.0), (1.0, 7.0)]]
)
def test_odd_data(points: list) -> None:
    svg(render(Chart("a", [Series("x", points)])))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 479), (-3.2, 8.9), (1e-9, 2e-9), (0, 123456789)])
def test_linear_ticks_are_round_inside_and_few(low: float, high: float) -> None:
    ticks = linear_ticks(low, high, 5)
    assert 2 <= len(ticks) <= 8
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in ticks)
    steps = {round(b - a, 12) for a, b in itertools.pairwise(ticks)}
    mantissa = f"{steps.pop():e}"[0]
    assert mantissa in "125"


@pytest.mark.parametrize(("low", "high"), [(0.2, 30), (1e-8, 1e12), (3, 9), (0.9, 1100)])
def test_log_ticks(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 1 <= len(ticks) <= 9
    assert all(low <= t <= high for t in ticks)


def test_smoothing_ignores_single_spikes() -> None:
    points = line(200)
    points[100] = (100.0, 500.0)
    assert max(y for _, y in smoothed(points)) < 2


@pytest.mark.parametrize(("label", "fraction"), [("epoch", False), ("step", False), ("score", True)])
def test_only_what_comes_in_fractions_has_marks_between_whole_numbers(label: str, fraction: bool) -> None:
    text = render(Chart("AP", [Series("a", [(1.0, 0.1), (2.0, 0.2), (3.0, 0.3)])], x_label=label))
    marks = re.findall(r'text-anchor="middle">([\d.]+)<', text)
    assert marks and any("." in m for m in marks) is fraction
