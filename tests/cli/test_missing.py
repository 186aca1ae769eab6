"""What is not installed is said in a sentence, with the command that brings it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from maskrcnn_coco.cli.missing import CORE, EXTRAS, missing

ROOT = Path(__file__).resolve().parents[2]
WITHOUT = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {gone!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Gone())
from maskrcnn_coco.cli import main
for argv in {lines!r}:
    sys.stdout.write(f"<{{main(argv.split())}}>\\n\\0")
    sys.stderr.write("\\0")
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


def without(gone: tuple[str, ...], *lines: str, cwd: Path) -> list[Done]:
    """What each command line does where the packages ``gone`` are not installed; all in one process."""
    code = WITHOUT.format(gone=gone, lines=list(lines))
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    outs, errs = done.stdout.split("\0")[:-1], done.stderr.split("\0")[:-1]
    codes = [int(out.rstrip("\n")[:-1].rpartition("<")[2]) for out in outs]
    return [Done(*parts) for parts in zip(codes, outs, errs, strict=True)]


NEED_TORCH = (
    *("train", "advise", "verify", "evaluate x.pth", "diagnose x.pth", "doctor", "predict x.pth x.pth"),
    *("export x.pth", "push x.pth me/x --to-folder out"),
)
LIGHT = ("numpy", "PIL", "msgspec", "yaml", "hotcoco", "rich", "jinja2", "platformdirs")
"""What the documentation names beside ``pip install --no-deps maskrcnn-coco``, for the verbs that read files only."""
HEAVY = tuple(set(CORE) - set(LIGHT))


def test_every_verb_is_tried_without_torch():
    from maskrcnn_coco.cli.arguments import VERBS

    files_only = {"explain", "check", "report", "convert"}
    assert {v.split()[0] for v in NEED_TORCH} | files_only == set(VERBS)


def test_a_verb_that_needs_torch_says_so(tmp_path: Path):
    (tmp_path / "x.pth").write_bytes(b"x")
    for line, done in zip(NEED_TORCH, without(("torch", "torchvision"), *NEED_TORCH, cwd=tmp_path), strict=True):
        assert done.code == 2, (line, done)
        assert "torch, which is not installed" in done.err, line
        assert "pip install torch torchvision" in done.err, line
        assert "Traceback" not in done.err, line


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with annotations, a picture, and a run that had incidents, one of them with a case file."""
    from fake_run import make_run
    from PIL import Image

    folder = tmp_path_factory.mktemp("light")
    make_run(folder / "run", epochs=5, pictures=1)
    (folder / "run" / "incidents" / "0001.pt").write_bytes(b"a case, which only torch could read")
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0}
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [box | {"segmentation": [[2, 2, 11, 2, 11, 11, 2, 11]]}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "a.json").write_text(json.dumps(data))
    for kind in ("images", "masks"):
        (folder / "drawn" / kind).mkdir(parents=True)
        Image.new("L", (40, 30), 1).save(folder / "drawn" / kind / "a.png")
    return folder


FILES_ONLY = {
    "--help": 0,
    "explain LR_TOO_HIGH": 0,
    "explain NOT_LEARNING": 0,
    "check --data a.json --images . --html found.html": 3,  # a picture of one colour
    "convert drawn --format masks --masks-are objects --out made.json": 0,
    "report run": 0,
    "diagnose run": 0,
    "diagnose run/incidents/0001.json --json": 0,
    "diagnose run/incidents/0002.json": 0,
}
"""Command line → exit code."""


def test_what_reads_only_files_works_without_torch_and_what_it_brings(run: Path):
    for (line, code), done in zip(FILES_ONLY.items(), without(HEAVY, *FILES_ONLY, cwd=run), strict=True):
        assert done.code == code, (line, done)
        assert "pip install" not in done.err, line
        if line == "diagnose run":
            assert "as recorded; torch is not installed" in done.out
            assert "LR_TOO_HIGH" in done.out


def test_the_documentation_names_what_those_verbs_need():
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    called = {"PIL": "pillow", "yaml": "pyyaml"}
    assert "pip install --no-deps maskrcnn-coco" in text
    (line,) = [x for x in text.splitlines() if x.startswith("pip install numpy ")]
    assert sorted(line.split()[2:]) == sorted(called.get(n, n) for n in LIGHT)


def test_a_torchvision_of_another_shape_is_named_with_the_version_to_take():
    error = ImportError("cannot import name '_setup_scales'", name="torchvision.ops.poolers")
    said = missing(error)
    assert said is not None
    assert "does not fit" in said.render()
    assert "torchvision 0." in said.render()
    assert "pip install 'torch==" in said.render()


def test_a_missing_name_of_ours_is_a_fault_and_no_advice():
    assert missing(ImportError("cannot import name 'x'", name="maskrcnn_coco.errors")) is None
    assert missing(ImportError("odd")) is None


def test_every_extra_and_dependency_that_is_named_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])
    listed = {d.split(">")[0].split("=")[0].replace("-", "_") for d in project["dependencies"]}
    assert {{"PIL": "pillow", "yaml": "pyyaml"}.get(name, name) for name in CORE} == listed
