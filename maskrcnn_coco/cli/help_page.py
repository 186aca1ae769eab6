"""``--help``: the flags of a verb in groups, with what happens when one is not given, and examples."""

from __future__ import annotations

import ast
import inspect
import shutil
import textwrap
from typing import Any

import msgspec

from maskrcnn_coco.cli.flags import FROM_RECIPE, PATHS, metavar
from maskrcnn_coco.config.settings import GROUPS, Config, flag

EXAMPLES = {
    "train": (
        ("the built-in shapes, in minutes, on any machine", "maskrcnn-coco train"),
        ("your own data", "maskrcnn-coco train --data my_set/ --epochs 20"),
        ("a json and its images, higher rates for the heads", "maskrcnn-coco train --data a.json --images img/ \\\n"
         "      --lr 5e-3 --head-lr-multiplier 5"),
        ("go on where a run stopped", "maskrcnn-coco train --resume auto"),
        ("four GPUs", "torchrun --nproc-per-node 4 maskrcnn_coco/main_mlops.py --data my_set/"),
    ),
    "convert": (
        ("what LabelMe, VIA, YOLO or a drawing program left",
         "maskrcnn-coco convert my_labels/ --out my_labels/coco.json"),
    ),
    "check": (
        ("what is wrong with a data set", "maskrcnn-coco check --data my_set/"),
        ("a repaired copy, and a gallery of what was found",
         "maskrcnn-coco check --data my_set/ --fix fixed.json --html findings.html"),
    ),
    "advise": (("before a run", "maskrcnn-coco advise --data my_set/"),),
    "diagnose": (
        ("a run, an incident, a checkpoint", "maskrcnn-coco diagnose runs/maskrcnn"),
        ("", "maskrcnn-coco diagnose runs/maskrcnn/incidents/0001.json"),
    ),
    "verify": (("does a smaller rate hold?", "maskrcnn-coco verify runs/maskrcnn --head-lr-multiplier 3"),),
    "evaluate": (("AP of the best epoch", "maskrcnn-coco evaluate checkpoints/best.pth --data my_set/"),),
    "predict": (
        ("draw what it finds", "maskrcnn-coco predict checkpoints/best.pth photos/ --out drawn/"),
        ("large images; label images and a table for ImageJ",
         "maskrcnn-coco predict checkpoints/best.pth slide.tif --tile auto --format labels,csv"),
    ),
    "export": (
        ("for ONNX Runtime, without torch", "maskrcnn-coco export checkpoints/best.pth --format onnx --out exported/"),
    ),
    "push": (
        ("look at it first", "maskrcnn-coco push checkpoints/best.pth me/nuclei --to-folder nuclei/"),
        ("then, after hf auth login", "maskrcnn-coco push checkpoints/best.pth me/nuclei --license cc-by-4.0"),
    ),
    "explain": (("one cause", "maskrcnn-coco explain LR_TOO_HIGH"),),
    "doctor": (("the machine and its checkpoints", "maskrcnn-coco doctor --checkpoint-dir checkpoints"),),
}  # fmt: skip
OF_THE_COMMAND = "This command"
_COLUMN = 34
"""Where the texts begin, where a flag leaves room."""


def help_page(verb: str, kind: type[msgspec.Struct], positional: str, given: dict[str, Any] | None = None) -> str:
    """What ``maskrcnn-coco VERB --help`` prints; ``given`` replaces defaults, as a settings file does."""
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 110))
    flags = "[FLAGS]" if _may_stay_out(kind) else "FLAGS"
    lines = [" ".join(f"usage: maskrcnn-coco {verb} {positional} {flags}".split()), ""]
    for paragraph in inspect.cleandoc(kind.__doc__ or "").split("\n\n")[:2]:
        lines += [*textwrap.wrap(" ".join(paragraph.split()), width), ""]
    if verb in EXAMPLES:
        lines += ["Examples"]
        for what, command in EXAMPLES[verb]:
            lines += ([f"  # {what}"] if what else []) + [f"  {command}"]
        lines += [""]
    texts = documented(kind)
    for title, fields in grouped(kind).items():
        lines.append(title)
        for field in fields:
            lines += _entry(field, texts.get(field.name, ""), (given or {}).get(field.name, field.default), width)
        lines.append("")
    return "\n".join(lines).rstrip()


def grouped(kind: type[msgspec.Struct]) -> dict[str, list[Any]]:
    """Title → fields: a setting of `Config` belongs to the group begun last above it (`GROUPS`), others to the verb."""
    title, groups = "Flags", {}
    settings = Config.__struct_fields__ if issubclass(kind, Config) else ()
    for field in msgspec.structs.fields(kind):
        if field.name in settings:
            title = GROUPS.get(field.name, title)
        elif settings:
            title = OF_THE_COMMAND
        groups.setdefault(title, []).append(field)
    return groups


def documented(kind: type) -> dict[str, str]:
    """The docstring below each field of a class, base classes first."""
    texts: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if cls.__module__.startswith("maskrcnn_coco"):
            body = ast.parse(inspect.getsource(cls)).body[0]
            assert isinstance(body, ast.ClassDef)
            for field, text in zip(body.body, body.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(text, ast.Expr)
                    and isinstance(field.target, ast.Name)
                ):
                    texts[field.target.id] = ast.literal_eval(text.value)
    return texts


def _may_stay_out(kind: type[msgspec.Struct]) -> bool:
    return all(not f.required for f in msgspec.structs.fields(kind))


def _entry(field: Any, text: str, default: Any, width: int) -> list[str]:
    shown = "PATH" if field.name in PATHS else metavar(field.type)
    head = f"  {flag(field.name)}" + (f" {shown}" if shown else "")
    if default is None and field.name in FROM_RECIPE:
        text += " (default: from the recipe)" if "(default" not in text else ""
    elif default not in (None, (), []) and default is not msgspec.NODEFAULT and not isinstance(default, bool):
        text += f" (default: {default})"
    elif default is msgspec.NODEFAULT:
        text += " (required)"
    body = textwrap.wrap(text, width - _COLUMN, break_long_words=False) or [""]
    first = [head] if len(head) > _COLUMN - 2 else [f"{head:<{_COLUMN}}{body.pop(0)}".rstrip()]
    return first + [" " * _COLUMN + line for line in body]
