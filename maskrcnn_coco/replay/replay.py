"""Run a step again, away from the run, with one thing changed.

The run is never touched: replays work on a private deep copy of the model with its own optimizer, inside forked
random generators (torch, CUDA, numpy, python). Bit-exact where the device's kernels are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.guard import forward_backward
from maskrcnn_coco.guard.aside import Aside
from maskrcnn_coco.guard.norms import Layout, moved_by, sizes_of
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.gradients import by_another, gradient_digest, read_norms, times_of
from maskrcnn_coco.replay.isolation import Counted, FixedScale, LiveBuffers, forked_random, kept_fp32, own, share_of
from maskrcnn_coco.replay.locate import Located, located_run, watched_ops
from maskrcnn_coco.replay.optimizer import (
    names_of,
    put_sound,
    put_usual,
    restore_optimizer,
    set_again,
    set_rates,
    setting_names,
    settings_of,
)
from maskrcnn_coco.replay.optimizer_state import forget, sound_states
from maskrcnn_coco.replay.outcome import Outcome
from maskrcnn_coco.replay.private_copy import PrivateCopy, private_copy
from maskrcnn_coco.replay.private_step import take_step
from maskrcnn_coco.replay.snapshot import Snapshot, restore
from maskrcnn_coco.replay.state import nonfinite_names, state_tensors
from maskrcnn_coco.replay.tape import TapeEntry
from maskrcnn_coco.replay.thrown import thrown
from maskrcnn_coco.system.backends import own_kernels, plain_attention
from maskrcnn_coco.system.memory import ran_out

CALMER = 16.0
"""A loss scale at which only the gradients overflow is divided by this, down to 1."""


class ReplayImpossible(Exception):
    """A replay could not be made, for example for want of memory: no evidence either way."""


class Replay:
    """Replays of one case. ``spent`` counts seconds, ``count`` replays, ``steps`` their cost in whole steps.

    After ``most_steps`` no further replay is begun: `ReplayImpossible`. Steps, not seconds: a busy machine
    has as much to find the cause with as an idle one.
    """

    def __init__(self, case: Case, *, most_steps: float = math.inf) -> None:
        self.case, self.rig, self.most_steps = case, case.rig, most_steps
        self.spent, self.count, self.steps = 0.0, 0, 0.0
        self.missing: list[str] = []
        """What the private copy could not take over from the run's model."""
        self._model: nn.Module | None = None
        self._aside: Aside | None = None
        self._live = LiveBuffers(self.rig.model)
        self._optimizer: torch.optim.Optimizer | None = None
        self._layout: Layout | None = None
        self._calm = math.inf
        self._made: dict[int, list[Any]] = {}

    @property
    def out_of_steps(self) -> bool:
        """Whether the budget is spent."""
        return self.steps >= self.most_steps

    @property
    def model(self) -> nn.Module:
        """The private copy, in train mode; made at first use."""
        if self._model is None:
            source = self.rig.model
            try:
                copied = private_copy(source) if isinstance(source, nn.Module) else PrivateCopy(source())
            except Exception as e:  # a module of the user's own may refuse to be copied in any way
                raise ReplayImpossible(f"no private copy of the model: {type(e).__name__}: {str(e)[:200]}") from e
            self.missing = copied.missing
            self._model = own(copied.model, self.rig.fp32_modules)
            self._model.zero_grad(set_to_none=True)
            self._aside = Aside(self._model)
            self._aside.save()
        return self._model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The private model's optimizer."""
        if self._optimizer is None:
            self._optimizer = self.rig.build_optimizer(self.model)
        return self._optimizer

    def batches_of(self, entry: TapeEntry) -> list[Any]:
        """The micro-batches of a recorded step, made again from their keys and kept."""
        if entry.step not in self._made:
            assert self.rig.make_batch is not None
            try:
                self._made[entry.step] = [self.rig.make_batch(list(keys)) for keys in entry.keys]
            except Exception as e:  # a file that is gone, a data set that fails
                raise ReplayImpossible(f"the batch of step {entry.step} cannot be made again: {e}") from e
        return self._made[entry.step]

    def keep(self, step: int, batches: list[Any]) -> None:
        """Use these batches for planned step ``step``, instead of making them."""
        self._made[step] = batches

    def run(
        self,
        test: str,
        *,
        snapshot: Snapshot | None = None,
        batches: Sequence[Any] | None = None,
        step: int | None = None,
        precision: str | None = None,
        fp32_modules: Sequence[str] = (),
        loss_scale: float | None = None,
        locate: bool = False,
        digest: bool = False,
        reference: bool = False,
        libraries: bool = True,
        attention: bool = True,
        watch: str | None = None,
        passes: int = 1,
    ) -> Outcome:
        """Forward and backward without an update (learning rate 0).

        Args:
            test: what is changed, in words; it heads the evidence.
            snapshot: the weights; None for those before the failing step.
            batches: micro-batches; None for the failing step's own.
            step: whose random numbers to use; None for the failing step's.
            precision: fp32, fp16 or bf16; None for the run's.
            fp32_modules: modules to run in float32 inside autocast.
            loss_scale: multiply the loss by this for backward; None for the recorded one in fp16.
            locate: watch every module and op; slow.
            digest: hash losses and gradients, and compare those with the run's.
            reference: on `Rig.reference` instead of the copy.
            libraries: False for torch's own kernels instead of the vendors'.
            attention: False for attention by plain maths instead of a fused kernel.
            watch: with ``locate``, report the largest value in this module whether or not it is the first bad one.
            passes: of so many, each with the buffers that the one before left, the last is the outcome.
        """
        case = self.case
        batches = list(batches if batches is not None else case.batches or [])
        with self.away(passes * share_of(batches, case.batches)):
            model = self.rig.reference() if reference and self.rig.reference else self.model
            model.train()
            self._back_to(snapshot or case.now, model)
            scale = self._scale(precision, loss_scale)
            step = case.alarm.step if step is None else step
            plain = nullcontext() if attention else plain_attention()
            kernels = plain if libraries and not reference else own_kernels()
            with kept_fp32(model, fp32_modules), kernels:
                for _ in range(passes - 1):
                    self._measure(model, test, batches, step, precision, scale)
                outcome = self._measure(model, test, batches, step, precision, scale, locate, watch, loss_scale is None)
            if digest:
                outcome.digest, outcome.times = gradient_digest(model, outcome), times_of(case.gradients, model)
            model.zero_grad(set_to_none=True)
        outcome.steps = passes * share_of(batches, case.batches)
        return outcome

    def walk(
        self,
        test: str,
        snapshot: Snapshot,
        *,
        lr_factor: dict[str, float] | None = None,
        stop: Callable[[Outcome], bool] | None = None,
        visit: Callable[[nn.Module], None] | None = None,
        beyond: Sequence[TapeEntry] = (),
        lr_most: Mapping[str, float] | None = None,
        settings: Mapping[str, Any] | None = None,
        instead: Sequence[TapeEntry] | None = None,
    ) -> Outcome:
        """Train again from ``snapshot`` over the tape to the failing step, which is evaluated and not applied.

        Each step uses its recorded batches, random numbers and learning rates, times ``lr_factor`` per component, and
        no more than ``lr_most``. ``stop`` ends the walk early; ``visit`` sees the private model before the failing
        step. With ``beyond`` that is applied too, at the rates of the first of those steps, and they follow. No setting
        is above its number in ``settings``, or another than a mapping has there for its component. ``instead``: these
        steps and no others, the failing one neither.
        """
        factors = lr_factor or {}
        path, terms = list[tuple[int, float, float]](), list[dict[str, float]]()
        with self.away(0):
            model, optimizer, layout = self.model, self.optimizer, self._layout_of(self.model)
            model.train()
            self._back_to(snapshot, model, optimizer)
            outcome = Outcome(test, True)
            current = settings_of(self.case.now.optimizer.get("param_groups", []), setting_names(optimizer))
            steps = [*self.case.entries(snapshot.step), None, *beyond] if instead is None else list(instead)
            sizes = sizes_of([*layout.params], layout) if beyond else []
            for entry in steps:
                step = self.case.alarm.step if entry is None else entry.step
                batches = self.batches_of(entry) if entry else list(self.case.batches or [])
                if entry is None and visit:
                    visit(model)
                scale = self._scale(None, entry.loss_scale if entry else None)
                outcome = self._measure(model, test, batches, step, None, scale)
                path.append((step, outcome.loss, outcome.grad_norm))
                terms.append(outcome.losses)
                self.steps += 1
                if outcome.error or not outcome.finite or (stop and stop(outcome)):
                    break
                if entry is not None or beyond:
                    # The failing step itself has the settings of now, and so have those that are still to come.
                    set_again(optimizer, current if entry is None else entry.settings)
                    put_sound(optimizer, settings or {})
                    before = [p.detach().clone() for p in layout.params] if beyond and entry is steps[-1] else []
                    self._update(outcome, batches, step, (entry or beyond[0]).lr, factors, lr_most or {})
                    if outcome.error or outcome.within:
                        break
                    if before:
                        far = moved_by(before, layout, sizes)[1]
                        outcome.moved_last = dict(zip(layout.components, far, strict=True))
            model.zero_grad(set_to_none=True)
        outcome.path, outcome.terms, outcome.steps = path, terms, float(len(path))
        return outcome

    def update(
        self,
        test: str,
        lr: dict[str, float],
        state: Snapshot | None = None,
        *,
        empty: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """The failing step with its update, on the copy: weights and optimizer state that are not finite are named.

        Args:
            state: whose optimizer state to use; None: the failing step's own, or none at all with ``empty``.
            settings: in place of the run's, of every group, or where one is a mapping by component.
        """
        with self.away(1.0):
            model, optimizer = self.model, self.optimizer
            model.train()
            self._back_to(self.case.now, model, optimizer)
            if state is not None:
                restore_optimizer(optimizer, state.optimizer)
            elif empty:
                forget(optimizer)
            put_usual(optimizer.param_groups, names_of(optimizer), settings or {})
            batches = list(self.case.batches or [])
            outcome = self._measure(model, test, batches, self.case.alarm.step, None, self._scale(None, None))
            if outcome.finite and not outcome.error:
                layout = self._layout_of(model)
                before = [p.detach().clone() for p in layout.params]
                with watched_ops() as bad:
                    self._update(outcome, batches, self.case.alarm.step, lr, {}, {})
                outcome.first_bad_op = next(iter(bad), None)
                outcome.moved = max(moved_by(before, layout)[1], default=0.0)
                outcome.bad_grads = nonfinite_names(state_tensors(model))
                outcome.finite = not (outcome.bad_grads or outcome.within) and sound_states(optimizer)
            model.zero_grad(set_to_none=True)
        outcome.steps = 1.0
        return outcome

    def _back_to(self, state: Snapshot, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """``state``, and in plain attributes what the last test may have left: as in the run before the step."""
        restore(state, model, optimizer, rng=False)
        self._live.back()
        if self._aside is not None and model is self._model:
            self._aside.restore()

    def _scale(self, precision: str | None, loss_scale: float | None) -> float:
        if (precision or self.rig.precision) != "fp16":
            return 1.0
        scaler = self.case.now.scaler or {}
        scale = loss_scale if loss_scale is not None else scaler.get("scale", 1.0)
        return float(scale) if scale and math.isfinite(scale) else 1.0

    def _measure(
        self,
        model: nn.Module,
        test: str,
        batches: list[Any],
        step: int,
        precision: str | None,
        scale: float,
        locate: bool = False,
        watch: str | None = None,
        search: bool = True,
    ) -> Outcome:
        """One pass; where the losses are finite and only scaled gradients overflow, again at lower loss scales.

        A GradScaler would do the same: an alarm may come before its search has settled.
        """
        first = scale
        scale = min(scale, self._calm) if search else scale
        while True:
            outcome = self._once(model, test, batches, step, precision, scale, locate, watch)
            outcome.loss_scale = scale if scale < first else None
            overflow = outcome.bad_grad_count and not outcome.bad_losses and not outcome.error
            if outcome.finite and scale < first:
                self._calm = scale
            if locate or not search or not overflow or scale <= 1.0:
                return outcome
            scale = max(1.0, scale / CALMER)
            self.steps += share_of(batches, self.case.batches)

    def _once(
        self,
        model: nn.Module,
        test: str,
        batches: list[Any],
        step: int,
        precision: str | None,
        scale: float,
        locate: bool = False,
        watch: str | None = None,
        *,
        again: bool = False,
    ) -> Outcome:
        layout = self._layout_of(model)
        layout.zero_grad()
        outcome = Outcome(test, True)
        forward = Counted(self.rig, model, step, precision, reference=model is not self._model, again=again)
        run = located_run if locate else forward_backward.run
        # What is no loss is a fault of the step where the run met it; else the replay does not know how it is made.
        met = forward_backward.LossForm.__name__ in str(self.case.alarm.measured.get("error", ""))
        try:
            out = run(forward, batches, FixedScale(scale), layout, first=not met)
        except forward_backward.FAULTS as e:
            # The guard's own step lets through what it is pointless to go on after; a replay is then no evidence.
            raise ReplayImpossible(f"{test}: {type(e).__name__}: {e}") from e
        if isinstance(out, Located):
            out = out.told(outcome, watch)
        elif out.graph and not out.error and by_another(out, layout):
            raise ReplayImpossible(f"{test}: the loss has no gradient in the model that the forward pass was given")
        if out.error is not None:
            outcome.error = out.error.splitlines()[0][:160]
            outcome.finite = False
        outcome.losses, outcome.loss = out.losses, out.loss
        outcome.bad_buffers = thrown(model, self.case.now.model)
        outcome.finite = outcome.finite and not outcome.bad_buffers
        outcome.bad_losses = sorted(
            k for k, v in out.losses.items() if not math.isfinite(v) and k not in out.without_gradient
        )
        read_norms(layout, outcome, scale)
        outcome.unclipped = outcome.grad_norm
        if self.rig.norms_clipped and self.rig.max_grad_norm and math.isfinite(outcome.grad_norm):
            outcome.grad_norm = min(outcome.grad_norm, self.rig.max_grad_norm)
        return outcome

    def _update(
        self,
        outcome: Outcome,
        batches: list[Any],
        step: int,
        lr: dict[str, float],
        factors: Mapping[str, float],
        most: Mapping[str, float],
    ) -> None:
        """The update of planned step ``step``, whose pass over ``batches`` gave ``outcome``."""
        set_rates(self.optimizer, lr, factors, most)
        once_more = partial(self._once, self.model, outcome.test, batches, step, None, outcome.loss_scale or 1.0)
        again = None if self.rig.forward_again is None else partial(once_more, again=True)
        take_step(self.optimizer, self._layout_of(self.model), outcome, self.rig.max_grad_norm, again)

    def _layout_of(self, model: nn.Module) -> Layout:
        if model is not self._model:
            return Layout(model, self.rig.build_optimizer(model), self.rig.components(model))
        self._layout = self._layout or Layout(model, self.optimizer, self.rig.components(model))
        return self._layout

    @contextmanager
    def away(self, steps: float) -> Iterator[None]:
        """One replay that costs ``steps``: counted, timed, and with random generators of its own."""
        began = time.monotonic()
        if self.out_of_steps:
            raise ReplayImpossible(f"the {self.most_steps:g} steps for replays are spent")
        self.count, self.steps = self.count + 1, self.steps + steps
        try:
            random = forked_random(torch.device(self.rig.device).type == "cuda")
            # A loop's own check of gradients raises before there is anything to measure.
            with random, torch.enable_grad(), torch.autograd.set_detect_anomaly(False):
                yield
        except Exception as e:
            if self._model is not None:
                self._model.zero_grad(set_to_none=True)  # what a failed replay holds is missing to the next
            if ran_out(e):
                raise ReplayImpossible(f"memory ran out: {str(e)[:120]}") from e
            raise
        finally:
            self.spent += time.monotonic() - began
