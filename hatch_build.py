"""What the package's metadata take from where it is built: links that work on an index page.

An index shows no relative links. Where ``REPOSITORY_URL`` is set (the workflow sets it), pictures and links of the
README lead there, and the project's addresses are listed; elsewhere nothing is made up.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class LinksThatWork(MetadataHookInterface):
    """Fills in ``readme`` and ``urls``."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling with the ``[project]`` table."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        url = os.environ.get("REPOSITORY_URL", "").rstrip("/")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, url) if url else text}
        pages = {"Source": "", "Issues": "/issues", "Changelog": "/blob/main/CHANGELOG.md"}
        metadata["urls"] = {name: url + page for name, page in pages.items()} if url else {}


def absolute(text: str, url: str) -> str:
    """Markdown whose relative pictures and links lead to the repository at ``url``."""
    text = re.sub(r"!\[([^]]*)]\((?![a-z]+:|#)([^)]+)\)", rf"![\1]({url}/raw/main/\2)", text)
    return re.sub(r"(?<!!)\[([^]]*)]\((?![a-z]+:|#)([^)]+)\)", rf"[\1]({url}/blob/main/\2)", text)
