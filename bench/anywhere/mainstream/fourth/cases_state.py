"""Weights, moments, buffers: from a checkpoint, under way, as they were made; gradients once; what lies outside."""

from __future__ import annotations

from anywhere.mainstream import faults as f
from anywhere.mainstream.case import Case
from anywhere.mainstream.faults import INF, LATE, NAN, at_step, bit, built, gradient, in_file, moments, put, weight
from anywhere.mainstream.fourth import faults as code

POISON, NORM, ONCE, LR, UNKNOWN = "POISONED_STATE", "NORM_STATE", "TRANSIENT", "LR_TOO_HIGH", "UNKNOWN"
PIXEL, LABEL, MATHS = "DATA_PIXEL", "DATA_LABEL", "LOSS_MATH"

CASES_STATE: tuple[Case, ...] = (
    # From a checkpoint: nothing older is kept in memory.
    Case("columns", "file: NaN in a table", POISON, in_file("model", "cats.1.weight", put(NAN, 2, 0)), end="stops"),
    Case("crf", "file: averaged with a lost one", POISON, code.averaged_with_lost, end="stops"),
    Case("fno", "file: NaN beside i", POISON, in_file("model", "spectral.0", put(complex(0, NAN), 0, 0, 1)),  # pyright: ignore
         end="stops"),
    Case("moco", "file: NaN in the queue", POISON, in_file("model", "queue", put(NAN, 5, 0)), (NORM,), end="stops"),
    Case("grpo", "file: first moments x1e6", POISON, in_file("optimizer", "exp_avg", lambda v: v * 1e6)),
    Case("ranks", "file: NaN rows", POISON, in_file("optimizer", "row_var", lambda v: v * NAN)),
    Case("forces", "file: NaN largest moments", POISON, in_file("optimizer", "max_exp_avg_sq", put(NAN))),
    Case("splat", "file: infinite opacity", POISON, in_file("model", "opacity", put(INF, 4)), (MATHS,), end="stops"),
    Case("keywords", "file: momentum x1e6", POISON, in_file("optimizer", "momentum_buffer", lambda v: v * 1e6)),
    Case("raft", "file: moments of another run", POISON, f.of_another),
    # Under way: written from outside, by a bit or by a slip.
    Case("columns", "a bit of a weight", ONCE, at_step(LATE, bit("block.linear2.weight")), (POISON,)),
    Case("muon", "a bit of a weight", ONCE, at_step(LATE, bit("up.1.weight")), (POISON,)),
    Case("fno", "a bit of a complex weight", ONCE, at_step(LATE, bit("spectral.1")), (POISON,)),
    Case("raft", "a bit of a weight", ONCE, at_step(LATE, bit("delta.weight")), (POISON,)),
    Case("wgan", "a bit of a weight", ONCE, at_step(LATE, bit("generator.2.weight")), (POISON,)),
    Case("grpo", "infinite weight", ONCE, at_step(LATE, weight("2.weight", INF)), (POISON,)),
    Case("ranks", "NaN weight", ONCE, at_step(LATE, weight("0.weight", NAN)), (POISON,)),
    Case("splat", "a NaN centre", ONCE, at_step(LATE, weight("centre", NAN)), (POISON,)),
    Case("moco", "NaN in the queue", NORM, at_step(LATE, weight("queue", NAN)), (POISON, ONCE)),
    Case("muon", "NaN momentum of Muon", POISON, at_step(LATE, moments("momentum_buffer", put(NAN), "query.0.weight")),
         (ONCE,)),
    Case("crf", "mean slopes of another run", POISON, at_step(LATE, moments("grad_avg", lambda v: v + 10)), (ONCE,)),
    Case("fno", "complex moments NaN", POISON, at_step(LATE, moments("exp_avg", put(NAN), "spectral.0")), (ONCE,)),
    # AMSGrad never forgets them: nothing moves any more.
    Case("forces", "largest moments x1e12", POISON, at_step(4, moments("max_exp_avg_sq", lambda v: v * 1e12)),
         (ONCE, "LR_TOO_LOW", "NOT_LEARNING"), end="open"),
    # All that the script compares with is NaN, whatever is skipped.
    Case("grpo", "NaN in the first policy", LABEL, at_step(LATE, code.first_lost),
         (PIXEL, POISON, ONCE, MATHS, UNKNOWN), end="open"),
    # As it was made.
    Case("muon", "NaN from the start", POISON, built(f.filled("head.weight", NAN)), end="stops"),
    Case("keywords", "bytes the wrong way round, from the start", POISON,
         built(lambda model: code.other_half(model.get_submodule("10"))), (LR, MATHS), end="stops"),
    # Gradients, once.
    Case("columns", "NaN gradient once", ONCE, gradient("scale", NAN), (UNKNOWN,)),
    Case("forces", "infinite gradient once", ONCE, gradient("net.0.weight", INF), (UNKNOWN,)),
    Case("moco", "gradient 1e25 once", ONCE, gradient("fast.1.weight", 1e25), (UNKNOWN,)),
    Case("wgan", "NaN gradient once", ONCE, gradient("critic.0.weight", NAN), (UNKNOWN,)),
)  # fmt: skip
