"""What lies behind an AP, for pages: thresholds, curves, confusions, errors by kind, labels to look at.

Made of plain values as `evaluation.analysis.plain` gives them. No torch, no script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from markupsafe import Markup

from maskrcnn_coco.report.svg import Chart, Series, render
from maskrcnn_coco.wording import clean

_MOST_CLASSES = 30
"""A table of confusions beyond this is no longer read."""


def sections(analysis: Mapping[str, Any], pictures: Sequence[tuple[str, str]]) -> list[tuple[str, Markup]]:
    """(title, content) of each part that there is something to say of; nothing where ``analysis`` is none of ours.

    Args:
        pictures: (caption, ``data:`` address) of labels to look at.
    """
    try:
        parts = [
            ("Best score of each class", _best(analysis) + _curves(analysis)),
            ("What was taken for what", _confusion(analysis)),
            ("Errors by kind", _errors(analysis)),
            ("Labels to look at", _suspects(pictures)),
        ]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):  # not written by a run, or by another version
        return []
    return [(title, Markup(content)) for title, content in parts if content]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers. A cell that starts with ``<td`` is taken as it is."""
    head = "".join(f"<th{'' if n == 0 else ' class=num'}>{escape(clean(h))}</th>" for n, h in enumerate(header))
    lines = ["<tr>" + "".join(_cell(n, c) for n, c in enumerate(row)) + "</tr>" for row in rows]
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="card scroll"><table>{body}</table></div>'


def _cell(place: int, text: str) -> str:
    if text.startswith("<td "):
        return text
    return f"<td{'' if place == 0 else ' class=num'}>{escape(clean(text))}</td>"


def _best(a: Mapping[str, Any]) -> str:
    rows = [
        [name, *(f"{float(t[k]):.2f}" for k in ("score", "precision", "recall", "f1"))]
        for name, t in a["per_class"].items()
    ]
    if not rows:
        return ""
    said = f"<p>The score from which on F1 is highest, at IoU {float(a['iou']):g}: for <code>--score</code>.</p>"
    return said + table(["class", "score", "precision", "recall", "F1"], rows)


def _curves(a: Mapping[str, Any]) -> str:
    out = []
    for title, place in (("F1 over score", 3), ("precision over score", 1), ("recall over score", 2)):
        series = [
            Series(clean(name), [(float(row[0]), float(row[place])) for row in reversed(rows)], n % 8)
            for n, (name, rows) in enumerate(list(a.get("curves", {}).items())[:8])
        ]
        if series:
            out.append(render(Chart(title, series, x_label="score", log=False, zero=True)))
    return f'<div class="grid2">{"".join(out)}</div>' if out else ""


def _confusion(a: Mapping[str, Any]) -> str:
    names, matrix = a["confusion"]["classes"], a["confusion"]["matrix"]
    if not matrix:
        return ""
    if len(names) > _MOST_CLASSES:
        worst = sorted(
            ((n, t, f) for t, row in enumerate(matrix) for f, n in enumerate(row) if n and t != f), reverse=True
        )[:20]
        rows = [[names[t], f"<td >{escape(clean(names[f]))}</td>", str(n)] for n, t, f in worst]
        return table(["truth", "found", "times"], rows)
    rows = []
    for name, row in zip(names, matrix, strict=True):
        whole = max(sum(row), 1)
        cells = [f'<td class="num heat" style="--p:{100 * v / whole:.0f}">{int(v)}</td>' for v in row]
        rows.append([name, *cells])
    said = "<p>Rows: the truth. Columns: what was found. A darker cell is a larger share of its row.</p>"
    return said + table(["", *names], rows)


def _errors(a: Mapping[str, Any]) -> str:
    words = a.get("error_words", {})
    rows = sorted(a["errors"].items(), key=lambda e: -e[1]["ap50_gain"])
    cells = [[words.get(k, k), str(v["count"]), f"{v['ap50_gain']:.3f}"] for k, v in rows if v["count"]]
    return table(["error", "how many", "AP50 gained without them"], cells) if cells else ""


def _suspects(pictures: Sequence[tuple[str, str]]) -> str:
    if not pictures:
        return ""
    shots = "".join(
        f'<figure><img alt="{escape(clean(c))}" src="{address}"><figcaption>{escape(clean(c))}</figcaption></figure>'
        for c, address in pictures
    )
    said = (
        "The model is sure, and the annotations say something else: in red what it found. Look before you correct: "
        "the model may be wrong."
    )
    return f'<p>{said}</p><div class="shots">{shots}</div>'
