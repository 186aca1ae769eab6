"""The verbs: parse, call, exit code. The only place that exits; imports torch only inside the verb that needs it."""

from __future__ import annotations

import atexit
import contextlib
import difflib
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec

from maskrcnn_coco import __version__
from maskrcnn_coco.cli.arguments import ARGUMENTS, VERBS
from maskrcnn_coco.cli.flags import read_flags
from maskrcnn_coco.cli.help_page import help_page
from maskrcnn_coco.cli.missing import missing
from maskrcnn_coco.config.settings import Config, flag, given, load_config
from maskrcnn_coco.errors import ConfigError, MaskRCNNError
from maskrcnn_coco.records import to_json
from maskrcnn_coco.system.endings import code_of, ended_like_ctrl_c
from maskrcnn_coco.system.streams import Unbreakable, outliving_streams
from maskrcnn_coco.wording import clean, data_flags, named


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
    with outliving_streams(), ended_like_ctrl_c():
        try:
            return _unless_nobody_reads(_run(argv), argv)
        except Exception as e:
            if "--debug" in argv:
                raise
            problem = as_error(e)
            _say(problem, json_mode="--json" in argv)
            return problem.exit_code


def _unless_nobody_reads(code: int, argv: list[str]) -> int:
    """0 for ``check | head``: who stops reading a list has seen what he wanted, and ``set -o pipefail`` shall not end a
    script over it."""
    sys.stdout.flush()
    gone = isinstance(sys.stdout, Unbreakable) and sys.stdout.reader_gone
    return 0 if code == 3 and argv[:1] == ["check"] and gone else code


def _run(argv: list[str]) -> int:
    try:
        return _answer(argv)
    except MaskRCNNError as e:
        if "--debug" in argv:
            traceback.print_exc()
        _say(e, json_mode="--json" in argv)
        return e.exit_code
    except KeyboardInterrupt as e:
        code = code_of(e)
        print("interrupted", file=sys.stderr)
        if "--json" in argv:
            print(to_json({"status": "interrupted", "exit_code": code}))
        return code
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

    try:
        return getattr(verbs, verb)(args, words)
    except MaskRCNNError as e:
        if e.fix is not None and getattr(args, "data", None) is not None:
            e.fix = named(e.fix, data_flags(args.data, getattr(args, "images", None)))
        raise


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
    if isinstance(error, RecursionError):
        return ConfigError("a file that is nested too deep to be read", got=str(error), fix="check the files given")
    if isinstance(error, MemoryError) or _ran_out(error):
        return ConfigError(
            "memory ran out",
            got=str(error).splitlines()[0][:200] if str(error) else None,
            fix="smaller images or batches, fewer workers, a higher limit (ulimit -v, -u), or a larger machine",
        )
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # pathlib before Python 3.13
        return ConfigError(f"links that lead in a circle: {error}", fix="check the path")
    what = f"{type(error).__name__}: {error}"
    return MaskRCNNError(what, fix="run again with --debug and report the traceback")


def _ran_out(error: Exception) -> bool:
    """Whether torch, if this verb has imported it at all, or Python says that memory ran out."""
    if "torch" not in sys.modules:
        return False
    from maskrcnn_coco.system.memory import ran_out

    return ran_out(error)


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
    leave(main())


def leave(code: int) -> NoReturn:
    """End the process with ``code``; one of several without taking the interpreter apart.

    The threads of torch's process groups may still be letting go of tensors while the interpreter ends. One that asks
    it for leave then is ended by it, in the middle of C++ that allows no such thing: "terminate called without an
    active exception", and 134 instead of the code of a run that went well, upon which torchrun ends all the others.
    """
    groups = sys.modules.get("torch.distributed")
    if groups is None or not groups.is_available() or not groups.is_initialized():
        sys.exit(code)
    # All that an ordinary end would do for Python code: threads awaited, exit functions called, streams flushed.
    for step in (getattr(threading, "_shutdown", None), getattr(atexit, "_run_exitfuncs", None)):
        with contextlib.suppress(Exception):
            if step is not None:
                step()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
