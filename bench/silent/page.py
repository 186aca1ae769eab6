"""The page of Silent-Bench, from its rows."""

from __future__ import annotations

from collections import Counter
from typing import Any

Rows = list[dict[str, Any]]


def page(rows: Rows) -> str:
    """Markdown: the figures, then each scenario and each decoy."""
    runs = [r for r in rows if r["kind"] == "scenario"]
    decoys = [r for r in rows if r["kind"] == "decoy"]
    cured = [r for r in runs if r["cured"] is not None]
    tv, light = (
        Counter("nothing" if r[peer] == "nothing" else "an error" for r in runs if r.get(peer))
        for peer in ("torchvision", "lightning")
    )
    moments = Counter(r["moment"] for r in runs)
    lines = [
        "# Silent-Bench",
        "",
        "Fine-tunings that stay finite and learn nothing, re-created in small from public reports, and honest ones",
        "that only look like them. `make silentbench` measures all of it again.",
        "",
        "| | |",
        "|---|---|",
        f"| told | {share(sum(r['told'] for r in runs), len(runs))} |",
        f"| when | {', '.join(f'{n} {m}' for m, n in moments.most_common())} |",
        f"| code right (the first that is said) | {share(sum(r['code_right'] for r in runs), len(runs))} |",
        f"| fix names the cure | {share(sum(r['fix_right'] for r in runs), len(runs))} |",
        f"| with the cure applied it is said no more | {share(sum(bool(r['cured']) for r in cured), len(cured))} |",
        f"| decoys accused | {share(sum(bool(r['said']) for r in decoys), len(decoys))} |",
        f"| torchvision's own loop on the same data says | {', '.join(f'{k}: {v}' for k, v in tv.items())} |",
        f"| Lightning on the same data says | {', '.join(f'{k}: {v}' for k, v in light.items()) or 'not run'} |",
        "",
        "“before” is before the first step (`train --dry-run` says it too); “steps” and “epoch” are within the first",
        "epoch, but for the runs that need several to be judged. Codes other than the expected one are listed.",
        "",
        "| scenario | report | code | told | first said | also | fix | cured | torchvision's loop | Lightning |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in runs:
        first = r["said"][0]["code"] if r["said"] else "–"
        cells = [r["name"], r["report"], r["code"], r["moment"], first, ", ".join(r["others"]) or "–"]
        cells += [mark(r["fix_right"]), "–" if r["cured"] is None else mark(r["cured"]), r["torchvision"] or "–"]
        cells.append(r.get("lightning") or "–")
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    lines += ["", "| decoy | what acquits it | said |", "|---|---|---|"]
    for r in decoys:
        said = ", ".join(x["code"] for x in r["said"]) or "nothing"
        lines.append(f"| {r['name']} | {r['fact']} | {said} |")
    return "\n".join(lines) + "\n"


def share(count: int, of: int) -> str:
    """“53 of 55 (96 %)”."""
    return f"{count} of {of} ({count / of:.0%})" if of else "–"


def mark(good: bool) -> str:
    return "yes" if good else "**no**"
