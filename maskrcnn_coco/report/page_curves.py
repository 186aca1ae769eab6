"""Which curves the report shows: of the whole run, and around each incident. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any

from maskrcnn_coco.records import COMPONENTS, Incident
from maskrcnn_coco.report.run_files import RunFiles
from maskrcnn_coco.report.svg import Chart, Level, Marker, Series, render
from maskrcnn_coco.wording import clean, incident_lines, recovered

_BEFORE, _AFTER = 20, 10
"""Steps shown around an incident."""
_VALIDATION_SLOT = 5
"""Colour of validation losses, beside which every training loss has another one."""
_DOTS = 80
"""More points than this make a line by themselves."""


def run_charts(run: RunFiles) -> dict[str, list[str]]:
    """SVG figures of the whole run by section: "loss", "health" (gradients, rates), "ap"."""
    marks = [Marker(i.step, incident_lines(i)[0], "good" if recovered(i) else "bad") for i in run.incidents]
    clip = run.config.get("max_grad_norm") or 0.0
    levels = [Level(float(clip), f"clipped above {clip:g}")] if clip else []
    charts = {
        "loss": [
            Chart(
                "Total loss",
                _curve(run, "total", lambda d: d.get("loss")) + _validation(run, None),
                markers=marks,
                smooth=True,
                width=1000,
            ),
            *(
                Chart(
                    name,
                    _curve(run, name, lambda d, n=name: d.get("losses", {}).get(n), slot) + _validation(run, name),
                    markers=marks,
                    smooth=True,
                )
                for slot, name in enumerate(_names(run.steps, "losses"))
            ),
        ],
        "health": [
            Chart(
                "Gradient norm, before clipping",
                _by_component(run, "group_grad_norm"),
                markers=marks,
                levels=levels,
                smooth=True,
            ),
            Chart("Learning rate", _by_component(run, "lr", undone=False), markers=marks, zero=True, log=False),
            Chart("Update to weight ratio", _dotted(_by_component(run, "update_ratio")), markers=marks),
            Chart("Loss scale", _curve(run, "scale", lambda d: d.get("loss_scale"), undone=False), markers=marks),
        ],
        "ap": [Chart("AP by epoch", _ap(run.evals), x_label="epoch", log=False, zero=True, width=1000, height=230)],
    }
    return {name: [svg for chart in group if (svg := render(chart))] for name, group in charts.items()}


def _names(steps: Sequence[dict[str, Any]], key: str) -> list[str]:
    return sorted({name for d in steps for name in d.get(key) or {}})


def _curve(run: RunFiles, name: str, value: Any, slot: int = 0, *, undone: bool = True) -> list[Series]:
    """One value over the steps, with what was taken back behind it."""
    back = [Series(name, p, slot, undone=True) for p in _runs(run.undone, value)] if undone else []
    return [*back, Series(name, _points(run.steps, value), slot)]


def _by_component(run: RunFiles, key: str, *, undone: bool = True) -> list[Series]:
    found = _names(run.steps, key)
    names = [c for c in COMPONENTS if c in found] + [n for n in found if n not in COMPONENTS]
    series = []
    for slot, name in enumerate(names):
        series += _curve(run, name, lambda d, n=name: (d.get(key) or {}).get(n), slot, undone=undone)
    return _merged(series)


def _dotted(series: list[Series]) -> list[Series]:
    """Values that are measured now and then are points: a line alone says they were there at every step."""
    return [replace(s, dots=len(s.points) <= _DOTS) for s in series]


def _merged(series: list[Series]) -> list[Series]:
    """Curves that lie on each other, such as the rates of both heads, as one that names both."""
    out: list[Series] = []
    for s in series:
        twin = next((n for n, o in enumerate(out) if o.points == s.points and o.undone == s.undone and s.points), None)
        if twin is None:
            out.append(s)
        else:
            out[twin] = replace(out[twin], name=f"{out[twin].name}, {s.name}")
    return out


def _points(lines: Sequence[dict[str, Any]], value: Any) -> list[tuple[float, float]]:
    return [(float(d["step"]), float(v)) for d in lines if (v := value(d)) is not None]


def _runs(lines: Sequence[dict[str, Any]], value: Any) -> list[list[tuple[float, float]]]:
    """The points, cut where the step goes back: each roll-back has its own branch."""
    branches: list[list[tuple[float, float]]] = []
    for point in _points(lines, value):
        if not branches or point[0] <= branches[-1][-1][0]:
            branches.append([])
        branches[-1].append(point)
    return branches


def _validation(run: RunFiles, name: str | None) -> list[Series]:
    """One loss on validation images, or their sum, by epoch; no series where none was measured."""
    of = [d for d in run.evals if isinstance(d.get("losses"), dict) and d["losses"]]
    points = [
        (float(d["step"]), float(sum(map(float, d["losses"].values())) if name is None else d["losses"][name]))
        for d in of
        if name is None or name in d["losses"]
    ]
    return [Series("validation", points, _VALIDATION_SLOT, dots=True)] if points else []


def _ap(evals: Sequence[dict[str, Any]]) -> list[Series]:
    names = ("segm/AP", "segm/AP50", "bbox/AP", "bbox/AP50")
    series = []
    for slot, name in enumerate(names):
        points = [(d["epoch"] + 1.0, v) for d in evals if (v := d.get("metrics", {}).get(name, -1.0)) >= 0]
        series.append(Series(name, points, slot, dots=True))
    return [s for s in series if s.points]


def incident_charts(run: RunFiles, incident: Incident) -> list[str]:
    """Loss and gradient norm by component around the onset, with the steps that were taken back."""
    low, high = min(incident.onset_step, incident.step) - _BEFORE, incident.step + _AFTER
    near = RunFiles(
        run.logdir,
        steps=[d for d in run.steps if low <= d["step"] <= high],
        undone=[d for d in run.undone if low <= d.get("step", -1) <= high],
    )
    marks = [Marker(incident.step, f"{incident.symptom} at step {incident.step}")]
    if incident.onset_step != incident.step:
        marks.append(Marker(incident.onset_step, f"began at step {incident.onset_step}", "onset"))
    charts = [
        Chart("Loss around the onset", _curve(near, "total", lambda d: d.get("loss")), markers=marks, whole=True),
        Chart("Gradient norm around the onset", _by_component(near, "group_grad_norm"), markers=marks, whole=True),
    ]
    return [svg for chart in charts if (svg := render(chart))]


def timeline(run: RunFiles) -> str:
    """The run as a bar from first to last step, each incident a flag that leads to its card; "" without incidents."""
    if not run.incidents:
        return ""
    last = max([d["step"] for d in run.steps] + [i.step for i in run.incidents] + [1])
    width, height = 760, 46
    parts = [f'<path class="bar" d="M8 30H{width - 8}"/>']
    for incident in run.incidents:
        x = round(8 + incident.step / last * (width - 16), 1)
        kind = "good" if recovered(incident) else "bad"
        start = round(8 + incident.onset_step / last * (width - 16), 1)
        title = escape("\n".join(incident_lines(incident)))
        parts.append(
            f'<a href="#incident-{escape(clean(incident.id))}"><g class="pin {kind}"><title>{title}</title>'
            f'<path class="span" d="M{start} 30H{x}"/><circle cx="{x}" cy="30" r="7"/></g></a>'
        )
    parts.append('<text class="tick" x="8" y="14">step 0</text>')
    parts.append(f'<text class="tick" x="{width - 8}" y="14" text-anchor="end">step {last}</text>')
    return (
        f'<svg class="timeline" viewBox="0 0 {width} {height}" role="img" aria-label="incidents">{"".join(parts)}</svg>'
    )
