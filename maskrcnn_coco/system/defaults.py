"""What a notebook has set for all of torch, set aside while a run goes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def ordinary_defaults() -> Iterator[None]:
    """While it lasts, tensors are made on the CPU, in 32 bits or more, with gradients.

    A run places and casts what it makes by its own settings; ``torch.set_default_device("cuda")``, half precision as
    default, or a ``torch.no_grad()`` around the call would be taken for a fault of the model or of the data.
    """
    before = torch.get_default_dtype()
    with contextlib.ExitStack() as undo:
        if torch.get_default_device().type != "cpu":
            undo.enter_context(torch.device("cpu"))
        if before in (torch.float16, torch.bfloat16):
            torch.set_default_dtype(torch.float32)
            undo.callback(torch.set_default_dtype, before)
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        yield
