"""The card of a finding in report.html."""

from __future__ import annotations

from maskrcnn_coco.findings.rules.common import finding
from maskrcnn_coco.records import to_json
from maskrcnn_coco.report.page import render
from maskrcnn_coco.report.run_files import read_run


def test_a_finding_has_a_card_with_proof_cure_and_text(tmp_path):
    said = finding("GEOMETRY", "x", "warning", "boxes <are> odd", "flip the masks", [("boxes", "34 of 72 disagree")])
    (tmp_path / "findings.json").write_text(to_json([said]), encoding="utf-8")
    page = render(read_run(tmp_path))
    for text in (
        "boxes &lt;are&gt; odd",
        "flip the masks",
        "34 of 72 disagree",
        "What GEOMETRY means",
        'href="#noticed"',
    ):
        assert text in page


def test_a_damaged_file_leaves_the_card_out(tmp_path):
    (tmp_path / "findings.json").write_text('{"a": 1', encoding="utf-8")
    assert "noticed" not in render(read_run(tmp_path))
