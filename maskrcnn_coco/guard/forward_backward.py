"""Forward and backward of a step's micro-batches: the losses as numbers, and what was raised on the way, in words."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskrcnn_coco.errors import ConfigError, MaskRCNNError, said_by
from maskrcnn_coco.guard.norms import Layout
from maskrcnn_coco.system.memory import ran_out

Losses = Any
"""A loss in any of the forms that `as_terms` takes."""
Forward = Callable[[Any], Losses]


class LossForm(ConfigError):
    """What a forward pass returned is no loss."""


FAULTS = (Exception,)
"""What a bad batch, a broken state or a mistake in code makes a forward pass raise: the class does not tell which."""


FROZEN = "every parameter is frozen (requires_grad=False): no loss has a gradient"
SWITCHED_OFF = "autograd is switched off (torch.set_grad_enabled(False), no_grad): no loss has a gradient"
DETACHED = "no loss has had a gradient for {} steps: it was made without one (detach(), .item(), no_grad)"


@dataclass
class Pass:
    """What forward and backward of one step gave. ``losses`` are means over the micro-batches.

    ``without_gradient`` names loss terms that are NaN but reach no gradient, such as a mean over no elements: they do
    no harm.
    ``error`` is the text of what the forward or backward pass raised. ``certain``: the losses are those trained on.
    ``later``: the mean of the losses after the last that was not finite; NaN where there are none. A loop that drops
    a bad pass by itself goes on to another before it steps.
    """

    losses: dict[str, float] = field(default_factory=dict)
    without_gradient: list[str] = field(default_factory=list)
    error: str | None = None
    micro_batch: int | None = None
    certain: bool = True
    later: float = math.nan
    graph: bool = False
    """Whether any loss has a gradient."""
    own_loss: float = math.nan
    """This process's own total, where ``losses`` are averaged over several."""

    @property
    def loss(self) -> float:
        """The total, without terms that reach no gradient; NaN where there is none."""
        terms = [v for k, v in self.losses.items() if k not in self.without_gradient]
        return math.fsum(terms) if terms and all(map(math.isfinite, terms)) else sum(terms) if terms else math.nan


def run(
    forward: Forward,
    batches: Sequence[Any],
    scaler: Any,
    layout: Layout,
    *,
    catch: bool = True,
    before_last: Callable[[], None] | None = None,
    first: bool = False,
) -> Pass:
    """Forward and backward of every micro-batch, each loss divided by their number; gradients add up.

    It stops at the first micro-batch with a non-finite loss: what comes after cannot change the verdict.
    ``before_last`` is called before the last backward pass: gradients that it makes are final. ``first``: no step was
    taken yet, and what is no loss is a mistake in the call, raised as it is; later it is a fault like any other.
    """
    out = Pass()
    for position, batch in enumerate(batches):
        try:
            terms = as_terms(forward(batch))
            out.graph = out.graph or any(t.requires_grad for t in terms.values())
            if not out.graph and (layout.frozen or not torch.is_grad_enabled()):
                raise RuntimeError(FROZEN if layout.frozen else SWITCHED_OFF)
            values = read(terms)
            for name, value in values.items():
                out.losses[name] = out.losses.get(name, 0.0) + value / len(batches)
            bad = [n for n, v in values.items() if not math.isfinite(v)]
            without_gradient = [n for n in bad if math.isnan(values[n]) and not _reaches(terms[n], layout)]
            out.without_gradient += [n for n in without_gradient if n not in out.without_gradient]
            if len(bad) > len(without_gradient):
                out.micro_batch = position
            if before_last is not None and position == len(batches) - 1:
                before_last()
            backward([t for n, t in terms.items() if n not in without_gradient], len(batches), scaler)
        except FAULTS as error:
            if not catch or (is_fatal(error) and (first or not isinstance(error, LossForm))):
                raise
            out.error = in_words(error)
            out.micro_batch = position
        if out.micro_batch is not None and catch:
            break
    return out


def seen(losses: Any) -> Pass:
    """A `Pass` of which only the loss is known: forward and backward were the caller's."""
    out = Pass()
    if losses is not None:
        out.losses = read(as_terms(losses))
        out.micro_batch = 0 if any(not math.isfinite(v) for v in out.losses.values()) else None
    return out


def in_words(error: BaseException) -> str:
    """What was raised: class, message, and at the end of the first line the innermost line that is the user's own."""
    first, _, rest = said_by(error).strip()[:2000].partition("\n")
    return f"{type(error).__name__}: {first}{_raised_at(error)}" + (f"\n{rest}" if rest else "")


_NOT_THE_USERS = (
    "/torch/",
    "/torchvision/",
    "/maskrcnn_coco/guard/",
    "/maskrcnn_coco/replay/",
    "/maskrcnn_coco/model/",
)


def _raised_at(error: BaseException) -> str:
    """The line to look at, as " (model.py:12, in forward)": the user's own where one is in the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(part in f.filename.replace("\\", "/") for part in _NOT_THE_USERS)]
    if not own:
        return ""
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno}, in {own[-1].name})"


def is_fatal(error: BaseException) -> bool:
    """Whether going on is pointless: out of memory, a device whose context is gone, or this project's own refusal."""
    if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError, MaskRCNNError, MemoryError)):
        return True
    return ran_out(error) or any(t in said_by(error) for t in ("CUDA error", "device-side assert"))


def as_terms(losses: Any) -> dict[str, Tensor]:
    """What ``forward`` returned as a dict of scalar tensors.

    A tensor (a vector counts as its mean), a dict of scalar tensors (their sum is the loss), an output object with a
    ``loss`` (Hugging Face's), or a tuple whose first part is the loss, or that has one number with a gradient (the
    ``logits, loss`` of many language models). Terms that are None are left out.

    Raises:
        ConfigError: anything else.
    """
    found = _named(losses)
    if found is None:
        odd = _odd_terms(losses)
        raise LossForm(
            "forward(batch) must return a loss",
            got=odd or _kind(losses),
            expected="a scalar tensor, a dict of scalar tensors, an output with .loss, or a tuple that begins with it",
            fix="reduce it to one number with .mean() or .sum()" if odd else _instead_of(losses),
        )
    return found


def _odd_terms(losses: Any) -> str:
    """The terms of a dict that are no scalar tensors, where others are."""
    if not isinstance(losses, Mapping):
        return ""
    terms = {str(n): t for n, t in losses.items() if t is not None}
    odd = [f"{n} is {_kind(t)}" for n, t in terms.items() if not (isinstance(t, Tensor) and t.numel() == 1)]
    return ", ".join(odd[:3]) if len(odd) < len(terms) else ""


def _named(losses: Any) -> dict[str, Tensor] | None:
    if isinstance(losses, Tensor):
        return {"loss": losses if losses.numel() == 1 else losses.mean()} if losses.ndim < 2 else None
    if isinstance(losses, Mapping):
        terms = {str(n): t for n, t in losses.items() if t is not None}
        if all(isinstance(t, Tensor) and t.numel() == 1 for t in terms.values()):
            return terms if type(losses) is dict or "loss" not in terms else {"loss": terms["loss"]}
        return _named(terms["loss"]) if isinstance(terms.get("loss"), Tensor) else None
    if isinstance(losses, (tuple, list)):
        numbers = [t for t in losses if isinstance(t, Tensor) and t.ndim == 0 and t.requires_grad]
        if len(numbers) == 1:
            return {"loss": numbers[0]}
        return _named(losses[0]) if losses and isinstance(losses[0], (Tensor, Mapping)) else None
    inner = getattr(losses, "loss", None)
    return _named(inner) if isinstance(inner, Tensor) else None


def _instead_of(losses: Any) -> str:
    """What to do where a forward pass returned this."""
    if losses is None:
        return "end the function with: return loss"
    if isinstance(losses, (int, float)) or (hasattr(losses, "__float__") and not isinstance(losses, Tensor)):
        return "return the tensor itself, not loss.item() or float(loss): a number has no gradient"
    if isinstance(losses, Tensor):
        return "reduce it to one number with .mean() or .sum()"
    return "return the loss that is trained on; a torchvision detector returns losses in train mode only: model.train()"


def _kind(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def read(terms: Mapping[str, Tensor]) -> dict[str, float]:
    """One host read for all terms."""
    if not terms:
        return {}
    first = next(iter(terms.values()))
    stacked = torch.stack([t.detach().reshape(()).to(first.device, torch.float32) for t in terms.values()])
    return dict(zip(terms, stacked.tolist(), strict=True))


def backward(terms: Sequence[Tensor], parts: int, scaler: Any) -> None:
    graphs = [t for t in terms if t.requires_grad]
    if not graphs:
        return
    loss = sum_terms(graphs, parts)
    (scaler.scale(loss) if scaler is not None else loss).backward()


def sum_terms(terms: Sequence[Tensor], parts: int) -> Tensor:
    """The loss of one micro-batch: the terms' sum over the number of micro-batches."""
    loss = terms[0].reshape(())
    for t in terms[1:]:
        loss = loss + t.reshape(())
    return loss / parts if parts > 1 else loss


def _reaches(term: Tensor, layout: Layout) -> bool:
    """Whether ``term`` has any gradient that is not exactly zero; the graph is kept for the backward pass to come."""
    if not term.requires_grad:
        return False
    wanted = [p for p in layout.params if p.requires_grad]
    found = torch.autograd.grad(term, wanted, retain_graph=True, allow_unused=True)
    # Dense: a sparse gradient has no comparison of its own, and NaN != 0 must stay true.
    dense = (g._values() if g is not None and g.is_sparse else g for g in found)
    return any(g is not None and bool((g != 0).any()) for g in dense)


def loss_in(out: Any, trained: Callable[[Tensor], None] | None = None) -> Tensor | None:
    """The loss in what a model returned, where it is plain to see; detached, not read. None: made elsewhere.

    ``trained`` is called where a backward pass comes through it, with the gradient.
    """
    if isinstance(out, Tensor):
        if out.numel() != 1 or not out.requires_grad:
            return None
        if trained is not None:
            out.register_hook(trained)
        return total({"loss": out})
    try:
        terms = as_terms(out)
    except (ConfigError, TypeError, ValueError):
        return None
    own = next((t for t in terms.values() if t.requires_grad and t.numel() == 1), None)
    if own is None:
        return None
    if trained is not None:
        own.register_hook(trained)
    return total(terms)


def total(terms: dict[str, Tensor]) -> Tensor:
    """The sum of scalar terms, float32 (), without a graph."""
    values = [t.detach() for t in terms.values()]
    values = [t if t.ndim == 0 and t.dtype is torch.float32 else t.reshape(()).float() for t in values]
    return values[0] if len(values) == 1 else torch.stack(values).sum() if values else torch.zeros(())
