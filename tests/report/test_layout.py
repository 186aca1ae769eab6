"""Pages in a browser, on a phone and on a screen: nothing sticks out, no word is broken letter by letter."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from fake_run import make_run
from PIL import Image

from maskrcnn_coco.report.page import write_report
from maskrcnn_coco.report.page_analysis import sections, table

BROWSER = next((b for b in ("chromium", "chromium-browser", "google-chrome", "chrome") if shutil.which(b)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser")

MEASURE = """
const wide = document.documentElement.clientWidth, out = [], thin = [];
for (const e of document.querySelectorAll("main *")) {
  if (e.closest(".scroll, .chart, svg, details") && !e.matches(".scroll, .chart, details")) continue;
  const own = e.firstElementChild === null && getComputedStyle(e).overflowX === "visible" && e.clientWidth > 0;
  const beyond = e.getBoundingClientRect().right > wide + 1 || (own && e.scrollWidth > e.clientWidth + 1);
  if (beyond) out.push(e.outerHTML.slice(0, 90));
}
for (const e of document.querySelectorAll("td:first-child")) {
  const text = e.textContent.trim(), range = document.createRange();
  range.selectNodeContents(e);
  const lines = new Set([...range.getClientRects()].map(r => Math.round(r.bottom / 12))).size;
  if (text && lines > text.split(/[\\s_-]+/).length + 1 && text.length < 24) thin.push(text);
}
document.title = "measured " + JSON.stringify({out, thin, wide});
"""
"""``out``: what sticks out of the page, or out of its own box; ``thin``: short names on more lines than words."""


def measured(page: Path, width: int) -> dict[str, Any]:
    """What `MEASURE` finds on a page shown at this width, pixels."""
    html = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    page.with_name("inner.html").write_text(
        html.replace("</body>", f"<script>{MEASURE}</script></body>"), encoding="utf-8"
    )
    # A window of its own has a least width: a frame has none.
    told = "<script>onload = () => { document.title = document.querySelector('iframe').contentDocument.title }</script>"
    frame = f'<iframe src="inner.html" style="width:{width}px;height:900px;border:0"></iframe>'
    outer = page.with_name("outer.html")
    outer.write_text(f"<!doctype html><html><body>{frame}{told}</body></html>", encoding="utf-8")
    argv = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--allow-file-access-from-files",
        "--dump-dom",
    ]
    done = subprocess.run(
        [*argv, f"--user-data-dir={page.parent}/browser", f"--window-size={width + 100},900", outer.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r"<title>measured (.*?)</title>", done.stdout)
    assert found is not None, done.stderr[-500:]
    return json.loads(unescape(found.group(1)))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report, and a page like that of an evaluation: long names, small figures, pictures."""
    folder = tmp_path_factory.mktemp("pages")
    run = folder / "run"
    make_run(run)
    analysis = {
        "iou": 0.5, "kind": "segm", "best_threshold": 0.5,
        "error_words": {"Loc": "place: the right class, overlapping by 0.1 to 0.5"},
        "per_class": {"nucleus": {"score": 0.4, "precision": 0.9, "recall": 0.8, "f1": 0.85}},
        "confusion": {"classes": ["nucleus", "(nothing)"], "matrix": [[7, 1], [2, 0]]},
        "errors": {"Loc": {"count": 3, "ap50_gain": 0.12}},
        "curves": {"nucleus": [[0.9, 1.0, 0.5, 0.6], [0.1, 0.5, 0.9, 0.7]]},
    }  # fmt: skip
    Image.new("RGB", (420, 300)).save(folder / "a.png")
    shots = [("0c6507d493bf79b2ba248c5cca3d14df8b67328b89efa5f4a32f97a06a88c92c.png: found nucleus 0.94", "a.png")] * 3
    head = ["", "AP", "AP at 0.5", "AP at 0.75", "small", "medium", "large", "recall of 100"]
    body = table(head, [["segm", *["0.318"] * 7], ["bbox", *["0.338"] * 7]])
    body += table(["class", "objects", "segm/AP", "segm/AP50", "bbox/AP", "bbox/AP50"], [["nucleus", *["1697"] * 5]])
    body += "".join(f"<h2>{escape(t)}</h2>{c}" for t, c in sections(analysis, shots))
    css = (Path(write_report.__code__.co_filename).parent / "templates" / "report.css.j2").read_text(encoding="utf-8")
    page = folder / "evaluation.html"
    view = '<meta name="viewport" content="width=device-width">'
    page.write_text(
        f"<!doctype html><html><head>{view}<style>{css}</style></head><body><main>{body}</main></body></html>"
    )
    return {"evaluation": page, "report": write_report(run)}


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("name", ["evaluation", "report"])
def test_nothing_sticks_out_and_no_name_is_broken_into_letters(name: str, width: int, pages: dict[str, Path]) -> None:
    seen = measured(pages[name], width)
    assert seen["wide"] == width
    assert seen["out"] == []
    assert seen["thin"] == []
