"""Processes of one team, forked from a process that has imported everything: a start costs them next to nothing.

They find each other as torchrun's do. The process that forks must have run nothing of torch's yet, only imported it.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable

import torch._dynamo  # noqa: F401 - torch imports it at the first optimizer: here once for all


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def team(world: int, work: Callable[[], object]) -> None:
    """Call ``work`` in each of ``world`` processes and wait for all; SystemExit where one of them fails."""
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    pids = [_fork(work, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(world)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if any(codes):
        raise SystemExit(f"exit codes by rank: {codes}")


def _fork(work: Callable[[], object], names: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(names)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # gloo's threads now and then abort an interpreter that ends in its own time
