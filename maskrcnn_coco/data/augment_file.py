"""``--augment``: a preset by name, or a YAML file that a person wrote, checked to the last key."""

from __future__ import annotations

import difflib
import re
from typing import Any

import msgspec

from maskrcnn_coco.data.augment import PRESETS, Policy
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.system.plain_files import Lines, read_yaml_lines

MOST_BLUR, MOST_NOISE = 50.0, 128.0
"""Pixels and grey levels: beyond, nothing of a picture is left."""
_EXAMPLE = "write one operation a line: `blur: {p: 0.1, sigma: [0.3, 1.2]}`"


def policy_of(augment: str, flip: str | None = None, copy_paste: float | None = None) -> Policy:
    """The policy that ``--augment`` names, with ``--flip`` and ``--copy-paste`` in place of its own where given.

    Raises:
        ConfigError: no such preset or file, or a file with something else in it.
    """
    policy = PRESETS.get(augment) or read_policy(augment)
    if flip is not None:
        policy = msgspec.structs.replace(policy, flip=flip)
    if copy_paste is not None:
        policy = msgspec.structs.replace(
            policy, copy_paste=msgspec.structs.replace(policy.copy_paste, p=float(copy_paste))
        )
    return policy


def read_policy(path: str) -> Policy:
    """A policy from a YAML file: ``operation: {p: …, range}``.

    Raises:
        ConfigError: it cannot be read; a key, type or range is not one of an operation's; or an operation would do
            nothing. Names the file, and where it can the line and the key.
    """
    presets = ", ".join(PRESETS)
    if not path.endswith((".yaml", ".yml")):
        near = difflib.get_close_matches(path, PRESETS, 1, 0.5)
        raise ConfigError(
            "--augment is not known",
            got=repr(path),
            expected=f"{presets}, or a file that ends in .yaml",
            fix=f"did you mean {near[0]}?" if near else "give one of them",
        )
    try:
        found, lines = read_yaml_lines(path)
    except OSError as e:
        raise ConfigError(
            f"--augment: {path} cannot be read: {e.strerror}", fix=f"check the path, or use {presets}"
        ) from e
    except ValueError as e:
        raise ConfigError(f"--augment: {path} is not YAML: {e}", fix=_EXAMPLE) from e
    names = Policy.__struct_fields__
    if not isinstance(found, dict) or not found:
        got = "an empty mapping" if found == {} else "nothing" if found is None else type(found).__name__
        raise ConfigError(
            f"--augment: {path} lists no operations", got=got, expected=f"a mapping of {', '.join(names)}", fix=_EXAMPLE
        )
    _check_names(found, lines, path)
    try:
        policy = msgspec.convert(_numbers(found), type=Policy)
    except msgspec.ValidationError as e:
        raise _said(str(e), found, lines, path) from e
    _check_ranges(policy, lines, path)
    _check_use(policy, found, lines, path)
    return policy


def _check_names(found: dict[Any, Any], lines: Lines, path: str) -> None:
    """Unknown operations, and unknown keys of one, with the nearest known name."""
    names = Policy.__struct_fields__
    for name, value in found.items():
        if name not in names:
            raise _unknown(str(name), names, "operation", (name,), lines, path)
        own = getattr(Policy(), str(name))
        known = getattr(own, "__struct_fields__", ())
        for key in value if isinstance(value, dict) and known else ():
            if key not in known:
                raise _unknown(str(key), known, f"key of {name}:", (name, key), lines, path)


def _unknown(word: str, known: tuple[str, ...], what: str, at: tuple[Any, ...], lines: Lines, path: str) -> ConfigError:
    near = difflib.get_close_matches(word.lower(), known, 1, 0.5)
    return ConfigError(
        f"--augment: {path}{lines.at(at)} has an unknown {what} {word!r}",
        expected=", ".join(known),
        fix=f"did you mean {near[0]}?" if near else "leave it out",
    )


def _numbers(value: Any) -> Any:
    """``value`` with 1e-1, which YAML 1.1 reads as text, as the number that a person means."""
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value) else value


def _said(problem: str, found: dict[Any, Any], lines: Lines, path: str) -> ConfigError:
    """msgspec's sentence with the line, the key and the value that it is about."""
    what, _, place = problem.partition(" - at `$")
    keys = [int(i) if i else name for name, i in re.findall(r"\.(\w+)|\[(\d+)\]", place)]
    key, value = "", found
    for part in keys:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
        value = value[part] if isinstance(value, (dict, list)) else value
    fix = "compare with the documentation of the operations"
    if key == "flip":
        what, fix = "Expected none, horizontal, vertical or both", "write `flip: none`, not no or false"
    elif "`object`" in what:
        fix = f"write `{key}: {{p: 0.5}}` with the keys of the operation"
    return ConfigError(
        f"--augment: {path}{lines.at(keys)}: {key}", got=repr(value), expected=what.removeprefix("Expected "), fix=fix
    )


def _check_ranges(policy: Policy, lines: Lines, path: str) -> None:
    pairs: dict[tuple[str, str], tuple[tuple[float, float], float, float]] = {
        ("scale", "low"): ((policy.scale.low, policy.scale.high), 0.05, 4.0),
        ("blur", "sigma"): (policy.blur.sigma, 0.0, MOST_BLUR),
        ("noise", "sigma"): (policy.noise.sigma, 0.0, MOST_NOISE),
        ("jpeg", "quality"): (policy.jpeg.quality, 1, 100),
    }
    for (name, key), ((low, high), least, most) in pairs.items():
        said = name if name == "scale" else f"{name}.{key}"
        at = f"--augment: {path}{lines.at((name, key))}: {said}"
        if low > high:
            raise ConfigError(f"{at} goes from {low:g} to {high:g}", fix="put the smaller one first")
        if not (least <= low and high <= most):
            raise ConfigError(at, got=f"{low:g} to {high:g}", expected=f"within {least:g} to {most:g}")


def _check_use(policy: Policy, found: dict[Any, Any], lines: Lines, path: str) -> None:
    """An operation that a person wrote down and that would do nothing is a slip: it must not pass in silence."""
    for name, key in (("rotate", "degrees"), *((n, "amount") for n in ("brightness", "contrast", "saturation", "hue"))):
        op = getattr(policy, name)
        if name in found and op.p > 0 and getattr(op, key) == 0:
            raise ConfigError(
                f"--augment: {path}{lines.at((name,))}: {name} would do nothing: its {key} is 0",
                fix=f"give {key}, or leave {name} out",
            )
    if "copy_paste" in found and "p" not in found["copy_paste"]:
        raise ConfigError(
            f"--augment: {path}{lines.at(('copy_paste',))}: copy_paste would do nothing: it has no p",
            fix="copy_paste: {p: 0.3}, or leave it out",
        )
