"""Where the first non-finite number appears: module and op of the forward pass, op of the backward pass.

Used only during a replay: every module gets a hook and every op is checked, which costs several times the step.
"""

from __future__ import annotations

import math
import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maskrcnn_coco.guard import forward_backward
from maskrcnn_coco.guard.forward_backward import Forward, Pass
from maskrcnn_coco.guard.norms import Layout, as_real, has_fractions
from maskrcnn_coco.replay.outcome import CONSTANT, IN_HALF, NOTHING, Outcome

_BEYOND = 1e3
"""Sums of squares of what an op took, so many times: an exponential of 13 gives it, a division by a thousandth."""
_COPIES = ("lift_fresh", "lift", "detach", "clone", "_to_copy", "copy_", "fill_", "index", "select", "slice", "view")
"""Their results are what they took: who computes with it is asked."""
# Their outputs are memory not yet written, not results.
_UNWRITTEN = ("empty", "new_empty", "empty_like", "empty_strided", "resize_", "set_", "set_data")

_OURS = ("maskrcnn_coco/replay/replay.py", "maskrcnn_coco/guard/optimizer_step.py", "maskrcnn_coco/replay/optimizer.py")
"""Files that call an optimizer's step in a replay."""
_AVERAGES = ("mean", "std", "var", "median", "nanmean")
"""Ops that make NaN of no numbers at all."""
# Ops that make what is not finite of whole numbers too: 1 / count, log(count).
_OF_COUNTS = ("div", "true_divide", "reciprocal", "log", "log2", "log10", "rsqrt", "pow")


class Watch:
    """The first module, by order of completion, with finite inputs and a non-finite output; and the op inside it.

    Children complete before their parents, so this is the deepest such module.
    """

    def __init__(self) -> None:
        self.module: str | None = None
        self.start = 0
        self.largest: dict[str, float] = {}
        self.inside = 0.0
        """The largest finite magnitude that any module took or gave, losses (scalars) apart."""
        self.met = False
        """Some module took numbers that are not finite."""


class _Ops(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bad: list[str] = []
        self.took: dict[str, float] = {}
        """Each of ``bad``: the largest number among what it took."""
        self.depth = 0
        """Modules under way."""
        self.outside: str | None = None
        """The first of ``bad`` outside all of them, in code that is not torchvision's either. Those may make infinities
        and leave them out of what they give: the boxes that an empty image is matched with."""
        self.known: set[int] = set()
        """Memory of the model, of the batch, and of what ops gave that is not finite."""
        self.brought: str | None = None
        """The first op outside all modules with an operand that is not finite and comes from none of these."""
        self.masked: str | None = None
        """The first such op that gives numbers and minus infinities alone."""
        self.grown: tuple[str, float] | None = None
        """The first op that makes numbers beyond sense of usual ones (an exponent, a division by next to nothing), and
        the largest of those."""
        self.put_in: list[Tensor] = []
        """NaN that ops bring along themselves: the logarithm of a determinant below 0 is one. Kept, so that no other
        tensor comes to lie there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[-1]
        if name == "_local_scalar_dense" and not isinstance(args[0], Tensor):
            return args[0]  # a number of Python's that was saved for the backward pass comes unwrapped to a mode
        # In-place ops overwrite their inputs: look before.
        nothing = name in _AVERAGES and any(not t.numel() for t in _tensors(args))
        numbers = nothing or _any_float(args) or (name in _OF_COUNTS and any(True for _ in _tensors(args)))
        own = self._brings_nan(args)
        clean = len(self.bad) < 32 and name not in _UNWRITTEN and numbers and (own or _finite(args))
        strange = self.depth == 0 and self.brought is None and not clean and self._strange((args, kwargs))
        known = largest(args) if clean else math.inf
        result = func(*args, **(kwargs or {}))
        if _finite(result):
            if self.grown is None and name not in _COPIES and _beyond(result, args, known):
                self.grown = name + _where()[0], largest(result)
            return result
        if name == "scalar_tensor":
            self.put_in.append(result)
        if strange and name in _COPIES:
            return result
        if strange:
            where, theirs = _where()
            found = None if theirs else f"{name}{CONSTANT}{where}"
            if _only_masks(result):  # a fault only where nothing else is: what it leaves nothing of is NaN
                self.masked = self.masked or found
                return result
            self.brought = found
        if clean:
            where, theirs = _where()
            self.bad.append(f"{name}{NOTHING if nothing else ' of NaN' if own else _half(result)}{where}")
            self.took.setdefault(self.bad[-1], known)
            if self.depth == 0 and self.outside is None and not theirs:
                self.outside = self.bad[-1]
        self.known |= _memory(result)
        return result

    def _brings_nan(self, operands: Any) -> bool:
        """Whether all of them that are not finite are NaN that the op has put in by itself."""
        mine = _memory(self.put_in)
        bad = [t for t in _tensors(operands) if not _finite(t)] if mine else []
        return bool(bad) and all(_memory(t) <= mine for t in bad)

    def _strange(self, operands: Any) -> bool:
        """Whether one of them is not finite and is of no known memory."""
        return any(not _finite(t) and not _memory(t) <= self.known for t in _tensors(operands))


@dataclass
class Located:
    """A pass and where it went wrong first; ``phase`` is forward, loss (outside all modules) or backward."""

    taken: Pass
    module: str | None
    op: str | None
    max_abs: float | None
    phase: str
    largest: dict[str, float]
    inside: float = 0.0
    met: bool = False
    """Some module took numbers that are not finite."""
    took: float | None = None
    """The largest number among what ``op`` took, where that was finite."""
    grown: tuple[str, float] | None = None
    """The first op whose numbers are beyond what squares of those that it took could be, and the largest of them."""

    def told(self, outcome: Outcome, watch: str | None) -> Pass:
        """The pass; where it went wrong is written into ``outcome``, and the largest number of module ``watch``."""
        outcome.first_bad_module, outcome.first_bad_op, outcome.took = self.module, self.op, self.took
        outcome.phase, outcome.inside, outcome.met, outcome.grown = self.phase, self.inside, self.met, self.grown
        outcome.finite = self.module is None and self.op is None
        outcome.max_abs = self.max_abs if watch is None else self.largest.get(watch)
        return self.taken


def located_run(
    forward: Forward, batches: Sequence[Any], scaler: Any, layout: Layout, *, first: bool = False
) -> Located:
    """`step.run` with every module and op watched. ``forward.model`` is the model whose modules are named."""
    watched, ops = Watch(), _Ops()
    found = _located(forward, batches, scaler, layout, watched, ops, first=first)
    found.inside, found.met, found.grown = watched.inside, watched.met or watched.module is not None, ops.grown
    found.took = ops.took.get(found.op or "")
    return found


def _located(
    forward: Forward, batches: Sequence[Any], scaler: Any, layout: Layout, watched: Watch, ops: _Ops, *, first: bool
) -> Located:
    ops.known = _memory([*forward.model.state_dict().values()])  # type: ignore[attr-defined]

    def seen(batch: Any) -> Any:
        ops.known |= _memory(batch if isinstance(batch, Tensor) else getattr(batch, "__dict__", batch))
        with hooks(forward.model, watched, ops), ops:  # type: ignore[attr-defined]
            return forward(batch)

    with _anomaly() as log:
        taken = forward_backward.run(seen, batches, scaler, layout, first=first)
    found = re.search(r"Function '(\w+)' returned nan", taken.error or "")
    if found:
        # Anomaly mode stops at the first NaN gradient: what it raised is a finding, not an error of the model.
        taken.error = None
    if watched.module is not None:
        op = ops.bad[watched.start] if len(ops.bad) > watched.start else None
        return Located(taken, watched.module, op, watched.largest.get(watched.module), "forward", watched.largest)
    if found and not _bad(taken):
        return Located(taken, None, found.group(1) + _line_in("\n".join(log)), None, "backward", watched.largest)
    if (op := ops.outside or ops.brought or ops.masked) is not None and _bad(taken):
        return Located(taken, None, op, None, "loss", watched.largest)
    return Located(taken, None, ops.bad[0] if ops.bad and _bad(taken) else None, None, "forward", watched.largest)


def _bad(taken: Pass) -> bool:
    return any(v - v != 0.0 for k, v in taken.losses.items() if k not in taken.without_gradient)


@contextmanager
def watched_ops() -> Iterator[list[str]]:
    """Every op inside the block is checked; the list receives those that make what is not finite of finite numbers."""
    ops = _Ops()
    ops.depth = 1  # whose memory an operand is does not matter here
    with ops:
        yield ops.bad


@contextmanager
def hooks(model: nn.Module, seen: Watch, ops: _Ops) -> Iterator[None]:
    """Watch the modules of ``model`` inside the block. Hooks are gone afterwards."""
    began: dict[str, list[int]] = {}
    handles = []
    # A model without modules inside is looked at itself; what others are given may hold targets.
    for name, module in [(n, m) for n, m in model.named_modules() if n] or [("", model)]:

        def before(_m: nn.Module, _args: Any, name: str = name) -> None:
            began.setdefault(name, []).append(len(ops.bad))
            ops.depth += 1

        def after(_m: nn.Module, args: Any, output: Any, name: str = name) -> None:
            start = began[name].pop() if began.get(name) else 0
            ops.depth -= 1
            taken = _finite(args)
            seen.met = seen.met or not taken
            if name and seen.module is None and taken and not _finite(output):
                seen.module, seen.start = name, start
            seen.largest[name] = max(seen.largest.get(name, 0.0), largest((args, output)))
            seen.inside = max(seen.inside, largest([t for t in _tensors((args, output)) if t.ndim]))

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _anomaly() -> Iterator[list[str]]:
    """Autograd's anomaly mode inside the block; the list receives its warnings, which name the forward line."""
    log: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.autograd.set_detect_anomaly(True, check_nan=True):
            yield log
        log += [str(w.message) for w in caught]


def largest(value: Any) -> float:
    """Largest finite magnitude in all float tensors inside ``value``; 0.0 where there is none."""
    best = 0.0
    for tensor in _tensors(value):
        if has_fractions(tensor) and tensor.numel():
            kept = torch.nan_to_num(as_real(tensor.detach()).float().abs(), nan=0.0, posinf=0.0)
            best = max(best, float(kept.max()))
    return best


def _beyond(result: Any, operands: Any, known: float) -> bool:
    """Whether ``result`` is too large for sums of squares of its operands, numbers up to ``known`` among them."""
    if math.isinf(known) or (most := largest(result)) <= _BEYOND:
        return False
    plain = [abs(v) for v in tree_leaves(operands) if isinstance(v, (int, float)) and math.isfinite(v)]
    given, made = (sum(t.numel() for t in _tensors(v)) for v in (operands, result))
    return most > _BEYOND * (1.0 + max([known, *plain])) ** 2 * max(1.0, given / max(made, 1))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from _tensors(v)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _tensors(v)
    elif isinstance(getattr(value, "tensors", None), Tensor):
        yield value.tensors


def _finite(value: Any) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in _tensors(value) if has_fractions(t) and t.layout == torch.strided)


def _only_masks(value: Any) -> bool:
    """Whether what is not finite in it is minus infinity, with which code leaves places out of a maximum or softmax."""
    return not any(
        bool((r.isnan() | (r == torch.inf)).any()) for r in map(as_real, _tensors(value)) if has_fractions(r)
    )


def _memory(value: Any) -> set[int]:
    """Where the tensors in a nest have their numbers."""
    return {t.untyped_storage().data_ptr() for t in _tensors(value) if t.layout == torch.strided}


def _any_float(value: Any) -> bool:
    return any(has_fractions(t) and t.numel() for t in _tensors(value))


def _half(result: Any) -> str:
    """Said of an op whose result is not finite in float16: no other type ends at 65504."""
    bad = (t for t in _tensors(result) if t.is_floating_point() and not bool(torch.isfinite(t).all()))
    return IN_HALF if any(t.dtype is torch.float16 for t in bad) else ""


def _where() -> tuple[str, bool]:
    """The innermost line outside torch and this file, as " (file.py:12, function)"; whether it is torchvision's.

    Empty where that line is of a replay: the op is torch's own, called from here.
    """
    for frame in reversed(traceback.extract_stack(limit=60)):
        name = frame.filename.replace("\\", "/")
        if name.endswith(_OURS):
            break
        if "/torch/" not in name and not name.endswith("maskrcnn_coco/replay/locate.py"):
            return f" ({name.rsplit('/', 1)[-1]}:{frame.lineno}, {frame.name})", "/torchvision/" in name
    return "", False


def _line_in(text: str) -> str:
    lines = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', text)
    own = [x for x in lines if "/torch/" not in x[0].replace("\\", "/")]
    if not own:
        return ""
    file, line, function = own[-1]
    return f" ({file.replace(chr(92), '/').rsplit('/', 1)[-1]}:{line}, {function})"
