"""The wheel and the source archive: what is in them and what they say of themselves. `make package` installs one."""

from __future__ import annotations

import re
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
URL = "https://example.org/some/repository"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    from hatchling.builders.wheel import WheelBuilder

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPOSITORY_URL", URL + "/")
        (made,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    return zipfile.ZipFile(made)


def metadata(wheel: zipfile.ZipFile) -> Message:
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile):
    package = ROOT / "maskrcnn_coco"
    here = {
        f"maskrcnn_coco/{p.relative_to(package).as_posix()}"
        for p in package.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    names = {n for n in wheel.namelist() if ".dist-info/" not in n}
    assert names == here
    assert {"maskrcnn_coco/py.typed", "maskrcnn_coco/report/templates/report.css.j2"} <= names


def test_the_wheel_says_licence_pythons_and_command(wheel: zipfile.ZipFile):
    said = metadata(wheel)
    assert said["License-Expression"] == "Apache-2.0"
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in wheel.namelist())
    assert said["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in said.get_all("Classifier", [])
    assert not [c for c in said.get_all("Classifier", []) if c.startswith("License ::")], "the SPDX form replaces it"
    entry = next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    assert b"maskrcnn-coco = maskrcnn_coco.cli:entry" in wheel.read(entry)
    wanted = {"export", "track", "lightning", "transformers", "video", "docs"}
    assert wanted <= set(said.get_all("Provides-Extra", []))


def test_links_and_pictures_of_the_readme_lead_somewhere_on_an_index_page(wheel: zipfile.ZipFile):
    text = metadata(wheel).get_payload()
    assert isinstance(text, str)
    links = re.findall(r"]\(([^)#][^)]*)\)", text)
    assert links
    assert [link for link in links if not link.startswith("http")] == []
    pictures = [link for link in links if link.endswith((".png", ".jpg"))]
    assert pictures
    for picture in pictures:
        assert picture.startswith(f"{URL}/raw/main/")
        assert (ROOT / picture.removeprefix(f"{URL}/raw/main/")).is_file()
    assert f"Source, {URL}" in metadata(wheel).get_all("Project-URL", [])


def test_no_address_is_made_up_where_none_is_given(monkeypatch: pytest.MonkeyPatch):
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    monkeypatch.delenv("REPOSITORY_URL", raising=False)
    core = ProjectMetadata(str(ROOT), PluginManager()).core
    assert core.urls == {}
    assert core.readme == (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_source_archive_builds_and_tests_itself(tmp_path: Path):
    from hatchling.builders.sdist import SdistBuilder

    (made,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(made) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "hatch_build.py", "maskrcnn_coco/py.typed"} <= names
    assert "tests/test_package.py" in names
    assert not [n for n in names if n.startswith((".venv", "runs/", "checkpoints/", "bench/results"))]


def test_every_third_party_import_of_the_package_is_declared():
    import ast

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *(d for e in project["optional-dependencies"].values() for d in e)]
    known = {re.split(r"[><=\[ ]", d)[0].replace("-", "_").lower() for d in declared}
    called = {"PIL": "pillow", "yaml": "pyyaml", "markupsafe": "jinja2", "pytorch_lightning": "lightning"}
    for path in (ROOT / "maskrcnn_coco").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            modules += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                top = str(module).partition(".")[0]
                ours = top in sys.stdlib_module_names or top == "maskrcnn_coco"
                assert ours or called.get(top, top).lower() in known, f"{path.name} imports {module}"


def test_the_pre_commit_hook_calls_a_verb_that_is_there():
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    program, verb = hook["entry"].split()
    assert program == "maskrcnn-coco"
    from maskrcnn_coco.cli.arguments import VERBS

    assert verb in VERBS
    assert re.search(hook["files"], "data/instances.json")


def test_the_workflow_is_one():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    assert {"lint", "linux", "elsewhere", "package"} <= set(jobs)
    assert all(job["steps"] for job in jobs.values())
