"""The guard in a Lightning training: ``Trainer(callbacks=[GuardCallback()])``.

Lightning hands its closure (forward, backward) to ``optimizer.step(closure)``, in automatic and in manual optimization
alike, so the guard stands behind ``step`` of the optimizers themselves. With fp16 it stands behind the GradScaler too.
"""

from __future__ import annotations

from typing import Any

from maskrcnn_coco.anywhere.attach import attach
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.guard.attached import Attached

try:
    from lightning.pytorch import Callback  # pyright: ignore
except ModuleNotFoundError:
    try:
        from pytorch_lightning import Callback  # pyright: ignore
    except ModuleNotFoundError as missing:
        raise ConfigError(
            "the Lightning callback needs Lightning, which is not installed", fix="pip install lightning"
        ) from missing

OWNERS_OF_THE_STEP = ("DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy")
"""Strategies that take the step themselves, on shards: there the guard would not see what is applied."""


class GuardCallback(Callback):
    """Refuses every step that is not finite or that diverges, and says so once.

    Args:
        options: as `attach` takes them: ``on_alarm``, ``mode``, ``components``, ``diagnose`` …

    Attributes:
        guards: one for each optimizer, so that two that step in turn (a GAN) have one each; empty before the start.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.guards: list[Attached] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Stand behind the optimizers.

        Raises:
            ConfigError: the strategy takes the step itself.
        """
        strategy = type(trainer.strategy).__name__
        if strategy in OWNERS_OF_THE_STEP:
            raise ConfigError(
                f"the guard cannot stand behind {strategy}: it takes the step itself, on shards",
                fix='use Trainer(strategy="ddp") or "auto", or leave the callback out',
            )
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        for optimizer in trainer.optimizers:
            self.guards.append(attach(pl_module, optimizer, scaler=scaler, **self.options))

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """The loss is made in ``training_step``, outside ``forward``: show it to the guards."""
        for guard in self.guards:
            guard.see(loss)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any, **named: Any) -> None:
        """``guard/refused`` in the metrics: the steps that were refused so far."""
        refused = sum(guard.refused_steps for guard in self.guards)
        if refused:
            pl_module.log("guard/refused", float(refused), prog_bar=True, rank_zero_only=True)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the optimizers as they were."""
        self._detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the optimizers as they were."""
        self._detach()

    def _detach(self) -> None:
        for guard in self.guards:
            guard.detach()
