"""An incident in a few lines, for people who read logs."""

from __future__ import annotations

from maskrcnn_coco.records import Incident, lowered_settings
from maskrcnn_coco.wording import passed_words, precision_words, usual_words


def told(incident: Incident) -> str:
    """One incident in a few lines, for people who read logs."""
    who = []
    culprit = incident.culprit
    if culprit.image_ids:
        who.append(f"sample {', '.join(map(str, culprit.image_ids[:5]))}")
    if culprit.rank is not None:
        who.append(f"process {culprit.rank}")
    who += [f"{what} {value}" for what, value in (("group", culprit.component), ("module", culprit.module)) if value]
    named = f" ({', '.join(who)})" if who else ""
    detail = incident.action.detail
    lowered = f"rate times {detail.get('factor', 1.0):.2g}"
    if "most" in detail:
        lowered = f"rate no higher than {max(detail['most'].values()):.2g}"
    for name, most in lowered_settings(detail).items():
        lowered = f"{name.replace('_', ' ')} {most:g}"
    lowered = usual_words(detail).removeprefix(", ") or lowered
    why = str(detail.get("why", ""))
    done = {
        "skip": why if why.startswith("the step was taken") else f"the step is skipped{passed_words(detail)}",
        "quarantine": "the sample is left out from now on",
        "rollback": f"back to the state of step {detail.get('to_step')}{usual_words(detail)}",
        "lower_lr": f"back to the state of step {detail.get('to_step')}, {lowered}",
        "precision": precision_words({**detail, "dtype": "float32"}),
        "reload": "an older state is loaded",
        "stop": f"stopped: {detail.get('why')}",
    }[incident.action.kind]
    proof = "; ".join(f"{e.test}: {e.outcome}" for e in incident.evidence[:2])
    fix = f"; to fix it for good: {incident.fix}" if incident.fix else ""
    return f"step {incident.step}: {incident.cause}{named}, confidence {incident.confidence:.2f}; {done}{fix}. {proof}"
