"""Which precision a device gets, and what it computes in."""

from __future__ import annotations

import pytest
import torch

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.system import precision
from maskrcnn_coco.system.precision import amp_warning, autocast, make_scaler, resolve_amp


@pytest.mark.parametrize(
    ("amp", "device", "bf16", "fp16", "wanted"),
    [
        ("off", "cuda", True, True, "fp32"),
        ("auto", "cpu", True, False, "bf16"),
        ("auto", "cpu", False, True, "fp32"),
        ("auto", "cuda", False, True, "fp16"),
        ("auto", "cuda", True, True, "bf16"),
        ("auto", "mps", False, True, "fp32"),
        ("bf16", "cpu", False, False, "bf16"),
        ("fp16", "cuda", True, True, "fp16"),
    ],
)
def test_resolution(monkeypatch, amp, device, bf16, fp16, wanted):
    monkeypatch.setattr(precision, "bf16_is_native", lambda d: bf16)
    monkeypatch.setattr(precision, "fp16_is_native", lambda d: fp16)
    assert resolve_amp(amp, device) == wanted
    assert (amp_warning(amp, device) is not None) == (amp == "bf16" and not bf16)


def test_fp16_where_there_is_none_and_unknown_words(monkeypatch):
    monkeypatch.setattr(precision, "fp16_is_native", lambda d: False)
    with pytest.raises(ConfigError, match="does not compute float16"):
        resolve_amp("fp16", "cpu")
    with pytest.raises(ConfigError, match="auto, off, fp16 or bf16"):
        resolve_amp("fp8", "cpu")


def test_autocast_and_scaler():
    x = torch.randn(4, 4)
    with autocast("bf16", "cpu"):
        assert (x @ x).dtype == torch.bfloat16
        with autocast("fp32", "cpu"):
            assert (x @ x).dtype == torch.float32
    assert isinstance(make_scaler("fp16", "cpu"), torch.amp.GradScaler)
    assert make_scaler("bf16", "cpu") is None and make_scaler("fp32", "cpu") is None


def test_native_answers_are_plain_booleans():
    assert precision.bf16_is_native("cpu") in (True, False)
    assert precision.fp16_is_native("cpu") in (True, False)
    assert precision.bf16_is_native("mps") is False
