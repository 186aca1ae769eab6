"""Two hundred and thirty loops as people write them, one at a time: what the guard does in each.

    OMP_NUM_THREADS=1 python bench/anywhere/red.py [--only NAME] [--round 5] [--steps 200] [--seed 0]

Round 1 was written by whoever mended the guard after it, rounds 2 to 6 later without a look at it. Of each loop: a
clean run (nothing refused, and the same bits as without the guard); NaN in one sample, a NaN gradient, a NaN loss, NaN
in the optimizer's state at one step (weights and state finite afterwards, a refused step leaves all bit for bit as it
was); learning rates a thousand times too large, one sample a hundred thousand times too large (an alarm, where the
plain run comes to harm); and with ``diagnose`` the sample named, the broken state put back, a glitch called one, and a
rate that is too high called that.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import traceback
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from anywhere.loops.fifth import FIFTH  # noqa: E402
from anywhere.loops.fourth import FOURTH  # noqa: E402
from anywhere.loops.harness import AT, FAULTS, Run, same, state_of  # noqa: E402
from anywhere.loops.kinds import KINDS  # noqa: E402
from anywhere.loops.mechanics import MECHANICS  # noqa: E402
from anywhere.loops.recipes import RECIPES  # noqa: E402
from anywhere.loops.sixth import SIXTH  # noqa: E402
from anywhere.loops.third import THIRD  # noqa: E402

ROUNDS: dict[int, dict[str, Any]] = {1: KINDS | MECHANICS, 2: RECIPES, 3: THIRD, 4: FOURTH, 5: FIFTH, 6: SIXTH}
LOOPS: dict[str, Any] = ROUNDS[1] | ROUNDS[2] | ROUNDS[3] | ROUNDS[4] | ROUNDS[5] | ROUNDS[6]
OWN_SKIP = ("scaled", "scaled_in_parts", "scaled_unseen", "half_scaled", "scaled_by_hand")
"""Loops whose scaler skips a step with a gradient that is not finite before the guard is asked."""


NOT_REPLAYED = ("looks_ahead",)
"""Loops whose optimizer steps another one: ``diagnose`` refuses it at construction, in a sentence, as agreed."""
OWN_STATE = ("schedule_free",)
"""Loops that write what is in the optimizer's state into the weights themselves, between two steps: NaN that somebody
put into the state is then spread by the loop, not by a step that a guard could refuse."""


def taken(loop: Any, fault: str, system: str, steps: int, seed: int) -> tuple[Run, str]:
    """One run, and the error that ended it, if one did."""
    torch.manual_seed(seed)
    run = Run(fault, system=system, steps=steps)
    try:
        loop(run)
    except Exception as e:  # a loop that raises has ended: that is the outcome
        where = traceback.extract_tb(e.__traceback__)[-1]
        return run, f"{type(e).__name__}: {str(e)[:160]} ({Path(where.filename).name}:{where.lineno})"
    return run, ""


def harmed(run: Run, error: str, clean: Run) -> bool:
    """Whether a run with a fault came to harm: not finite, or late losses far above those of its ``clean`` twin."""
    healthy = median([abs(v) for v in clean.losses[len(run.losses) - 15 : len(run.losses)]] or [1.0])
    late = [abs(v) for v in run.losses[-15:]]
    return (
        bool(error) or not run.finite or any(map(math.isnan, late)) or median(late or [0.0]) > 30 * max(healthy, 0.05)
    )


def unharmed(loop: Any, fault: str, seed: int) -> bool:
    """Whether the fault is none to this loop, which trains on soundly without a guard: NaN may stand for "missing"."""
    run, error = taken(loop, fault, "plain", AT + 40, seed)
    return not error and run.finite and all(map(math.isfinite, run.losses))


def tried(name: str, steps: int, seed: int) -> dict[str, str]:
    """Fault → what was wrong with the guard's answer; empty where it was right."""
    loop, wrong, clean = LOOPS[name], {}, Run("none")
    for fault in FAULTS:
        run, error = taken(loop, fault, "attach", steps if fault == "none" else AT + 40, seed)
        refused = [r for w in run.watched for r in w.refused]
        touched = [s for w in run.watched for s in w.touched]
        if fault == "none":
            clean, _ = taken(loop, fault, "plain", steps, seed)
            alike = all(same(state_of(*a), state_of(*b)) for a, b in zip(run.models, clean.models, strict=True))
            text = f"refused {refused[:4]}" if refused else "" if alike else "other bits than without the guard"
        elif fault in ("fast", "huge_sample", "wild_state"):
            plain, plain_error = taken(loop, fault, "plain", AT + 40, seed)
            bad = harmed(plain, plain_error, clean)
            text = "" if refused or not bad else f"no alarm; losses {[f'{v:.3g}' for v in run.losses[AT - 1 : AT + 6]]}"
            early = [r for r in refused if r[0] < AT]
            text = f"refused {early[:3]} before the fault" if early else text
            text = text or (f"touched at {touched[:3]}" if touched else "")
            text = text or ("" if run.finite else "something is not finite")
            first = run.watched[-1].turn(AT) if run.watched else AT
            if not text and fault == "wild_state" and bad and not any(s == first for s, _ in refused):
                text = f"applied, and refused at {refused[:2]}"
        elif not run.poisoned:  # whole numbers hold no NaN; gradients made by hand pass no hook
            text = ""
        else:
            text = "" if run.finite else "something is not finite"
            calm = name in OWN_SKIP or (not refused and fault == "nan_sample" and unharmed(loop, fault, seed))
            # An optimizer that does not step at each turn is asked at its own next one.
            first = run.watched[-1].turn(AT) if fault == "nan_state" else AT
            text = text or ("" if any(s == first for s, _ in refused) or calm else "not refused")
            text = text or (f"touched at {touched[:3]}" if touched else "")
            others = [r for r in refused if r[0] != AT] if fault != "nan_state" else []
            text = text or (f"refused {others[:3]} too" if others else "")
        if error or text:
            wrong[fault] = error or text
    if name in OWN_STATE and wrong.get("nan_state") == "something is not finite":
        del wrong["nan_state"]
    named = culprit(loop, seed, "nan_sample") | culprit(loop, seed, "huge_sample")
    told = (
        named
        | state(loop, seed, "nan_state")
        | state(loop, seed, "wild_state")
        | caused(loop, seed, "nan_loss", "TRANSIENT")
        | caused(loop, seed, "fast", "LR_TOO_HIGH")
    )
    refused_at_once = name in NOT_REPLAYED
    return wrong | {
        k: v for k, v in told.items() if not (refused_at_once and v.startswith("ConfigError: diagnose=True"))
    }


def caused(loop: Any, seed: int, fault: str, cause: str) -> dict[str, str]:
    """Whether ``diagnose`` calls a loss that was NaN once a glitch, and a divergence after a raised rate that."""
    run, error = taken(loop, fault, "diagnose", AT + 15, seed)
    found = [i for w in run.watched for i in getattr(w.guard, "incidents", []) if i.step >= AT or fault != "nan_loss"]
    if not found or (fault == "nan_loss" and not run.poisoned):
        return {f"diagnose {fault}": error} if error and "GuardStop" not in error else {}
    text = "" if found[0].cause == cause else f"{found[0].cause} at {found[0].confidence:.2f}, not {cause}"
    text = text or ("" if run.finite else "something is not finite")
    return {f"diagnose {fault}": text} if text else {}


def state(loop: Any, seed: int, fault: str) -> dict[str, str]:
    """Whether ``diagnose`` says that the state was broken, and goes back to a sound one."""
    run, error = taken(loop, fault, "diagnose", AT + 5, seed)
    found = [i for w in run.watched for i in getattr(w.guard, "incidents", [])]
    what = "diagnose state" if fault == "nan_state" else "diagnose wild state"
    if not run.poisoned or not any(hasattr(w.guard, "incidents") for w in run.watched):
        return {what: error} if error else {}
    run.fault = ""  # now the state counts too
    causes = [i.cause for i in found]
    calm = fault == "wild_state" and not found  # scaled alike, moments and squares may give a sound update
    text = error or ("" if causes == ["POISONED_STATE"] or calm else f"causes {causes}")
    text = text or ("" if run.finite else "the state is still not finite")
    return {what: text} if text else {}


def culprit(loop: Any, seed: int, fault: str) -> dict[str, str]:
    """Whether ``diagnose`` names the bad sample; one that is only huge where it was refused."""
    run, error = taken(loop, fault, "diagnose", AT + 5, seed)
    responders = [w.guard for w in run.watched if hasattr(w.guard, "incidents")]
    what = "diagnose" if fault == "nan_sample" else "diagnose huge"
    if not responders or not run.poisoned or run.id is None or (fault == "nan_sample" and unharmed(loop, fault, seed)):
        return {what: error} if error and responders else {}
    found = [i for g in responders for i in g.incidents]
    if fault == "huge_sample" and not found and not error:
        return {}
    text = error
    if not text and not (found and found[0].culprit.image_ids == [run.id]):
        named = [(i.step, i.cause, i.culprit.image_ids) for i in found[:2]]
        text = f"{named}, not {run.id}"
    elif not text and (found[0].cause != "DATA_PIXEL" or len(found) > 1 or not run.finite):
        text = f"causes {[i.cause for i in found]}"
    return {what: text} if text else {}


def main() -> None:
    """Every loop; one line for each answer that is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--round", type=int, choices=list(ROUNDS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows, checks = {}, 0
    for name in ROUNDS[args.round] if args.round else LOOPS:
        if args.only and name not in args.only.split(","):
            continue
        began = time.perf_counter()
        rows[name] = wrong = tried(name, args.steps, args.seed)
        checks += len(FAULTS) + 6
        told = "; ".join(f"{k}: {v}" for k, v in wrong.items())
        print(f"{name:20s} {time.perf_counter() - began:5.1f} s  {told}", flush=True)
    bad = sum(len(w) for w in rows.values())
    print(f"{len(rows)} loops, {checks} answers, {bad} wrong, in {sum(bool(w) for w in rows.values())} loops")
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
