"""Several processes as one run, started by ``torchrun``; with one process everything here does nothing.

Gradients are averaged in buckets that are the same at every step, so that a resumed run adds in the same order and gets
the same bits (DistributedDataParallel rebuilds its buckets after the first step, which does not, from three processes
on), and while the backward pass still runs (`averaging`). What each process measured by itself travels beside them:
so all take the same branch, and one process's NaN is named though the sum hides it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from maskrcnn_coco.distributed.averaging import Averaging
from maskrcnn_coco.distributed.device import _device
from maskrcnn_coco.distributed.meeting import meet
from maskrcnn_coco.errors import ConfigError, MaskRCNNError

TIMEOUT_SECONDS = 600.0
"""How long a process waits for the others by default. A first step may be slow; an evaluation's shares are uneven."""
_ROLL_CALL_SECONDS = 8.0
_CONNECT_SECONDS = 30.0
"""For the connections between processes that are all there: a matter of milliseconds."""


class Ranks:
    """This process among those of the run. ``rank`` 0 is the main one: it alone writes files."""

    def __init__(self, rank: int, world: int, local_rank: int, device: torch.device, timeout: float) -> None:
        """Use `start`, which also connects the processes."""
        self.rank = rank
        self.world = world
        self.local_rank = local_rank
        self.device = device
        self.timeout = timeout
        self.averaging = Averaging(self)
        self._words: Any = None
        """The group that carries flags, objects and barriers; None: the default one, gloo. Beside nccl, which carries
        gradients only, it is another: nccl answers a lost process by ending this one without a word, gloo by an error
        that can name it."""

    @classmethod
    def start(cls, device: str | torch.device = "auto", *, timeout: float = TIMEOUT_SECONDS) -> Ranks:
        """Connect to the other processes, if ``torchrun`` (or SLURM through it) started more than one.

        Args:
            device: "auto", "cpu", "cuda" …; nccl carries gradients and weights on CUDA, gloo all else.
            timeout: seconds to wait for the slowest process in any exchange.

        Raises:
            ConfigError: RANK, WORLD_SIZE … are not set as torchrun sets them, or there are fewer GPUs than processes.
            MaskRCNNError: the other processes did not come.
        """
        world, rank, local_rank = _number("WORLD_SIZE", 1), _number("RANK", 0), _number("LOCAL_RANK", 0)
        if not rank < world:
            raise ConfigError(
                "this process is none of the run's, as the environment has it",
                got=f"RANK={rank}, WORLD_SIZE={world}",
                expected="RANK from 0 to WORLD_SIZE - 1",
                fix="start with torchrun, or unset RANK and WORLD_SIZE",
            )
        where = _device(str(device), local_rank, world)
        ranks = cls(rank, world, local_rank, where, timeout)
        if world > 1 and not dist.is_initialized():
            _require_address()
            if where.type == "cuda":
                torch.cuda.set_device(where)
            with ranks.exchange("the start"), _ends_at_a_signal():
                ranks._connect("nccl" if where.type == "cuda" else "gloo")
        elif world > 1 and dist.get_backend() != "gloo":  # connected by a launcher (Ray Train), for tensors on GPUs
            ranks._open_words(timedelta(seconds=timeout))
        return ranks

    @classmethod
    def joined(cls) -> Ranks:
        """The processes that somebody else has connected (torch.distributed's default group)."""
        device = (
            torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
        )
        local = _number("LOCAL_RANK", 0)
        return cls(dist.get_rank(), dist.get_world_size(), local, device, TIMEOUT_SECONDS)

    def _connect(self, backend: str) -> None:
        """Wait patiently until all processes are there, then little for their connections.

        A process lost between the two is an end that torchrun's next restart makes good; with the time of an exchange
        that would come after ten minutes.
        """
        patience = timedelta(seconds=self.timeout)
        store, _, _ = next(rendezvous("env://", timeout=patience))
        group = meet(store, self.rank, self.world, patience)
        soon = timedelta(seconds=min(self.timeout, _CONNECT_SECONDS))
        dist.init_process_group(backend, store=group, rank=self.rank, world_size=self.world, timeout=soon)
        # The public name is newer than torch 2.10.
        set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
        set_timeout(patience)
        if backend != "gloo":
            self._open_words(patience)

    def _open_words(self, patience: timedelta) -> None:
        self._words = dist.new_group(backend="gloo", timeout=patience)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def all_flags(self, local: dict[str, float | int]) -> list[dict[str, float]]:
        """What every process measured, in order of rank, the same list everywhere: one small exchange.

        Args:
            local: numbers by name, the same names on every process; NaN, infinities and whole numbers below 2⁵³ arrive
                as they are.

        Raises:
            MaskRCNNError: a process did not answer in time, or the processes are at different places of the program.
        """
        return self.flags_later(local)()

    def flags_later(self, local: dict[str, float | int]) -> Callable[[], list[dict[str, float]]]:
        """Begin an `all_flags`; what it returns waits for the answers, and gives them."""
        if self.world == 1:
            return lambda: [{k: float(v) for k, v in local.items()}]
        names = sorted(local)
        place = zlib.crc32("\n".join(names).encode())
        mine = torch.tensor([float(place), *(float(local[n]) for n in names)], dtype=torch.float64)
        rows = self._rows_later(mine, "the exchange of verdicts")
        return lambda: self._flags(names, place, rows())

    def _flags(self, names: list[str], place: int, rows: list[list[float]]) -> list[dict[str, float]]:
        odd = [r for r, row in enumerate(rows) if row[0] != place]
        if odd:
            raise MaskRCNNError(
                f"process {self.rank} and process {odd[0]} are at different places of the program",
                expected=f"an exchange of {', '.join(names)}",
                fix="start all processes with the same command, settings and version",
            )
        return [dict(zip(names, row[1:], strict=True)) for row in rows]

    def average_gradients(self, params: Iterable[Tensor]) -> None:
        """Replace each ``.grad`` by its mean over the processes, the same bits on every process.

        A parameter without gradient counts as zeros; if it has none on any process it stays without. The order of
        additions depends on the parameters alone, not on earlier steps.

        Raises:
            MaskRCNNError: a process did not answer in time.
        """
        if self.world > 1:
            self.averaging.turn(params).alone()

    def broadcast_tensors(self, tensors: Iterable[Tensor], *, source: int = 0) -> None:
        """Overwrite ``tensors`` in place with those of process ``source``. Raises MaskRCNNError."""
        if self.world == 1:
            return
        with self.exchange("the distribution of weights"), torch.no_grad():
            for tensor in tensors:
                sent = tensor.detach().contiguous()
                dist.broadcast(sent, source)
                tensor.copy_(sent)

    def gather_objects(self, value: Any) -> list[Any]:
        """``value`` of every process, in order of rank: plain data (msgpack: tuples arrive as lists).

        Raises:
            MaskRCNNError: a process did not answer in time.
        """
        if self.world == 1:
            return [value]
        payload = torch.frombuffer(bytearray(msgspec.msgpack.encode(value)), dtype=torch.uint8)
        sizes = [int(f["bytes"]) for f in self.all_flags({"bytes": payload.numel()})]
        padded = payload.new_zeros(max(sizes))
        padded[: payload.numel()] = payload
        parts = [torch.empty_like(padded) for _ in sizes]
        with self.exchange("the gathering of results"):
            dist.all_gather(parts, padded, group=self._words)
        raw = [bytes(part[:size].cpu().numpy()) for part, size in zip(parts, sizes, strict=True)]
        return [msgspec.msgpack.decode(r, strict=False) for r in raw]

    def broadcast_object(self, value: Any, *, source: int = 0) -> Any:
        """``value`` of process ``source``, on every process: plain data. Raises MaskRCNNError."""
        return self.gather_objects(value if self.rank == source else None)[source]

    def same_everywhere(self, name: str, value: Any) -> None:
        """Raise MaskRCNNError, naming the process that differs, unless ``value`` (plain data) is the same on all."""
        values = self.gather_objects(value)
        odd = [r for r, other in enumerate(values) if other != values[0]]
        if odd:
            raise MaskRCNNError(
                f"{name} is not the same on every process: process {odd[0]} differs from process 0",
                got=str(values[odd[0]])[:200],
                expected=str(values[0])[:200],
                fix="give every machine the same data, settings, version and checkpoints",
            )

    def barrier(self, name: str) -> None:
        """Wait until every process is here. Raises MaskRCNNError, with ``name``, if one does not come in time."""
        if self.world > 1:
            self._rows_later(torch.zeros(1, dtype=torch.float64), name)()

    def close(self) -> None:
        """Leave the group; a second call does nothing."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def sum_later(self, counts: Tensor) -> Any:
        """Begin to add ``counts`` (host memory), in place, over the processes; ``wait`` on what it returns."""
        return dist.all_reduce(counts, group=self._words, async_op=True)

    def _rows_later(self, mine: Tensor, name: str) -> Callable[[], list[list[float]]]:
        rows = [torch.empty_like(mine) for _ in range(self.world)]
        with self.exchange(name):
            work = dist.all_gather(rows, mine, group=self._words, async_op=True)

        def wait() -> list[list[float]]:
            with self.exchange(name):
                if work is not None:
                    work.wait()
            return [row.tolist() for row in rows]

        return wait

    @contextlib.contextmanager
    def exchange(self, name: str) -> Iterator[None]:
        """Within, a process that is lost or late is a MaskRCNNError that names it, and this exchange."""
        began = time.monotonic()
        try:
            yield
        except RuntimeError as e:  # torch.distributed has no narrower class for a lost or late peer
            waited = time.monotonic() - began
            silent = self._roll_call() if dist.is_initialized() else []
            who = f"process {', '.join(map(str, silent))}" if silent else "another process"
            raise MaskRCNNError(
                f"{who} of {self.world} did not answer in {name} (process {self.rank} waited {waited:.0f} s)",
                got=str(e).splitlines()[0][:200],
                expected=f"an answer within {self.timeout:.0f} s",
                fix="look at that process's own output; torchrun --max-restarts with --resume auto goes on by itself",
            ) from e

    def _roll_call(self) -> list[int]:
        """Ranks that do not report within a few seconds to the store, which torchrun's agent holds, or process 0."""
        missing: list[int] = []
        with contextlib.suppress(RuntimeError):
            missing = self._absent("alive", range(self.world))
            # Where process 0 holds the store, it must not leave before the others have asked.
            present = [r for r in range(self.world) if r not in missing]
            self._absent("asked", present if self.rank == 0 else [])
        return missing

    def _absent(self, word: str, ranks: Iterable[int]) -> list[int]:
        """Say ``word`` to the store, and wait for ``ranks`` to say it too; those that do not in time.

        Not by the number of the exchange: one process may have got its answers and meet the loss at the next one.
        """
        store = dist.distributed_c10d._get_default_store()
        store.set(f"{word}/{self.rank}", "1")
        deadline = time.monotonic() + _ROLL_CALL_SECONDS
        silent = list(ranks)
        while silent and time.monotonic() < deadline:
            silent = [r for r in silent if not store.check([f"{word}/{r}"])]
            time.sleep(0.05)
        return silent


@contextlib.contextmanager
def _ends_at_a_signal() -> Iterator[None]:
    """SIGTERM ends the process at once: nothing is there to be saved yet, and a handler could not run meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def started_alone() -> bool:
    """Whether no other process was started with this one, as the environment says: before `Ranks.start`."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


def _require_address() -> None:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE says that there are several processes, and {' and '.join(missing)} not where they meet",
            expected="RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun sets them",
            fix="start with torchrun, or unset RANK and WORLD_SIZE",
        )
    _number("MASTER_PORT", 0)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"the environment variable {name} is not a number", got=text, fix="start with torchrun")
    return int(text)
