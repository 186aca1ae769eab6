"""nanbench.jsonl and nanbench.md from scored lines. No torch."""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from nanbench.scenarios import BY_ID, SCENARIOS
from nanbench.scoring import Line, share

NAMES = {
    "ours": "maskrcnn_coco",
    "reference": "torchvision reference loop",
    "skip": "skip non-finite steps",
    "scaler": "GradScaler + clip_grad_norm_",
    "lightning": "Lightning",
    "arc": "ARC",
}


def write(lines: list[Line], out: Path) -> int:
    """Both files; 1 where this project misses a target."""
    out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(json.dumps(_plain(line), sort_keys=True) for line in lines)
    (out / "nanbench.jsonl").write_text(text + "\n", encoding="utf-8")
    lines = whole_seeds(lines)
    targets = _targets([k for k in lines if k["system"] == "ours"])
    parts = [_head(lines), _summary(lines), _target_table(targets), _by_cause(lines), _confusion(lines)]
    parts += [_warnings(lines), _misses(lines)]
    (out / "nanbench.md").write_text("\n\n".join(parts) + "\n\n" + METHOD, encoding="utf-8")
    missed = [name for name, _, _, ok in targets if not ok]
    print(f"wrote {out / 'nanbench.md'}; " + (f"missed: {', '.join(missed)}" if missed else "every target reached"))
    return 1 if missed else 0


def whole_seeds(lines: list[Line]) -> list[Line]:
    """Without the seeds that a system did not finish (what is slow would be missing); all lines if none is whole."""
    ran: dict[tuple[str, int], set[str]] = {}
    for k in lines:
        ran.setdefault((k["system"], k["seed"]), set()).add(k["scenario"])
    every = {k["scenario"] for k in lines} - {"clean"}
    whole = {key for key, names in ran.items() if every <= names}
    kept = [k for k in lines if k["scenario"] == "clean" or (k["system"], k["seed"]) in whole]
    return kept if whole else lines


def _plain(line: Line) -> Line:
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}


def _faults(lines: list[Line]) -> list[Line]:
    return [k for k in lines if k["scenario"] in BY_ID and not BY_ID[k["scenario"]].decoy and "survived" in k]


def _quiet(lines: list[Line]) -> list[Line]:
    """Decoys and clean runs."""
    return [k for k in lines if "false_actions" in k]


def _percent(pair: tuple[int, int]) -> str:
    right, asked = pair
    return f"{100 * right / asked:.1f} % ({right}/{asked})" if asked else "–"


def _head(lines: list[Line]) -> str:
    decoys = sum(s.decoy for s in SCENARIOS)
    verdicts = sum(s.verdict for s in SCENARIOS)
    faulted = [k for k in lines if k["scenario"] != "clean"]
    own = {system: [k for k in faulted if k["system"] == system] for system in NAMES}
    ran = ", ".join(f"{NAMES[s]} {len(k)} ({len({x['seed'] for x in k})} seeds)" for s, k in own.items() if k)
    return (
        "# NaN-Bench\n\n"
        f"{len(SCENARIOS)} scenarios from cited reports: {len(SCENARIOS) - decoys} faults ({verdicts} of them with no "
        f"healthy state to go on from) and {decoys} decoys. Runs with a scenario: {ran}; clean runs have five seeds. "
        f"{platform.machine()} CPU, one thread a run. Made by `make nanbench`; every run is a line of `nanbench.jsonl`."
    )


def _summary(lines: list[Line]) -> str:
    rows = [
        "| system | survived | kept (harm ≤ 3 σ) | stopped right where nothing can go on | cause right | culprit right "
        "| false actions (decoys, clean) | n/a |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for system, name in NAMES.items():
        own = [k for k in lines if k["system"] == system]
        if not own:
            continue
        faults, quiet = _faults(own), _quiet(own)
        named = any(k["cause"] for k in faults)
        acted = sum(k["false_actions"] > 0 or not k["survived"] for k in quiet)
        rows.append(
            f"| {name} | {_percent(share(faults, 'survived'))} | {_percent(share(faults, 'kept'))} "
            f"| {_percent(share(faults, 'stopped_right'))} "
            f"| {_percent(share(faults, 'cause_ok')) if named else 'names none'} "
            f"| {_percent(share(faults, 'culprit_ok')) if named else 'names none'} "
            f"| {acted} of {len(quiet)} | {sum('not_applicable' in k for k in own)} |"
        )
    return "\n".join(rows)


def _targets(ours: list[Line]) -> list[tuple[str, str, str, bool]]:
    """(what, target, got, reached)."""
    faults, quiet = _faults(ours), _quiet(ours)
    data = [k for k in faults if BY_ID[k["scenario"]].family == "data" and BY_ID[k["scenario"]].culprit.image]
    rates = [k for k in faults if BY_ID[k["scenario"]].family == "lr" and BY_ID[k["scenario"]].culprit.components]
    bills = [b for k in faults for b in k.get("bill", [])]
    false = sum(k["false_actions"] > 0 for k in quiet)
    found = [
        ("survived", "100 %", share(faults, "survived"), 1.0),
        ("kept", "100 %", share(faults, "kept"), 1.0),
        ("cause right", "≥ 95 %", share(faults, "cause_ok"), 0.95),
        ("image named, data faults", "≥ 99 %", share(data, "image_ok"), 0.99),
        ("component named, learning-rate faults", "≥ 90 %", share(rates, "component_ok"), 0.9),
    ]
    table = [(w, t, _percent(p), p[0] >= least * p[1]) for w, t, p, least in found]
    table.append(("runs with a false action", "0", f"{false} of {len(quiet)}", false == 0))
    bill = statistics.median(bills) if bills else 0.0
    table.append(("median replay bill, in steps' time", "≤ 20", f"{bill:.1f} ({len(bills)} incidents)", bill <= 20))
    return table


def _target_table(targets: list[tuple[str, str, str, bool]]) -> str:
    rows = ["## Targets, this project\n", "| what | target | got | reached |", "|---|---|---|---|"]
    return "\n".join(rows + [f"| {w} | {t} | {g} | {'yes' if ok else '**no**'} |" for w, t, g, ok in targets])


def _by_cause(lines: list[Line]) -> str:
    systems = [s for s in NAMES if any(k["system"] == s for k in lines)]
    rows = [
        "## Kept, by cause\n\nFor causes where nothing can go on: runs that stopped right.\n",
        "| cause | scenarios | " + " | ".join(NAMES[s] for s in systems) + " |",
        "|---" * (len(systems) + 2) + "|",
    ]
    for cause in dict.fromkeys(s.cause for s in SCENARIOS if not s.decoy):
        own = [s for s in SCENARIOS if s.cause == cause]
        cells = []
        for system in systems:
            mine = [k for k in _faults(lines) if k["system"] == system and BY_ID[k["scenario"]].cause == cause]
            right, asked = share(mine, "kept")
            stopped, wanted = share(mine, "stopped_right")
            cells.append(f"{right + stopped}/{asked + wanted}" if asked + wanted else "n/a")
        rows.append(f"| {cause} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _confusion(lines: list[Line]) -> str:
    counts: Counter[tuple[str, str]] = Counter()
    for k in _faults(lines):
        if k["system"] == "ours":
            counts[(BY_ID[k["scenario"]].cause, k["cause"] or "no alarm")] += 1
    for k in _quiet(lines):
        if k["system"] == "ours":
            counts[("decoy or clean", k["cause"] or "no alarm")] += 1
    truths = list(dict.fromkeys(t for t, _ in counts))
    named = [t for t in truths if any(n == t for _, n in counts)]
    named += sorted({n for _, n in counts} - set(named))
    rows = ["## Causes named by this project (first incident of each run)\n"]
    rows.append("| truth ↓, named → | " + " | ".join(named) + " |")
    rows.append("|---" * (len(named) + 1) + "|")
    for truth in truths:
        cells = [str(counts[(truth, n)] or "") for n in named]
        rows.append(f"| {truth} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _warnings(lines: list[Line]) -> str:
    """How many steps before the alarm a learning rate that is too high was warned of."""
    ours = [k for k in lines if k["system"] == "ours" and "warned_step" in k]
    rates = [k for k in _faults(ours) if BY_ID[k["scenario"]].family == "lr" and k["detected_step"] is not None]
    early = [k for k in rates if k["warned_step"] is not None and k["warned_step"] < k["detected_step"]]
    quiet = _quiet(ours)
    loud = sum(k["warned_step"] is not None for k in quiet)
    leads = sorted(k["detected_step"] - k["warned_step"] for k in early)
    lead = f"; {statistics.median(leads):g} steps before it in the median, {leads[-1]} at most" if leads else ""
    return (
        "## Early warnings\n\nWhat the run said of a component before its alarm; a warning refuses nothing. Of "
        f"{len(rates)} alarms about a learning rate {len(early)} were preceded by a warning{lead}. "
        f"Of {len(quiet)} clean runs and decoys {loud} were warned of something."
    )


def _misses(lines: list[Line]) -> str:
    rows = ["## What this project got wrong\n"]
    for k in [k for k in lines if k["system"] == "ours" and "not_applicable" not in k]:
        wrong = [w for w, bad in _wrongs(k) if bad]
        if wrong:
            causes = ", ".join(f"{c} → {a}" for c, a in zip(k["causes"], k["actions"], strict=True)) or "no alarm"
            harm = "" if k.get("harm") is None else f", harm {k['harm']:.2g} σ"
            setup = f" ({k['setup']})" if k["scenario"] == "clean" else ""
            rows.append(f"- `{k['scenario']}`{setup} seed {k['seed']}: {', '.join(wrong)}; {causes}{harm}")
    return "\n".join(rows) if len(rows) > 1 else rows[0] + "\nNothing, in these runs."


def _wrongs(k: Line) -> list[tuple[str, bool]]:
    if "false_actions" in k:
        return [("false action", k["false_actions"] > 0), ("not finished", not k["survived"])]
    kept: Any = k["kept"]
    return [
        ("not survived", k["survived"] is False),
        ("not kept", kept is False and k["survived"] is True),
        ("not stopped", k.get("stopped_right") is False),
        ("cause", k["cause_ok"] is False),
        ("culprit", k["culprit_ok"] is False),
    ]


METHOD = """## How it is measured

A run is 24 planned steps (4 epochs of 24 drawn images of 64 × 64, 4 a step) of a Mask R-CNN of 100,000 parameters with
torchvision's component names, on one CPU thread; learning rate 0.03 (SGD) or 0.003 (AdamW). One function per scenario
turns the clean run into the broken one; it is the same function for every system. Scenarios vary component, onset (step
0, warm-up, late), precision (fp32, bf16, fp16 emulated on the CPU with GradScaler), accumulation (1, 4), norm (frozen,
group, batch) and optimizer. Each run is a process of its own; a crash or a hang counts as not survived.

*survived*: ended by itself, all steps of the plan taken, weights, buffers and optimizer state finite. *harm*: loss on 8
held-out images in float32, less that of the clean run with the same seed and system, in standard deviations over five
clean seeds of that system and setting. *kept*: survived, and harm ≤ 3. *stopped right*: for faults that leave nothing
healthy to go on from (a model built wrong, a whole data set wrong, a training loop that does not divide), the run ended
by itself with a finite state; survival is not asked there. *cause right*: every incident of the run names the right
code. *culprit right*: the first incident names image, annotations, component, module or checkpoint, as far as the
scenario has them. *replay bill*: seconds of an investigation over the median time of a clean step.

Systems. This project: `train` with default guard; faults inside a run are injected around `Session.set_lr`. Reference
loop: torchvision's references/detection/engine.py restated. Lightning: gradient_clip_val and
EarlyStopping(check_finite) as its documentation says. ARC: `arc.Controller` after backward, as its documentation
says, in a process and environment of its own. Peers whose stability option is clipping clip at 10 even where the
scenario turned clipping off. A peer that cannot run a scenario (no accumulation, no fp16 on the CPU, an adapter for
one process) is n/a there, never a loss.
"""
