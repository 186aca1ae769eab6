"""``evaluate --html``: one self-contained page that opens offline: tables, curves, and labels to look at."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from maskrcnn_coco.errors import DataError
from maskrcnn_coco.evaluation.analysis import ERRORS, Analysis, Suspect
from maskrcnn_coco.evaluation.draw import ALARM, Shape, draw, encoded, shapes_of
from maskrcnn_coco.evaluation.evaluate import EvalResult
from maskrcnn_coco.evaluation.ground_truth import EvalSet
from maskrcnn_coco.evaluation.pictures import pixels_of
from maskrcnn_coco.report.svg import Chart, Series, render
from maskrcnn_coco.system.files import write_text
from maskrcnn_coco.wording import clean

_CSS = Path(__file__).parents[1] / "report" / "templates" / "report.css"
_LONGEST = 420


def write_page(path: Path, title: str, result: EvalResult, analysis: Analysis, data: EvalSet) -> None:
    """Write the page. Raises OSError."""
    body = [f"<h1>{escape(clean(title))}</h1>", "<h2>Average precision</h2>", _metrics(result)]
    body += ["<h2>Classes</h2>", _classes(result, analysis), *_curves(analysis)]
    body += ["<h2>What was taken for what</h2>", _confusion(analysis)]
    body += ["<h2>Errors by kind</h2>", _errors(analysis)]
    pictures = [p for s in analysis.suspects if (p := _suspect(s, result, analysis, data))]
    if pictures:
        body += ["<h2>Labels to look at</h2>",
                 "<p>The model is sure, and the annotations say something else: in red what it found. "
                 "Look before you correct: the model may be wrong.</p>",
                 f'<div class="grid">{"".join(pictures)}</div>']  # fmt: skip
    style = _CSS.read_text(encoding="utf-8") if _CSS.exists() else ""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    write_text(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(clean(title))}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{style}'
        "td,th{padding:.2em .7em;text-align:right}td:first-child,th:first-child{text-align:left}"
        ".grid{display:flex;flex-wrap:wrap;gap:1em}.grid figure{margin:0;max-width:420px}"
        f".heat{{background:color-mix(in srgb,#e69f00 calc(var(--p)*1%),transparent)}}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>",
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    lines = ["<tr>" + "".join(c if c.startswith("<td") else f"<td>{escape(c)}</td>" for c in r) + "</tr>" for r in rows]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) and value >= 0 else "–"


def _metrics(result: EvalResult) -> str:
    kinds = [k for k in ("segm", "bbox") if f"{k}/AP" in result.metrics]
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
    words = dict(
        zip(names, ("AP", "AP at 0.5", "AP at 0.75", "small", "medium", "large", "recall of 100"), strict=True)
    )
    rows = [[k, *(_number(result.metrics.get(f"{k}/{n}", -1.0)) for n in names)] for k in kinds]
    return _table(["", *words.values()], rows)


def _classes(result: EvalResult, a: Analysis) -> str:
    rows = []
    for name, figures in result.per_class.items():
        best = a.best.get(name)
        cells = [_number(figures.get(f"{a.kind}/{n}", -1.0)) for n in ("AP", "AP50")]
        tail = [_number(v) for v in (best.score, best.precision, best.recall, best.f1)] if best else ["–"] * 4
        rows.append([clean(name), f"{figures.get('objects', 0):.0f}", *cells, *tail])
    return _table(["class", "objects", "AP", "AP50", "best score", "precision", "recall", "F1"], rows)


def _curves(a: Analysis) -> list[str]:
    out = []
    for title, place in (("F1 over score", 3), ("precision over score", 1), ("recall over score", 2)):
        series = [
            Series(name, [(row[0], row[place]) for row in reversed(rows)], n % 8)
            for n, (name, rows) in enumerate(list(a.curves.items())[:8])
        ]
        out.append(render(Chart(title, series, x_label="score", log=False, zero=True)))
    return out


def _confusion(a: Analysis) -> str:
    names = [*(clean(a.names[n]) for n in a.order), "nothing"]
    if len(names) > 31:
        return "<p>Too many classes for a table; --json has it.</p>"
    rows = []
    for n, row in enumerate(a.confusion.tolist()):
        whole = max(sum(row), 1)
        rows.append([names[n], *(f'<td class="heat" style="--p:{100 * v / whole:.0f}">{v}</td>' for v in row)])
    return "<p>Rows: the truth. Columns: what was found.</p>" + _table(["", *names], rows)


def _errors(a: Analysis) -> str:
    rows = sorted(a.errors.items(), key=lambda e: -e[1][1])
    cells = [[ERRORS[k], str(count), f"{gain:.3f}"] for k, (count, gain) in rows]
    return _table(["error", "how many", "AP50 gained without them"], cells)


def _suspect(s: Suspect, result: EvalResult, a: Analysis, data: EvalSet) -> str:
    try:
        example = data.load(s.row)
        truth = [t for t in result.truth.annotations if t["image_id"] == s.row]
        shapes = shapes_of(truth, a.names, example.height, example.width)
        (found,) = shapes_of([s.found], a.names, example.height, example.width)
    except DataError:
        return ""
    shapes.append(Shape(found.box, found.mask, f"? {a.names[s.found['category_id']]}", ALARM))
    picture = encoded(draw(pixels_of(example.image), shapes, longest=_LONGEST), ".jpg")
    said = "nothing" if s.annotation is None else a.names[s.annotation["category_id"]]
    text = f"{example.file_name}: found {a.names[s.found['category_id']]} {s.found['score']:.2f}, annotated {said}"
    image = base64.b64encode(picture).decode()
    caption = f"<figcaption>{escape(clean(text))}</figcaption>"
    return f'<figure><img alt="" src="data:image/jpeg;base64,{image}">{caption}</figure>'
