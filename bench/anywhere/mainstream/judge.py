"""From what a run gave to whether it was right: survived, kept, cause, culprit, wrong and sure, acted upon."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from anywhere.mainstream.case import Case

KEPT = 0.25
"""Share of what the clean twin learned that a run with a fault may end short of."""
SURE = 0.9
IN_SOME_STEPS = ("DATA_PIXEL", "DATA_BOX", "DATA_LABEL", "DATA_MASK", "LOSS_MATH")
"""Causes that are in the steps they make and in no other: whoever leaves those out by hand has the best that is left.
The loss itself may be another than the clean twin's there, so that no run with it ends as good."""
Line = dict[str, Any]


class Twins(NamedTuple):
    """Scores of runs that nothing is wrong with: as it is, one that learns nothing, the samples in other orders."""

    clean: float
    blank: float
    others: tuple[float, ...] = ()


def limit(twins: Twins, by_hand: float | None = None) -> float:
    """The worst score that still counts as the clean twin's, or as that of the faulty run put right by hand."""
    slack = KEPT * max(twins.blank - twins.clean, 0.0) + 1e-6 * abs(twins.clean)
    found = max(twins.clean + slack, *twins.others, twins.clean)
    return found if by_hand is None or not math.isfinite(by_hand) else max(found, by_hand + slack)


def harmed(plain: Line, twins: Twins) -> bool:
    """Whether the fault did harm to the run without a guard."""
    return bool(plain["stopped"]) or not plain["finite"] or plain["score"] > limit(twins)


def judged(case: Case, got: Line, plain: Line, twins: Twins, by_hand: float | None = None) -> Line:
    """One line of the page; None where a question was not asked."""
    incidents = got["incidents"]
    line: Line = {
        "case": case.name,
        "incidents": [
            " ".join(
                [f"{i['step']}: {i['cause']} {i['confidence']:.2f} {i['symptom']}"]
                + [str(i[k]) for k in ("component", "module", "ids", "action") if i[k]]
            )
            for i in incidents[:4]
        ],
        "stopped": got["stopped"],
        "score": [got["score"], plain["score"], twins.clean, twins.blank],
        "by hand": by_hand,
        "finite": got["finite"],
    }
    if case.decoy:
        same = got["weights"] == plain["weights"] or case.task == "gan"
        return line | {"decoy": True, "acted": bool(incidents) or got["refused"] > 0, "same": same}
    effect = harmed(plain, twins)
    if not effect and not incidents:
        return line | {"effect": False}
    right = (case.cause, *case.also)
    first = incidents[0] if incidents else {}
    line |= {
        "effect": effect,
        "cause": bool(incidents) and all(i["cause"] in right for i in incidents),
        "first": bool(incidents) and first["cause"] in right,
        "sure": any(i["cause"] not in right and i["confidence"] >= SURE for i in incidents),
        "culprit": culprit(case, incidents, got["ids"]),
    }
    if case.end == "goes on":
        line["survived"] = got["finite"] and not got["stopped"]
        line["kept"] = line["survived"] and got["score"] <= limit(twins, by_hand)
    elif case.end == "stops":
        line["survived"] = bool(incidents) and (got["finite"] or not effect or "made" in case.kind or built_wrong(case))
    return line


def built_wrong(case: Case) -> bool:
    """Whether no finite state ever was: a file or a model that was NaN to begin with."""
    return case.kind.startswith("file: ") or "from the start" in case.kind


def culprit(case: Case, incidents: list[Line], ids: list[int]) -> bool | None:
    """Whether the first incident names what is to blame; None where nothing is asked."""
    first = incidents[0] if incidents else {}
    if case.sample:
        named = first.get("ids") or []
        return bool(named) and set(named) <= set(ids)
    if case.parts:
        return first.get("module") in case.parts or first.get("component") in case.parts
    return None


def share(lines: list[Line], key: str) -> str:
    """How many of those asked."""
    asked = [k[key] for k in lines if k.get(key) is not None]
    return f"{sum(map(bool, asked))} of {len(asked)}"


def summary(lines: list[Line]) -> dict[str, str]:
    """The figures."""
    faults = [k for k in lines if not k.get("decoy")]
    felt = [k for k in faults if k["effect"] or "cause" in k]
    quiet = [k for k in lines if k.get("decoy")]
    return {
        "faults": f"{len(faults)}, {len(faults) - len(felt)} of them without an effect, and nothing said",
        "survived, or stopped where nothing else is right": share(felt, "survived"),
        "kept what it learned": share(felt, "kept"),
        "cause right": share(felt, "cause"),
        "cause of the first incident right": share(felt, "first"),
        "culprit right": share(felt, "culprit"),
        "wrong at 0.9 or more": share(felt, "sure"),
        "honest runs acted upon": share(quiet, "acted"),
        "honest runs that ended in the bits of the run without a guard": share(quiet, "same"),
    }


def misses(lines: list[Line]) -> list[Line]:
    """Whatever is not right."""
    wrong = ("cause", "culprit", "survived", "kept")
    return [k for k in lines if any(k.get(w) is False for w in wrong) or k.get("sure") or k.get("acted")]


def page(lines: list[Line], seeds: list[int], chosen: str = "all") -> str:
    """The page of one set of tasks, or of all, in Markdown."""
    by_task: dict[str, list[Line]] = {}
    for k in lines:
        by_task.setdefault(k["case"].split("/")[0], []).append(k)
    rows = [
        f"| {task} | {len(own)} | {share(own, 'survived')} | {share(own, 'kept')} | {share(own, 'cause')} "
        f"| {share(own, 'culprit')} | {share(own, 'sure')} | {share(own, 'acted')} |"
        for task, own in by_task.items()
    ]
    told = []
    for k in misses(lines):
        wrong = [w for w in ("cause", "culprit", "survived", "kept") if k.get(w) is False]
        wrong += [w for w in ("sure", "acted") if k.get(w)]
        told.append(f"- {k['case']}: {', '.join(wrong)}; {'; '.join(k['incidents'][:2]) or k['stopped'] or 'silent'}")
    return "\n".join(
        [
            "# Loops of the tutorials" + ("" if chosen == "all" else f", set {chosen}"),
            "",
            f"{len(by_task)} tasks, their faults and their honest runs, seeds {', '.join(map(str, seeds))};",
            f"kept: the score on held-out samples is within {KEPT:.0%} of what the clean twin learned, or of what the",
            "faulty run learned with its broken steps left out by hand (bad samples, losses), or not worse than the",
            "clean twin's with its samples in two other orders.",
            f"Run: `make mainstream` (`--set {chosen}`).",
            "",
            "| what | figure |",
            "|---|---|",
            *(f"| {k} | {v} |" for k, v in summary(lines).items()),
            "",
            "| task | runs | survived | kept | cause | culprit | wrong at 0.9 or more | honest acted upon |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "## What was missed",
            "",
            *(told or ["- nothing"]),
            "",
        ]
    )
