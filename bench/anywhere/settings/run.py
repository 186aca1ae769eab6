"""Every setting of every optimizer at values that are wrong or odd: what the guard and its diagnosis make of each.

    OMP_NUM_THREADS=1 python bench/anywhere/settings/run.py [--only TEXT] [--tasks houses cnn texts] [--seeds 0]
        [--raw FILE]

Whether a value is wrong nobody says beforehand: it is where the plain run ends not finite, or short of a quarter of
what the same optimizer learns with its sound settings. Such a run has to be survived, to end finite, to keep what it
learned, and its setting has to be named. Every other value is an odd one, and nothing may be said of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[3])]

from anywhere.mainstream.judge import SURE, Twins, limit  # noqa: E402
from anywhere.mainstream.loop import taken  # noqa: E402
from anywhere.mainstream.run import in_a_process  # noqa: E402
from anywhere.mainstream.task import Run  # noqa: E402
from anywhere.mainstream.tasks import TASKS  # noqa: E402
from anywhere.settings.optimizers import TRIED, Tried, muon  # noqa: E402

LATE = 25
"""The step before which a value is set that no constructor takes."""
CODES = ("LR_TOO_HIGH", "POISONED_STATE")
"""A divergence, and an update that is not finite: under either the setting has to be named."""
RUINED = 1.2
"""Times the score of a run that learns nothing: weights got worse. Below, and short of what was learned: useless."""
TIMEOUT = 120
Case = tuple[str, str, str, Any, str]
"""Task, optimizer, setting, value; "from the start", "late" or "late, one group"."""


def cases() -> Iterator[Case]:
    """All of them."""
    for tried in TRIED:
        for task in tried.sound:
            for setting, values in tried.values.items():
                yield from ((task, tried.name, setting, value, "from the start") for value in values)
            for setting, values in tried.set_late.items():
                yield from ((task, tried.name, setting, value, "late") for value in values)
                yield from ((task, tried.name, setting, value, "late, one group") for value in values)


def name_of(case: Case) -> str:
    """How a case is called."""
    task, optimizer, setting, value, when = case
    return f"{task}/{optimizer} {setting}={value}" + ("" if when == "from the start" else f" {when}")


def run_of(case: Case, seed: int, system: str, *, sound: bool = False, blank: bool = False) -> Run:
    """A run whose optimizer has the case's setting, or the sound ones."""
    task, optimizer, setting, value, when = case
    tried = next(t for t in TRIED if t.name == optimizer)
    given = TASKS[task]
    changed = dataclasses.replace(given, optimizer=tried.kind, options=dict(tried.sound[task]), schedule="none",
                                  closure=tried.kind is torch.optim.LBFGS,
                                  several=muon if tried.kind is torch.optim.Muon else None)  # fmt: skip
    run = Run(changed, seed, system)
    if "one group" in when:
        run.task = dataclasses.replace(changed, several=_in_two(tried))
    if blank:  # Rprop asks its rate at its first step alone
        run.task = dataclasses.replace(given, optimizer=torch.optim.SGD, several=None)
        run.options = {"lr": 0.0}
    elif not sound and when == "from the start":
        run.options[setting] = value
    elif not sound:
        run.at(LATE, _set(setting, value, every="one group" not in when))
    return run


def _set(setting: str, value: Any, *, every: bool) -> Callable[[Run], None]:
    def change(run: Run) -> None:
        assert run.optimizer is not None
        for group in run.optimizer.param_groups if every else run.optimizer.param_groups[-1:]:
            group[setting] = value

    return change


def _in_two(tried: Tried) -> Callable[[Any, Any], list[torch.optim.Optimizer]]:
    """Two groups: the first half of the weights and the others."""

    def made(model: Any, options: Any) -> list[torch.optim.Optimizer]:
        if tried.kind is torch.optim.Muon:
            return muon(model, options)
        held = list(model.parameters())
        half = len(held) // 2
        return [tried.kind([{"params": held[:half]}, {"params": held[half:]}], **options)]

    return made


def apart(make: Callable[[], Run]) -> dict[str, Any]:
    """A run in a process of its own."""
    return in_a_process(lambda: vars(taken(make())), TIMEOUT)


def takes(case: Case) -> bool:
    """Whether the optimizer's constructor takes the value."""
    kind = next(t.kind for t in TRIED if t.name == case[1])
    try:
        kind([torch.nn.Parameter(torch.zeros(2, 2))], **{case[2]: case[3]})
    except ValueError:
        return False
    return True


@cache
def twins(task: str, optimizer: str, when: str, seed: int) -> tuple[float, float]:
    """The scores of the same optimizer with its sound settings, and of a run that learns nothing."""
    case = (task, optimizer, "", None, when)
    return taken(run_of(case, seed, "plain", sound=True)).score, taken(run_of(case, seed, "plain", blank=True)).score


def judged(case: Case, seed: int) -> dict[str, Any]:
    """One line of the page."""
    clean, blank = twins(case[0], case[1], case[4], seed)
    plain = apart(lambda: run_of(case, seed, "plain"))
    got = apart(lambda: run_of(case, seed, "diagnose"))
    line: dict[str, Any] = {"case": name_of(case), "seed": seed, "score": [got["score"], plain["score"], clean, blank],
                            "stopped": got["stopped"], "raw": got["incidents"]}  # fmt: skip
    wrong = not plain["finite"] or plain["stopped"] or plain["score"] > limit(Twins(clean, blank))
    ruined = not plain["finite"] or plain["stopped"] or plain["score"] > RUINED * blank
    line["kind"] = "ruined" if ruined else "refused" if not takes(case) else "useless" if wrong else "odd"
    if line["kind"] == "odd":
        acted = bool(got["incidents"] or got["refused"])
        return line | {"acted": acted, "accused": acted and _named(case, got["incidents"])}
    found = got["incidents"]
    survived = got["finite"] and not got["stopped"]
    named = _named(case, found)
    return line | {
        "survived": survived,
        "kept": survived and got["score"] <= limit(Twins(clean, blank)),
        "cause": bool(found) and all(i["cause"] in CODES for i in found),
        "named": named,
        "sure": any(i["confidence"] >= SURE and not (i["cause"] in CODES and _says(case, i)) for i in found),
    }


def _named(case: Case, incidents: list[dict[str, Any]]) -> bool:
    return any(_says(case, i) for i in incidents)


def _says(case: Case, incident: dict[str, Any]) -> bool:
    return case[2] in incident["fix"]


def told(line: dict[str, Any]) -> str:
    """One line on the screen."""
    marks = " ".join(
        f"{k}={int(line[k])}" for k in ("acted", "accused", "survived", "kept", "cause", "named", "sure") if k in line
    )
    said = "; ".join(
        f"{i['step']}: {i['cause']} {i['confidence']:.2f} {i['symptom']} {i['action']} [{i['fix']}]"
        for i in line["raw"][:3]
    )
    scores = " ".join(f"{v:.3g}" for v in line["score"])
    return f"{line['case']} | {line['kind']} {marks} | {scores} | {said} | {line['stopped'] or ''}"


def summary(lines: list[dict[str, Any]]) -> dict[str, str]:
    """The figures."""

    def of(part: list[dict[str, Any]], key: str) -> str:
        return f"{sum(k[key] for k in part)} of {len(part)}"

    found: dict[str, str] = {}
    for kind in ("ruined", "refused", "useless"):
        part = [k for k in lines if k["kind"] == kind]
        asked = ("survived", "kept", "cause", "named", "sure")
        found[kind] = ", ".join(f"{key} {of(part, key)}" for key in asked)
    odd = [k for k in lines if k["kind"] == "odd"]
    return found | {"odd, acted upon": of(odd, "acted"), "odd, named": of(odd, "accused")}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--tasks", nargs="+", default=["houses", "cnn", "texts"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--raw", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept = [json.loads(x) for x in args.raw.read_text().splitlines()] if args.raw and args.raw.exists() else []
    known = {(k["case"], k["seed"]): k for k in kept}
    lines = []
    for seed in args.seeds:
        for case in cases():
            name = name_of(case)
            if case[0] not in args.tasks or not any(part in name for part in args.only):
                continue
            if (name, seed) not in known:
                known[name, seed] = line = judged(case, seed)
                print(told(line), flush=True)
                if args.raw:
                    with args.raw.open("a") as file:
                        file.write(json.dumps(line) + "\n")
            lines.append(known[name, seed])
    for what, figure in summary(lines).items():
        print(f"{what}: {figure}")


if __name__ == "__main__":
    main()
