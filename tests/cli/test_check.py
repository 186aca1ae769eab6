"""`check` as a person uses it: what the set is, what is wrong, the copy, and the command that comes next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from PIL import Image
from silent.scene import Scene, write_coco

from maskrcnn_coco.cli.command_line import main
from maskrcnn_coco.data.masks import decode_mask, encode_rle
from tests.helpers.odd_sets import OddSet


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main(["check", *map(str, words)])
    return code, capsys.readouterr().out


def follow(text: str) -> list[str]:
    """The words of the command that the last line names."""
    last = text.strip().splitlines()[-1]
    assert last.startswith("next: maskrcnn-coco ")
    return shlex.split(last.removeprefix("next: maskrcnn-coco "))


def test_a_sound_set_is_told_and_trained_next(tmp_path: Path, capsys):
    data = OddSet(tmp_path / "my set")
    code, text = run(capsys, "--data", data.write(), "--images", data.folder)
    assert code == 0 and "8 images, 24 objects, 2 classes" in text and "Nothing to report" in text
    assert text.index("classes: ") < text.index("Nothing to report")
    assert follow(text) == ["train", "--data", str(data.folder / "a.json"), "--images", str(data.folder)]


def test_the_commands_lead_from_the_findings_to_a_copy_to_training(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = OddSet(tmp_path / "my set")
    for ann in data.annotations:
        x, y, w, h = ann["bbox"]
        ann["bbox"] = [x, y, x + w, y + h]
    code, text = run(capsys, "--data", data.write(), "--images", data.folder)
    assert code == 3 and "BOX_XYXY" in text and "24  boxes look like" in text
    verb, *flags = follow(text)
    assert verb == "check"
    code, text = run(capsys, *flags)
    assert code == 3 and "24 of 24 annotations kept" in text and "a.fixed.changes.json" in text
    assert (tmp_path / "a.fixed.changes.json").is_file()
    verb, *flags = follow(text)
    assert verb == "train"
    code, text = run(capsys, *flags)
    assert code == 0 and "Nothing to report" in text


def all_crowd(data: OddSet) -> None:
    for ann in data.annotations:
        ann["iscrowd"] = 1


def corners(data: OddSet) -> None:
    for ann in data.annotations:
        x, y, w, h = ann["bbox"]
        ann["bbox"] = [x, y, x + w, y + h]


def crossed(data: OddSet) -> None:
    for n, ann in enumerate(data.annotations):
        ann["segmentation"] = data.annotations[n - 1]["segmentation"]


def test_boxes_and_masks_that_no_reading_mends_are_looked_at_before_training(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = OddSet(tmp_path / "my set")
    crossed(data)
    code, text = run(capsys, "--data", data.write(), "--images", data.folder)
    assert code == 3 and "MASK_BOX_UNRELATED" in text
    verb, *flags = follow(text)
    assert verb == "check" and flags[-2:] == ["--html", "OUT.html"]
    text = run(capsys, *flags)[1]
    assert (tmp_path / "OUT.html").is_file()
    assert text.splitlines()[-1].startswith("next, when the errors are mended: maskrcnn-coco check --data")


def test_what_lies_beside_its_pictures_is_not_cut_off_at_their_borders(tmp_path: Path, capsys, monkeypatch):
    """A copy with what is left inside would be smaller, and as wrong."""
    monkeypatch.chdir(tmp_path)

    def doubled(coco: dict) -> None:
        for ann in coco["annotations"]:
            ann["bbox"] = [2 * v for v in ann["bbox"]]
            height, width = ann["segmentation"]["size"]
            solid = decode_mask(ann["segmentation"], height, width)
            big = solid.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
            ann["segmentation"] = encode_rle(big)

    path = write_coco(tmp_path / "set", Scene(16), doubled)
    code, text = run(capsys, "--data", path, "--images", path.parent)
    assert code == 3 and "scaled by about 0.5" in text and "BOX_OUTSIDE" in text
    assert follow(text)[-2:] == ["--html", "OUT.html"]


def one_too_low(data: OddSet) -> None:
    for ann in data.annotations:
        ann["category_id"] -= 1


@pytest.mark.parametrize("spoil", [all_crowd, corners, crossed, one_too_low])
@pytest.mark.parametrize("verb", [["check"], ["check", "--json"], ["train", "--dry-run"]])
def test_a_command_that_is_named_can_be_pasted(tmp_path: Path, capsys, monkeypatch, spoil, verb):
    monkeypatch.chdir(tmp_path)
    data = OddSet(tmp_path / "my set")
    spoil(data)
    given = ["--data", str(data.write()), "--images", "my set"]
    more = ["--model", "maskrcnn_resnet18_fpn", "--weights", "none", "--min-size", "64", "--max-size", "96"]
    main([verb[0], *given, *verb[1:], *(more if verb[0] == "train" else [])])
    text = "".join(capsys.readouterr())
    named = [part for part in text.split("maskrcnn-coco ")[1:] if part.startswith("check ")]
    assert named and "--data PATH" not in text and "--data …" not in text
    for part in named:
        assert shlex.split(part.partition("images 'my set'")[0] + "images 'my set'")[1:] == given


def test_sizes_of_training_decide_what_is_small(tmp_path: Path, capsys):
    data = OddSet(tmp_path)
    data.write()
    small = {n: run(capsys, "--data", tmp_path, "--json", "--min-size", n, "--max-size", 2 * n)[1] for n in (40, 800)}
    codes = {n: {f["code"]: f["count"] for f in json.loads(text)["findings"]} for n, text in small.items()}
    assert codes[800] == {} and codes[40] == {"OBJECT_SMALL": 24}


def test_json_holds_the_overview_and_the_next_command(tmp_path: Path, capsys):
    data = OddSet(tmp_path)
    data.write()
    found = json.loads(run(capsys, "--data", tmp_path, "--json")[1])
    assert found["overview"]["objects"] == 24 and found["next"].startswith("maskrcnn-coco train --data ")
    assert found["images"] == str(tmp_path) and found["findings"] == []


@pytest.mark.parametrize("flags", [[], ["--no-images"]])
def test_validation_that_is_the_training_set_is_one_sentence(tmp_path: Path, capsys, flags):
    data = OddSet(tmp_path)
    code, text = run(capsys, "--data", data.write(), "--images", tmp_path, "--val", data.folder / "a.json", *flags)
    assert code == 3 and text.count("training and validation are the same file: all 8 images") == 1
    assert "IMAGE_LEAK      8" in text


def test_the_page_draws_twelve_healthy_images(tmp_path: Path, capsys):
    data = OddSet(tmp_path / "set", images=20)
    data.annotations[0]["bbox"] = [1, 1, -5, 5]
    run(capsys, "--data", data.write(), "--images", data.folder, "--html", tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    healthy = page[page.index("As training sees it") : page.index("<table>")]
    assert healthy.count("<img") == 12 and ">1.png" not in healthy and "3 " in healthy


def test_where_nothing_can_be_trained_on_training_is_not_what_comes_next(tmp_path: Path, capsys):
    data = OddSet(tmp_path)
    for ann in data.annotations:
        del ann["segmentation"]
    code, text = run(capsys, "--data", data.write(), "--images", data.folder)
    last = text.strip().splitlines()[-1]
    assert code == 3 and last.startswith("next, when the errors are mended: maskrcnn-coco check --data ")


def test_a_copy_that_does_not_lie_on_its_pictures_is_not_trained_next(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "set", Scene(12))
    path = tmp_path / "set" / "data.json"
    document = json.loads(next((tmp_path / "set").glob("*.json")).read_text())
    longer = max(document["images"][0]["width"], document["images"][0]["height"])
    for ann in document["annotations"]:
        x, y, w, h = (v / longer for v in ann["bbox"])
        ann["bbox"], ann["segmentation"] = [x, y, w, h], [[x, y, x + w, y, x + w, y + h, x, y + h]]
    path.write_text(json.dumps(document))
    code, text = run(capsys, "--data", path, "--images", path.parent)
    assert code == 3 and "ALL_UNIT" in text
    verb, *flags = follow(text)
    assert verb == "check"
    code, text = run(capsys, *flags)
    assert code == 3 and "of the repaired copy do not lie on their pictures; read in shares of the longer side" in text
    verb, *flags = follow(text)
    assert verb == "check" and "--html" in flags and flags[1].endswith(".fixed.json")


def test_a_terminal_that_states_no_width_is_written_to_all_the_same(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    data = OddSet(tmp_path)
    code, text = run(capsys, "--data", data.write(), "--images", data.folder)
    assert code == 0 and "8 images, 24 objects, 2 classes" in text and "Nothing to report" in text


def test_what_is_wrong_throughout_is_not_followed_by_nothing_to_report(tmp_path: Path, capsys):
    path = write_coco(tmp_path, Scene(12))
    for picture in tmp_path.glob("*.png"):
        Image.open(picture).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(picture)
    code, text = run(capsys, "--data", path, "--images", tmp_path)
    assert code == 3 and "GEOMETRY" in text and "Nothing to report" not in text
