"""Whether tensors were changed behind the guard's back, without reading them.

Whatever writes in place counts up a tensor's version, and a replaced tensor lies elsewhere; both are free to look at.
What goes past them (``.data``, memory shared with others) is seen in a sample of each tensor, one small read for all.
"""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from maskrcnn_coco.guard.norms import SMALLEST_RMS, Layout
from maskrcnn_coco.guard.sharding import local

SAMPLE = 8
"""Entries of each tensor that are looked at: each is a line of memory of its own, and whoever writes, writes many."""
WHOLE = 1024
"""Tensors up to this size are looked at whole."""
PUSHES, FEW = 20, 3
"""Changes from outside that are looked at together, at most and at least."""
LARGEST = 700.0
"""The largest logarithm of a number that a float holds."""
GROWN = math.log(3.0)
"""Growth of a component's norm by them that no loop means. Shrinking is: clamping, and weights of a fixed length, take
away what the steps in between have added, by a fifth in each."""

Marks = tuple[list[int], list[int]]
"""Place and version of each tensor."""
_PLACE, _VERSION = Tensor.data_ptr, operator.attrgetter("_version")
_WHOLE = {Tensor, nn.Parameter}
"""Kinds that are nobody's share of anything."""


class Witness:
    """Remembers tensors as they were at `note`."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._marks: Marks = ([], [])
        self._views: list[Tensor] = []
        self._sample: bytes | Tensor | None = None
        self._as_they_are = True
        self._arrays: list[numpy.ndarray] = []

    def note(self, tensors: Sequence[Tensor]) -> None:
        """This is how they are to stay."""
        marks = _marks(tensors)
        if len(tensors) != len(self._tensors) or any(map(operator.is_not, tensors, self._tensors)):
            self._tensors, self._views = list(tensors), [_view(t) for t in tensors]
            self._arrange()
        elif marks[0] != self._marks[0] or not self._views:  # none: of them only marks were noted last
            self._views = [_view(t) for t in tensors]
            self._arrange()
        self._marks, self._sample = marks, self._look()

    def note_marks(self, tensors: Sequence[Tensor]) -> None:
        """The same without a look at what they hold, which on a device is one more kernel."""
        self._tensors, self._views, self._marks, self._sample = list(tensors), [], _marks(tensors), None

    def changed(self, tensors: Sequence[Tensor]) -> bool:
        """Whether any of them is not what it was at `note`; True also where others have come."""
        known = self._sample
        if known is None or len(tensors) != len(self._tensors):
            return True
        if any(map(operator.is_not, tensors, self._tensors)):
            return True
        if _marks(tensors) != self._marks:
            return True
        # Bits, not values: a NaN must equal itself.
        now = self._look()
        if isinstance(known, Tensor) and isinstance(now, Tensor):
            return not torch.equal(now, known)
        return not (isinstance(known, bytes) and isinstance(now, bytes) and now == known)

    def marked(self, tensors: Sequence[Tensor], first: int) -> bool:
        """Whether any from position ``first`` on lies elsewhere, or was written into, as far as their marks say.

        Cheaper than `changed`. ``tensors``: those from there on. False where nothing was noted.
        """
        if not self._tensors or len(tensors) != len(self._tensors) - first:
            return bool(self._tensors)
        places, versions = _marks(tensors)
        return places != self._marks[0][first:] or versions != self._marks[1][first:]

    def which(self, tensors: Sequence[Tensor]) -> list[int]:
        """Positions of those that are not what they were; empty where it cannot be told. Slower than `changed`."""
        if len(tensors) != len(self._tensors):
            return []
        now, then = (list(zip(*m, strict=True)) for m in (_marks(tensors), self._marks))
        marks = [i for i, t in enumerate(tensors) if t is not self._tensors[i] or now[i] != then[i]]
        if self._sample is None:
            return marks
        ends = torch.tensor([v.numel() for v in self._views]).cumsum(0).tolist()
        differs = (_bytes(self._look()) != _bytes(self._sample)).reshape(ends[-1], -1).any(1).cpu()
        starts = [0, *ends]
        return sorted({*marks, *(i for i, end in enumerate(ends) if bool(differs[starts[i] : end].any()))})

    def forget(self) -> None:
        """Everything may have changed."""
        self._tensors, self._views, self._marks, self._sample = [], [], ([], []), None

    def _arrange(self) -> None:
        """Whether the views can be read as they are: of one device, and none in a precision without arithmetic."""
        first = self._views[0] if self._views else torch.zeros(0)
        self._as_they_are = all(v.device == first.device and v.element_size() > 1 for v in self._views)
        alike = all(v.dtype is first.dtype and v.device.type == "cpu" for v in self._views)
        # NumPy puts small pieces together in a fifth of the time.
        plain = alike and first.dtype in (torch.float32, torch.float64)
        self._arrays = [numpy.from_dlpack(v) for v in self._views] if plain else []

    def _look(self) -> bytes | Tensor:
        """The sample as bytes; on a device, or of mixed precision, uint8 (n,)."""
        if self._arrays:
            return numpy.concatenate(self._arrays).tobytes()
        views = self._views or [torch.zeros(0)]
        if not self._as_they_are:
            views = [v if v.device == views[0].device else v.to(views[0].device) for v in views]
            # Of mixed precision the widest holds all; float8 has no wider kin of its own.
            views = [v.float() if v.element_size() < 2 else v for v in views]
        return torch.cat(views).view(torch.uint8)


class Pushes:
    """What changes from outside amount to together, where each is small: weights scaled up after every step.

    Only changes that were measured right before and after count, so that no step of the optimizer's is among them.
    """

    def __init__(self) -> None:
        self._logs: deque[list[float]] = deque(maxlen=PUSHES)
        self.left = 0
        """Steps for which the next change is worth an exact measurement: somebody changed weights lately."""

    def add(
        self, before: Sequence[float], now: Sequence[float], layout: Layout, *, exact: bool
    ) -> tuple[int, float, int] | None:
        """One more change, none that is too much by itself: (position of the component, how many times its norm is what
        it was by the last ones, how many), if those are together.

        Args:
            before, now: norm of each component's weights.
        """
        self.left = PUSHES
        if not exact or not all(map(math.isfinite, (*before, *now))):
            return None
        floors = [SMALLEST_RMS * math.sqrt(n) for n in layout.sizes]
        self._logs.append([math.log(max(b, f) / max(a, f)) for a, b, f in zip(before, now, floors, strict=True)])
        sums = [sum(logs) for logs in zip(*self._logs, strict=True)]
        worst = max(range(len(sums)), key=sums.__getitem__)
        if sums[worst] <= GROWN or len(self._logs) < FEW:
            return None
        count = len(self._logs)
        self.forget()
        return worst, math.exp(min(sums[worst], LARGEST)), count

    def forget(self) -> None:
        """Weights are others now."""
        self._logs.clear()


def zeroed(before: list[float], now: list[float], params: Sequence[Tensor], state: Any) -> list[int]:
    """Positions of kernels that are all zero and were not, while the optimizer still remembers how they were trained.

    A shard that was not gathered, a buffer cleared too early. Who starts an adapter again from zero on purpose (ReLoRA)
    clears most of its optimizer state with it.

    Args:
        before: norms of the weights as the last step left them; ``now``: before this one.
        state: the optimizer's, by parameter.
    """
    found = []
    for i, (was, norm, p) in enumerate(zip(before, now, params, strict=True)):
        if norm == 0.0 < was and p.ndim > 1:
            kept = [local(v) for v in (state.get(p) or {}).values() if isinstance(v, Tensor) and v.shape == p.shape]
            if any(2 * int(torch.count_nonzero(v)) > v.numel() for v in kept):
                found.append(i)
    return found


def _bytes(sample: bytes | Tensor) -> Tensor:
    return torch.frombuffer(bytearray(sample), dtype=torch.uint8) if isinstance(sample, bytes) else sample


def _marks(tensors: Sequence[Tensor]) -> Marks:
    """Place and version of each."""
    if not _WHOLE.issuperset(map(type, tensors)):
        tensors = [local(t) for t in tensors]
    try:
        return list(map(_PLACE, tensors)), list(map(_VERSION, tensors))
    except RuntimeError:  # tensors of inference mode have no version
        return list(map(_PLACE, tensors)), [-1 if t.is_inference() else t._version for t in tensors]


def _view(tensor: Tensor) -> Tensor:
    """Some entries of ``tensor``'s own memory, float32 or as they are, (n,)."""
    tensor = local(tensor.detach())
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.numel() == 0:
        return torch.zeros(0)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    step = 1 if tensor.numel() <= WHOLE else tensor.numel() // SAMPLE
    count = -(-tensor.numel() // step)
    packed = tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    # Memory without holes is sampled whatever the order of its dimensions; other tensors are left to their versions.
    return torch.as_strided(tensor, (count,), (step,)) if packed else torch.zeros(0)
