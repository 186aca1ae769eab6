"""Silent-Bench: ``python bench/silent/run.py [--only WORD] [--lightning-python PATH]``.

Writes bench/results/silentbench.md and .jsonl. With ``--only`` the rows of the others stay as an earlier run measured
them; so does what Lightning says, without an interpreter that has it (``--lightning-python``; with ``--peers-only``
nothing else is run).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import torch  # noqa: E402

from silent.decoys import Decoy, decoys  # noqa: E402
from silent.page import page  # noqa: E402
from silent.scenarios import Scenario, scenarios  # noqa: E402
from silent.ways import Outcome, plain_torchvision, timed  # noqa: E402

RESULTS = HERE.parent / "results"


def matters(outcome: Outcome) -> list[Any]:
    """What was said, but for what is only good to know."""
    return [s for s in outcome.said if s.severity != "info"]


def try_scenario(s: Scenario) -> dict[str, Any]:
    """One scenario, then its cured twin."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = timed(s.way, Path(folder) / "faulty")
        cured = timed(s.cured, Path(folder) / "cured") if s.cured is not None else None
    first = outcome.said[0] if outcome.said else None
    return {
        "kind": "scenario", "name": s.name, "report": s.report, "code": s.code,
        "told": first is not None, "moment": first.moment if first else "never",
        "said": [dataclasses.asdict(x) for x in outcome.said],
        "code_right": first is not None and first.code == s.code,
        "others": sorted({x.code for x in outcome.said} - {s.code}),
        "fix_right": any(s.word in x.fix for x in outcome.said if x.code == s.code),
        "cured": None if cured is None else not [x for x in matters(cured) if x.code == s.code],
        "torchvision": "" if s.data is None else plain_torchvision(s.data, s.classes),
        "seconds": outcome.seconds,
    }  # fmt: skip


def try_decoy(d: Decoy) -> dict[str, Any]:
    """One decoy: what was said is false."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = timed(d.way, Path(folder))
    said = [dataclasses.asdict(x) for x in matters(outcome)]
    return {"kind": "decoy", "name": d.name, "fact": d.fact, "said": said, "seconds": outcome.seconds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--lightning-python", help="interpreter with torch, torchvision and lightning")
    parser.add_argument("--peers-only", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, began = [], time.perf_counter()
    for item in [*scenarios(), *decoys()]:
        if args.only not in item.name or args.peers_only:
            continue
        row = try_scenario(item) if isinstance(item, Scenario) else try_decoy(item)
        rows.append(row)
        mark = row.get("code_right", not row["said"])
        print(
            f"{'ok  ' if mark else 'FAIL'} {row['name']}: {[(x['code'], x['what']) for x in row['said']]}", flush=True
        )
    print(f"{time.perf_counter() - began:.0f} s")
    rows = merged(rows)
    if args.lightning_python:
        told = lightning(args.lightning_python, args.only)
        rows = [r | {"lightning": told[r["name"]]} if r["name"] in told else r for r in rows]
    text = "\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
    (RESULTS / "silentbench.jsonl").write_text(text + "\n", encoding="utf-8")
    (RESULTS / "silentbench.md").write_text(page(rows), encoding="utf-8")


def lightning(python: str, only: str) -> dict[str, str]:
    """What Lightning says, by scenario."""
    command = [python, str(HERE / "peer_lightning.py"), "--only", only]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """These rows, and of the others those of an earlier run, in the order of the bench."""
    known: dict[str, dict[str, Any]] = {}
    if (RESULTS / "silentbench.jsonl").is_file():
        lines = (RESULTS / "silentbench.jsonl").read_text(encoding="utf-8").splitlines()
        known = {r["name"]: r for r in map(json.loads, lines)}
    kept = {n: {"lightning": r["lightning"]} for n, r in known.items() if "lightning" in r}
    known |= {r["name"]: kept.get(r["name"], {}) | r for r in rows}
    names = [i.name for i in (*scenarios(), *decoys())]
    return [known[n] for n in names if n in known]


if __name__ == "__main__":
    main()
