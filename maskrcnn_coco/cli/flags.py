"""Words of a command line → the fields of a verb's settings, without a guess: what was not given stays not given."""

from __future__ import annotations

import difflib
import shlex
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from maskrcnn_coco.errors import ConfigError

FROM_RECIPE = {
    "lr", "head_lr_multiplier", "rpn_lr_multiplier", "fpn_lr_multiplier", "epochs", "batch_size", "weight_decay",
    "warmup_steps", "model", "weights", "min_size", "max_size", "workers", "box_batch_size_per_image",
    "box_detections_per_image",
}  # fmt: skip
"""Fields of Config that `recipes.resolve` fills when they are not given."""

PATHS = {
    "data", "images", "val", "val_images", "quarantine", "backbone_weights", "checkpoint_dir", "logdir", "config",
    "fix", "html", "out",
}  # fmt: skip
"""Fields whose text is a file or a folder."""

ELSEWHERE = {
    "lr": "learning_rate lr0 base_lr initial_lr",
    "head_lr_multiplier": "head_multiplier head_lr",
    "max_grad_norm": "clip grad_clip clip_grad clip_grad_norm gradient_clip_val",
    "weight_decay": "wd decay",
    "batch_size": "batch bs train_batch_size per_device_train_batch_size",
    "accumulate": "gradient_accumulation_steps accumulate_grad_batches accum iter_size",
    "epochs": "num_epochs n_epochs max_epochs num_train_epochs",
    "warmup_steps": "warmup warmup_iters",
    "patience": "early_stopping early_stopping_patience",
    "min_size": "imgsz img_size image_size img resize size",
    "workers": "num_workers dataloader_num_workers jobs",
    "amp": "fp16 bf16 half mixed_precision precision",
    "device": "gpu gpus accelerator cuda",
    "data": "dataset data_dir data_path train_data annotations ann_file root",
    "images": "image_dir images_dir img_dir image_root",
    "val": "val_data valid validation val_annotations",
    "model": "backbone arch architecture model_name",
    "weights": "pretrained checkpoint pretrained_weights load_from",
    "checkpoint_dir": "save_dir checkpoint_path ckpt_dir",
    "checkpoint_every": "save_every save_period save_steps save_interval",
    "logdir": "log_dir output output_dir project run_dir tensorboard",
    "resume": "resume_from resume_from_checkpoint continue",
    "out": "output output_dir save_dir",
    "score": "conf confidence threshold score_threshold",
}
"""Field → what other tools call it: a hint, never an alias."""


def fields_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Field → type of a verb's settings."""
    return {f.name: f.type for f in msgspec.structs.fields(kind)}


def read_flags(kind: type[msgspec.Struct], argv: Sequence[str], *, words: bool) -> tuple[dict[str, Any], list[str]]:
    """The fields that ``argv`` gives, and its other words, in order; flags and words may stand in any order.

    ``--name value``, ``--name=value`` or a switch ``--name``; "-" and "_" are the same; after ``--`` all are words.
    A field that holds several values takes its flag several times.

    Raises:
        ConfigError: flags that are not known, or values that do not fit; all of them at once.
    """
    known, given, others, problems = fields_of(kind), {}, [], []
    queue = list(argv)
    while queue:
        word = queue.pop(0)
        if word == "--":
            others += queue
            break
        if not _is_flag(word):
            others.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        switch = known.get(name, known.get(name.removeprefix("no_"))) is bool
        if not word.startswith("--") or (name not in known and not switch):
            problems.append(_unknown(word.partition("=")[0], name, known))
            if not equals and queue and not _is_flag(queue[0]):
                queue.pop(0)  # most likely its value: one complaint is enough
        elif switch:
            on = name in known
            if (said := _truth(value) if equals else True) is None:
                problems.append(f"{_flag(name)}: got {value!r}, expected true or false, or no value at all")
                continue
            given[name if on else name.removeprefix("no_")] = said == on
        elif not equals and (not queue or queue[0].startswith("--")):
            problems.append(f"{_flag(name)} needs a value: {metavar(known[name])}")
        else:
            try:
                _put(given, name, known[name], value if equals else queue.pop(0))
            except ValueError as e:
                problems.append(f"{_flag(name)}: {e}")
    if others and not words:
        problems.append(_stray(others, argv, known))
    if problems:
        many = "" if len(problems) == 1 else f"{len(problems)} flags cannot be used:\n  - "
        raise ConfigError(many + "\n  - ".join(problems))
    return given, others


def _is_flag(word: str) -> bool:
    return word.startswith("--") or (word[:1] == "-" and word[1:2].isalpha())


def metavar(hint: Any) -> str | None:
    """How a value is shown: NUMBER, N, TEXT, or the words that may be chosen; None for a switch."""
    options = _options(hint)
    if options == [bool]:
        return None
    words = []
    for option in options:
        if typing.get_origin(option) is Literal:
            words.append("|".join(map(str, typing.get_args(option))))
        else:
            words.append({float: "NUMBER", int: "N", str: "TEXT"}.get(option, "VALUE"))
    return "|".join(words)


def _options(hint: Any) -> list[Any]:
    """What a value may be, None left out; of a field that holds several, what each may be."""
    if typing.get_origin(hint) is typing.Annotated:
        return _options(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [o for t in typing.get_args(hint) if t is not type(None) for o in _options(t)]
    if typing.get_origin(hint) in (tuple, list):
        return [o for t in typing.get_args(hint) if t is not ... for o in _options(t)]
    return [hint]


def _several(hint: Any) -> bool:
    return any(typing.get_origin(t) in (tuple, list) for t in (hint, *typing.get_args(hint)))


def _put(given: dict[str, Any], name: str, hint: Any, text: str) -> None:
    value = _value(text, _options(hint))
    if not _several(hint):
        given[name] = value
        return
    made = (*given.get(name, ()), value)
    given[name] = made if "tuple" in str(hint) else list(made)


def _value(text: str, options: list[Any]) -> Any:
    """``text`` as the first of ``options`` that it fits. Raises ValueError, saying what would fit."""
    choices = [w for o in options if typing.get_origin(o) is Literal for w in typing.get_args(o)]
    if text in choices:
        return text
    for option in options:
        if option in (int, float):
            try:
                return option(text)
            except ValueError:
                continue
        if option is str:
            if not text:
                raise ValueError("got an empty text (a variable that is not set?); leave the flag away for the default")
            return text
    near = [str(c) for c in choices if str(c).lower() == text.lower()]
    near = near or difflib.get_close_matches(text, [str(c) for c in choices], 1, 0.5)
    wanted = ["a number" if float in options else "a whole number"] if {int, float} & set(options) else []
    wanted += [f"one of {', '.join(map(str, choices))}" if len(choices) > 1 else str(c) for c in choices[:1]]
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"got {text!r}, expected {' or '.join(wanted) or 'another value'}{hint}")


def _truth(text: str) -> bool | None:
    word = text.lower()
    return True if word in ("true", "yes", "1", "on") else False if word in ("false", "no", "0", "off") else None


def _unknown(word: str, name: str, known: dict[str, Any]) -> str:
    meant = (
        [name]
        if name in known
        else [field for field, names in ELSEWHERE.items() if field in known and name in names.split()]
    )
    meant = meant or difflib.get_close_matches(name, known, 1, 0.6)
    hint = f"; did you mean {_flag(meant[0])}?" if meant else ""
    return f"unknown flag {word}{hint} (--help lists all)"


def _stray(words: Sequence[str], argv: Sequence[str], known: dict[str, Any]) -> str:
    """A word that belongs to no flag, with what was most likely meant."""
    first = words[0]
    before = argv[argv.index(first) - 1].lstrip("-").replace("-", "_") if argv.index(first) else ""
    dashed = first.lstrip("\u2010\u2011\u2012\u2013\u2014\u2212").partition("=")[0].replace("-", "_")
    if dashed != first and dashed in known:
        hint = f"; it begins with a typographic dash: did you mean {_flag(dashed)}?"
    elif known.get(before) is bool and _truth(first) is not None:
        hint = f"; {_flag(before)} takes no value: did you mean {_flag(before if _truth(first) else 'no_' + before)}?"
    elif "data" in known and "data" not in {w.lstrip("-").partition("=")[0] for w in argv}:
        hint = f"; did you mean --data {shlex.quote(first)}?"
    else:
        hint = ""
    return f"a word without a flag: {' '.join(words)}{hint} (--help lists all)"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
