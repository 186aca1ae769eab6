"""From raw outcomes to scored lines: survival, harm, cause, culprit, false actions. No torch."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from typing import Any

from nanbench.scenario import Scenario
from nanbench.scenarios import BY_ID
from nanbench.scene import setup_from

KEPT = 3.0
"""Standard deviations of clean runs that a recovered run may be worse than its clean twin."""
Line = dict[str, Any]


class Clean:
    """The clean runs: evaluation loss by (system, setup, seed), and the time of a healthy step."""

    def __init__(self, raw: list[Line]) -> None:
        self.loss: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        self.step_seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
        for entry in raw:
            job, outcome = entry["job"], entry["outcome"]
            if job["scenario"] == "clean" and "not_applicable" not in outcome and outcome.get("evaluation"):
                key = job["system"], setup_from(job["setup"]).name
                self.loss[key][job["seed"]] = float(outcome["evaluation"])
                self.step_seconds[key].append(outcome["step_seconds"])

    def harm(self, system: str, setup: str, seed: int, loss: float) -> float | None:
        """(loss - the twin's) in standard deviations over the clean seeds; None without clean runs."""
        # A system without clipping may lose a clean run too; that one is no measure.
        known = {s: v for s, v in self.loss.get((system, setup), {}).items() if math.isfinite(v)}
        if seed not in known or len(known) < 3:
            return None
        spread = statistics.stdev(known.values())
        return (loss - known[seed]) / spread if math.isfinite(loss) else math.inf

    def step(self, system: str, setup: str) -> float | None:
        """Median seconds of a clean step."""
        known = self.step_seconds.get((system, setup))
        return statistics.median(known) if known else None


def culprit_ok(scenario: Scenario, incident: Line, bad_id: int, bad_ids: list[int] | None = None) -> bool | None:
    """Whether an incident names what the scenario broke; None where there is nothing to name."""
    want, got = scenario.culprit, incident.get("culprit") or {}
    checks = []
    if want.image:
        named = got.get("image_ids") or []
        # Of several bad images an incident names those of its own batch.
        checks.append(bool(named) and set(named) <= set(bad_ids or [bad_id]))
    if want.annotations:
        checks.append(sorted(got.get("annotation_ids") or []) == [10 * bad_id + a for a in want.annotations])
    if want.components:
        checks.append(got.get("component") in want.components)
    if want.module:
        named = got.get("module") or ""
        # The block or the layer in it that overflowed: both point at the same lines.
        checks.append(named == want.module or named.startswith(want.module + "."))
    if want.checkpoint:
        checks.append(bool(got.get("checkpoint")))
    return all(checks) if checks else None


def score(entry: Line, clean: Clean) -> Line:
    """The line of one run, as it stands in nanbench.jsonl."""
    job, outcome = entry["job"], entry["outcome"]
    scenario = BY_ID.get(job["scenario"])
    line: Line = {"system": job["system"], "scenario": job["scenario"], "seed": job["seed"]}
    setup = setup_from(job["setup"]).name
    if "not_applicable" in outcome:
        return line | {"setup": setup, "not_applicable": outcome["not_applicable"]}
    incidents = outcome.get("incidents", [])
    finite = bool(outcome.get("finite", False)) if "trace" not in outcome else False
    first = incidents[0] if incidents else {}
    harm = clean.harm(job["system"], setup, job["seed"], float(outcome.get("evaluation") or math.inf))
    line |= {
        "setup": setup,
        "survived": bool(outcome["finished"]) and finite,
        "harm": harm,
        "detected_step": first.get("step"),
        "onset_step": None,
        "cause": first.get("cause"),
        "cause_ok": None,
        "culprit_ok": None,
        "lost_steps": sum(i.get("lost_steps", 0) for i in incidents),
        "actions": [i["action"] for i in incidents],
        "causes": [i.get("cause") for i in incidents],
        "seconds": round(outcome.get("seconds", 0.0), 3),
        "stopped": outcome.get("stopped"),
    }
    line["warned_step"] = min(outcome.get("warned", {}).values(), default=None)
    line["kept"] = line["survived"] and harm is not None and harm <= KEPT
    if scenario is None or scenario.decoy:
        return line | {"false_actions": len(incidents), "kept": line["survived"]}
    line["onset_step"] = scenario.onset if scenario.onset is not None else outcome.get("first_bad")
    right = (scenario.cause, *scenario.also, *scenario.together)
    line["cause_ok"] = bool(incidents) and all(i.get("cause") in right for i in incidents)
    line["cause_ok"] &= set(scenario.together) <= {i.get("cause") for i in incidents}
    line["first_cause_ok"] = bool(incidents) and first.get("cause") in right
    line["culprit_ok"] = culprit_ok(scenario, first, outcome.get("bad_id", -1), outcome.get("bad_ids"))
    named, bad = (first.get("culprit") or {}).get("image_ids") or [], outcome.get("bad_ids") or [outcome.get("bad_id")]
    line["image_ok"] = bool(named) and set(named) <= set(bad)
    line["wrong_and_sure"] = any(
        i.get("cause") not in right and (i.get("confidence") or 0.0) >= 0.9 for i in incidents if i.get("cause")
    )
    line["component_ok"] = (first.get("culprit") or {}).get("component") in scenario.culprit.components
    if scenario.verdict:
        # Nothing healthy to go on from: the right end is a stop by itself, with a finite state.
        # A model that was NaN as it was built has no finite state to end in.
        built_wrong = "POISONED_STATE" in right and scenario.onset == 0
        ended = not outcome["finished"] and (finite or built_wrong) and bool(incidents)
        if scenario.family == "data" and str(outcome.get("stopped")).startswith(("DataError", "SampleError")):
            # Said of the whole set, most before the first step: better still. The sentence is the verdict.
            ended = line["cause_ok"] = line["first_cause_ok"] = True
        if scenario.cause == "POISONED_STATE" and "holds non-finite values" in str(outcome.get("stopped")):
            ended = line["cause_ok"] = line["first_cause_ok"] = line["culprit_ok"] = True  # no file of it can be used
        line |= {"survived": None, "kept": None, "harm": None, "stopped_right": ended}
    if scenario.open_end:
        line |= {"survived": None, "kept": None, "harm": None}
    step = clean.step(job["system"], setup)
    line["bill"] = [round(i["seconds"] / step, 1) for i in incidents if step and i.get("seconds") is not None]
    return line


def score_all(raw: list[Line]) -> list[Line]:
    """Every run once (the last result of a repeated job counts), scored, in a fixed order."""
    last = {}
    for e in raw:
        job = e["job"]
        last[(job["system"], job["scenario"], setup_from(job["setup"]).name, job["seed"])] = e
    clean = Clean(list(last.values()))
    places = {name: i for i, name in enumerate(BY_ID)}
    lines = [score(entry, clean) for entry in last.values()]
    return sorted(lines, key=lambda k: (k["system"], places.get(k["scenario"], -1), k["setup"], k["seed"]))


def share(lines: list[Line], key: str) -> tuple[int, int]:
    """(how many are true, how many were asked)."""
    asked = [k[key] for k in lines if k.get(key) is not None]
    return sum(map(bool, asked)), len(asked)
