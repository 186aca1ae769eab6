"""The verbs: parse, call, exit code. The only place that exits; imports torch only inside the verb that needs it."""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from maskrcnn_coco import __version__
from maskrcnn_coco.cli.flags import read_flags
from maskrcnn_coco.cli.help_page import help_page
from maskrcnn_coco.cli.missing import missing
from maskrcnn_coco.config.settings import Config, flag, given, load_config
from maskrcnn_coco.errors import ConfigError, MaskRCNNError
from maskrcnn_coco.records import to_json
from maskrcnn_coco.system.streams import outliving_streams
from maskrcnn_coco.wording import clean

VERBS = {
    "train": "fine-tune on COCO-format data (no flags: the built-in shapes)",
    "convert": "LabelMe, VIA, YOLO-seg, Pascal VOC or mask images as COCO",
    "check": "find what is wrong with a data set, before training",
    "advise": "measure the stable learning rate of each component, before training",
    "diagnose": "name the cause of a failed step, a run or a checkpoint, with its proof",
    "verify": "tell whether a fix holds",
    "evaluate": "COCO bbox and segm AP of a checkpoint",
    "predict": "what a checkpoint or an exported model finds on images, in five formats",
    "export": "ONNX, TorchScript, OpenVINO or safetensors, proved against the checkpoint",
    "explain": "teach one cause code: what happens, why, how it is proved, how to fix it",
    "report": "write report.html again from a run's files",
    "doctor": "versions, devices, threads, memory, and the health of a checkpoint folder",
}


class TrainArgs(Config, frozen=True, kw_only=True):
    """Fine-tune Mask R-CNN on COCO-format data; no run is lost, not to NaN and not in silence.

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


class ConvertArgs(msgspec.Struct, frozen=True, kw_only=True):
    """What another tool wrote, as COCO: LabelMe, VIA (json and csv), YOLO-seg, Pascal VOC, folders of mask images.

    A validation part is written beside OUT.
    """

    out: str
    """The COCO json to write."""
    images: str | None = None
    """Folder of the images, where they are not beside the annotations (LabelMe, VIA)."""
    format: Literal["auto", "labelme", "via", "yolo", "voc", "masks"] = "auto"
    """What the source is. auto: what it looks like."""
    masks_are: Literal["auto", "objects", "classes"] = "auto"
    """What the values in mask images stand for: numbered objects, or classes in pieces. auto: as it looks, and said."""
    json: bool = False
    """Print one JSON object on stdout."""
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
    """Write a gallery that draws each kind of finding, and twelve healthy images, here."""
    bit_range: str = "auto"
    """Images of more than 8 bits: the values that become black and white, LOW,HIGH. auto: found for the whole set."""
    no_images: bool = False
    """Look at the annotations only."""
    min_size: int | None = None
    """Shorter side of the resized image in training, pixels (default: 800): objects are judged at that size."""
    max_size: int | None = None
    """Limit for the longer side, pixels (default: 1333)."""
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
    """COCO bbox and segm AP of a checkpoint, and what lies behind them."""

    data: str | None = None
    """Folder, or json with --images. None: the held-back built-in shapes."""
    images: str | None = None
    """Folder of the images, where --data is a json file."""
    bit_range: str | None = None
    """Images of more than 8 bits: the values that become black and white, LOW,HIGH, or auto. None: as in training."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    out: str | None = None
    """Write the detections as a COCO results json here."""
    batch_size: int = 1
    """Images at a time."""
    html: str | None = None
    """Write a page with curves, confusions and pictures of labels to look at here."""
    json: bool = False
    """Print one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


class PredictArgs(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint, or an exported model, finds on images: pictures, tables, outlines, label images, COCO results.

    IMAGE is a file, a glob, a folder with the folders in it, or a video. Exit code 3: some images could not be read.
    """

    out: str = "predictions"
    """Folder for what is written. What an earlier run wrote there goes; other files stay."""
    score: float = 0.5
    """Show objects of at least this score."""
    format: str = "coco,png"
    """What to write, with commas: coco (all detections), csv, polygons (LabelMe and GeoJSON), labels (16 bits), png."""
    tile: str | None = None
    """Cut large images into tiles of N pixels; auto: the size of the images it was trained on."""
    overlap: float = 0.25
    """Share of a tile that its neighbour sees, too; objects are put together across seams."""
    coco: str | None = None
    """A COCO json that lists the images: results take its image ids and its category ids."""
    bit_range: str | None = None
    """Images of more than 8 bits: the values that become black and white, LOW,HIGH, or auto. None: as in training."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    json: bool = False
    """Print one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


class ExportArgs(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint's model for other runtimes, proved: it is run beside the checkpoint on pictures of several sizes.

    Where the two part by more than 0.01 px, 1e-4 of a score or 0.001 of a mask, nothing is left and the exit code is 4.
    """

    format: str = "onnx"
    """onnx, torchscript, openvino or safetensors; several with commas."""
    out: str = "exported"
    """Folder for model.onnx, model.torchscript, model.xml and .bin, model.safetensors."""
    images: str | None = None
    """Compare on these images as well: a file, a folder or a glob."""
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
    "convert": (ConvertArgs, "SOURCE"),
    "check": (CheckArgs, ""),
    "advise": (AdviseArgs, ""),
    "diagnose": (PathArgs, "INCIDENT.json | RUN_DIR | CHECKPOINT"),
    "verify": (VerifyArgs, "[RUN_DIR]"),
    "evaluate": (EvaluateArgs, "CHECKPOINT"),
    "predict": (PredictArgs, "CHECKPOINT IMAGE…"),
    "export": (ExportArgs, "CHECKPOINT"),
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
        "Fine-tune Mask R-CNN on COCO-format data; no run is lost, not to NaN and not in silence.",
        "",
    ]
    lines += [f"  {verb:<{width}}  {what}" for verb, what in VERBS.items()]
    return "\n".join(
        [
            *lines,
            "",
            "maskrcnn-coco VERB --help lists the flags of a verb, with examples.",
            'Shell completion: eval "$(maskrcnn-coco --completion bash)", or zsh; fish: … --completion fish | source',
        ]
    )


def parse(verb: str, argv: Sequence[str]) -> tuple[Any, list[str]]:
    """The settings of ``verb`` and its positional arguments; a settings file comes after flags.

    Raises:
        ConfigError: an unusable settings file, unknown flags, values that do not fit, a required flag that is missing.
    """
    kind, positional = ARGUMENTS[verb]
    given_now, words = read_flags(kind, argv, words=bool(positional))
    fields = {**_from_file(kind, given_now.get("config")), **given_now}
    missing = [f.name for f in msgspec.structs.fields(kind) if f.required and f.name not in fields]
    if missing:
        raise ConfigError(f"{verb} needs {', '.join(map(flag, missing))}", fix=f"maskrcnn-coco {verb} --help")
    return kind(**fields), words


def _from_file(kind: type, path: str | None) -> dict[str, Any]:
    if path is None or not issubclass(kind, Config):
        return {}
    config = load_config(path)
    return {name: getattr(config, name) for name in given(config)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors go to stderr, without a traceback unless --debug.

    With ``--json`` an error is also the one object on stdout. A stream that dies changes no exit code.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    with outliving_streams():
        if "--debug" in argv:
            return _run(argv)
        try:
            return _run(argv)
        except Exception as e:
            problem = as_error(e)
            _say(problem, json_mode="--json" in argv)
            return problem.exit_code


def _run(argv: list[str]) -> int:
    try:
        return _answer(argv)
    except MaskRCNNError as e:
        if "--debug" in argv:
            traceback.print_exc()
        _say(e, json_mode="--json" in argv)
        return e.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 2


def _answer(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"maskrcnn-coco {__version__}")
        return 0
    if argv[0] == "--completion":
        from maskrcnn_coco.cli.completion import completion

        print(completion(" ".join(argv[1:]), {verb: kind for verb, (kind, _) in ARGUMENTS.items()}))
        return 0
    verb, flags = argv[0], argv[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else "; a verb comes first" if verb.startswith("-") else ""
        raise ConfigError(f"unknown verb {verb!r}{hint}", fix="maskrcnn-coco --help")
    if {"-h", "--help"} & set(flags):
        kind, positional = ARGUMENTS[verb]
        print(help_page(verb, kind, positional, _from_file(kind, _value_of("--config", flags))))
        return 0
    args, words = parse(verb, flags)
    from maskrcnn_coco.cli import verbs

    return getattr(verbs, verb)(args, words)


def _value_of(name: str, argv: Sequence[str]) -> str | None:
    for i, word in enumerate(argv):
        if word == name and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(name + "="):
            return word.partition("=")[2]
    return None


def as_error(error: Exception) -> MaskRCNNError:
    """What a stranger's error says to a user: what the machine refused (exit 2), or a fault of ours (exit 1)."""
    if isinstance(error, ImportError) and (said := missing(error)) is not None:
        return said
    if isinstance(error, OSError) and error.strerror is not None:
        paths = " → ".join(str(p) for p in (error.filename, error.filename2) if p is not None)
        return ConfigError(
            f"{paths or 'a file'}: {error.strerror}", fix="check the path, its permissions and the free space"
        )
    if isinstance(error, UnicodeError):
        return ConfigError(
            "a name or a text that is not valid UTF-8", got=str(error)[:200], fix="rename the file, or set PYTHONUTF8=1"
        )
    if isinstance(error, MemoryError):
        return ConfigError("memory ran out", fix="smaller images or batches, fewer workers, or a larger machine")
    what = f"{type(error).__name__}: {error}"
    return MaskRCNNError(what, fix="run again with --debug and report the traceback")


def _say(error: MaskRCNNError, *, json_mode: bool) -> None:
    """The error on stderr; with ``--json`` also as the object that stdout was to hold."""
    print(f"error: {clean_lines(error.render())}", file=sys.stderr)
    if json_mode:
        parts = {"what": error.what, "got": error.got, "expected": error.expected, "fix": error.fix}
        print(to_json({"status": "error", "exit_code": error.exit_code, "error": parts}))


def clean_lines(text: str) -> str:
    """``text`` without what a terminal would obey; its lines stay."""
    return "\n".join(clean(line) for line in text.splitlines())


def entry() -> None:
    """The console script."""
    sys.exit(main())
