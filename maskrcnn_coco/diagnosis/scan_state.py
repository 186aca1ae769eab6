"""Scan of weights, buffers, optimizer and loss scale: facts as names and numbers, found without running a step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.components import component_of, forgets_squares, is_possible
from maskrcnn_coco.diagnosis.facts import StateFault
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.optimizer_state import entries_of
from maskrcnn_coco.replay.snapshot import Snapshot
from maskrcnn_coco.replay.state import in_double, nonfinite_names

MIN_SCALE = 2.0**-10
"""A loss scale below this loses gradients to underflow and has no way back but time."""
MAX_SCALE = 2.0**64
"""No search for a scale gets here: it doubles once in 2000 steps."""
ENORMOUS = 1e18
"""Squares of weights beyond this are beyond float32."""
SMALLEST_EPS, SMALLEST_HALF = 1e-30, 3e-8
"""Below it an eps is lost beside a square's root in single precision; is 0 in half precision."""
SETTINGS = ("lr", "momentum", "weight_decay", "eps")


def scan_state(snapshot: Snapshot, model: nn.Module, names: list[str], owner: Callable[[str], str]) -> list[StateFault]:
    """Non-finite weights, buffers and optimizer state, impossible norm statistics, lr and loss scale.

    Args:
        names: parameter names in the order of the optimizer's own numbering.
        owner: name of a parameter, buffer or module → component.
    """
    parameters = {n for n, _ in model.named_parameters()}
    norms = {f"{n}.{b}": n for n, m in model.named_modules() if _is_norm(m) for b in ("running_mean", "running_var")}
    frozen = {f"{n}.{b}": n for n, m in model.named_modules() if _is_frozen(m) for b in ("weight", "bias")}
    faults = []
    for name in nonfinite_names(snapshot.model):
        bad = int((~torch.isfinite(snapshot.model[name])).sum())
        where = "parameter" if name in parameters else "norm" if name in norms or name in frozen else "buffer"
        faults.append(_fault(where, name, f"{bad} of {snapshot.model[name].numel()} values non-finite", owner))
    faults += _enormous(snapshot, parameters, owner)
    faults += _zeroed(snapshot, parameters, owner)
    faults += _norm_faults(snapshot, model, owner)
    faults += _optimizer_faults(snapshot, names, owner)
    scale = (snapshot.scaler or {}).get("scale")
    if scale is not None and not MIN_SCALE <= scale <= MAX_SCALE:
        certain = not math.isfinite(scale) or scale > MAX_SCALE
        faults.append(StateFault("scaler", "scale", f"loss scale {scale:.3g}", certain=certain))
    return faults


def _fault(where: str, name: str, what: str, owner: Callable[[str], str], certain: bool = True) -> StateFault:
    return StateFault(where, name, what, owner(name), name.rpartition(".")[0] or None, certain)


def _enormous(snapshot: Snapshot, parameters: set[str], owner: Callable[[str], str]) -> list[StateFault]:
    floats = [
        (n, t)
        for n in parameters
        if (t := snapshot.model.get(n)) is not None and (t.is_floating_point() or t.is_complex())
    ]
    largest = [(n, float(t.abs().max())) for n, t in floats if t.numel()]
    what = "finite but enormous, up to {:.3g}: no weight gets there in training"
    found = [_fault("parameter", n, what.format(v), owner) for n, v in sorted(largest) if ENORMOUS < v < math.inf]
    return [dataclasses.replace(f, enormous=True) for f in found]


def _zeroed(snapshot: Snapshot, parameters: set[str], owner: Callable[[str], str]) -> list[StateFault]:
    kernels = [n for n in parameters if n in snapshot.model and snapshot.model[n].ndim >= 2]
    zero = sorted(n for n in kernels if snapshot.model[n].numel() and not snapshot.model[n].any())
    return [_fault("parameter", n, "every value is zero", owner, certain=False) for n in zero]


def began_at_zero(case: Case) -> list[str]:
    """Weights that are zero and were so in each older state: thin matrices, tables and last layers begin so by design.

    None where a file was loaded, which may have been written so.
    """
    if case.settings.get("resume_path") is not None:
        return []
    older = [s.model for s in case.earlier]
    zero = [n for n, t in case.now.model.items() if t.ndim >= 2 and t.numel() and not t.any()]
    return [n for n in zero if all(n in m and not m[n].any() for m in older)]


def unset(found: list[StateFault], meant: set[str], now: Snapshot) -> list[StateFault]:
    """Of what is ``meant`` not to be finite, buffers with NaN: nobody has set them yet, or a file is at fault."""
    suspects = [s for s in found if s.where == "buffer" and s.name in meant]
    return [dataclasses.replace(s, certain=False) for s in suspects if bool(now.model[s.name].isnan().any())]


def _is_norm(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_var", None), Tensor)


def _is_frozen(module: nn.Module) -> bool:
    return _is_norm(module) and not isinstance(getattr(module, "weight", None), nn.Parameter)


def _norm_faults(snapshot: Snapshot, model: nn.Module, owner: Callable[[str], str]) -> list[StateFault]:
    faults = []
    frozen = identity = 0
    for name, module in model.named_modules():
        given = getattr(module, "eps", None)
        if "Norm" in type(module).__name__ and isinstance(given, (int, float)) and not given >= 0:
            faults.append(_fault("norm", f"{name}.eps", f"eps is {given:g}: the root of a number below zero", owner))
            continue
        momentum = getattr(module, "momentum", None)
        if _is_norm(module) and isinstance(momentum, (int, float)) and not 0 <= momentum <= 1:
            what = f"momentum is {momentum:g}, expected 0 to 1: statistics swing beyond those of any batch"
            faults.append(_fault("norm", f"{name}.momentum", what, owner, certain=False))
        variance = snapshot.model.get(f"{name}.running_var")
        if variance is None or variance.is_complex() or not bool(torch.isfinite(variance).all()):
            continue
        eps = float(getattr(module, "eps", 1e-5))
        low = float(variance.min())
        count = int((variance + eps <= 0).sum())
        if count or low < 0:
            what = f"running_var as low as {low:.3g} with eps {eps:.3g}: the square root of nothing"
            faults.append(_fault("norm", f"{name}.running_var", what, owner))
        elif low + eps < 1e-9:
            what = f"running_var {low:.3g} with eps {eps:.3g} multiplies by {(low + eps) ** -0.5:.3g}"
            faults.append(_fault("norm", f"{name}.running_var", what, owner, certain=False))
        if _is_frozen(module):
            frozen += 1
            mean = snapshot.model.get(f"{name}.running_mean")
            identity += bool((variance == 1).all() and (mean is None or not mean.any()))
    if frozen > 2 and identity == frozen:
        what = f"all {frozen} frozen norm layers hold mean 0 and variance 1: no statistics were loaded"
        faults.append(StateFault("norm", "identity", what, "backbone", None, certain=False))
    return faults


def _optimizer_faults(snapshot: Snapshot, names: list[str], owner: Callable[[str], str]) -> list[StateFault]:
    faults = []
    forgetful = any(map(forgets_squares, snapshot.optimizer.get("param_groups", [])))
    for index, entry in entries_of(snapshot.optimizer):
        name = names[index] if isinstance(index, int) and index < len(names) else str(index)
        for key, value in entry.items():
            if not bool(torch.isfinite(value).all()):
                faults.append(_fault("optimizer", name, f"{key} is non-finite", owner))
        faults += [] if forgetful else _vanished(entry, name, owner)
    for group in snapshot.optimizer.get("param_groups", []):
        component = group.get("component")
        for key in SETTINGS:
            if not is_possible(value := group.get(key)):
                shown = value if isinstance(value, complex) else float(value)
                faults.append(StateFault("lr", f"{key} of {component}", f"{key} is {shown}", component))
        betas = [float(b) for b in group.get("betas") or ()]
        if not all(is_possible(b, below=1.0) for b in betas):
            faults.append(
                StateFault("lr", f"betas of {component}", f"betas are {betas}, expected 0 to below 1", component)
            )
    return faults


def _vanished(entry: dict[str, Any], name: str, owner: Callable[[str], str]) -> list[StateFault]:
    first, second = entry.get("exp_avg"), entry.get("exp_avg_sq")
    if first is None or second is None or not first.numel():
        return []
    # Adam divides by sqrt(exp_avg_sq): a zero below a non-zero mean cannot come from Adam's own arithmetic.
    gone = int(((second == 0) & (first.abs() > 1e-15)).sum())
    if gone <= 0.01 * first.numel():
        return []
    what = f"exp_avg_sq is 0 under a non-zero exp_avg in {gone} of {first.numel()} places"
    return [_fault("optimizer", name, what, owner)]


def lost_eps(snapshot: Snapshot, names: list[str]) -> list[StateFault]:
    """Groups whose eps is 0, or so small that it is lost: a weight that never had a gradient is then 0 / 0.

    By itself no fault; where an update of finite numbers was not finite, it says why.
    """
    lost = {}
    for group in snapshot.optimizer.get("param_groups", []):
        eps, component = group.get("eps"), group.get("component")
        if not isinstance(eps, (int, float)) or eps < 0:
            continue
        weights = (snapshot.model.get(names[i]) for i in group["params"] if i < len(names))
        half = any(w is not None and w.dtype is torch.float16 for w in weights)
        if eps < (SMALLEST_HALF if half else SMALLEST_EPS):
            shown = f"eps is {eps:g}" + (", in half precision 0" if half and eps else "")
            what = f"{shown}: where the squares are 0 as well, the update is 0 / 0"
            lost[component] = StateFault("lr", f"eps of {component}", what, component)
    return list(lost.values())


def misfits(refused: dict[str, str], owner: Callable[[str], str]) -> list[StateFault]:
    """Optimizer state that has not the shape of its weight: name of the weight → what the guard saw of it."""
    return [_fault("optimizer", name, what, owner) for name, what in refused.items()]


def overwritten(names: Sequence[str], known: set[str], now: Snapshot, before: Snapshot | None) -> list[StateFault]:
    """Buffers that leapt between two steps, where no forward pass was."""
    found = []
    for name in names:
        buffer, old = now.model.get(name), None if before is None else before.model.get(name)
        if name in known or buffer is None:
            continue
        size = float(in_double(buffer).norm())
        was = "" if old is None else f", it was {float(in_double(old).norm()):.3g}"
        where = "norm" if name.endswith(("running_mean", "running_var")) else "buffer"
        what = f"its norm is {size:.3g}{was}, and no step has changed it"
        found.append(StateFault(where, name, what, component_of(name), name.rpartition(".")[0] or None))
    return found
