"""How settings look as flags in ``--help``: plain types, and what happens when a flag is not given."""

from __future__ import annotations

import ast
import inspect
import types
import typing
from typing import Annotated, Any, Literal

import msgspec

FROM_RECIPE = {
    "lr", "head_lr_multiplier", "rpn_lr_multiplier", "epochs", "batch_size", "weight_decay", "warmup_steps",
    "model", "weights", "min_size", "max_size", "workers", "box_batch_size_per_image", "box_detections_per_image",
}  # fmt: skip
"""Fields of Config that `recipes.resolve` fills when they are not given."""


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


def readable(kind: type[msgspec.Struct], given: dict[str, Any]) -> type:
    """``kind`` as tyro should show it: a Struct with the same fields; ``given`` replaces defaults.

    ``NUMBER`` instead of ``{None}|FLOAT``, and "from the recipe" instead of "None" where a recipe fills the gap.
    """
    import tyro

    hints = typing.get_type_hints(kind)
    texts = documented(kind)
    fields: list[Any] = []
    for field in msgspec.structs.fields(kind):
        value = given.get(field.name, field.default)
        hint = "" if value is None or isinstance(value, bool) else None
        if value is None and field.name in FROM_RECIPE:
            hint = "(default: from the recipe)"
        show = tyro.conf.arg(metavar=_metavar(hints[field.name]), help=texts.get(field.name), help_behavior_hint=hint)
        shape = Annotated[hints[field.name], show]
        fields.append((field.name, shape) if value is msgspec.NODEFAULT else (field.name, shape, value))
    shown = msgspec.defstruct(kind.__name__, fields, kw_only=True, frozen=True)
    shown.__doc__ = kind.__doc__
    return shown


def _metavar(hint: Any) -> str | None:
    options = [t for t in typing.get_args(hint) if t is not type(None)] if _is_union(hint) else [hint]
    if options == [bool]:
        return None
    words = []
    for option in options:
        if typing.get_origin(option) is Literal:
            words.append("|".join(map(str, typing.get_args(option))))
        else:
            words.append({float: "NUMBER", int: "N", str: "TEXT"}.get(option, "VALUE"))
    return "|".join(words)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
