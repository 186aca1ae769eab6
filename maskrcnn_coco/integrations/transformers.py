"""The guard in a Hugging Face ``Trainer``: ``Trainer(..., callbacks=[GuardCallback()])``.

The trainer's optimizer is Accelerate's wrapper; the guard stands behind the torch optimizer inside it. A refused step
is told to Accelerate, so that the learning-rate schedule does not move on without one. The trainer's own log hides
losses that are NaN (``logging_nan_inf_filter``); the guard's warning does not.
"""

from __future__ import annotations

from typing import Any

from maskrcnn_coco.anywhere.attach import attach
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.guard.attached import Attached

try:
    from transformers import TrainerCallback  # pyright: ignore
except ModuleNotFoundError as missing:
    raise ConfigError(
        "the Trainer callback needs transformers, which is not installed", fix="pip install transformers accelerate"
    ) from missing


class GuardCallback(TrainerCallback):
    """Refuses every step that is not finite or that diverges, and says so once.

    Args:
        options: as `attach` takes them: ``on_alarm``, ``mode``, ``components``, ``diagnose`` …

    Attributes:
        guard: None before the training starts.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.guard: Attached | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Stand behind the optimizer.

        Raises:
            ConfigError: DeepSpeed or FSDP takes the step itself.
        """
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise ConfigError(
                "the guard cannot stand behind DeepSpeed or FSDP: they take the step themselves, on shards",
                fix="train without them, or leave the callback out",
            )
        model, wrapped = parts["model"], parts["optimizer"]
        scaler = getattr(wrapped, "scaler", None)
        self.guard = attach(model, getattr(wrapped, "optimizer", wrapped), scaler=scaler, **self.options)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Tell Accelerate that the step was not taken: ``optimizer_step_was_skipped`` holds the schedule back."""
        wrapped = parts.get("optimizer")
        if self.guard is None or not hasattr(wrapped, "_is_overflow"):
            return
        # With a GradScaler Accelerate sets it at each step; without one nobody would take it back.
        scaled = getattr(wrapped, "scaler", None) is not None
        wrapped._is_overflow = self.guard.refused or (scaled and wrapped._is_overflow)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, Any] | None = None,
        **parts: Any,
    ) -> None:
        """``guard_refused`` in the logs: the steps that were refused so far."""
        if logs is not None and self.guard is not None and self.guard.refused_steps:
            logs["guard_refused"] = self.guard.refused_steps

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Leave the optimizer as it was."""
        if self.guard is not None:
            self.guard.detach()
