"""`explain`: what a code means, of an incident, of a finding, or of `check`."""

from __future__ import annotations

import difflib

from maskrcnn_coco.data.audit.catalogue import CATALOGUE
from maskrcnn_coco.data.audit.whole_set import silent_code
from maskrcnn_coco.diagnosis.explain import codes, explain
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.records import FINDING_CODES

_MEANT = {
    "error": "what has it is left out of training",
    "warning": "most likely a mistake; it is trained on as it is",
    "info": "good to know, and no mistake",
}


def explanation(code: str) -> str:
    """What ``explain CODE`` prints.

    Raises:
        ConfigError: no such code, with the one that it is most like.
    """
    word = code.strip().upper()
    if word in CATALOGUE:
        return _of_check(word)
    known = [*codes(), *FINDING_CODES, *CATALOGUE]
    near = difflib.get_close_matches(word, known, 1, 0.7)
    if word in known or not near:
        return explain(code)
    raise ConfigError(
        f"there is no code {code!r}; did you mean {near[0]}?", got=code, fix=f"maskrcnn-coco explain {near[0]}"
    )


def _of_check(code: str) -> str:
    kind = CATALOGUE[code]
    lines = [
        f"{code}: {kind.title}.",
        f"What it is: a finding of `check`, {kind.severity}: {_MEANT[kind.severity]}.",
        f"How to fix it: {kind.fix}.",
    ]
    if whole := silent_code(code):
        lines.append(f"It is {whole} where it holds for a whole set: maskrcnn-coco explain {whole}")
    return "\n".join(lines) + "\n"
