"""Every code block of the documentation, run: what a reader copies works.

    python bench/docs_blocks.py [PAGE ...] [--list]

Blocks run page by page in a scratch folder that holds what they name (``my_set/``, ``photos/``, a checkpoint …), small.
A training gets settings that make it short where the block gives none: a small network, a few steps, no download. What
a block shows of an output is no code; what needs another machine, or is run by a test of its own, is listed with it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docs_world

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMANDS = ("maskrcnn-coco ", "python maskrcnn_coco/main_mlops.py ", "torchrun ", "OMP_NUM_THREADS=2 torchrun ")
ELSEWHERE = {
    "pip install": "bench/package.py",
    "make train": "bench/package.py",
    "make test": "tests/conftest.py",
    "tensorboard ": "tests/report/test_tracking.py",
    "sbatch ": "tests/distributed/test_launchers.py",
    "python examples/ray_train.py": "tests/distributed/test_launchers.py",
    "uvicorn ": "tests/inference/test_examples.py",
    "MODEL=": "tests/inference/test_examples.py",
    "curl ": "tests/inference/test_examples.py",
}
"""How lines begin that are run somewhere else, and where."""
NEEDS = {
    "docs/anywhere/accelerate.md": "accelerate",
    "docs/anywhere/lightning.md": "lightning",
    "docs/anywhere/transformers.md": "transformers",
    "docs/anywhere/ultralytics.md": "ultralytics",
}
"""Pages about other trainers: run where those are installed (``make integrations`` runs their adapters)."""
FINDINGS = 3
"""Exit code of ``check`` where it has something to say."""


def pages() -> list[str]:
    """All pages with code, README first."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [p.relative_to(ROOT).as_posix() for p in found if BLOCK.search(p.read_text(encoding="utf-8"))]


def blocks(page: str) -> Iterator[tuple[str, list[str]]]:
    """("python", its lines) or ("sh", its commands, continued lines joined); what shows an output is left out."""
    for language, text in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        if language == "python":
            yield "python", text.splitlines()
        elif language != "text":
            lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
            commands = [line for line in lines if line.startswith((*COMMANDS, *ELSEWHERE))]
            if commands:
                yield "sh", commands


def run_command(line: str) -> str:
    """Run one line; why it went wrong, or "". ``maskrcnn-coco`` in this process, ``torchrun`` in its own."""
    words = shlex.split(line, comments=True)
    if "torchrun" in words[:2]:
        return _torchrun(words[words.index("torchrun") + 1 :])
    verb, rest = ("train", words[2:]) if words[0] == "python" else (words[1], words[2:])
    from maskrcnn_coco.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main([verb, *rest, *docs_world.short(verb, rest)])
        except SystemExit as e:
            code = int(e.code or 0)
    good = {0, FINDINGS} if verb == "check" else {0, 4} if verb == "verify" else {0}
    return "" if code in good else f"exit code {code}: {said.getvalue()[-1500:]}"


def _torchrun(words: list[str]) -> str:
    """Two processes of this machine, whatever the line says; the training's own flags as they stand."""
    at = words.index("-m") + 2
    flags = words[at:]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", words[at - 1], *flags, *docs_world.short("train", flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return "" if done.returncode == 0 else f"exit code {done.returncode}: {done.stderr[-1500:]}"


def run_python(page: str, lines: list[str], names: dict[str, Any]) -> str:
    """Run a block with the names that its page speaks of; why it went wrong, or ""."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), docs_world.short_config():
            names.update(docs_world.names(page))
            exec(compile("\n".join(lines), page, "exec"), names)
            docs_world.use(page, names)
    except Exception:
        return traceback.format_exc(limit=-3) + said.getvalue()[-500:]
    return ""


def run_page(page: str) -> tuple[int, list[str], list[str]]:
    """How many lines and blocks ran, what was left to others, and what went wrong."""
    ran, left, wrong = 0, [], []
    package = NEEDS.get(page)
    if package is not None and importlib.util.find_spec(package) is None:
        return 0, [f"{page}: {package} is not installed"], []
    names: dict[str, Any] = {"__name__": "block"}
    for kind, lines in blocks(page):
        if kind == "python":
            fault = run_python(page, lines, names)
            ran += 1
            wrong += [f"{page}: python block {lines[0]!r}: {fault}"] if fault else []
            continue
        for line in lines:
            owner = next((where for head, where in ELSEWHERE.items() if line.startswith(head)), None)
            if owner is not None:
                left.append(f"{page}: {line}  -> {owner}")
                wrong += [] if (ROOT / owner).is_file() else [f"{page}: {owner} is not there"]
                continue
            began = time.perf_counter()
            fault = run_command(line)
            ran += 1
            print(f"  {time.perf_counter() - began:5.1f} s  {line[:110]}", flush=True)
            wrong += [f"{page}: {line}: {fault}"] if fault else []
    return ran, left, wrong


def main() -> int:
    """Run them, and say what did not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", help="as docs/tutorial.md; all by default")
    parser.add_argument("--list", action="store_true", help="show the blocks, run nothing")
    args = parser.parse_args()
    chosen = args.pages or pages()
    if args.list:
        for page in chosen:
            for kind, lines in blocks(page):
                print(f"{page} [{kind}]", *lines, sep="\n    ")
        return 0
    ran, left, wrong = 0, list[str](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        for page in chosen:
            print(page, flush=True)
            with docs_world.folder(Path(folder) / page.replace("/", "_").removesuffix(".md"), page):
                now = run_page(page)
            ran, left, wrong = ran + now[0], left + now[1], wrong + now[2]
    print(f"{ran} commands and Python blocks of {len(chosen)} pages ran; {len(wrong)} failed.")
    print("Run elsewhere:", *left, sep="\n  ")
    print(*wrong, sep="\n\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
