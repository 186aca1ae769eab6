"""Gradients averaged over the processes while the backward pass still runs.

A bucket leaves as soon as the backward pass has made its last gradient, the last layers' first. Every process sends the
same messages in the same order whatever happens to it (a crash sends what it has): so nobody waits for what never
comes, and a verdict can be reached afterwards. A process's own gradients stay where they are until everybody is known
to be sound; only `Turn.put_back` overwrites them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from maskrcnn_coco.distributed.buckets import by_kind, empty, fill, in_buckets

Facts = dict[str, float]


class Processes(Protocol):
    """What is needed of the processes of a run (`distributed.ranks.Ranks`)."""

    world: int

    def exchange(self, name: str) -> AbstractContextManager[None]:
        """Within, a process that is lost or late is an error that names it, and this exchange."""
        ...

    def flags_later(self, local: dict[str, float | int]) -> Callable[[], list[Facts]]:
        """Begin to tell the others ``local``; what it returns waits for theirs, in order of rank."""
        ...

    def sum_later(self, counts: Tensor) -> Any:
        """Begin to add up ``counts``; ``wait`` on what it returns."""
        ...


class Averaging:
    """Averages the gradients of a run, step by step. Buckets depend on the parameters alone, never on earlier steps."""

    def __init__(self, ranks: Processes) -> None:
        self.ranks = ranks
        self.early = True
        """Whether buckets may leave during the backward pass; the same on every process. Not where a gradient is added
        to after it seemed finished, as nested backward passes do (reentrant checkpointing)."""
        self._buckets: dict[tuple[Any, ...], list[Tensor]] = {}

    def turn(self, params: Iterable[Tensor], *, measure: bool = False) -> Turn:
        """One step's averaging of ``params``. ``measure``: `Turn.finite` will be asked."""
        kinds = by_kind(list(params))
        shares = [share for kind in kinds for share in in_buckets(kind)]
        return Turn(self, shares, [b for kind in kinds for b in self._buckets_for(kind)], measure=measure)

    def _buckets_for(self, params: list[Tensor]) -> list[Tensor]:
        key = (params[0].dtype, params[0].device, *(p.numel() for p in params))
        if key not in self._buckets:
            self._buckets[key] = [share[0].new_empty(sum(p.numel() for p in share)) for share in in_buckets(params)]
        return self._buckets[key]


class Turn:
    """One step: `watch` before the last backward pass (or never), `finish` after it, `put_back` if all is well."""

    def __init__(self, averaging: Averaging, shares: list[list[Tensor]], buckets: list[Tensor], *, measure: bool):
        self._averaging, self._ranks = averaging, averaging.ranks
        self._shares, self._buckets = shares, buckets
        self._params = [p for share in shares for p in share]
        self._missing = list(map(len, shares))
        self._next = len(shares) - 1
        """The bucket that leaves next. From the last to the first: the backward pass comes from behind."""
        self._there = [False] * len(self._params)
        self._measure, self._norms = measure, list[Tensor]()
        self._works: list[Any] = []
        self._hooks: list[Any] = []
        self._presence = torch.zeros(0, dtype=torch.int32)
        self._stale = False
        self._lost: RuntimeError | None = None

    def watch(self) -> None:
        """From now on gradients are final: buckets leave as they fill."""
        if not self._averaging.early:
            return
        bucket_of = [k for k, share in enumerate(self._shares) for _ in share]
        for i, p in enumerate(self._params):
            self._hooks.append(p.register_post_accumulate_grad_hook(partial(self._arrived, i, bucket_of[i])))

    def unwatch(self) -> None:
        """Let gradients be; twice does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _arrived(self, position: int, bucket: int, _: Tensor) -> None:
        if self._there[position]:
            self._stale |= bucket > self._next  # added to, after it was sent
            return
        self._there[position] = True
        self._missing[bucket] -= 1
        try:
            while self._next >= 0 and not self._missing[self._next] and self._lost is None:
                self._send()
        except RuntimeError as e:  # of the network, not of the backward pass in which we happen to be
            self._lost = e

    def _send(self) -> None:
        bucket = self._buckets[self._next]
        with torch.no_grad():
            fill(bucket, self._shares[self._next])
            if self._measure:
                self._norms.append(_norm(bucket))
        self._next -= 1
        self._works.append(dist.all_reduce(bucket, async_op=True))

    def send_rest(self) -> None:
        """After the backward pass: all that is still here. Raises MaskRCNNError where a process does not answer."""
        self.unwatch()
        with self._ranks.exchange("the averaging of gradients"):
            if self._lost is not None:
                raise self._lost
            while self._next >= 0:
                self._send()
            # After the buckets: how many of those have left already is not the same on every process.
            self._presence = torch.tensor([p.grad is not None for p in self._params], dtype=torch.int32)
            self._works.append(self._ranks.sum_later(self._presence))

    def finite(self) -> bool:
        """Whether this process's own gradients are, after `send_rest`."""
        return bool(torch.stack(self._norms).isfinite().all()) if self._norms else True

    def finish(self, facts: Facts) -> list[Facts]:
        """What every process measured (see `Ranks.all_flags`), once all buckets have arrived everywhere."""
        answers = self._ranks.flags_later({**facts, "stale": self._stale})
        self._wait()
        rows = answers()
        if any(row["stale"] for row in rows):
            self._averaging.early = False
            self._again()
        return rows

    def put_back(self) -> None:
        """Let the averages be the gradients. A parameter that has none on any process stays without."""
        present = dict(zip(map(id, self._params), self._presence.tolist(), strict=True))
        with torch.no_grad():
            for bucket, share in zip(self._buckets, self._shares, strict=True):
                empty(bucket.div_(self._ranks.world), share, present)

    def alone(self) -> None:
        """`send_rest`, `finish` and `put_back` where nothing else is to be exchanged."""
        self.send_rest()
        self._wait()
        self.put_back()

    def _wait(self) -> None:
        with self._ranks.exchange("the averaging of gradients"):
            for work in self._works:
                if work is not None:
                    work.wait()
        self._works = []

    def _again(self) -> None:
        self._next, self._measure = len(self._shares) - 1, False
        self.send_rest()
        self._wait()


def _norm(bucket: Tensor) -> Tensor:
    """In at least single precision; finite where all entries are (and their squares, as in torch's clipping)."""
    small = bucket.dtype in (torch.float16, torch.bfloat16)
    return torch.linalg.vector_norm(bucket, dtype=torch.float32 if small else None)
