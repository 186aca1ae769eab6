"""One scenario, with everything the system said: ``python bench/nanbench/one.py SCENARIO [SEED] [SYSTEM]``."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nanbench.scenarios import BY_ID
from nanbench.worker import run_job

if __name__ == "__main__":
    name, seed, system, *_ = [*sys.argv[1:], *("0", "ours")[len(sys.argv) - 2 :]]
    folder = Path(tempfile.mkdtemp(prefix="nanbench_"))
    setup = vars(BY_ID[name].setup) if name in BY_ID else {}
    found = run_job({"system": system, "scenario": name, "setup": setup, "seed": int(seed)}, folder)
    incidents = found.pop("incidents", [])
    print(found)
    for incident in incidents:
        print({k: v for k, v in incident.items() if v not in (None, [], {})})
    print("files:", folder)
