"""The full fault sweeps: ``python bench/faults/run.py [--quick]``. Writes bench/results/faults.md.

Faults at every I/O call of a save, states after a power loss, damage to saved files, hostile files. Each part is what
tests/faults runs a slice of. Exit code 1 if anything was not survived, noticed or refused.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "faults"
sys.path[:0] = [str(ROOT), str(TESTS)]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{TESTS}"}


def saves(folder: Path, quick: bool) -> dict[str, Any]:
    """Faults at I/O calls, in a process under the shim."""
    library = folder / "shim.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, TESTS / "shim.c", "-ldl"], check=True)
    done = subprocess.run(
        [sys.executable, TESTS / "saving.py", folder / "saves", "--every", "40" if quick else "1"],
        env={**ENVIRONMENT, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def power_losses(folder: Path) -> dict[str, Any]:
    """Every disk after a power loss; with and without the fsyncs, to show that they are what counts."""
    import power

    from maskrcnn_coco.system import files

    files._BUFFER = 4096
    counts, failures = power.sweep(folder / "power")
    sync, files.Sink.sync = files.Sink.sync, files.Sink.flush
    without, bad = power.sweep(folder / "no_fsync", ["three in a row"])
    files.Sink.sync = sync
    return {"counts": counts, "failures": failures, "without": sum(without.values()), "lost_without": len(bad)}


def damages(folder: Path, quick: bool) -> dict[str, Any]:
    """Damage to the files of a small run; plain torch.load beside it on a part of them."""
    import damage

    folder = folder / "damage"
    folder.mkdir()
    damage.build(folder)
    outcome = damage.sweep(folder, 1_000 if quick else 20_000, sample_torch=100 if quick else 1_000)
    exchanged = damage.exchanges(folder)
    for mine, other in zip(outcome[:4], exchanged[:4], strict=True):
        assert isinstance(mine, Counter)
        mine.update(other)
    outcome.failures.extend(exchanged.failures)
    return outcome._asdict()


def hostile(folder: Path) -> dict[str, Any]:
    """The payloads, each tried in a process of their own."""
    folder = folder / "hostile"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, TESTS / "payloads.py", folder], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def render(found: dict[str, Any], seconds: float) -> str:
    import torch

    return "\n\n".join(
        [
            "# Faults: what checkpoints survive",
            "Made by `make faults` (`python bench/faults/run.py`): all of it in "
            f"{seconds:.0f} s on one core of {platform.machine()}, torch {torch.__version__}, Python "
            f"{platform.python_version()}. `make test` runs a slice of each part.",
            *_saves(found["saves"]),
            *_power(found["power"]),
            *_damage(found["damage"]),
            *_hostile(found["hostile"]),
        ]
    )


def _saves(report: dict[str, Any]) -> list[str]:
    faults = list(dict.fromkeys(f for counts in report["counts"].values() for f in counts))
    rows = [[n, *(c.get(f, 0) for f in faults), sum(c.values())] for n, c in report["counts"].items()]
    bad = len(report["failures"])
    return [
        "## A fault at every I/O call of a save",
        f"**{report['points']} points, {report['points'] - bad} survived.** Survived: the newest checkpoint found is "
        "the last acknowledged one or a later one, equal by SHA-256 of its state; no damaged file is visible; two "
        "intact states remain where there were two; the next save works (in the same process after an error, in a new "
        "one after a kill), and nothing is left over.",
        table(["saved", *faults, "all"], rows),
        *(f"- {f}" for f in report["failures"]),
    ]


def _power(report: dict[str, Any]) -> list[str]:
    total = sum(report["counts"].values())
    return [
        "## Power loss",
        f"**{total} different disks, {total - len(report['failures'])} recovered.** After each operation of a save: "
        "what was not fsynced is there, half there, zeros or gone, and any subset of the changes to names is on the "
        f"disk. The same without fsync of the file: {report['lost_without']} of {report['without']} disks are lost.",
        table(["saved", "disks"], [[n, c] for n, c in report["counts"].items()]),
        *(f"- {f}" for f in report["failures"]),
    ]


def _damage(report: dict[str, Any]) -> list[str]:
    tried, noticed = report["tried"], report["noticed"]
    torch_tried, torch_took = report["torch_tried"], report["torch_took"]
    rows = [[k, tried[k], noticed[k], f"{torch_took[k]} of {torch_tried[k]}" if torch_tried[k] else ""] for k in tried]
    return [
        "## Damage to saved files",
        f"**{sum(tried.values())} damages, {sum(noticed.values())} noticed** before anything of the file was used, and "
        "an older intact checkpoint found. Last column: what plain `torch.load(weights_only=True)` loads without a "
        "word, of those it was shown.",
        table(["damage", "tried", "noticed", "torch.load takes"], rows),
        *(f"- {f}" for f in report["failures"][:20]),
    ]


def _hostile(report: dict[str, Any]) -> list[str]:
    results = report["results"]
    refused = sum(r["outcome"] == "refused" for r in results.values())
    slowest = max(r["seconds"] for r in results.values())
    rows = [[name, r["message"].split("\n")[0].split(": ", 1)[-1][:150]] for name, r in results.items()]
    return [
        "## Hostile and unusable files",
        f"**{len(results)} payloads, {refused} refused, code run: {'YES' if report['executed'] else 'none'}.** Memory "
        f"grew by {report['grown'] / 2**20:.0f} MiB over all of them; the slowest took {slowest:.2f} s. Each carries a "
        "right digest where it can: whoever makes such a file can compute one.",
        table(["payload", "what the error says"], rows).replace("---:", "---"),
    ]


def wrong(found: dict[str, Any]) -> bool:
    """Whether any part failed."""
    refused = all(r["outcome"] == "refused" for r in found["hostile"]["results"].values())
    failures = [f for part in ("saves", "power", "damage") for f in found[part]["failures"]]
    for failure in failures[:20]:
        print(failure, file=sys.stderr)
    return bool(failures) or not refused or found["hostile"]["executed"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fortieth of the points; writes no file")
    quick = parser.parse_args().quick
    import torch

    torch.set_num_threads(1)
    began = time.monotonic()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        folder = Path(name)
        found = {"damage": damages(folder, quick), "hostile": hostile(folder), "power": power_losses(folder)}
        found["saves"] = saves(folder, quick)
    text = render(found, time.monotonic() - began)
    if quick:
        print(text)
    else:
        target = ROOT / "bench" / "results" / "faults.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n", encoding="utf-8")
        print(f"{target} written")
    return int(wrong(found))


if __name__ == "__main__":
    sys.exit(main())
