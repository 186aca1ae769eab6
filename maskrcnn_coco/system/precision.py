"""Numeric precision of the forward pass: what the device computes by itself, autocast, loss scaling."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.system.exact_boxes import in_float32

Precision = Literal["fp32", "fp16", "bf16"]
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def bf16_is_native(device: torch.device | str) -> bool:
    """Whether ``device`` multiplies bfloat16 in hardware. Emulated on a CPU it is 14 to 17 times slower."""
    kind = torch.device(device).type
    if kind == "cpu":
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if kind == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return False


def fp16_is_native(device: torch.device | str) -> bool:
    """Whether ``device`` multiplies float16 in hardware."""
    kind = torch.device(device).type
    if kind == "cpu":
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return kind in ("cuda", "mps")


def resolve_amp(amp: str, device: torch.device | str) -> Precision:
    """The precision that ``--amp`` means on ``device``.

    auto is bf16 where it is native, else fp16 on CUDA, else fp32. bf16 that was asked for is given even where it is
    emulated (`amp_warning` says so).

    Raises:
        ConfigError: fp16 where the device has none; an unknown word.
    """
    if amp == "off":
        return "fp32"
    if amp == "auto":
        if bf16_is_native(device):
            return "bf16"
        return "fp16" if torch.device(device).type == "cuda" else "fp32"
    if amp == "bf16":
        return "bf16"
    if amp != "fp16":
        raise ConfigError("--amp is not a precision", got=amp, expected="auto, off, fp16 or bf16", fix="use --amp auto")
    if not fp16_is_native(device):
        raise ConfigError(
            f"--amp fp16: this {torch.device(device).type} does not compute float16",
            got=f"--amp fp16 on {device}",
            expected="a CUDA device, or a CPU with AVX512-FP16 or AMX-FP16",
            fix="use --amp bf16" if bf16_is_native(device) else "use --amp off",
        )
    return "fp16"


def amp_warning(amp: str, device: torch.device | str) -> str | None:
    """A sentence where a precision that was asked for will be slow on ``device``; None otherwise."""
    if amp == "bf16" and not bf16_is_native(device):
        return f"--amp bf16 is emulated on this {torch.device(device).type}: many times slower than --amp off"
    return None


def autocast(precision: str, device: torch.device | str) -> torch.autocast:
    """The autocast context of ``precision``; one that turns an outer autocast off for fp32."""
    dtype = _DTYPES.get(precision)
    return torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype is not None)


def make_scaler(precision: str, device: torch.device | str) -> torch.amp.GradScaler | None:
    """A loss scaler for fp16; None otherwise (bf16 has float32's range)."""
    return torch.amp.GradScaler(torch.device(device).type) if precision == "fp16" else None


def keep_fp32(model: nn.Module, module_name: str) -> None:
    """Run one module of ``model`` in float32 inside autocast, for good: the cure for a half-precision overflow.

    Inputs are cast to float32 (half-precision tensors only); outputs stay float32. Idempotent.
    """
    module = model.get_submodule(module_name)
    if getattr(module, "_kept_fp32", False):
        return
    inner = module.forward

    def forward(*args, **kwargs):
        with torch.autocast(device_type=_device_type(module), enabled=False):
            return inner(*[in_float32(a) for a in args], **{k: in_float32(v) for k, v in kwargs.items()})

    module.forward = forward
    module._kept_fp32 = True  # type: ignore[assignment]


def _device_type(module: nn.Module) -> str:
    parameter = next(module.parameters(), None)
    return "cpu" if parameter is None else parameter.device.type
