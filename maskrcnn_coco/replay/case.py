"""A refused step with everything that is needed to run it again: `Rig` says how, `Case` says what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.records import Alarm, StepRecord
from maskrcnn_coco.replay.snapshot import Snapshot
from maskrcnn_coco.replay.tape import TapeEntry


@dataclass
class Rig:
    """What it takes to run a step away from the run.

    Attributes:
        model: the run's model (it is deep-copied at first use, never run), or a function that builds a private one.
        build_optimizer: as the run's; every group has "component".
        forward: (model, batch, step, micro, precision or None for the run's own) → losses with a graph. Seeds torch
            from (seed, step, micro); does the autocast of ``precision`` itself.
        forward_again: the same with random numbers that go on, for an optimizer that is handed a closure and evaluates
            the loss within its step as often as it likes; None: it takes its step from the gradients.
        make_batch: keys of one micro-batch → Batch; None where the data is not at hand.
        redraw: key of a sample → key of another draw of it; None where nothing of a sample is drawn at random.
        components: model → component → parameter name → parameter.
        reference: builds the same architecture as plain eager code on the CPU, or None where there is none.
        reference_forward: as ``forward``, for that model, on the CPU; None where ``forward`` does it.
    """

    model: nn.Module | Callable[[], nn.Module]
    build_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    forward: Callable[[nn.Module, Any, int, int, str | None], dict[str, Tensor]]
    components: Callable[[nn.Module], dict[str, dict[str, nn.Parameter]]]
    forward_again: Callable[[nn.Module, Any, int, int, str | None], dict[str, Tensor]] | None = None
    make_batch: Callable[[list[Any]], Any] | None = None
    redraw: Callable[[Any], Any] | None = None
    precision: str = "fp32"
    max_grad_norm: float = 10.0
    norms_clipped: bool = False
    """The run's recorded norms are of clipped gradients, as a loop of somebody's own leaves them."""
    device: torch.device | str = "cpu"
    fp32_modules: list[str] = field(default_factory=list)
    reference: Callable[[], nn.Module] | None = None
    reference_forward: Callable[[nn.Module, Any, int, int, str | None], dict[str, Tensor]] | None = None


@dataclass
class Case:
    """A refused or diverged step and all that is needed to run it again.

    ``now`` is the state before the failing step, ``earlier`` older states, newest first; ``batches`` are the failing
    step's micro-batches; ``tape`` the last steps in order; ``settings`` plain values for the explanation.
    """

    alarm: Alarm
    now: Snapshot
    earlier: list[Snapshot]
    tape: list[TapeEntry]
    batches: list[Any] | None
    history: list[StepRecord]
    settings: dict[str, Any]
    rig: Rig
    planned: Callable[[int], TapeEntry | None] | None = None
    """What any planned step would take: keys and learning rates, without what recovery has changed since. None: the
    case is from a file."""
    files: Callable[[], Iterator[tuple[str, Snapshot]]] | None = None
    """Older saved states, newest first, each read when it is asked for; None where nothing was loaded."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Parameter name → its gradient in the run, live, where that is still there."""
    loaded_step: int | None = None
    """The step of the file that the run went on from in this process."""

    def entries(self, from_step: int) -> list[TapeEntry]:
        """Applied steps of the tape from ``from_step`` up to, not with, the failing one; the last take of each."""
        latest = {e.step: e for e in self.tape if from_step <= e.step < self.alarm.step}
        return [latest[s] for s in sorted(latest) if latest[s].applied]

    def entry(self, step: int) -> TapeEntry | None:
        """The last take of ``step``, where it is on the tape and was applied."""
        return next((e for e in self.entries(step) if e.step == step), None)

    def covers(self, from_step: int) -> bool:
        """Whether the tape holds every step from ``from_step`` on, so that it can be walked again."""
        have = {e.step for e in self.tape}
        return self.rig.make_batch is not None and all(s in have for s in range(from_step, self.alarm.step))


def dict_of(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
