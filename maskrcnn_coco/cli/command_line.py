"""The verbs: parse, call, exit code. The only place that exits; imports torch only inside the verb that needs it."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from maskrcnn_coco.cli.flags import readable
from maskrcnn_coco.config.settings import Config, load_config
from maskrcnn_coco.errors import ConfigError, MaskRCNNError

VERBS = {
    "train": "fine-tune on COCO-format data (no flags: the built-in shapes)",
    "check": "find what is wrong with a data set, before training",
    "advise": "measure the stable learning rate of each component, before training",
    "diagnose": "name the cause of a failed step, a run or a checkpoint, with its proof",
    "verify": "tell whether a fix holds",
    "evaluate": "COCO bbox and segm AP of a checkpoint",
    "predict": "draw a checkpoint's predictions on images",
    "explain": "teach one cause code: what happens, why, how it is proved, how to fix it",
    "report": "write report.html again from a run's files",
    "doctor": "versions, devices, threads, memory, and the health of a checkpoint folder",
}


class TrainArgs(Config, frozen=True, kw_only=True):
    """Fine-tune Mask R-CNN on COCO-format data; no run is lost to NaN.

    Flags that are not given come from the recipe for the data set's size; a flag given is never overridden.
    """

    config: str | None = None
    """Take the settings of this YAML file; flags on the command line come before it."""
    print_config: bool = False
    """Print every setting as YAML, resolved for the data, and stop."""
    dry_run: bool = False
    """Check data, model and folders, show the settings with their reasons, and stop before training."""
    json: bool = False
    """Print one JSON object on stdout, everything else on stderr."""
    debug: bool = False
    """Show the traceback of an error."""


class CheckArgs(msgspec.Struct, frozen=True, kw_only=True):
    """Find what is wrong with a data set. Exit 0: clean (no errors or warnings of weight); 3: findings."""

    data: str
    """Folder, or json with --images."""
    images: str | None = None
    """Folder of the images, where --data is a json file."""
    val: str | None = None
    """Validation folder or json, to look for leaks between the two."""
    val_images: str | None = None
    """Folder of the validation images, where --val is a json file."""
    fix: str | None = None
    """Write a repaired copy of the annotations here; the source is never touched."""
    html: str | None = None
    """Write a gallery that draws each kind of finding here."""
    no_images: bool = False
    """Look at the annotations only."""
    json: bool = False
    """Print one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


class AdviseArgs(Config, frozen=True, kw_only=True):
    """Measure the largest stable learning rate of each component, and recommend settings."""

    ladder: bool = False
    """Also train the head multipliers 3, 5, 7, 10 briefly, side by side."""
    json: bool = False
    """Print one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


class PathArgs(msgspec.Struct, frozen=True, kw_only=True):
    """A run folder, an incident or a checkpoint."""

    json: bool = False
    """Print one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


class VerifyArgs(PathArgs, frozen=True, kw_only=True):
    """Tell whether a fix holds: the recorded failing step, then a short training, with the new settings."""

    lr: float | None = None
    """New backbone learning rate."""
    head_lr_multiplier: float | None = None
    """New head multiplier."""
    rpn_lr_multiplier: float | None = None
    """New rpn multiplier."""
    max_grad_norm: float | None = None
    """New clipping norm."""
    warmup_steps: int | None = None
    """New warm-up."""
    amp: Literal["auto", "off", "fp16", "bf16"] | None = None
    """New precision."""
    steps: int | None = None
    """Steps of the short training (default: one epoch)."""


class EvaluateArgs(msgspec.Struct, frozen=True, kw_only=True):
    """COCO bbox and segm AP of a checkpoint."""

    data: str | None = None
    """Folder, or json with --images. None: the held-back built-in shapes."""
    images: str | None = None
    """Folder of the images, where --data is a json file."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    out: str | None = None
    """Write the detections as a COCO results json here."""
    json: bool = False
    """Print one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


class PredictArgs(msgspec.Struct, frozen=True, kw_only=True):
    """Draw a checkpoint's predictions on images, and write them as COCO results."""

    out: str = "predictions"
    """Folder for the drawn images and results.json."""
    score: float = 0.5
    """Draw detections of at least this score."""
    coco: str | None = None
    """A COCO json that lists the images: results take its image ids and its category ids."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    json: bool = False
    """Print one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


class DoctorArgs(PathArgs, frozen=True, kw_only=True):
    """Versions, devices, threads, memory, and the health of a checkpoint folder."""

    checkpoint_dir: str = "checkpoints"
    """Folder of checkpoints to scan."""


ARGUMENTS: dict[str, tuple[type, str]] = {
    "train": (TrainArgs, ""),
    "check": (CheckArgs, ""),
    "advise": (AdviseArgs, ""),
    "diagnose": (PathArgs, "INCIDENT.json | RUN_DIR | CHECKPOINT"),
    "verify": (VerifyArgs, "[RUN_DIR]"),
    "evaluate": (EvaluateArgs, "CHECKPOINT"),
    "predict": (PredictArgs, "CHECKPOINT IMAGE…"),
    "explain": (PathArgs, "CODE"),
    "report": (PathArgs, "[RUN_DIR]"),
    "doctor": (DoctorArgs, ""),
}


def usage() -> str:
    """What ``maskrcnn-coco --help`` prints."""
    width = max(map(len, VERBS))
    lines = [
        "usage: maskrcnn-coco VERB [FLAGS]",
        "",
        "Fine-tune Mask R-CNN on COCO-format data; no run is lost to NaN.",
        "",
    ]
    lines += [f"  {verb:<{width}}  {what}" for verb, what in VERBS.items()]
    return "\n".join([*lines, "", "maskrcnn-coco VERB --help lists the flags of a verb."])


def parse(verb: str, argv: Sequence[str]) -> tuple[Any, list[str]]:
    """The settings of ``verb`` and its positional arguments.

    Raises:
        ConfigError: unusable settings file. SystemExit(2) with tyro's hint on an unknown flag.
    """
    import tyro

    kind, positional = ARGUMENTS[verb]
    flags, paths = _separate(argv, kind) if positional else (list(argv), [])
    file = _value_of("--config", argv) if issubclass(kind, Config) else None
    given = {} if file is None else msgspec.structs.asdict(load_config(file))
    args = tyro.cli(
        readable(kind, given),
        prog=f"maskrcnn-coco {verb} {positional}".strip(),
        args=flags,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return args, paths


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None


def _separate(argv: Sequence[str], kind: type) -> tuple[list[str], list[str]]:
    """Flags with their values, and the rest: positional words may stand before or after flags."""
    switches = {f.replace("_", "-") for f, t in kind.__annotations__.items() if t in (bool, "bool")} | {"json", "debug"}
    flags: list[str] = []
    words: list[str] = []
    queue = list(argv)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--") and word != "-h":
            words.append(word)
            continue
        flags.append(word)
        name = word.lstrip("-").replace("_", "-")
        if "=" not in word and name not in switches | {"h", "help"} and queue:
            flags.append(queue.pop(0))
    return flags, words


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors go to stderr, without a traceback unless --debug."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    verb = argv[0]
    debug = "--debug" in argv
    try:
        if verb not in VERBS:
            near = difflib.get_close_matches(verb, VERBS, 1, 0.5)
            raise ConfigError(
                f"unknown verb {verb!r}" + (f"; did you mean {near[0]}?" if near else ""), fix="maskrcnn-coco --help"
            )
        args, words = parse(verb, argv[1:])
        from maskrcnn_coco.cli import verbs

        return getattr(verbs, verb)(args, words)
    except MaskRCNNError as e:
        if debug:
            traceback.print_exc()
        print(f"error: {e.render()}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `maskrcnn-coco … | head`: the reader has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 2
    except Exception as e:
        if debug:
            raise
        print(
            f"error: {type(e).__name__}: {e}\n  what to do: run again with --debug and report the traceback",
            file=sys.stderr,
        )
        return 1


def entry() -> None:
    """The console script."""
    sys.exit(main())
