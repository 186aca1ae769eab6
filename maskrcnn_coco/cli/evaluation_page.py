"""``evaluate --html``: one self-contained page that opens offline: tables, curves, and labels to look at."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from maskrcnn_coco.evaluation.analysis import Analysis, plain
from maskrcnn_coco.evaluation.evaluate import EvalResult
from maskrcnn_coco.evaluation.ground_truth import EvalSet
from maskrcnn_coco.evaluation.pictures import suspect_picture
from maskrcnn_coco.report.page_analysis import sections, table
from maskrcnn_coco.system.files import write_text
from maskrcnn_coco.wording import clean

_CSS = Path(__file__).parents[1] / "report" / "templates" / "report.css.j2"
_METRICS = {
    "AP": "AP", "AP50": "AP at 0.5", "AP75": "AP at 0.75", "APs": "small", "APm": "medium", "APl": "large",
    "AR100": "recall of 100",
}  # fmt: skip


def write_page(
    path: Path, title: str, result: EvalResult, analysis: Analysis, data: EvalSet, ceiling: Mapping[str, float]
) -> None:
    """Write the page; ``ceiling``: what the truth itself scores, by metric. Raises OSError."""
    body = ["<h2>Average precision</h2>", _metrics(result, ceiling), "<h2>Classes</h2>", _classes(result)]
    pictures = [p for s in analysis.suspects if (p := suspect_picture(s, result, analysis, data)) is not None]
    shown = [(c, "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()) for c, jpeg in pictures]
    body += [f"<h2>{escape(heading)}</h2>{content}" for heading, content in sections(plain(analysis), shown)]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    said = escape(clean(title))
    write_text(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{said}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_CSS.read_text(encoding='utf-8')}</style></head><body>"
        f'<header><div><p class="eyebrow">Evaluation</p><div class="titleline"><h1>{said}</h1></div></div></header>'
        f"<main>{''.join(body)}</main></body></html>",
    )


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) and value >= 0 else "–"


def _metrics(result: EvalResult, ceiling: Mapping[str, float]) -> str:
    kinds = [k for k in ("segm", "bbox") if f"{k}/AP" in result.metrics]
    rows = [[k, *(_number(result.metrics.get(f"{k}/{n}", -1.0)) for n in _METRICS)] for k in kinds]
    head = ["", *_METRICS.values()]
    if ceiling:
        head.insert(2, "at most")
        for kind, row in zip(kinds, rows, strict=True):
            row.insert(2, _number(ceiling.get(f"{kind}/AP", -1.0)))
    return table(head, rows)


def _classes(result: EvalResult) -> str:
    names = [
        n for n in ("segm/AP", "segm/AP50", "bbox/AP", "bbox/AP50") if any(n in v for v in result.per_class.values())
    ]
    rows = [
        [name, f"{figures.get('objects', 0):.0f}", *(_number(figures.get(n, -1.0)) for n in names)]
        for name, figures in result.per_class.items()
    ]
    return table(["class", "objects", *names], rows)
