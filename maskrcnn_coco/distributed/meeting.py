"""The processes of one attempt find each other in a store that may hold what an earlier attempt wrote.

torchrun starts all processes again when one was lost, and may keep the store of before (``--standalone`` does). Whoever
read an old address there would knock at the port of a process that is gone. The number of restarts does not tell the
attempts apart: on several machines each agent counts its own. So process 0 invites: it draws a number that no attempt
had, answers each process by the word that only this process can have written, and says when all have come.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]

_LOOK_SECONDS = 0.02


def meet(store: Store, rank: int, world: int, patience: timedelta) -> Store:
    """Wait until all ``world`` processes are there; a part of ``store`` that is this attempt's alone.

    Raises:
        RuntimeError: one did not come within ``patience`` (torch's own class for it, `torch.distributed.DistError`).
    """
    number = _invite(store, world, patience) if rank == 0 else _join(store, rank, patience)
    return PrefixStore(f"attempt/{number}", store)


def _invite(store: Store, world: int, patience: timedelta) -> int:
    number = store.add("meeting/attempts", 1)
    invited = dict.fromkeys(range(1, world), "")
    deadline = time.monotonic() + patience.total_seconds()
    while absent := [r for r in invited if not store.check([f"meeting/{number}/{r}"])]:
        for rank in absent:  # again and again: what it is called may still be its name in an earlier attempt
            if store.check([f"meeting/name/{rank}"]):
                name = store.get(f"meeting/name/{rank}").decode()
                if name != invited[rank]:
                    store.set(f"meeting/to/{name}", str(number))
                    invited[rank] = name
        if time.monotonic() > deadline:
            raise RuntimeError(f"process {', '.join(map(str, absent))} did not come")
        time.sleep(_LOOK_SECONDS)
    store.set(f"meeting/{number}/all", "1")
    return number


def _join(store: Store, rank: int, patience: timedelta) -> int:
    name = uuid.uuid4().hex
    store.set(f"meeting/name/{rank}", name)
    store.wait([f"meeting/to/{name}"], patience)
    number = int(store.get(f"meeting/to/{name}"))
    store.set(f"meeting/{number}/{rank}", "1")
    store.wait([f"meeting/{number}/all"], patience)
    return number
