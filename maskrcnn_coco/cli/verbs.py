"""What each verb does: call the parts, print, return the exit code. Parts are imported only when their verb runs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from maskrcnn_coco.cli.outputs import require_writable
from maskrcnn_coco.config.settings import Config, dump_config, given, validate
from maskrcnn_coco.errors import ConfigError, FindingWarning
from maskrcnn_coco.records import to_json
from maskrcnn_coco.system.garbage import without_garbage_collection


def emit(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(to_json(value) + "\n")


def as_config(args: Any) -> Config:
    """The Config inside a verb's arguments, validated; what was not given there is not given in it."""
    config = Config(**{name: getattr(args, name) for name in Config.__struct_fields__ if name in given(args)})
    validate(config)
    return config


def one(words: Sequence[str], what: str, default: str | None = None) -> str:
    """The single positional word of a verb.

    Raises:
        ConfigError: none where one is needed, or several.
    """
    if len(words) > 1:
        raise ConfigError(f"one {what} at a time", got=" ".join(words))
    if words:
        return words[0]
    if default is None:
        raise ConfigError(
            f"which {what}?",
            expected=f"{what} after the verb",
            fix="maskrcnn-coco VERB --help lists what each verb takes",
        )
    return default


def checkpoint_at(word: str) -> Path:
    """The path of a file that is there: said before the seconds that importing torch takes.

    Raises:
        ConfigError: there is no such file.
    """
    if not word.strip():
        raise ConfigError("the checkpoint's name is empty (a variable that is not set?)", fix="name a checkpoint")
    path = Path(word)
    try:
        there, folder = path.exists(), path.is_dir() and not (path / "model.safetensors").is_file()
    except (OSError, ValueError):  # too long, a NUL character
        there = folder = False
    if folder:
        inside = [p for n in ("best.pth", "last.pth", "model.onnx") if (p := path / n).is_file()]
        fix = f"name the file: {inside[0]}" if inside else "name a checkpoint"
        raise ConfigError(f"{word} is a folder, and no model file", expected="a .pth or .safetensors file", fix=fix)
    if not there:
        raise ConfigError(f"no weights file {word}", expected="a .pth or .safetensors file", fix="check the path")
    return path


def train(args: Any, words: Sequence[str]) -> int:
    """``maskrcnn-coco train``."""
    from maskrcnn_coco.data.prepare import drawn_ahead

    config = as_config(args)
    with drawn_ahead(config), without_garbage_collection():
        from maskrcnn_coco.training.loop import train as run
        from maskrcnn_coco.training.start import preview

    if args.print_config:
        found = preview(config).config
        sys.stdout.write(to_json(msgspec.to_builtins(found)) + "\n" if args.json else dump_config(found))
        return 0
    warnings.simplefilter("ignore", FindingWarning)  # the console says them
    result = run(config, dry_run=args.dry_run, json_mode=args.json)
    if args.json:
        emit(result)
    return result.exit_code


def convert(args: Any, words: Sequence[str]) -> int:
    """``maskrcnn-coco convert``."""
    from maskrcnn_coco.cli.convert import convert_source, print_summary

    require_writable("--out", args.out)
    done = convert_source(
        Path(one(words, "SOURCE")),
        Path(args.out),
        kind=None if args.format == "auto" else args.format,
        images=None if args.images is None else Path(args.images),
        masks_are=None if args.masks_are == "auto" else args.masks_are,
    )
    if args.json:
        emit(done)
    else:
        print_summary(done)
    return 0


def check(args: Any, words: Sequence[str]) -> int:
    """``maskrcnn-coco check``."""
    from maskrcnn_coco.cli.check import check_set, print_checked

    require_writable("--fix", args.fix)
    require_writable("--html", args.html)
    found = check_set(args)
    if args.json:
        source = found.source
        emit(
            {
                "data": str(source.train.json_path),
                "images": str(source.train.image_root),
                "notes": source.notes,
                "overview": found.overview,
                "findings": [*found.whole, *found.findings],
                "changes": found.changes,
                "next": found.next,
            }
        )
    else:
        print_checked(found, args)
    return found.exit_code


def advise(args: Any, words: Sequence[str]) -> int:
    """``maskrcnn-coco advise``."""
    with without_garbage_collection():
        from maskrcnn_coco.advice.advise import advise_data
        from maskrcnn_coco.report.console import Console

    advice = advise_data(as_config(args), Console(json_mode=args.json), ladder=args.ladder)
    if args.json:
        emit(advice)
    return 0


def diagnose(args: Any, words: Sequence[str]) -> int:
    """``maskrcnn-coco diagnose``."""
    path = Path(one(words, "INCIDENT.json, RUN_DIR or CHECKPOINT"))
    with without_garbage_collection():
        from maskrcnn_coco.cli.diagnose import diagnose_path

    return diagnose_path(path, json_mode=args.json)


def verify(args: Any, words: Sequence[str]) -> int:
    """``maskrcnn-coco verify``."""
    run_dir = Path(one(words, "RUN_DIR", "runs/maskrcnn"))
    with without_garbage_collection():
        from maskrcnn_coco.cli.verify import verify_run

    rates = ("lr", "head_lr_multiplier", "rpn_lr_multiplier", "fpn_lr_multiplier")
    names = (*rates, "max_grad_norm", "warmup_steps", "amp")
    changes = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    return verify_run(run_dir, changes=changes, steps=args.steps, json_mode=args.json)


def evaluate(args: Any, words: Sequence[str]) -> int:
    """``maskrcnn-coco evaluate``."""
    checkpoint = checkpoint_at(one(words, "CHECKPOINT"))
    require_writable("--out", args.out)
    require_writable("--html", args.html)
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size: got {args.batch_size}, expected 1 or more", fix="leave it away for 1")
    with without_garbage_collection():
        from maskrcnn_coco.cli.evaluate import EvaluateOptions, evaluate_checkpoint

    options = EvaluateOptions(
        device=args.device,
        out=args.out,
        html=args.html,
        bit_range=args.bit_range,
        batch_size=args.batch_size,
        tile=args.tile,
        overlap=args.overlap,
        tta=args.tta,
        json_mode=args.json,
    )
    return evaluate_checkpoint(checkpoint, args.data, args.images, options)


def predict(args: Any, words: Sequence[str]) -> int:
    """``maskrcnn-coco predict``."""
    if len(words) < 2:
        raise ConfigError(
            "name a checkpoint and at least one image", fix="maskrcnn-coco predict CHECKPOINT IMAGE… --out DIR"
        )
    checkpoint = checkpoint_at(words[0])
    with without_garbage_collection():
        from maskrcnn_coco.cli.predict import PredictOptions, predict_checkpoint

    options = PredictOptions(
        out=Path(args.out),
        score=args.score,
        format=args.format,
        tile=args.tile,
        overlap=args.overlap,
        coco=None if args.coco is None else Path(args.coco),
        bit_range=args.bit_range,
        device=args.device,
        json_mode=args.json,
    )
    return predict_checkpoint(checkpoint, words[1:], options)


def export(args: Any, words: Sequence[str]) -> int:
    """``maskrcnn-coco export``."""
    checkpoint = checkpoint_at(one(words, "CHECKPOINT"))
    with without_garbage_collection():
        from maskrcnn_coco.cli.export import export_checkpoint

    return export_checkpoint(checkpoint, Path(args.out), args.format, args.images, json_mode=args.json)


def push(args: Any, words: Sequence[str]) -> int:
    """``maskrcnn-coco push``."""
    if len(words) != 2:
        raise ConfigError("name a checkpoint and a repository", fix="maskrcnn-coco push CHECKPOINT OWNER/NAME")
    checkpoint = checkpoint_at(words[0])
    with without_garbage_collection():
        from maskrcnn_coco.cli.push import PushOptions, push_checkpoint

    options = PushOptions(
        to_folder=None if args.to_folder is None else Path(args.to_folder),
        license=args.license,
        card=None if args.card is None else Path(args.card),
        private=args.private,
        message=args.message,
        json_mode=args.json,
    )
    return push_checkpoint(checkpoint, words[1], options)


def explain(args: Any, words: Sequence[str]) -> int:
    """``maskrcnn-coco explain``."""
    from maskrcnn_coco.cli.explanation import explanation as text

    code = one(words, "CODE")
    if args.json:
        emit({"code": code.upper(), "text": text(code)})
    else:
        print(text(code))
    return 0


def report(args: Any, words: Sequence[str]) -> int:
    """``maskrcnn-coco report``."""
    from maskrcnn_coco.report.page import write_report

    path = write_report(Path(one(words, "RUN_DIR", "runs/maskrcnn")))
    if args.json:
        emit({"report": str(path)})
    else:
        print(path)
    return 0


def doctor(args: Any, words: Sequence[str]) -> int:
    """``maskrcnn-coco doctor``."""
    from maskrcnn_coco.cli.doctor import examine, print_health

    health = examine(Path(args.checkpoint_dir))
    if args.json:
        emit(health)
    else:
        print_health(health)
    return 0
