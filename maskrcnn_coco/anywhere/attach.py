"""`attach`: one line that puts the guard behind somebody else's training loop.

A step with anything non-finite, or that diverges, is not taken: weights, buffers and the optimizer's state stay bit for
bit as they were, gradients stay the loop's own, and it is said once (`GuardWarning`)::

    guard = attach(model, optimizer)
    for batch in loader:
        optimizer.zero_grad()
        loss = guard.see(criterion(model(batch.x), batch.y))   # only where the loss is made outside the model
        loss.backward()
        optimizer.step()

With ``diagnose=True`` the cause is found by taking steps again on a private copy of the model. They can be where the
model returns its own loss; where it is made outside, give ``forward`` and show each batch (``guard.batch(batch)``).
Optimizers that are handed a closure (LBFGS, SAM) are served too: ``optimizer.step(closure)`` stays as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.errors import ConfigError, GuardWarning
from maskrcnn_coco.guard import optimizer_step
from maskrcnn_coco.guard.arguments import refuse_other
from maskrcnn_coco.guard.attached import Attached
from maskrcnn_coco.guard.immediate import Mode
from maskrcnn_coco.guard.joined import nested
from maskrcnn_coco.guard.norms import Components
from maskrcnn_coco.records import Alarm
from maskrcnn_coco.system.backends import faults_under


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    *,
    scaler: torch.amp.GradScaler | None = None,
    components: Components | None = None,
    mode: Mode = "recover",
    on_alarm: Callable[[Alarm], Any] | None = None,
    say: bool = True,
    diagnose: bool = False,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    select: Callable[[Any, list[int]], Any] | None = None,
    logdir: str | Path | None = "runs/guard",
) -> Attached:
    """Guard a training that calls ``optimizer.step()`` itself; nothing else in it changes. See above.

    Args:
        model: the module whose buffers are protected and whose outputs are looked at for a loss.
        optimizer: one, or several that step once each for one backward pass (Muon and AdamW). Two optimizers that step
            in turn (a GAN) want a guard each, with the part of the model that each trains.
        scaler: the GradScaler, so that a bad loss does not halve its scale.
        components: name → parameters, for norms and messages; by default the model's top-level children.
        mode: "recover" and "stop" refuse; "observe" only reports; "off" does nothing.
        on_alarm: called with each `Alarm`, in place of the warning.
        say: warn about what is refused.
        diagnose: at each alarm find the cause and act: go back, lower one group's rate, keep a module in float32.
        forward: (model, batch) → the loss as the loop makes it, for ``diagnose``; show batches with `batch`.
        select: (batch, positions) → the batch with these samples only; by default cut along first dimensions.
        logdir: folder for incident files; None: none are written.

    Returns:
        The guard: ``see(loss)``, ``alarm``, ``refused``, ``alarms``, ``records``, ``new_regime()``,
        ``accept_buffers()``, ``detach()``; with ``diagnose`` also ``batch()``, ``finding``, ``incidents``,
        ``rollback()``.

    Raises:
        ConfigError: no optimizer, no trainable parameters, or parameters that are shards; with ``diagnose`` also one
            that steps another with other groups, and several that share parameters or of which one needs a closure.
    """
    found = _optimizers(optimizer)
    refuse_other(model, found[0], mode)
    for sentence in faults_under(model) if say and mode != "off" else []:
        warnings.warn(sentence, GuardWarning, stacklevel=2)
    if not diagnose:
        return Attached(model, found, scaler=scaler, components=components, mode=mode, on_alarm=on_alarm, say=say)
    _refuse_what_cannot_be_replayed(found)
    from maskrcnn_coco.anywhere.diagnosing_guard import Diagnosing

    return Diagnosing(
        model,
        found,
        forward=forward,
        select=select,
        logdir=logdir,
        scaler=scaler,
        components=components,
        mode=mode,
        on_alarm=on_alarm,
        say=say,
    )


def _refuse_what_cannot_be_replayed(found: list[torch.optim.Optimizer]) -> None:
    """A replay takes the steps of optimizers whose state and groups it knows; of several, from gradients alone."""
    for outer in found:
        _refuse_unknown(outer, alone=len(found) == 1)
    parameters = [id(p) for o in found for group in o.param_groups for p in group["params"]]
    shared = len(parameters) - len(set(parameters))
    if shared and len(found) > 1:
        text = "diagnose=True takes several optimizers that share no parameters: each steps once for one backward pass"
        fix = "attach a guard to each, with the part of the model that it trains"
        raise ConfigError(text, got=f"{shared} parameters in more than one of the {len(found)} optimizers", fix=fix)


def _refuse_unknown(outer: torch.optim.Optimizer, *, alone: bool) -> None:
    inner = next((name for name, held in vars(outer).items() if isinstance(held, torch.optim.Optimizer)), None)
    if inner is not None and not (alone and _shares_groups(outer)):
        kinds = f"{type(outer).__name__} around {type(getattr(outer, inner)).__name__}"
        fix = f"attach(model, optimizer.{inner}, diagnose=True): what the outer one does beside its steps is let be"
        text = "diagnose=True needs an optimizer that takes its steps itself, or one around another with its groups"
        raise ConfigError(text, got=kinds, fix=fix)
    if not alone and optimizer_step.needs_closure(outer):
        text = f"{type(outer).__name__} evaluates the loss several times: diagnose=True takes it alone, not with others"
        fix = "attach a guard to each, with the part of the model that it trains"
        raise ConfigError(text, expected="several optimizers whose step() needs no closure", fix=fix)


def _shares_groups(outer: torch.optim.Optimizer) -> bool:
    """Whether the optimizers inside have the groups of the outer one: a rate that is lowered is then theirs too."""
    own = {id(group) for group in outer.param_groups}
    # Not made up from those inside, as by wrappers of frameworks.
    held = {"state", "param_groups"} <= vars(outer).keys()
    return held and all(id(group) in own for one in nested(outer) for group in one.param_groups)


def _optimizers(given: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    found: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
    if not found or not all(isinstance(o, torch.optim.Optimizer) for o in found):
        kinds = ", ".join(type(o).__name__ for o in found) or "none"
        raise ConfigError("attach needs a torch optimizer, or a list of them", got=kinds)
    return found
