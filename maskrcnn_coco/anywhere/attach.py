"""`attach`: one line that puts the guard behind somebody else's training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.guard.acts import Mode
from maskrcnn_coco.guard.attached import Attached
from maskrcnn_coco.guard.norms import Components
from maskrcnn_coco.records import Alarm


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    *,
    scaler: torch.amp.GradScaler | None = None,
    components: Components | None = None,
    mode: Mode = "recover",
    on_alarm: Callable[[Alarm], Any] | None = None,
    say: bool = True,
) -> Attached:
    """Guard a training that calls ``optimizer.step()`` itself; nothing else in it changes.

    A step with anything non-finite, or that diverges, is not taken: weights, buffers and the optimizer's state stay bit
    for bit as they were, gradients stay the loop's own, and it is said once (`GuardWarning`)::

        guard = attach(model, optimizer)
        for batch in loader:
            optimizer.zero_grad()
            loss = guard.see(criterion(model(batch.x), batch.y))   # only where the loss is made outside the model
            loss.backward()
            optimizer.step()

    Args:
        model: the module whose buffers are protected and whose outputs are looked at for a loss.
        optimizer: one, or several that step once each for one backward pass (Muon and AdamW). Two optimizers that step
            in turn (a GAN) want a guard each, with the part of the model that each trains.
        scaler: the GradScaler, so that a bad loss does not halve its scale.
        components: name → parameters, for norms and messages; by default the model's top-level children.
        mode: "recover" and "stop" refuse; "observe" only reports; "off" does nothing.
        on_alarm: called with each `Alarm`, in place of the warning.
        say: warn about what is refused.

    Returns:
        The guard: ``see(loss)``, ``alarm``, ``refused``, ``alarms``, ``records``, ``new_regime()``,
        ``accept_buffers()``, ``detach()``.

    Raises:
        ConfigError: no optimizer, no trainable parameters, or parameters that are shards.
    """
    found = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
    if not found or not all(isinstance(o, torch.optim.Optimizer) for o in found):
        kinds = ", ".join(type(o).__name__ for o in found) or "none"
        raise ConfigError("attach needs a torch optimizer, or a list of them", got=kinds)
    return Attached(model, found, scaler=scaler, components=components, mode=mode, on_alarm=on_alarm, say=say)
