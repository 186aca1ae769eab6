"""What lies behind an AP on a page: complete, escaped, and left out where it is not ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_run import make_run
from html_page import EVIL, Page
from PIL import Image

from maskrcnn_coco.report.page import write_report
from maskrcnn_coco.report.page_analysis import sections

GOOD: dict[str, Any] = {
    "iou": 0.5, "kind": "segm", "best_threshold": None, "error_words": {"Miss": "missed: no detection is near"},
    "per_class": {EVIL: {"score": 0.4, "precision": 0.9, "recall": 0.8, "f1": 0.85}},
    "confusion": {"classes": [EVIL, "(nothing)"], "matrix": [[7, 1], [2, 0]]},
    "errors": {"Miss": {"count": 3, "ap50_gain": 0.12}, "Bkg": {"count": 0, "ap50_gain": 0.0}},
    "curves": {EVIL: [[0.9, 1.0, 0.5, 0.6], [0.1, 0.5, 0.9, 0.7]]},
}  # fmt: skip


def test_every_part_is_there_and_inert() -> None:
    titles = [t for t, _ in sections(GOOD, [(EVIL, "data:image/jpeg;base64,/9g=")])]
    assert titles == ["Best score of each class", "What was taken for what", "Errors by kind", "Labels to look at"]
    page = Page("".join(str(c) for _, c in sections(GOOD, [(EVIL, "data:image/jpeg;base64,/9g=")])))
    assert not [a for a in page.attributes if a[1] == "onerror"]
    assert "missed: no detection is near" in page.text
    assert "background" not in page.text, "a kind that does not occur is not listed"
    assert "0.85" in page.text


def test_many_classes_become_a_list_of_the_worst() -> None:
    names = [f"class {n}" for n in range(60)]
    matrix = [[0] * 60 for _ in names]
    matrix[3][8], matrix[5][5] = 12, 99
    text = Page(
        "".join(str(c) for _, c in sections(GOOD | {"confusion": {"classes": names, "matrix": matrix}}, []))
    ).text
    assert "class 3class 812" in text.replace(" ", " ")
    assert "99" not in text


@pytest.mark.parametrize("key", sorted(GOOD))
@pytest.mark.parametrize("value", [None, 3, "x", [1], {"a": 1}, {"a": {"count": "x"}}])
def test_what_is_not_ours_is_left_out(key: str, value: Any) -> None:
    for _, content in sections(GOOD | {key: value}, []):
        Page(str(content))


def test_the_report_shows_it_with_pictures_of_its_own_folder_alone(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", epochs=2, pictures=1)
    Image.new("RGB", (30, 20)).save(folder / "predictions" / "suspect_01.jpg")
    Image.new("RGB", (30, 20)).save(folder / "secret.jpg")
    shown = [
        {"caption": "b.png: found disc", "picture": "suspect_01.jpg"},
        {"caption": "no", "picture": "../secret.jpg"},
        3,
    ]
    (folder / "predictions" / "analysis.json").write_text(json.dumps(GOOD | {"pictures": shown}))
    page = Page(write_report(folder).read_text())
    assert "Behind the figure" in page.text
    assert "b.png: found disc" in page.text
    assert ("img", "alt", "no") not in page.attributes
