"""Losses, layers and optimizers written by hand; half precision; what happens once."""

from __future__ import annotations

from typing import Any

from anywhere.mainstream.case import Case
from anywhere.mainstream.faults import LATE, NAN, built, copied, loss_at, loss_is, sample, setting, times, together
from anywhere.mainstream.faults_code import Loud, from_step, rival
from anywhere.mainstream.second.faults import hooked, output_once
from anywhere.mainstream.task import Run
from anywhere.mainstream.third import faults as code

MATHS, HALF, PIXEL, LABEL, BOX = "LOSS_MATH", "FP16_OVERFLOW", "DATA_PIXEL", "DATA_LABEL", "DATA_BOX"
POISON, ONCE, UNKNOWN, LR = "POISONED_STATE", "TRANSIENT", "UNKNOWN", "LR_TOO_HIGH"
WHOLE = setting("precision", "fp32")


def loud(run: Run) -> None:
    """The last layer of pictures works in units of its own."""
    model: Any = run.model
    model.visual[4] = Loud(model.visual[4])


CASES_CODE: tuple[Case, ...] = (
    Case("sam", "a climb over no length", MATHS, together(loss_is(code.kept_margins), code.climbs_by_length),
         (POISON, UNKNOWN)),
    Case("clip", "a temperature of 100 from the start", MATHS,
         together(loss_is(code.hot), built(lambda model: model.get_parameter("logit_scale").fill_(100.0))),  # pyright: ignore
         (POISON, LR), end="stops"),
    Case("clip", "shares by hand", MATHS, loss_is(code.shares_by_hand), end="stops"),
    Case("clip", "a caption of no known word", MATHS,
         together(sample(1, lambda w: w * 0 + 11), loss_is(code.captions_by_length)), (LABEL, PIXEL), sample=True),
    Case("yolo", "form of a box without size", MATHS,
         together(sample(1, lambda b: b * b.new_tensor([1, 1, 0, 0])), loss_is(code.ciou_by_hand), WHOLE),
         (BOX, LABEL), sample=True),
    Case("yolo", "size by exp", MATHS, together(loss_is(code.size_by_exp), WHOLE), (LR,), end="stops"),
    Case("yolo", "log of no overlap", MATHS, together(loss_is(code.log_of_overlap), WHOLE), end="stops"),
    Case("mri", "an empty scan over its largest", MATHS, together(sample(0, times(0)), loss_is(code.by_largest)),
         (PIXEL,), sample=True),
    Case("qat", "steps by powers of two", MATHS, code.powers_of_two, (LR,), end="stops"),
    Case("qat", "a step of 0 from the start", MATHS, built(code.no_pace), (POISON,), end="stops"),
    Case("dpo", "log of sigmoid", MATHS, loss_is(code.sigmoid_log), end="stops"),
    Case("dpo", "an answer of no words", MATHS, together(sample(2, lambda n: n * 0 + 10), loss_is(code.mean_share)),
         (LABEL, PIXEL), sample=True),
    Case("ssm", "a scan by quotients", MATHS, code.scanned(code.Quotients, 3.0), end="stops"),
    Case("ssm", "pace by exp", MATHS, code.scanned(code.PaceByExp), (LR,), end="stops"),
    Case("vocoder", "log of silence", MATHS, together(sample(1, times(0)), loss_is(code.log_of_silence)), (LABEL,),
         sample=True),
    Case("vocoder", "over the length of silence", MATHS,
         together(sample(1, times(0)), loss_is(code.over_own_length)), (LABEL,), sample=True),
    Case("vocoder", "a filter of zeros from the start", MATHS, built(code.filter_of_zeros), (POISON, UNKNOWN),
         end="stops"),
    Case("deepar", "spreads below 0", MATHS, loss_is(code.plain_spread), end="stops"),
    Case("deepar", "a good never sold", MATHS, together(sample(0, times(0)), loss_is(code.by_mean)), (PIXEL, LABEL),
         sample=True),
    Case("deepar", "powers by hand", MATHS, loss_is(code.powers), end="stops"),
    Case("lbfgs", "log of time 0", MATHS, together(sample(0, times(0)), loss_is(code.log_time)), (PIXEL,),
         sample=True, end="stops"),
    Case("ode", "direction of a point at rest", MATHS, together(sample(0, times(0)), loss_is(code.by_direction)),
         (PIXEL,), sample=True),
    Case("ode", "added in place", UNKNOWN, loss_is(code.added_in_place), (MATHS,), end="open"),
    Case("edm", "a level of 0", MATHS, loss_is(code.any_level)),
    Case("sac", "log of tanh", MATHS, rival("actor", code.log_of_tanh), end="stops"),
    Case("sac", "an action in other units", MATHS, rival("actor", code.of_larger_action), end="stops"),
    Case("sac", "deviation by ReLU", MATHS, rival("actor", code.deviation_by_relu), end="stops"),
    Case("poincare", "acosh at 1", MATHS, code.no_eps_apart, (LABEL,), sample=True),
    Case("poincare", "nobody is put back", MATHS, code.leaves, (LR,), end="stops"),
    Case("kernel", "log of a determinant", MATHS, together(loss_is(code.determinant), setting("batch", 80)),
         end="stops"),
    Case("kernel", "a reading twice and no noise", MATHS, together(copied, loss_is(code.without_noise)), (UNKNOWN,),
         end="open"),
    Case("sage", "a paper that cites nobody", MATHS, sample(2, lambda n: n * 0), (PIXEL, LABEL), sample=True),
    # Once, or from a step on
    Case("mri", "loss x1e6 at a step", MATHS, loss_at(LATE, lambda loss: 1e6 * loss), (ONCE,)),
    Case("poincare", "loss x1e5 from a step on", MATHS, from_step(LATE, 1e5)),
    Case("clip", "loss infinite once", ONCE, loss_at(LATE, lambda loss: loss / 0)),
    Case("kernel", "loss NaN once", ONCE, loss_at(LATE, lambda loss: loss * NAN)),
    Case("sam", "an output NaN once", ONCE, output_once("7", lambda y: y * NAN), (UNKNOWN,)),
    Case("edm", "an output NaN once", ONCE, output_once("net.4", lambda y: y * NAN), (UNKNOWN,)),
    Case("poincare", "a hook that makes gradients long", LR, hooked("places.weight", 1e6), (UNKNOWN, ONCE, MATHS)),
    # Half precision
    Case("clip", "loud layer", HALF, together(loud, setting("precision", "fp16")),
         parts=("visual.4", "visual.4.inner", "visual")),
    Case("yolo", "lengths in half", HALF, loss_is(code.in_pixels_of_half), (MATHS,), end="stops"),
    Case("edm", "a weight in half", HALF, loss_is(code.weights_in_half), (MATHS,), end="stops"),
)  # fmt: skip
