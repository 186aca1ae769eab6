"""None of the other causes could be proved.

What happens: a step was refused, and neither the scans nor the replays separate one cause from the others.
Why: the evidence was not there (no older weights kept, the batch could not be made again, the time budget was
  spent), or the cause is one that this program does not know: or it is chance, and the same batch is sound with
  other random numbers (a path dropped, nothing kept).
How it is proved: it is not, and the incident says so: it lists every scan and replay that was made and what
  came out.
What the guard does: skips the step; goes back where another batch fails on these weights too and older weights
  are sound; leaves an image out where replays on healthy weights name it; goes back if it repeats; stops when its
  budget is spent.
How to fix it: read the list of tests in the incident; `maskrcnn-coco diagnose INCIDENT.json` replays it again,
  with more time.
"""

from __future__ import annotations

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.limits import ALIKE
from maskrcnn_coco.diagnosis.rules.common import by_the_loop, healthy, keeps_graph
from maskrcnn_coco.records import Culprit, Evidence, Finding

CODE = "UNKNOWN"


def judge(facts: Facts) -> Finding | None:
    evidence = [facts.say(name, None) for name in facts.outcomes]
    evidence += facts.tried or [Evidence("scans of state, targets, images and anchors", "clean", None)]
    fix = ""
    if facts.climbs:
        where, what, fix = "settings of the optimizer", "maximize=True: each step goes up the loss", "maximize=False"
        if facts.measured.get("climbs"):
            where, fix = "the loop's backward pass", "no minus sign"
            what = "it goes back from the model's loss times less than 0"
        evidence.insert(0, Evidence(where, what, None))
        fix += ", where this is a loss; guard.new_regime() says that one is meant to grow"
    elif facts.unrepeatable():
        what = "weights, batch and random numbers were the same, and it was another step each time"
        evidence.insert(0, Evidence("the two replays of the step", what, CODE))
        fix = "look for what changes from one forward pass to the next: hooks registered again, counters of your own"
    elif keeps_graph(facts):
        fix = "a tensor of one step is used in the next with its graph: detach() what a module or loss keeps"
    elif facts.by_chance:
        where = (facts.location.module if facts.location is not None else None) or "the forward pass"
        fix = f"look at what is drawn at random in {where}: with other draws the same batch is sound"
    elif _as_loud_before(facts):
        fix = "older weights are as loud on it: look at what else the loss is made of (data, rewards, another network)"
    elif by_the_loop(facts) and facts.good("same"):
        fix = "the loss is as recorded and its gradients are sound: look at what the loop does to them before it steps"
    culprit = Culprit()
    detail: dict[str, object] = {"replays": facts.replays, "taken": facts.taken}
    if facts.location is not None:
        culprit.module, culprit.component = facts.location.module, facts.location.component
    elif facts.bad("update"):
        culprit.component = facts.measured.get("component")
    if facts.guilty_images and facts.bad(healthy(facts)):
        culprit.image_ids, culprit.annotation_ids = facts.guilty_images, facts.guilty_annotations
        detail["proved_on_healthy_weights"] = True
    if facts.growing and facts.bad("other") and facts.good("earlier"):
        # Another batch fails on these weights too, and older ones are sound: it is not this step's doing.
        detail["ruined"] = True
    return Finding(
        CODE, 0.5 if detail.get("proved_on_healthy_weights") else 0.1, culprit, evidence, facts.onset_step, fix, detail
    )


def _as_loud_before(facts: Facts) -> bool:
    """Whether a finite loss that is far too large is so on the weights from before the onset as well, for any batch."""
    same, earlier = facts.outcomes.get("same"), facts.outcomes.get("earlier")
    if same is None or earlier is None or not facts.bad("same") or not facts.bad("other"):
        return False
    return same.finite and earlier.finite and 0.0 < abs(same.loss) <= ALIKE * abs(earlier.loss)
