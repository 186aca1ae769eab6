"""Shell completion of verbs, flags and the values of flags: ``eval "$(maskrcnn-coco --completion bash)"``."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from maskrcnn_coco.config.settings import MODELS, flag
from maskrcnn_coco.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")
_BASH = """_maskrcnn_coco() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
  case $COMP_CWORD:${{COMP_WORDS[1]}}:$before in
    1:*) words="{verbs}" ;;
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _maskrcnn_coco maskrcnn-coco"""


def completion(shell: str, kinds: Mapping[str, type[msgspec.Struct]]) -> str:
    """The script for ``shell``; ``kinds``: verb → its flags.

    Raises:
        ConfigError: another shell.
    """
    if shell not in SHELLS:
        raise ConfigError(f"no completion for the shell {shell!r}", expected=", ".join(SHELLS))
    if shell == "fish":
        return "\n".join(_fish(kinds))
    cases = []
    for verb, kind in kinds.items():
        cases += [f'    *:{verb}:{name}) words="{" ".join(values)}" ;;' for name, values in _flags(kind) if values]
        cases += [f'    *:{verb}:*) words="{" ".join(name for name, _ in _flags(kind))}" ;;']
    script = _BASH.format(verbs=" ".join(kinds), cases="\n".join(cases))
    return script if shell == "bash" else "autoload -U +X bashcompinit && bashcompinit\n" + script


def _fish(kinds: Mapping[str, type[msgspec.Struct]]) -> list[str]:
    lines = [f"complete -c maskrcnn-coco -n __fish_use_subcommand -a '{' '.join(kinds)}'"]
    for verb, kind in kinds.items():
        for name, values in _flags(kind):
            given = f" -x -a '{' '.join(values)}'" if values else ""
            lines.append(
                f"complete -c maskrcnn-coco -n '__fish_seen_subcommand_from {verb}' -l {name.removeprefix('--')}{given}"
            )
    return lines


def _flags(kind: type[msgspec.Struct]) -> list[tuple[str, list[str]]]:
    hints = typing.get_type_hints(kind)
    return [
        (flag(f.name), list(MODELS) if f.name == "model" else _choices(hints[f.name]))
        for f in msgspec.structs.fields(kind)
    ]


def _choices(hint: Any) -> list[str]:
    if typing.get_origin(hint) is Literal:
        return [str(v) for v in typing.get_args(hint)]
    return [v for part in typing.get_args(hint) for v in _choices(part)]
