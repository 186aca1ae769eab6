"""What runs the maths: compiled modules and vendor libraries. Each can be turned off, to see whether it is to blame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from maskrcnn_coco.system.known_faults import known_faults


def compiled_modules(model: nn.Module) -> list[str]:
    """Names of the modules of ``model`` that ``module.compile()`` has compiled, outermost first."""
    return [name for name, m in model.named_modules() if m.__dict__.get("_compiled_call_impl") is not None]


def run_eagerly(model: nn.Module, names: Sequence[str]) -> None:
    """Drop the compiled code of the modules ``names``, for good."""
    for name in names:
        model.get_submodule(name)._compiled_call_impl = None


@contextmanager
def eagerly(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """The modules ``names`` run as plain eager code inside the block."""
    kept = [(model.get_submodule(n), model.get_submodule(n)._compiled_call_impl) for n in names]
    run_eagerly(model, names)
    try:
        yield
    finally:
        for module, code in kept:
            module._compiled_call_impl = code


def use_libraries(on: bool) -> None:
    """Turn the vendors' kernels (cuDNN, oneDNN) on or off for this process; torch's own take their place."""
    torch.backends.cudnn.enabled = on
    # torch.backends.mkldnn.flags() sets TF32 too, which warns on machines without an Intel GPU.
    torch._C._set_mkldnn_enabled(on)


FUSED = ("flash", "mem_efficient", "cudnn")
"""Kinds of fused kernels that torch's attention may choose from."""
_fused_before: dict[str, bool] = {}
"""Which of them were on when they were turned off."""


def use_fused_attention(on: bool) -> None:
    """Turn the fused kernels of `scaled_dot_product_attention` off for this process, or on again; plain maths stays.

    A kind that somebody had turned off before stays off.
    """
    for kind in FUSED:
        if not on:
            _fused_before.setdefault(kind, getattr(torch.backends.cuda, f"{kind}_sdp_enabled")())
        getattr(torch.backends.cuda, f"enable_{kind}_sdp")(_fused_before.pop(kind, True) if on else False)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by plain maths inside the block, whatever kernels are on."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def own_kernels() -> Iterator[None]:
    """No vendor library inside the block, no fused attention, compiled code neither."""
    before = torch.backends.cudnn.enabled, torch._C._get_mkldnn_enabled()
    use_libraries(False)
    try:
        with torch.compiler.set_stance("force_eager"), plain_attention():
            yield
    finally:
        torch.backends.cudnn.enabled = before[0]
        torch._C._set_mkldnn_enabled(before[1])


def passed_over(asked: str) -> str | None:
    """What ``--device auto`` says where it leaves an Apple GPU idle, and why; None where there is nothing to say."""
    if asked != "auto" or torch.cuda.is_available() or not torch.backends.mps.is_available():
        return None
    known = "".join(f"; {sentence}" for sentence in known_faults("mps"))
    return (
        "--device auto takes the CPU and passes over this machine's GPU (mps), on which no release of this program has "
        f"been tried; --device mps uses it{known}"
    )


def faults_under(model: nn.Module) -> list[str]:
    """What is known to be wrong on the device that ``model`` is on, where it has detection layers of torchvision."""
    first = next(model.parameters(), None)
    detects = any(type(m).__module__.startswith(("torchvision.ops", "torchvision.models.det")) for m in model.modules())
    return known_faults(first.device.type) if detects and first is not None else []


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Buffers, train or eval mode of ``model`` are, after the block, what they were: for a look at a live model."""
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    training = [(m, m.training) for m in model.modules()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)
        for module, mode in training:
            module.training = mode
