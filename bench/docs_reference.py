"""The reference pages of the documentation, from the program itself: every verb's ``--help``, every cause and finding.

A hook of mkdocs (``make docs``): pages are made when the site is built, so that they cannot fall behind.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import posixpath
import re
import textwrap
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


def settings() -> str:
    """The fields of `Config`, in the groups of ``--help``."""
    from maskrcnn_coco.cli.flags import FROM_RECIPE
    from maskrcnn_coco.cli.help_page import documented, grouped
    from maskrcnn_coco.config.settings import Config, flag

    texts = documented(Config)
    parts = [
        "# Settings",
        "",
        "The flags of `train` are the fields of `Config`, and the keys of a `--config` file.",
        "",
    ]
    parts += ["```python", "from maskrcnn_coco import Config", "", "Config(lr=5e-3, head_lr_multiplier=5.0)", "```"]
    for title, fields in grouped(Config).items():
        parts += ["", f"## {title}", "", "| field | flag | unless given | |", "|---|---|---|---|"]
        for field in fields:
            usual = "from the recipe" if field.name in FROM_RECIPE else f"`{field.default!r}`"
            text = " ".join(texts[field.name].split()).replace("|", "\\|")
            parts.append(f"| `{field.name}` | `{flag(field.name)}` | {usual} | {text} |")
    return "\n".join(parts) + "\n"


def python() -> str:
    """The public names: their signatures and their own texts."""
    import maskrcnn_coco
    from maskrcnn_coco.inference.predictor import Predictor

    parts = ["# Python", "", "`from maskrcnn_coco import " + ", ".join(maskrcnn_coco.__all__) + "`", ""]
    parts += ["The fields of `Config`: [settings](config.md). What `predict` gives: [use](../use_what_you_trained.md)."]
    named = [(n, getattr(maskrcnn_coco, n)) for n in maskrcnn_coco.__all__ if n != "Config"]
    for name, thing in [*named, ("Predictor.predict", Predictor.predict)]:
        shown = "" if _is_warning(thing) else str(inspect.signature(thing))
        text = inspect.cleandoc(thing.__doc__ or "")
        shown = re.sub(r"(: |-> )'([^']*)'", r"\1\2", shown)  # annotations are texts here, defaults may be
        call = "\n".join(textwrap.wrap(name + shown, 100, subsequent_indent="    "))
        parts += ["", f"## {name}", "", "```", call, "```", "", "```", text, "```"]
    return "\n".join(parts) + "\n"


def _is_warning(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, Warning)


PAGES = {
    "reference/commands.md": commands,
    "reference/codes.md": causes,
    "reference/config.md": settings,
    "reference/python.md": python,
}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to those of the folder; called by mkdocs."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        files.append(File.generated(config, name, content=page()))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links out of ``docs/`` lead to the repository where the build says which it is; elsewhere they are plain text."""
    url = os.environ.get("REPOSITORY_URL", "").rstrip("/")
    folder = posixpath.dirname(page.file.src_uri)

    def lead(link: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join("docs", folder, link[2]))
        if place.startswith("docs/"):
            return link[0]
        return f"[{link[1]}]({url}/blob/main/{place})" if url else link[1]

    return re.sub(r"(?<!!)\[([^]]*)]\((\.\./[^)]*)\)", lead, markdown)
