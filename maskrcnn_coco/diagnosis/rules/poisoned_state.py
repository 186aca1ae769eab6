"""Weights, optimizer state, learning rate or loss scale that are already broken before the step.

What happens: the state that the step starts from holds a NaN, an infinity or an impossible zero. It may hide: a
  NaN in the background row of the box predictor leaves the loss exactly as healthy; NaN momentum shows only
  after the next update; Adam's second moments that went through fp16 are zeros, and the first updates are
  enormous but finite.
Why: a checkpoint that was written after the damage, an optimizer state saved in half precision, a scheduler
  that returned NaN, an optimizer state saved for parameters in another order (torch loads it by position and
  compares no shapes; a fused optimizer then writes past the end of a tensor).
How it is proved: weights, buffers, optimizer state, learning rates and loss scale are scanned, at load and
  after every roll-back. A file may also be finite and wrong (tensors scaled, momentum from elsewhere): where a
  run diverges within the first steps after a load, an older file is trained on over the same planned steps; it
  stays healthy where the loaded one did not. Where there is none, and the digests say what was changed since
  the run saved it, any batch on the loaded weights is far from what the run's losses were. Where the guard saw
  the optimizer's state change between two steps and undid an update of absurd size, the update is made again
  with an older state and with none: it is sound there. An optimizer that makes something non-finite of finite
  numbers takes its step again with each setting at its default; where none helps, every op of the update is watched,
  and the first that makes such numbers is named with its line. What a script keeps beside its model (a hidden
  state, a running mean) is met by an op outside of all modules, and batches fail on it that were sound before.
What the guard does: goes back to the newest verified state, in memory first, then on disk, and says what was
  lost. A setting that was proved wrong has its default from then on. An optimizer whose memory alone is bad begins anew
  where no older state of it is kept, or none is sound.
How to fix it: `--resume auto` takes the newest intact checkpoint; never save state in half precision.
"""

from __future__ import annotations

from typing import Any

from maskrcnn_coco.diagnosis.facts import Facts, OlderFile, StateFault
from maskrcnn_coco.diagnosis.limits import NO_STATE
from maskrcnn_coco.diagnosis.rules.common import spoilt_beside
from maskrcnn_coco.records import Culprit, Evidence, Finding

CODE = "POISONED_STATE"
WEIGHTS = "model."
"""What the names of weights and buffers begin with in a checkpoint."""


def judge(facts: Facts) -> Finding | None:
    if facts.older_file is not None and facts.older_file.trains:
        return _by_file(facts, facts.older_file)
    if facts.state_to_blame():
        return _by_update(facts)
    if _changed_file(facts):
        return _by_digest(facts)
    if spoilt_beside(facts) and facts.location is not None:
        return _beside(facts, str(facts.location.op))
    if _made_by_optimizer(facts):
        return _by_maths(facts)
    hits = [s for s in facts.state if s.where in ("parameter", "buffer", "optimizer", "lr", "scaler")]
    certain = [s for s in hits if s.certain]
    if not hits or (not certain and all(s.where == "scaler" for s in hits)):
        return None
    met = [s for s in hits if not certain and facts.bad("other") and _met_first(facts, s)]
    hits = met or hits
    # A setting that no optimizer works with has made what else is not finite.
    first = next((s for s in certain if s.where == "lr"), (certain or hits)[0])
    confidence = 0.97 if certain else 0.93 if met else 0.6 if facts.settings.get("resume_path") else 0.3
    evidence = [Evidence(f"scan: {_place(s)}", s.what, CODE) for s in (certain or hits)[:8]]
    evidence += facts.says(CODE, "=settings")
    if met:
        evidence += [
            Evidence("locate: first module with numbers that are not finite", first.module or "the model", CODE)
        ]
        evidence += facts.says(CODE, "!same", "!other")
    culprit = Culprit(component=first.component, module=first.module, checkpoint=facts.settings.get("resume_path"))
    fix = "--resume auto" if facts.settings.get("resume_path") else "go back to a verified checkpoint: --resume auto"
    if first.where == "lr":
        fix = f"correct the {'schedule' if first.name.startswith('lr ') else 'optimizer'}: {first.what}"
    detail: dict[str, Any] = {"entries": [f"{s.where} {s.name}" for s in hits[:50]], "at_load": not facts.earlier_steps}
    if facts.usual and first.where == "lr":
        # The state is sound. A slip of a step or two may be over by then, where no step of its own showed more.
        at_once = "settings" in facts.outcomes or not facts.earlier_steps
        detail |= {"usual": facts.usual, "at_once": at_once}
        if "settings" in facts.outcomes:
            fix += "".join(f"; with {name}={value} the step is finite" for name, value in facts.usual.items())
    return Finding(CODE, confidence, culprit, evidence, facts.step, fix, detail)


def _met_first(facts: Facts, fault: StateFault) -> bool:
    """Whether numbers that are not finite first come out of the module that holds a buffer with NaN."""
    place = facts.location
    return fault.where == "buffer" and place is not None and place.phase == "forward" and place.module == fault.module


def _place(fault: StateFault) -> str:
    if fault.where != "lr":
        return f"state before the step, {fault.where} {fault.name}"
    setting, _, owner = fault.name.partition(" of ")
    return f"settings of the optimizer, {setting}" + ("" if owner in ("", "None") else f" of {owner}")


def _made_by_optimizer(facts: Facts) -> bool:
    """Whether the update is not finite again, of finite numbers: with every setting at its default, at any rate."""
    own, slower = facts.outcomes.get("update"), facts.outcomes.get("slower")
    if own is None or slower is None or own.finite or own.error or facts.certain_state():
        return False
    return own.moved is not None and not slower.finite and not slower.error


def _by_maths(facts: Facts) -> Finding:
    """The optimizer's own arithmetic: the state before the step is sound, and there is none to go back to."""
    own = facts.outcomes["update"]
    op = own.first_bad_op or f"{facts.measured.get('by_update') or 'its step'}, op not known"
    evidence = [Evidence("locate: first bad op, update", op, CODE), *facts.says(CODE, "update", "slower", "=same")]
    of = {n.rpartition(".")[0] for n in own.bad_grads}
    culprit = Culprit(component=facts.measured.get("component"), module=of.pop() if len(of) == 1 else None)
    fix = f"correct the optimizer: {op} makes numbers that are not finite of finite ones"
    detail = {"entries": own.bad_grads[:50], "at_load": False, "by_forward": True}
    return Finding(CODE, 0.93, culprit, evidence, facts.step, fix, detail)


def _changed_file(facts: Facts) -> bool:
    """Whether weights of the loaded file are not what the run saved, and no batch is what it was on them."""
    weights = [n for n in facts.settings.get("changed_in_file") or [] if n.startswith(WEIGHTS)]
    loaded = facts.settings.get("loaded_step")
    on_them = "same" if loaded == facts.step else "earlier" if loaded in facts.earlier_steps else ""
    nothing_fits = facts.bad(on_them) and facts.bad("other") and facts.reference.count > 0
    return bool(weights) and nothing_fits and not (facts.suspects() or facts.lethal())


def _by_digest(facts: Facts) -> Finding:
    """The only file that there is: nothing to go back to."""
    names = facts.settings["changed_in_file"]
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    evidence = [Evidence("digests of the loaded file", f"not as the run saved them: {some}", CODE)]
    evidence += facts.says(CODE, "!earlier", "!other", "!same")
    culprit = Culprit(checkpoint=facts.settings.get("resume_path"))
    fix = "resume from a copy of this file as the run saved it, or start again with --resume none"
    detail = {"entries": names, "at_load": True, "only_file": True}
    return Finding(CODE, 0.95, culprit, evidence, facts.step, fix, detail)


def _by_update(facts: Facts) -> Finding:
    """Finite, and wrong: an update that is absurd with this state alone."""
    names = facts.measured.get("state_changed") or []
    what = ", ".join(map(str, names[:3])) or "which, is not known: no step was taken with it yet"
    test = "guard: optimizer state between two steps" if names else "guard: the first step with this optimizer state"
    evidence = [Evidence(test, f"changed: {what}" if names else what, CODE)]
    evidence += [facts.say("update", CODE), facts.say("state", CODE)]
    culprit = Culprit(component=facts.measured.get("component"), checkpoint=facts.settings.get("resume_path"))
    fix = "look for what writes into optimizer.state between steps" if names else "load optimizer state that fits"
    detail = {"entries": [f"optimizer {n}" for n in names[:50]], "at_load": False, "to_step": facts.step - 1}
    if NO_STATE in facts.outcomes["state"].test:
        detail["state_anew"] = True  # no older one is kept, or none is sound: the weights are, and this one is not
    # What it went back to is a state of its own: the steps from there on may have made it what it is (Rprop's).
    confidence = 0.97 if names or not facts.settings.get("went_back") else 0.7
    return Finding(CODE, confidence, culprit, evidence, facts.step, fix, detail)


def _beside(facts: Facts, op: str) -> Finding:
    """A variable of the script's: no state of the model's to go back to."""
    evidence = [Evidence("locate: first bad op, loss", op, CODE), *facts.says(CODE, "!same", "!other", "!earlier")]
    fix = f"correct the script: what it keeps from step to step is not finite at {op}; look at what wrote to it"
    return Finding(CODE, 0.92, Culprit(), evidence, facts.step, fix, {"entries": [], "by_forward": True})


def _by_file(facts: Facts, older: OlderFile) -> Finding:
    evidence = [Evidence(f"replay: {older.outcome.test}", f"trains: {older.outcome.describe()}", CODE)]
    evidence += [
        Evidence(f"scan: {name}, loaded file against the older one", f"{ratio:.3g} times its norm", CODE)
        for name, ratio in older.differing[:6]
    ]
    loaded = facts.settings.get("resume_path")
    culprit = Culprit(component=older.component, module=older.module, checkpoint=loaded)
    detail = {"entries": [n for n, _ in older.differing[:50]], "at_load": True, "file": older.path}
    return Finding(CODE, 0.95, culprit, evidence, facts.step, f"--resume {older.path}", detail)
