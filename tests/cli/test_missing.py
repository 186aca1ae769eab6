"""What is not installed is said in a sentence, with the command that brings it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

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
sys.exit(main({argv!r}))
"""


def without(gone: tuple[str, ...], *argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = WITHOUT.format(gone=gone, argv=list(argv))
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, env=dict(os.environ))


@pytest.mark.parametrize("verb", ["train", "advise", "verify", "evaluate x.pth", "diagnose x.pth", "doctor"])
def test_a_verb_that_needs_torch_says_so(verb: str, tmp_path: Path):
    (tmp_path / "x.pth").write_bytes(b"x")
    done = without(("torch", "torchvision"), *verb.split(), cwd=tmp_path)
    assert done.returncode == 2, done
    assert "torch, which is not installed" in done.stderr
    assert "pip install torch torchvision" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("argv", "code"), [("explain LR_TOO_HIGH", 0), ("--help", 0), ("check --data a.json", 3)])
def test_what_reads_only_files_works_without_torch(argv: str, code: int, tmp_path: Path):
    (tmp_path / "a.json").write_text('{"images": [], "annotations": [], "categories": []}')
    done = without(("torch", "torchvision"), *argv.split(), cwd=tmp_path)
    assert done.returncode == code, done
    assert "not installed" not in done.stderr


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
