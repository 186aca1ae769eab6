"""The proof's figures as Markdown: python bench/advice/table.py > bench/results/advise.md"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

OUTSIDE = {"0.5": True, "2.0": False, "4.0": False}
"""Factors outside an interval that spans a factor 2, and whether training should be stable there."""
INSIDE = {"0.8": True, "1.25": False}

HEAD = """# Measured learning-rate limits: do they predict what training does?

`python bench/advice/run.py`, then `python bench/advice/table.py > bench/results/advise.md`; one core.

A limit is measured as `advise` measures it: short trainings (20 steps) from a settled state with one component's rate
raised, begun at the critical rate of a line search, bracketed and bisected. Then the model is trained anew from its
first weights for 40 steps, with a 15-step warm-up, other batches and other random numbers, at 0.5, 0.8, 1.25, 2 and 4
times the limit. **Broke** means: the guard's alarm went off, or the component's own losses rose past 8 times their
settled level (the guard's own factor; the guard waits for six such steps in a row). Without that second part a
component that is thrown and falls back within three steps would count as stable: see "by the guard's alarm alone". It
has learned less: see "end at".

Tiny networks (32 channels, 64 or 96 pixels) from random weights; the limits say nothing about accuracy.
"""


def right(row: dict[str, Any], factors: dict[str, bool]) -> list[bool]:
    """For each factor: did training do what the limit says?"""
    return [row["runs"][f]["stable"] is stable for f, stable in factors.items()]


def share(hits: list[bool]) -> str:
    """As "33 of 36 (92 %)"."""
    return f"{sum(hits)} of {len(hits)} ({sum(hits) / max(1, len(hits)):.0%})"


def mark(run: dict[str, Any]) -> str:
    """One cell: what happened, with the highest own loss over its level."""
    word = "stable" if run["stable"] else "alarm" if run["alarm"] else "jump"
    return f"{word} {min(run['peak'], 9999):.1f}"


def render(rows: list[dict[str, Any]]) -> str:
    """The whole page."""
    bounded = [r for r in rows if r["high"] != "inf"]
    outside = [h for r in bounded for h in right(r, OUTSIDE)]
    inside = [h for r in bounded for h in right(r, INSIDE)]
    alarm = [r["runs"][f]["alarm"] is not stable for r in bounded for f, stable in OUTSIDE.items()]
    unclipped = [
        r["runs"][f]["alarm"] is not stable
        for r in bounded
        if "no clip" in r["setting"]
        for f, stable in OUTSIDE.items()
    ]
    told = [(r["runs"][f]["alarm"] or r["runs"][f]["warned"]) for r in bounded for f in ("2.0", "4.0")]
    spoke = [(r["runs"]["0.5"]["alarm"] or r["runs"]["0.5"]["warned"]) for r in bounded]
    loud = [(r["runs"], r["runs"][f]) for r in bounded for f in ("2.0", "4.0")]
    ends = [run["end"] / runs["0.5"]["end"] for runs, run in loud if not run["alarm"]]
    alarm4 = [r["runs"]["4.0"]["alarm"] for r in bounded]
    widths = [r["high"] / r["low"] for r in bounded]
    ratios = sorted(r["critical"] / r["value"] for r in bounded)
    near = [1 / 3 <= v <= 3 for v in ratios]
    heads = [1 / 3 <= r["critical"] / r["value"] <= 3 for r in bounded if r["component"] != "backbone"]
    seconds = sum(r["seconds"] for r in rows)
    spent = statistics.median(r["steps_spent"] for r in rows)
    lines = [
        HEAD,
        f"- settings: {len(rows)}; a limit was found in {len(bounded)}; widest interval: a factor {max(widths):.2f}",
        f"- **outside the interval (0.5, 2, 4 times the limit) the predicted side came true in {share(outside)}**",
        f"- inside it (0.8 and 1.25 times): {share(inside)}",
        f"- by the guard's alarm alone, outside: {share(alarm)}, without clipping {share(unclipped)}; of the",
        f"  trainings at 4 times the limit {share(alarm4)} ended in its alarm, the others jumped and fell back",
        f"- of the trainings at 2 and 4 times the limit a run would have told of {share(told)}, by an early",
        f"  warning about that component or by an alarm; of those at half the limit {share(spoke)} are warned of",
        f"- the {len(ends)} trainings at 2 and 4 times the limit that no alarm ended, end at",
        f"  {statistics.median(ends):.1f} times the own losses of those at half the limit in the median",
        f"  ({min(ends):.1f} to {max(ends):.1f}; last 8 steps)",
        f"- measuring one limit took {spent:.0f} steps (median); {seconds:.0f} s for all",
        f"- the line search's critical rate alone is within a factor 3 of the limit in {share(near)},",
        f"  in {share(heads)} without the backbone; from {ratios[0]:.2g} to {ratios[-1]:.2g} times the limit",
        "",
        "| setting | component | limit | interval | critical rate | × 0.5 | × 0.8 | × 1.25 | × 2 | × 4 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        cells = " | ".join(mark(r["runs"][f]) for f in ("0.5", "0.8", "1.25", "2.0", "4.0"))
        high = "?" if r["high"] == "inf" else f"{r['high']:.2g}"
        lines.append(
            f"| {r['setting']} | {r['component']} | {r['value']:.2g} | {r['low']:.2g} to {high} "
            f"| {r['critical']:.2g} | {cells} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the page."""
    path = sys.argv[1] if len(sys.argv) > 1 else "bench/results/advise.json"
    print(render(json.loads(Path(path).read_text())), end="")


if __name__ == "__main__":
    main()
