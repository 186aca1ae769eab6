"""The documentation: commands that are there, links that lead somewhere, reference pages that are made."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from maskrcnn_coco.cli.arguments import ARGUMENTS
from maskrcnn_coco.cli.command_line import parse

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
MADE = {"reference/commands.md", "reference/codes.md"}
PAGES = sorted(DOCS.rglob("*.md"))
COMMANDS = [
    (page.name, line)
    for page in PAGES
    for block in re.findall(r"```(?:\w*)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("maskrcnn-coco ")
]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_in_the_documentation_is_one(page: str, line: str):
    verb, *rest = shlex.split(line, comments=True)[1:]
    if verb.startswith("--"):
        return
    assert verb in ARGUMENTS
    parse(verb, rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path):
    for link in re.findall(r"]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            target = (page.parent / link).resolve()
            assert target.exists() or str(target.relative_to(DOCS)) in MADE, link


def test_the_reference_is_made_from_the_program():
    spec = importlib.util.spec_from_file_location("docs_reference", ROOT / "bench" / "docs_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.commands()
    assert "--head-lr-multiplier" in text
    assert all(f"## {verb}" in text for verb in ARGUMENTS)
    assert "## LR_TOO_HIGH" in module.causes()
