"""The documentation: commands and messages that are there, links that lead somewhere, reference pages that are made."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from maskrcnn_coco.cli.arguments import ARGUMENTS
from maskrcnn_coco.cli.command_line import parse
from maskrcnn_coco.cli.flags import read_flags
from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
HEADS = ("maskrcnn-coco ", "python maskrcnn_coco/main_mlops.py ", "torchrun ")


def lines_of(page: Path) -> list[tuple[str, bool]]:
    """Command lines of a page, in its blocks (whole ones) and between backticks in its text."""
    text = TEXTS[page]
    blocks = [line for _, block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    spans = re.findall(r"`(maskrcnn-coco [^`]+)`", BLOCK.sub("", text))
    found = [(line.strip(), True) for line in blocks] + [(line, False) for line in spans]
    return [(line, whole) for line, whole in found if line.startswith(HEADS)]


COMMANDS = [(page.relative_to(ROOT).as_posix(), *line) for page in PAGES for line in lines_of(page)]
PYTHON = [
    (page.relative_to(ROOT).as_posix(), code)
    for page in PAGES
    for language, code in BLOCK.findall(TEXTS[page])
    if language == "python"
]


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_reference", ROOT / "bench" / "docs_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE = set(reference().PAGES)


@pytest.mark.parametrize(("page", "line", "whole"), COMMANDS)
def test_a_command_in_the_documentation_is_one(page: str, line: str, whole: bool):
    words = shlex.split(line.replace("…", ""), comments=True)
    if words[0] == "maskrcnn-coco":
        verb, rest = words[1], words[2:]
    else:  # torchrun, or the script: the training's flags come last
        at = next((n for n, w in enumerate(words) if w.endswith(("main_mlops", "main_mlops.py"))), None)
        assert at is not None, "torchrun starts something that is not the training"
        script = words[at].replace(".py", "").replace("/", ".")
        assert script == "maskrcnn_coco.main_mlops"
        verb, rest = "train", words[at + 1 :]
    if verb.startswith("--"):
        assert verb in ("--help", "--version", "--completion")
        return
    assert verb in ARGUMENTS
    if whole:
        parse(verb, rest)
    else:
        kind, positional = ARGUMENTS[verb]
        read_flags(kind, rest, words=bool(positional))


def test_enough_is_tried():
    assert len(COMMANDS) > 60
    assert len(PYTHON) > 4


@pytest.mark.parametrize(("page", "code"), PYTHON)
def test_python_in_the_documentation_compiles_and_its_names_are_there(page: str, code: str):
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("maskrcnn_coco"):
            try:
                module = importlib.import_module(node.module)
            except ConfigError:  # an adapter whose trainer is not installed here: its names stand in its file
                path = Path(__file__).parents[2].joinpath(*node.module.split(".")).with_suffix(".py")
                made = {
                    n.name for n in ast.parse(path.read_text()).body if isinstance(n, (ast.ClassDef, ast.FunctionDef))
                }
                assert {alias.name for alias in node.names} <= made
                continue
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Config":
            assert {k.arg for k in node.keywords} <= set(Config.__struct_fields__)


def slug(title: str) -> str:
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path):
    for link, anchor in re.findall(r"]\(([^)#\s]*)(?:#([^)]+))?\)", TEXTS[page]):
        if "://" in link:
            continue
        target = (page.parent / link).resolve() if link else page
        if target.is_relative_to(DOCS) and target.relative_to(DOCS).as_posix() in MADE:
            continue
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, titles), f"{link}#{anchor}"


def test_every_page_is_reached_from_the_first():
    seen, todo = set(), [DOCS / "index.md"]
    while todo:
        page = todo.pop()
        if page in seen or page not in TEXTS:
            continue
        seen.add(page)
        todo += [(page.parent / link).resolve() for link in re.findall(r"]\(([^)#\s]+\.md)", TEXTS[page])]
    assert [p.name for p in PAGES if p not in seen and p.is_relative_to(DOCS)] == []


def messages() -> list[str]:
    """Texts between backticks in the first column of the table of messages."""
    table = TEXTS[DOCS / "faq.md"].partition("## Messages")[2].partition("\n## ")[0]
    return [m for row in re.findall(r"^\| (.+?) \|", table, re.MULTILINE) for m in re.findall(r"`([^`]+)`", row)]


def test_every_message_that_is_explained_is_one_of_the_program():
    source = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "maskrcnn_coco").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)  # texts that go over several lines
    assert len(messages()) > 15
    assert [m for m in messages() if m not in joined] == []


def test_the_page_of_silent_failures_names_every_finding():
    from maskrcnn_coco.records import FINDING_CODES

    named = re.findall(r"^\| `([A-Z_]+)` \|", TEXTS[DOCS / "how_to" / "silent_failures.md"], re.MULTILINE)
    assert sorted(named) == sorted(FINDING_CODES)


def test_the_page_of_files_names_every_field_of_a_record():
    import dataclasses

    from maskrcnn_coco.records import EpochRecord, EvalRecord, Incident, Result, StepRecord

    text = TEXTS[DOCS / "reference" / "files.md"]
    for record in (StepRecord, EpochRecord, EvalRecord, Incident, Result):
        missing = [f.name for f in dataclasses.fields(record) if f"`{f.name}`" not in text]
        assert [m for m in missing if m != "detail"] == [], record.__name__


def test_the_reference_is_made_from_the_program():
    module = reference()
    text = module.commands()
    assert "--head-lr-multiplier" in text
    assert all(f"## {verb}" in text for verb in ARGUMENTS)
    assert "## LR_TOO_HIGH" in module.causes()
    assert all(f"| `{name}` |" in module.settings() for name in Config.__struct_fields__)
    names = module.python()
    assert "## attach" in names
    assert 'Mode = "recover"' in names or "Mode = 'recover'" in names


@pytest.mark.parametrize(
    ("page", "link", "made"),
    [
        ("how_to/nan.md", "[proof](../explanation/proof.md)", "[proof](../explanation/proof.md)"),
        ("how_to/nan.md", "[a loop](../../examples/loop.py)", "[a loop](https://host/it/blob/main/examples/loop.py)"),
        ("index.md", "[a loop](../examples/loop.py)", "[a loop](https://host/it/blob/main/examples/loop.py)"),
        ("index.md", "[proof](explanation/proof.md)", "[proof](explanation/proof.md)"),
        ("index.md", "![picture](../a.png)", "![picture](../a.png)"),
    ],
)
def test_only_a_link_out_of_the_documentation_leads_to_the_repository(page, link, made, monkeypatch):
    on_page = reference().on_page_markdown
    where = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    monkeypatch.setenv("REPOSITORY_URL", "https://host/it/")
    assert on_page(link, page=where) == made
    monkeypatch.delenv("REPOSITORY_URL")
    assert on_page(link, page=where) == (link if made == link else "a loop")


def test_every_page_is_in_the_site_s_table_of_contents():
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text().split("nav:")[1]))
    written = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert listed == (written - {p for p in written if p.startswith("images/")}) | MADE
