"""All speed benchmarks, one after the other: ``make bench``. Each prints its table and keeps it in bench/results/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
RUNS = (
    ("step.py", []),
    ("syncs.py", []),
    ("floors.py", []),
    ("outlines.py", []),
    ("scaling.py", []),
    ("startup.py", []),
    ("ap.py", []),
    ("guard.py", ["--out", str(RESULTS / "guard.md")]),
    ("loader.py", []),
    ("evaluation.py", []),
    ("inference.py", []),
    ("levers.py", []),
    ("annotations.py", []),
    ("checkpoint.py", []),
    ("ranks.py", []),
    ("gpu.py", []),
)
"""Scripts and arguments; each can be run alone, and says what it can do with --help."""


def main() -> int:
    """Run them; a benchmark that fails is named, and the others still run."""
    failed = [name for name, args in RUNS if subprocess.run([sys.executable, str(HERE / name), *args]).returncode]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
