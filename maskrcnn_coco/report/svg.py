"""Curves as inline SVG: axes, ticks, legend, markers; no script, no font, no library. Standard library only.

Colours come from the page's CSS variables (``--c0`` …), so that one file serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from maskrcnn_coco.wording import clean, figure

MAX_POINTS = 800
"""Points drawn of one curve; of longer ones the smallest and largest of each slice are kept, so that spikes stay."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 34
_NARROW = 800
"""Charts beyond this width, in their own units, are made for a whole page."""
_HOVERS = 48


@dataclass(frozen=True)
class Series:
    """One curve of (x, y), y may be nan or inf. ``slot`` picks the colour; ``undone``: steps that were taken back."""

    name: str
    points: Sequence[tuple[float, float]]
    slot: int = 0
    undone: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Marker:
    """A vertical line at ``x``, with the text that hovering shows. ``kind``, "bad" or "good", is its colour."""

    x: float
    text: str
    kind: str = "bad"


@dataclass(frozen=True)
class Level:
    """A horizontal dashed line at ``y``, labelled."""

    y: float
    text: str


@dataclass
class Chart:
    """What to draw.

    ``log``: None chooses a logarithmic axis where values span two powers of ten or more. ``zero``: from 0 on.
    ``smooth``: a running median over the raw values. ``whole``: steps that were taken back are shown to their top;
    otherwise they leave the picture, which belongs to the curve that was kept.
    """

    title: str
    series: list[Series]
    x_label: str = "step"
    markers: list[Marker] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    log: bool | None = None
    zero: bool = False
    smooth: bool = False
    whole: bool = False
    width: int = 640
    height: int = 250


def render(chart: Chart) -> str:
    """The chart as an HTML ``<figure>``; "" where no series has a finite point."""
    series = [Series(s.name, thin(s.points), s.slot, s.undone, s.dots) for s in chart.series if s.points]
    frame = _frame(chart, series)
    if frame is None:
        return ""
    parts = [*_grid(frame, chart), *_levels(frame, chart)]
    for s in series:
        parts += _curve(frame, s, smooth=chart.smooth)
    parts += [_marker(frame, m) for m in chart.markers if frame.x0 <= m.x <= frame.x1]
    parts += _hovers(frame, series, chart.x_label)
    label = escape(f"{clean(chart.title)}, {chart.x_label} {figure(frame.x0)} to {figure(frame.x1)}")
    wide = ' class="wide"' if chart.width > _NARROW else ""  # on a phone it is scrolled: scaled, nobody could read it
    size = f'viewBox="0 0 {chart.width} {chart.height}"'
    svg = f'<svg{wide} {size} role="img" aria-label="{label}">' + "".join(parts) + "</svg>"
    scale = '<span class="scale">log scale</span>' if frame.log else ""
    head = f"<figcaption><b>{escape(clean(chart.title))}</b>{scale}{_legend(series)}</figcaption>"
    return f'<figure class="chart">{head}{svg}</figure>'


_STYLE = """text { font: 12px sans-serif; fill: #555; stroke: none !important; }
path { fill: none; stroke: #ddd; } .axis { stroke: #999; }
.line { stroke-width: 2; } .undone { stroke-dasharray: 5 3; } .hover { fill: transparent; }"""
_COLOURS = ("#0072b2", "#e08a00", "#00906a", "#c25a94", "#56a5d8", "#c84c00", "#7d6bd0", "#8a8a00")


def standalone(chart: Chart) -> str:
    """The chart as an SVG file of its own, with its title, colours and names inside; empty where nothing is finite."""
    series = [Series(s.name, thin(s.points), s.slot, s.undone, s.dots) for s in chart.series if s.points]
    frame = _frame(chart, series)
    head = '<svg xmlns="http://www.w3.org/2000/svg"'
    if frame is None:
        return f'{head} width="{chart.width}" height="{chart.height}"></svg>'
    rules = "".join(
        f" .s{n} {{ stroke: {c}; }} text.s{n} {{ stroke: none; fill: {c}; }}" for n, c in enumerate(_COLOURS)
    )
    parts = [f"<title>{escape(clean(chart.title))}</title><style>{_STYLE}{rules}</style>", *_grid(frame, chart)]
    for n, s in enumerate(series):
        parts += _curve(frame, s, smooth=chart.smooth)
        name = escape(clean(s.name))
        parts.append(f'<text class="s{s.slot % 8}" x="{chart.width + 4}" y="{_TOP + 12 + 18 * n}">{name}</text>')
    return f'{head} viewBox="0 0 {chart.width + 150} {chart.height}" role="img">' + "".join(parts) + "</svg>"


def thin(points: Sequence[tuple[float, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most ``most`` + 2 of the points: of each slice the smallest, the largest, and one that is not finite."""
    points = list(points)
    if len(points) <= most:
        return points
    out: list[tuple[float, float]] = [points[0]]
    slices = most // 3
    for n in range(slices):
        part = points[n * len(points) // slices : (n + 1) * len(points) // slices]
        finite = [p for p in part if math.isfinite(p[1])]
        keep = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])} if finite else set()
        keep |= set([p for p in part if not math.isfinite(p[1])][:1])
        out += sorted(keep, key=lambda p: p[0])
    return [*out, points[-1]]


@dataclass(frozen=True)
class _Frame:
    """Data range → pixels."""

    x0: float
    x1: float
    y0: float
    y1: float
    log: bool
    width: int
    height: int

    def x(self, value: float) -> float:
        share = (value - self.x0) / (self.x1 - self.x0) if self.x1 > self.x0 else 0.5
        return round(_LEFT + share * (self.width - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        if self.log:
            share = (math.log10(max(value, self.y0)) - math.log10(self.y0)) / (
                math.log10(self.y1) - math.log10(self.y0)
            )
        else:
            share = (value - self.y0) / (self.y1 - self.y0)
        return round(self.height - _BOTTOM - min(max(share, 0.0), 1.0) * (self.height - _TOP - _BOTTOM), 1)


def _frame(chart: Chart, series: Sequence[Series]) -> _Frame | None:
    xs = [x for s in series for x, _ in s.points]
    ys = sorted(y for s in series for _, y in s.points if math.isfinite(y))
    kept = [y for s in series if not s.undone for _, y in s.points if math.isfinite(y)]
    if kept and not chart.whole:
        ys = [y for y in ys if y <= max(kept) + 1.5 * abs(max(kept))]
    if not ys:
        return None
    low, high = ys[0], ys[-1]
    positive = [y for y in ys if y > 0]
    log = chart.log
    if log is None:
        # A few zeros (warm-up, no such loss) do not forbid it; the very lowest values do not ask for it.
        wide = bool(positive) and high / positive[len(positive) // 50] >= 100
        log = wide and len(positive) >= 0.9 * len(ys)
    if log and positive:
        return _Frame(min(xs), max(xs), positive[0] / 1.3, high * 1.3, True, chart.width, chart.height)
    low = 0.0 if chart.zero or (low >= 0 and low < 0.4 * high) else low
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return _Frame(min(xs), max(xs), low if low == 0.0 else low - pad, high + pad, False, chart.width, chart.height)


def _grid(f: _Frame, chart: Chart) -> list[str]:
    bottom, right = f.height - _BOTTOM, f.width - _RIGHT
    parts = []
    for value in log_ticks(f.y0, f.y1) if f.log else linear_ticks(f.y0, f.y1, 5):
        y = f.y(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y}H{right}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 3.5:g}" text-anchor="end">{_tick(value)}</text>')
    for value in linear_ticks(f.x0, f.x1, 7):
        if value == round(value) or chart.x_label not in ("step", "epoch"):
            x = f.x(value)
            parts.append(f'<text class="tick" x="{x}" y="{bottom + 15}" text-anchor="middle">{_tick(value)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
    name = escape(chart.x_label)
    parts.append(f'<text class="tick name" x="{right}" y="{f.height - 4}" text-anchor="end">{name}</text>')
    return parts


def _levels(f: _Frame, chart: Chart) -> list[str]:
    parts = []
    for level in chart.levels:
        if f.y0 <= level.y <= f.y1:
            y = f.y(level.y)
            parts.append(f'<path class="level" d="M{_LEFT} {y}H{f.width - _RIGHT}"/>')
            text = escape(clean(level.text))
            parts.append(f'<text class="tick" x="{f.width - _RIGHT}" y="{y - 4:g}" text-anchor="end">{text}</text>')
    return parts


def _curve(f: _Frame, s: Series, *, smooth: bool) -> list[str]:
    kind = f"s{s.slot % 8}" + (" undone" if s.undone else "")
    even = smoothed(s.points) if smooth and len(s.points) > 60 and not s.undone else None
    parts = [f'<path class="line {kind}{" raw" if even else ""}" d="{_path(f, s.points)}"/>']
    if even:
        parts.append(f'<path class="line {kind}" d="{_path(f, even)}"/>')
    if s.dots or len(s.points) == 1:
        dots = (p for p in s.points if math.isfinite(p[1]))
        parts += [f'<circle class="dot {kind}" cx="{f.x(x)}" cy="{f.y(y)}" r="3"/>' for x, y in dots]
    for x, y in s.points:
        if not math.isfinite(y):
            place = f.x(x)
            title = escape(f"{clean(s.name)}: {y} at {figure(x)}")
            cross = f"M{place - 3.5:g} {_TOP}l7 7m0 -7l-7 7"
            parts.append(f'<path class="cross {kind}" d="{cross}"><title>{title}</title></path>')
    return parts


def _path(f: _Frame, points: Sequence[tuple[float, float]]) -> str:
    out, pen = [], "M"
    for x, y in points:
        if not math.isfinite(y) or (f.log and y <= 0):
            pen = "M"  # a gap, not a line through what is not there
            continue
        out.append(f"{pen}{f.x(x):g} {f.y(y):g}")
        pen = "L" if y <= f.y1 else "M"
    return "".join(out)


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A running median over a 20th of the points, which follows a trend and ignores single spikes."""
    reach = max(2, len(points) // 40)
    out = []
    for n, (x, _) in enumerate(points):
        near = sorted(y for _, y in points[max(0, n - reach) : n + reach + 1] if math.isfinite(y))
        out.append((x, near[len(near) // 2] if near else math.nan))
    return out


def _marker(f: _Frame, m: Marker) -> str:
    x, bottom = f.x(m.x), f.height - _BOTTOM
    title = f"<title>{escape(clean(m.text))}</title>"
    flag = f'<path class="flag" d="M{x} {_TOP - 9}h9l-3 4l3 4h-9z"/>'
    return f'<g class="marker {m.kind}">{title}<path d="M{x} {bottom}V{_TOP - 9}"/>{flag}</g>'


def _hovers(f: _Frame, series: Sequence[Series], x_label: str) -> list[str]:
    """Invisible columns whose title tells the values there."""
    shown = [s for s in series if not s.undone]
    longest = max(shown or series, key=lambda s: len(s.points)).points
    chosen = longest if len(longest) <= _HOVERS else [longest[n * len(longest) // _HOVERS] for n in range(_HOVERS)]
    wide = (f.width - _LEFT - _RIGHT) / max(len(chosen), 1)
    values = [(s.name, dict(s.points)) for s in shown]
    parts = []
    for x, _ in chosen:
        lines = [f"{x_label} {figure(x)}", *(f"{clean(n)}: {figure(v[x])}" for n, v in values if x in v)]
        title = escape("\n".join(lines))
        parts.append(
            f'<rect class="hover" x="{f.x(x) - wide / 2:.1f}" y="{_TOP}" width="{wide:.1f}" '
            f'height="{f.height - _TOP - _BOTTOM}"><title>{title}</title></rect>'
        )
    return parts


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    named = {}
    for s in series:
        named.setdefault("taken back" if s.undone else s.name, f"s{s.slot % 8}" + (" undone" if s.undone else ""))
    spans = "".join(f'<span class="key {kind}">{escape(clean(name))}</span>' for name, kind in named.items())
    return f'<span class="legend">{spans}</span>'


def linear_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers inside low..high, about that many: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside low..high, thinned to about six; with 2 and 5 between where they are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, math.ceil((last - first) / 6))
    factors = (1, 2, 5) if last - first <= 2 else (1, 3) if last - first <= 3 else (1,)
    ticks = [m * 10.0**n for n in range(first, last + 1) for m in factors if n % stride == 0]
    return [t for t in ticks if low <= t <= high]


def _tick(value: float) -> str:
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.6g}".replace(",", "\u202f")
