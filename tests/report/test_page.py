"""The report: complete, self-contained, escaped, and possible from whatever is left of a run."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_run import make_run
from html_page import EVIL, Page

from maskrcnn_coco.errors import DataError
from maskrcnn_coco.report.page import write_report
from maskrcnn_coco.report.run_files import picture


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = make_run(tmp_path_factory.mktemp("run"), epochs=6, pictures=2)
    return write_report(folder).read_text()


def test_has_every_section(html: str) -> None:
    text = " ".join(Page(html).text.split())
    for part in ("finished", "segm/AP", "0.6010", "Incidents", "LR_TOO_HIGH", "DATA_BOX", "around the onset",
                 "--head-lr-multiplier 2.5", "How it unfolded", "replay: same batch, weights of step 160",
                 "Images it names", "Curves", "Total loss", "loss_mask", "Learning rate",
                 "Gradient norm, before clipping", "AP by epoch",
                 "Worst predictions", "Typical predictions", "Classes", "triangle", "Settings", "given", "--lr",
                 "Data and machine", "BOX_NAN", "torchvision", "What happens"):  # fmt: skip
        assert part in text, part


def test_is_self_contained_and_has_no_script(html: str) -> None:
    page = Page(html)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    assert "script" not in page.tags
    assert "link" not in page.tags
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name == "src":
            assert value.startswith("data:image/jpeg;base64,")
            assert base64.b64decode(value.partition(",")[2]).startswith(b"\xff\xd8")
        if name == "href":
            assert value.startswith("#"), value
    assert not re.search(r"https?://|@import|url\(", html)


def test_links_lead_somewhere(html: str) -> None:
    page = Page(html)
    ids = {v for _, name, v in page.attributes if name == "id"}
    assert {v[1:] for _, name, v in page.attributes if name == "href"} <= ids


def test_strange_names_are_inert(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", epochs=5, pictures=1, name=EVIL)
    page = Page(write_report(folder).read_text())
    assert not [a for a in page.attributes if a[1] == "onerror"]
    assert "<img src=x onerror=alert(1)>" in page.text
    assert "\x1b" not in page.text


def test_what_is_undefined_is_a_dash(html: str) -> None:
    row = re.search(r"<tr><td>never seen</td>.*?</tr>", html, re.S)
    assert row
    assert row.group(0).count("–") == 4


def test_classes_are_sorted_by_objects(html: str) -> None:
    assert re.findall(r"<tr><td>(circle|square|triangle|never seen)</td>", html) == [
        "circle", "square", "triangle", "never seen",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "gone",
    ["config.yaml", "run.json", "metrics.jsonl", "metrics_undone.jsonl", "result.json", "predictions", "incidents"],
)
def test_any_part_may_be_missing_or_damaged(gone: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path, epochs=1, incidents=False, pictures=1)
    path = folder / gone
    if path.is_dir():
        for file in path.iterdir():
            file.write_bytes(b"\x00 torn")
    elif path.exists():
        path.write_bytes(b'{"kind": "step", "st\xff')
        Page(write_report(folder).read_text())
        path.unlink()
    Page(write_report(folder).read_text())


def test_a_stopped_run_and_one_that_still_goes_on(tmp_path: Path) -> None:
    folder = make_run(tmp_path, epochs=1, incidents=False, pictures=0)
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"status": "stopped", "finite": False}))
    text = Page(write_report(folder).read_text()).text
    assert "stopped by the guard" in text
    assert "weights not finite" in text
    (folder / "result.json").unlink()
    assert "running, or killed" in Page(write_report(folder).read_text()).text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run in it"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="no run in it"):
        write_report(tmp_path / "nowhere")


def test_pictures_that_are_none_or_outside_are_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", epochs=1, incidents=False, pictures=1)
    index = json.loads((folder / "predictions" / "predictions.json").read_text())
    index["worst"][0]["truth"] = "../../secret.jpg"
    (folder / "predictions" / "predictions.json").write_text(json.dumps(index))
    assert "Worst predictions" not in Page(write_report(folder).read_text()).text
    (tmp_path / "x.jpg").write_text("<svg onload=alert(1)>")
    assert picture(tmp_path / "x.jpg") is None


def test_many_incidents_are_folded(tmp_path: Path) -> None:
    folder = make_run(tmp_path, epochs=6, pictures=0)
    first = json.loads((folder / "incidents" / "0001.json").read_text())
    for n in range(3, 9):
        (folder / "incidents" / f"{n:04d}.json").write_text(json.dumps(first | {"id": f"{n:04d}"}))
    html = write_report(folder).read_text()
    Page(html)
    assert html.count("Curves and evidence") == 5


def test_import_is_torch_free() -> None:
    code = "import sys, maskrcnn_coco.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_lines_and_fields_that_are_not_ours_are_left_out(tmp_path: Path) -> None:
    foreign = (
        '{"kind":"step"}\n{"kind":"epoch","epoch":"x","losses":3}\n[]\n{"a":1}\nnull\n'
        '{"kind":"step","step":"7","losses":{"a":"b"},"loss":null}\n{"kind":"eval","metrics":[1]}\n'
    )
    (tmp_path / "metrics.jsonl").write_text(foreign)
    (tmp_path / "result.json").write_text('{"status":3,"metrics":[1],"incidents":5,"steps":"many","loss":"nan"}')
    (tmp_path / "run.json").write_text('{"reasons":[],"environment":3,"findings":[1],"data":"x","lr":[1],"notes":7}')
    (tmp_path / "config.yaml").write_text("a: &a [1]\nb: [*a, *a]\n")
    (tmp_path / "incidents").mkdir()
    for number, text in enumerate(("[]", '{"id":"0002"}', "3", '{"id":1,"step":"x"}')):
        (tmp_path / "incidents" / f"000{number}.json").write_text(text)
    assert write_report(tmp_path).read_text(encoding="utf-8").startswith("<!")
