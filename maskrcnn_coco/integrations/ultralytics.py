"""The guard in an Ultralytics training: ``yolo.add_callback("on_train_start", guard_callback())``.

Ultralytics offers callbacks only. This adapter imports nothing of it: it takes model, optimizer and scaler from the
trainer that the callback is handed. The trainer's average of the weights follows the step; a refused one leaves it to
average weights that did not move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maskrcnn_coco.anywhere.attach import attach
from maskrcnn_coco.errors import ConfigError


def guard_callback(**options: Any) -> Callable[[Any], None]:
    """A callback for ``on_train_start``; the guard is then ``trainer.guard``.

    Args:
        options: as `attach` takes them: ``on_alarm``, ``mode``, ``components``, ``diagnose`` …
    """

    def on_train_start(trainer: Any) -> None:
        missing = [name for name in ("model", "optimizer") if getattr(trainer, name, None) is None]
        if missing:
            raise ConfigError(
                f"the trainer has no {' and no '.join(missing)} yet",
                fix='add the callback for "on_train_start"',
            )
        scaler = getattr(trainer, "scaler", None)
        used = scaler if scaler is not None and scaler.is_enabled() else None
        trainer.guard = attach(trainer.model, trainer.optimizer, scaler=used, **options)

    return on_train_start
