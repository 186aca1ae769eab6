"""How a step of anybody's model is taken again on a private copy: forward pass, optimizer, random numbers."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.anywhere.samples import Key, Samples, leaves
from maskrcnn_coco.components import component_of, plain_name
from maskrcnn_coco.guard.forward_backward import as_terms
from maskrcnn_coco.guard.joined import Joined
from maskrcnn_coco.records import StepRecord
from maskrcnn_coco.replay.case import Rig
from maskrcnn_coco.replay.private_copy import around, twins_of
from maskrcnn_coco.replay.private_optimizer import private_optimizer
from maskrcnn_coco.system.precision import autocast

STEPS = 64
"""Steps whose batches are kept, so that they can be taken again."""
CLIPPED, ALIKE = 3, 1e-4
"""So many of a loop's largest gradient norms that are equal up to this share are no chance: it clips to that number."""
BYTES = 512 * 2**20
"""Most memory that they may hold on to."""


class Kept:
    """The batches of the last steps, with the random state that each forward pass began with."""

    def __init__(self) -> None:
        self._steps: OrderedDict[int, list[tuple[Samples, Tensor, Callable[..., Any] | None]]] = OrderedDict()
        self.blamed: set[int] = set()
        """Samples that were found guilty of something: no measure of what is usual."""

    def add(self, step: int, samples: Samples, random: Tensor, forward: Callable[..., Any] | None) -> None:
        """One micro-batch of planned step ``step``."""
        self._steps.setdefault(step, []).append((samples, random, forward))
        while len(self._steps) > STEPS or (len(self._steps) > 1 and self.nbytes > BYTES):
            self._steps.popitem(last=False)

    def drop_from(self, step: int) -> None:
        """Forget planned steps ``step`` and later."""
        for s in [s for s in self._steps if s >= step]:
            del self._steps[s]

    def batches(self, step: int) -> list[Samples]:
        """The micro-batches of a step; empty where it is not kept."""
        return [samples for samples, _, _ in self._steps.get(step, [])]

    def others(self, step: int) -> list[Samples]:
        """The micro-batches of all other steps, without what was blamed."""
        found = [samples for s, held in self._steps.items() if s != step for samples, _, _ in held]
        places = [[p for p, i in enumerate(b.image_ids) if i not in self.blamed] for b in found]
        return [b if len(p) == len(b) else b.subset(p) for b, p in zip(found, places, strict=True) if p]

    def of(self, keys: list[Key]) -> Samples:
        """The micro-batch that these keys are of. KeyError where it is gone."""
        return self._steps[keys[0].step][keys[0].micro][0]

    def random(self, step: int, micro: int) -> Tensor | None:
        """The random state of a forward pass."""
        found = self._steps.get(step, [])
        return found[min(micro, len(found) - 1)][1] if found else None

    def forward(self, step: int, micro: int) -> Callable[..., Any] | None:
        """The function that took a forward pass, where each has its own."""
        found = self._steps.get(step, [])
        return found[min(micro, len(found) - 1)][2] if found else None

    @property
    def nbytes(self) -> int:
        """Bytes of the batches held; a tensor that several share counts once."""
        tensors = (t for held in self._steps.values() for s, _, _ in held for t in leaves(s.data))
        return sum(dict(map(_memory, tensors)).values())


def _memory(t: Tensor) -> tuple[int, int]:
    """(where it lies, bytes). A sparse tensor and one without data lie nowhere: they count by themselves, whole."""
    if t.layout != torch.strided or t.is_meta:
        return id(t), t.numel() * t.element_size()
    return t.data_ptr(), t.nbytes


def group_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """A name for each parameter group: its own, else the part of the model that all of it lies in, else its number."""
    known = {id(p): plain_name(n) for n, p in model.named_parameters()}
    names: list[str] = []
    for i, group in enumerate(optimizer.param_groups):
        parts = {component_of(known[id(p)]) for p in group["params"] if id(p) in known}
        name = group.get("name") or group.get("component") or (parts.pop() if len(parts) == 1 else f"group {i}")
        names.append(str(name) if str(name) not in names else f"{name} (group {i})")
    return names


def _identities(optimizer: torch.optim.Optimizer) -> list[list[int]]:
    return [list(map(id, g["params"])) for g in optimizer.param_groups]


class Groups:
    """The optimizer's parameter groups as components: what a learning rate belongs to."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.names = group_names(model, optimizer)
        by_id = {id(p): n for n, p in model.named_parameters()}
        self.members = [[by_id[id(p)] for p in g["params"] if id(p) in by_id] for g in optimizer.param_groups]
        self.foreign = sum(id(p) not in by_id for g in optimizer.param_groups for p in g["params"])
        self.model, self.optimizer = model, optimizer
        self._held = _identities(optimizer)

    @property
    def outdated(self) -> bool:
        """Whether the optimizer was given groups or parameters since."""
        return self._held != _identities(self.optimizer)

    def of(self, model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
        """Group → parameter name → parameter of ``model``, which may be a copy."""
        params = dict(model.named_parameters())
        pairs = zip(self.names, self.members, strict=True)
        return {name: {n: params[n] for n in members if params[n].requires_grad} for name, members in pairs}

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The same optimizer for a copy of the model: same class and settings, no state."""
        if self.foreign:
            raise ValueError(f"{type(self.optimizer).__name__} holds parameters that are not the model's")
        twins = twins_of(self.model, model)
        if isinstance(self.optimizer, Joined):
            made: Any = Joined([private_optimizer(live, twins) for live in self.optimizer.optimizers])
        else:
            made = private_optimizer(self.optimizer, twins)
        for group, name in zip(made.param_groups, self.names, strict=True):
            group["component"] = name
        return made


class Forwards:
    """Takes the forward pass of a recorded micro-batch on any copy of the model."""

    def __init__(self, live: nn.Module, kept: Kept, forward: Callable[..., Any] | None) -> None:
        self.live, self.kept, self.forward = live, kept, forward
        self.precision = "fp32"
        self._twins: tuple[nn.Module | None, dict[int, Any]] = (None, {})

    def __call__(self, model: nn.Module, batch: Samples, step: int, micro: int, how: str | None) -> dict[str, Tensor]:
        """Losses with a graph; ``how``: another precision than the run's."""
        random = self.kept.random(step, micro)
        if random is not None:
            torch.set_rng_state(random)
        else:
            torch.manual_seed(step)  # a step that was not taken: draws of its own
        return self.again(model, batch, step, micro, how)

    def again(self, model: nn.Module, batch: Samples, step: int, micro: int, how: str | None) -> dict[str, Tensor]:
        """The same, with random numbers that go on from where they are: the optimizer evaluates the loss once more."""
        function = self.forward or self.kept.forward(step, micro)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        single = no_autocast() if how == "fp32" and self.precision != "fp32" else contextlib.nullcontext()
        with autocast(how or self.precision, device), single:
            out = self._call(function, model, batch.data)
        # A replay averages over micro-batches itself: what the loop divided already is taken times their number.
        count = len(self.kept.batches(step))
        return {name: term.float() * number_divided_by(divisor(term), count) for name, term in as_terms(out).items()}

    def _call(self, function: Callable[..., Any] | None, model: nn.Module, data: Any) -> Any:
        if function is None:
            args, kwargs = data
            return model(*args, **kwargs)
        own = around(function, self._twins_of(model))  # one that is given the model may name the live one all the same
        return own(model, data) if takes_model(function) else own(data)

    def _twins_of(self, model: nn.Module) -> dict[int, Any]:
        if self._twins[0] is not model:
            self._twins = (model, twins_of(self.live, model))
        return self._twins[1]


def divisor(loss: Any) -> float:
    """What ``loss`` was divided by, where that was the last thing done to it; 1 otherwise."""
    node: Any = getattr(loss, "grad_fn", None)
    if node is None or node.name() not in ("DivBackward0", "MulBackward0"):
        return 1.0
    try:
        other = getattr(node, "_saved_other", None)
    except RuntimeError:
        return 1.0  # shown after its backward pass, which has freed it
    if not isinstance(other, Tensor) or other.numel() != 1:
        return 1.0
    return float(other) if node.name() == "DivBackward0" else 1.0 / (float(other) or math.inf)


def number_divided_by(by: float, count: int) -> float:
    """``count``, where a loss of so many micro-batches was divided by it; 1 otherwise."""
    return float(count) if count > 1 and math.isclose(by, count, rel_tol=1e-6) else 1.0


@contextlib.contextmanager
def no_autocast() -> Iterator[None]:
    """Inside, autocast that a forward pass opens itself stays off: everything is computed in its weights' precision."""
    kind: Any = torch.amp.autocast_mode.autocast
    enter = kind.__enter__

    def entered(self: Any) -> Any:
        found = enter(self)
        torch.set_autocast_enabled(self.device, False)  # what was before comes back at the exit
        return found

    kind.__enter__ = entered
    try:
        yield
    finally:
        kind.__enter__ = enter


def takes_model(function: Callable[..., Any]) -> bool:
    """Whether ``function`` is of (model, batch), and not of the batch alone."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in plain and p.default is p.empty for p in parameters) >= 2


def own_clip(records: Sequence[StepRecord]) -> float:
    """The norm to which a loop clips by itself: where several of the largest recorded ones are one number; else 0."""
    norms = sorted((r.grad_norm for r in records if math.isfinite(r.grad_norm) and r.grad_norm > 0), reverse=True)
    alike = [n for n in norms if n >= (1 - ALIKE) * norms[0]]
    return norms[0] if len(alike) >= CLIPPED else 0.0


def make_rig(
    groups: Groups,
    forwards: Forwards,
    *,
    max_grad_norm: float | None,
    fp32_modules: list[str],
    norms_clipped: bool = False,
    evaluates: bool = False,
) -> Rig:
    """A rig around the live model; it is copied at the first replay."""
    device = next((p.device for p in forwards.live.parameters()), torch.device("cpu"))
    return Rig(
        model=forwards.live,
        build_optimizer=groups.build,
        forward=forwards,
        forward_again=forwards.again if evaluates else None,
        components=groups.of,
        make_batch=forwards.kept.of,
        precision=forwards.precision,
        max_grad_norm=max_grad_norm or 0.0,
        norms_clipped=norms_clipped,
        device=device,
        fp32_modules=list(fp32_modules),
    )
