"""``--deterministic``: the algorithms that give the same bits at each run, where torch has them, and slower.

On a CPU a run repeats its bits anyway. On CUDA cuDNN chooses among its algorithms, and some kernels add in the order in
which threads arrive; RoIAlign's backward is the one that matters here: while this is on `model.fast.roi_align` takes
its own gather.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Inside, deterministic algorithms if ``on``; at the end everything is as before: the settings are the process's.

    An operation without such an algorithm is run all the same, and torch warns of it by name.
    """
    if not on:
        yield
        return
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
    )
    # cuBLAS reads it with its first product; what somebody has set is theirs.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        enabled, warn_only, cudnn.deterministic, cudnn.benchmark = before
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
