"""The reference pages of the documentation, from the program itself: every verb's ``--help``, every cause and finding.

A hook of mkdocs (``make docs``): pages are made when the site is built, so that they cannot fall behind.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from typing import Any


def printed(*argv: str) -> str:
    """What a command line prints."""
    from maskrcnn_coco.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(list(argv))
    assert code == 0, (argv, code)
    return out.getvalue().rstrip()


def commands() -> str:
    """Every verb with its flags."""
    from maskrcnn_coco.cli.arguments import VERBS

    os.environ["COLUMNS"] = "100"
    parts = ["# Commands", "", "```", printed("--help"), "```"]
    for verb, what in VERBS.items():
        parts += ["", f"## {verb}", "", what[:1].upper() + what[1:] + ".", "", "```", printed(verb, "--help"), "```"]
    return "\n".join(parts) + "\n"


def causes() -> str:
    """What `explain` teaches of every cause and finding."""
    from maskrcnn_coco.records import CAUSES, FINDING_CODES

    parts = ["# Causes and findings", "", "What `maskrcnn-coco explain CODE` prints."]
    for code in (*CAUSES, *FINDING_CODES):
        parts += ["", f"## {code}", "", "```", printed("explain", code), "```"]
    return "\n".join(parts) + "\n"


PAGES = {"reference/commands.md": commands, "reference/codes.md": causes}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to those of the folder; called by mkdocs."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        files.append(File.generated(config, name, content=page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links out of ``docs/`` lead to the repository where the build says which it is; elsewhere they are plain text."""
    url = os.environ.get("REPOSITORY_URL", "").rstrip("/")
    return re.sub(r"(?<!!)\[([^]]*)]\(\.\./([^)]*)\)", rf"[\1]({url}/blob/main/\2)" if url else r"\1", markdown)
