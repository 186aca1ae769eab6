"""A guard behind somebody else's `optimizer.step`: the loop stays as it is, gradients stay the loop's own.

The model's forward pass is act one (hooks look at what goes in, and copy the buffers), the optimizer's step is acts two
and three: the gradients are judged as they stand, then the optimizer's own step runs or nothing does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.errors import DataError
from maskrcnn_coco.guard import forward_backward, inputs, optimizer_step
from maskrcnn_coco.guard.blind import Blind
from maskrcnn_coco.guard.climbs import Climbs
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.guard.hooks import Entrances, Hook, replace_step
from maskrcnn_coco.guard.immediate import Act, Mode
from maskrcnn_coco.guard.joined import Joined, nested
from maskrcnn_coco.guard.loss_scale import OthersScale
from maskrcnn_coco.guard.norms import Components
from maskrcnn_coco.guard.own_gradients import OwnGradients
from maskrcnn_coco.guard.sharding import shares_of
from maskrcnn_coco.guard.stand_ins import StandIns
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.guard.watched_step import WatchedStep
from maskrcnn_coco.records import Alarm, StepRecord

KEPT = 300
"""Records and alarms that are kept."""


class Attached(Guard):
    """A guard that a training does not call; made by `maskrcnn_coco.attach`. ``alarm`` is the verdict on the last step,
    ``refused`` whether it was refused, ``alarms`` and ``records`` the last of each."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        scaler: torch.amp.GradScaler | None = None,
        components: Components | None = None,
        mode: Mode = "recover",
        measure_every: int = 50,
        check_every: int = 10,
        on_alarm: Callable[[Alarm], Any] | None = None,
        say: bool = True,
    ) -> None:
        optimizer: Any = optimizers[0] if len(optimizers) == 1 else Joined(optimizers)
        super().__init__(
            model,
            optimizer,
            max_grad_norm=None,
            components=components,
            mode=mode,
            measure_every=measure_every,
            check_every=check_every,
            on_alarm=on_alarm,
            say=say,
        )
        self.instruments.shares = self.instruments.layout.shares = self._shares
        self.instruments.serve_any_loop()
        self.alarms: deque[Alarm] = deque(maxlen=KEPT)
        self.records: deque[StepRecord] = deque(maxlen=KEPT)
        self.refused = False
        self.refused_steps = 0
        self._blind = Blind(says=say)
        self.immediate.agree_at_once = False  # forward passes need not be equally many on every process
        self.instruments.scale = OthersScale(scaler)
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._round: set[int] = set()
        self._through = False
        self._within: WatchedStep | None = None
        """The step that is evaluating the loss now."""
        self._result: Any = None
        self._first_came: torch.Tensor | None = None
        """What the first backward pass brought to the model's loss; read where it matters."""
        self.instruments.buffers.save()  # a compiled model has no hooks that would do it in time
        self._stand_ins = StandIns()
        weight = optimizer.param_groups[-1]["params"][-1] if say and mode != "off" else None
        self._entrances = Entrances(model, self._before_forward, self._after_forward, weight=weight)
        self._loaded = model.register_load_state_dict_post_hook(Hook(self._after_load))
        self._inner: list[tuple[torch.optim.Optimizer, bool, Callable[..., Any]]] = []
        for i, each in enumerate(optimizers):
            for one in (each, *nested(each)):
                self._replace(one, i)
        self._gradients = OwnGradients(optimizers[0], self._scaler)
        self._climbs = Climbs(self.instruments)
        if self._scaler is not None:
            self._scaler_step = self._scaler.step
            self._scaler.step = self._scaled_step  # type: ignore[method-assign]

    def _refuse_what_it_cannot(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._shares = shares_of(model, optimizer)

    def _replace(self, optimizer: torch.optim.Optimizer, index: int) -> None:
        had = "step" in vars(optimizer)

        def stepped(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return self._stepped(optimizer, index, inner, args, kwargs)

        self._inner.append((optimizer, had, replace_step(optimizer, stepped)))

    # --- what a training may call

    def see(self, loss: Any) -> Any:
        """Show the loss that is trained on, where it is made outside the model; returns it unchanged.

        Args:
            loss: in any form that `Guard.step` takes. Of several in one step (accumulation) the mean counts.
        """
        act = self._open([])
        if not act.certain:
            act.seen, act.certain = [], True
        act.seen.append(forward_backward.total(forward_backward.as_terms(loss)))
        return loss

    @property
    def goes_up(self) -> bool:
        """Whether steps go back from the model's loss times less than 0, as of one that is to grow, from the first."""
        came = [self._first_came, None if self._act is None else self._act.came]
        return all(c is not None and float(c) < 0 for c in came)

    def batch(self, batch: Any, ids: Sequence[int] | None = None) -> Any:
        """``batch`` as it is: only with ``diagnose=True`` is anything asked of it, and a loop need not know which."""
        return batch

    def detach(self) -> None:
        """Take hooks and wrapped steps off again; the training goes on without a guard."""
        self._entrances.remove()
        self._loaded.remove()
        self._gradients.remove()
        for optimizer, had, inner in self._inner:
            if had:
                optimizer.step = inner  # type: ignore[method-assign]
            else:
                vars(optimizer).pop("step", None)
        self._inner = []
        if self._scaler is not None:
            vars(self._scaler).pop("step", None)
            self._scaler = None

    # --- act one

    def _open(self, batches: list[Any], *, early: bool = False) -> Act:
        """The step in hand; a new one where the last is over. ``early``: the forward pass has not begun yet."""
        if self._act is not None and self._act.done is None:
            return self._act
        self._close_round()
        act = self._act = self.immediate.begin(batches, self._record(batches, None, None, 0), save=early)
        act.foreign = []  # whatever gradients there are, they are the loop's
        self._climbs.begin()
        if act.over and early:
            self.instruments.buffers.save()  # the forward pass runs all the same
        return act

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.mode == "off" or self._result is not None:
            return None
        batches, known = [args, kwargs] if kwargs else [args], self._act is not None and self._act.done is None
        act = self._open(batches, early=True)
        if known:
            found = inputs.verdict_on(batches, self.instruments.expected)
            if found is not None and not found.suspicion:
                act.before = found if found.fatal else act.before or found
            elif not self.instruments.holes:
                act.suspicion = act.suspicion or found
        if act.before is None and len(args) == 2:  # images and targets, perhaps
            self._stand_ins.learn(args)
        if act.before is None or not act.before.fatal or self.mode == "observe":
            return None
        instead = self._stand_ins.instead(args, self.instruments.expected)
        if instead is not None:
            return instead, kwargs
        self._act = None
        self.instruments.raise_alarm(act.record, act.before)
        # Nothing else keeps the caller's forward pass from running; native code may kill the process.
        fix = "leave this sample out; with guard.step(forward, batch) the step is refused and training goes on"
        raise DataError(act.before.message, expected="targets that the model can take", fix=fix)

    def _after_forward(self, _: nn.Module, out: Any) -> None:
        act = self._act
        if act is None or act.done is not None or act.certain:
            return
        loss = forward_backward.loss_in(out, act.through)
        if loss is not None:
            act.seen.append(loss)

    def _after_load(self, *_: Any) -> None:
        self.instruments.health.reset()
        self.instruments.buffers.loaded()
        self.instruments.buffers.save()

    # --- acts two and three

    def _stepped(
        self,
        optimizer: torch.optim.Optimizer,
        index: int,
        inner: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if self.mode == "off" or self._through:
            return inner(*args, **kwargs)
        closure = kwargs.get("closure", args[0] if args and callable(args[0]) else None)
        if closure is None:
            return self._judged_step(optimizer, index, lambda: inner(*args, **kwargs))
        if not optimizer_step.evaluates_once(optimizer):
            return self._watched_step(inner, closure)
        with torch.enable_grad():
            result = closure()
        self._note(result)
        rest = {k: v for k, v in kwargs.items() if k != "closure"}
        self._judged_step(optimizer, index, lambda: inner(closure=lambda: result, **rest))
        return result

    def _note(self, result: Any) -> None:
        """What a closure returned is the loss, surely."""
        if result is not None:
            self.see(result if isinstance(result, Tensor) else torch.as_tensor(float(result)))

    def _judged_step(self, optimizer: torch.optim.Optimizer, index: int, call: Callable[[], Any]) -> Any:
        """Judge at the first optimizer of a step; then this optimizer's own step, or none."""
        if index in self._round:
            self._close_round()
            self._act = None
        act = self._act
        if act is None or (act.done is not None and not self._round):
            act = self._open([])
        self._gradients.steps()
        if act.done is None:
            self._climbs.step_comes()
        if self._first_came is None:
            self._first_came = act.came
        # A GradScaler leaves these two on a fused optimizer, whose gradients are still scaled.
        found_inf, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
        overflowed = found_inf is not None and bool(found_inf)
        if act.done is None and overflowed:
            self._overflowed(act)
        elif act.done is None:
            self.immediate.grad_scale = scale
            self.immediate.judge(act, self._pass(act))
            if act.verdict is not None and act.came is not None:
                act.verdict.measured["brought"] = brought = float(act.came)
                act.verdict.measured |= {"climbs": True} if brought < 0 else {}
            if not act.over:
                self.immediate.before_step(act)
        self._round.add(index)
        result = None
        if not act.over or overflowed:
            # What the device skips by itself is told to it, so that it can clear up.
            self._through = True
            try:
                with self.instruments.lowered_rates():
                    result = call()
            finally:
                self._through = False
        else:
            optimizer._opt_called = True  # type: ignore[attr-defined]  # the scheduler's own question: it was asked
        if len(self._round) == len(self._optimizers):
            self._close_round()
        return result

    def _overflowed(self, act: Act) -> None:
        """The scaler found scaled gradients beyond range: no fault, unless the loss itself is bad."""
        act.done, act.over = self._pass(act), True
        act.record.losses, act.record.loss = act.done.losses, act.done.loss
        if act.done.micro_batch is not None:
            act.verdict = act.suspicion or Verdict("loss_nonfinite", "the loss is not finite", {})
        act.verdict = act.verdict or self._gradients.stuck(self.refused)

    def _pass(self, act: Act) -> forward_backward.Pass:
        """What is known of this step's forward and backward passes. One host read."""
        if not act.seen:
            return forward_backward.Pass()
        values = [float(v) for v in act.seen] if len(act.seen) < 3 else torch.stack(act.seen).tolist()
        mean = sum(values) / len(values)
        if math.isfinite(mean):
            return forward_backward.Pass({"loss": mean}, certain=act.certain)
        bad = [i for i, v in enumerate(values) if not math.isfinite(v)]
        rest, first = (values[bad[-1] + 1 :], bad[0]) if bad else ([], None)
        later = sum(rest) / len(rest) if rest else math.nan
        certain = act.certain or (act.came is not None and len(bad) == len(values))
        return forward_backward.Pass({"loss": mean}, micro_batch=first, certain=certain, later=later)

    @property
    def _optimizers(self) -> list[torch.optim.Optimizer]:
        known = self.instruments.optimizer
        return known.optimizers if isinstance(known, Joined) else [known]

    def _close_round(self) -> None:
        """The step is complete: learn from it, or put everything back."""
        act, self._round = self._act, set()
        if act is None or act.done is None:
            return
        self._act = None
        if act.over:
            self._climbs.refused()
            self.immediate.apply(act, None)
        else:
            self.immediate.after_step(act)
            (self._climbs.applied if act.record.applied else self._climbs.refused)()
        self._keep(act.record)
        self._blind.seen(act.record, self.instruments.layout)

    def _keep(self, record: StepRecord) -> None:
        self.refused, self.refused_steps = not record.applied, self.refused_steps + (not record.applied)
        self.records.append(record)
        if self._gradients.there or self.instruments.alarm is not None:
            self._gradients.tell(self.instruments, record, self.alarms)
        self._gradients.step_taken()
        self._entrances.step_taken()
        self.instruments.buffers.save()

    def _watched_step(self, inner: Callable[..., Any], closure: Callable[[], Any]) -> Any:
        """A step that evaluates the loss as often as it likes."""
        self._close_round()
        act, self.immediate.evaluates = self._open([], early=True), True
        step = self._within = WatchedStep(self.immediate, act, self._note)
        self._through = True
        self._entrances.step_begins()
        try:
            with self.instruments.lowered_rates():
                result = inner(step.closure(closure))
        except BaseException:
            step.broken_off()
            raise
        finally:
            self._through, self._within = False, None
        done, self._act = self._pass(act), None
        step.end(done)
        self._keep(act.record)
        return result

    # --- a scaler that was shown to us

    def _scaled_step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        """In the place of ``scaler.step``: a bad loss is no reason to halve the scale."""
        scaler: Any = self._scaler
        if self.mode in ("off", "observe") or all(optimizer is not o for o in self._optimizers):
            return self._scaler_step(optimizer, *args, **kwargs)
        state = scaler._per_optimizer_states[id(optimizer)]
        if state["stage"].name == "READY":
            scaler.unscale_(optimizer)
        act = self._open([])
        if any(bool(v) for v in state["found_inf_per_device"].values()):
            scale = float(scaler.get_scale())
            self._overflowed(act)
            if act.verdict is not None:
                for v in state["found_inf_per_device"].values():
                    v.zero_()  # the loss is to blame, not the scale: update() must not halve it
                state["stage"] = type(state["stage"]).STEPPED
            else:
                act.verdict = self.instruments.scale.judge(act.record.step, scale)
                self._scaler_step(optimizer, *args, **kwargs)
            self._close_round()
            return None
        return self._scaler_step(optimizer, *args, **kwargs)
