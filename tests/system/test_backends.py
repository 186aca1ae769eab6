"""Compiled code and vendor libraries, off and on again; the reference that replays compare with."""

from __future__ import annotations

import pytest
import torch
from nanbench.tiny import tiny_model
from tiny_faults import wrong_compiler, wrong_library
from tiny_run import TinyRun
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn_coco.diagnosis.investigate import investigate
from maskrcnn_coco.model.rig import reference_of
from maskrcnn_coco.recovery import History, decide
from maskrcnn_coco.replay.state import digest
from maskrcnn_coco.system.backends import (
    FUSED,
    as_it_was,
    compiled_modules,
    eagerly,
    own_kernels,
    run_eagerly,
    use_fused_attention,
)
from maskrcnn_coco.system.precision import keep_fp32

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
"""torch's compiler looks at it, and says so."""


def test_own_kernels_are_put_back():
    before = torch.backends.cudnn.enabled, torch._C._get_mkldnn_enabled()
    with pytest.raises(RuntimeError), own_kernels():
        assert not torch.backends.cudnn.enabled and not torch._C._get_mkldnn_enabled()
        raise RuntimeError
    assert (torch.backends.cudnn.enabled, torch._C._get_mkldnn_enabled()) == before


@pytest.mark.parametrize("off", [(), ("flash",), FUSED])
def test_fused_attention_comes_back_as_it_was(off: tuple[str, ...]):
    def on() -> list[bool]:
        return [getattr(torch.backends.cuda, f"{kind}_sdp_enabled")() for kind in FUSED]

    try:
        for kind in off:
            getattr(torch.backends.cuda, f"enable_{kind}_sdp")(False)
        use_fused_attention(False)
        use_fused_attention(False)
        assert on() == [False] * 3
        use_fused_attention(True)
        assert on() == [kind not in off for kind in FUSED]
    finally:
        for kind in FUSED:
            getattr(torch.backends.cuda, f"enable_{kind}_sdp")(True)


def test_compiled_code_is_put_aside_and_put_back():
    model = tiny_model()
    model.roi_heads.box_head.compile(backend="eager")
    code = model.roi_heads.box_head._compiled_call_impl
    assert compiled_modules(model) == ["roi_heads.box_head"]
    with eagerly(model, ["roi_heads.box_head"]):
        assert compiled_modules(model) == []
    assert model.roi_heads.box_head._compiled_call_impl is code
    run_eagerly(model, ["roi_heads.box_head"])
    assert compiled_modules(model) == []


def test_a_look_at_the_live_model_leaves_it_as_it_was():
    """The run's own compiled code is asked; norms in train mode change their buffers in every forward pass."""
    # Not in the stage that is compiled: torch 2.10 leaves one with such a norm uncompiled.
    norms = {12: torch.nn.BatchNorm2d, 16: FrozenBatchNorm2d, 24: torch.nn.BatchNorm2d}
    run = TinyRun(model=tiny_model(norm=lambda channels: norms[channels](channels)))
    for step in range(3):
        run.step(step)
    wrong_compiler(run)
    alarm, batches = run.step(3)
    assert alarm is not None
    before = digest(run.model, run.optimizer)
    with as_it_was(run.model):
        run.model.eval()
    assert run.model.training
    assert investigate(run.case(alarm, batches))[0].cause == "BACKEND"
    assert digest(run.model, run.optimizer) == before and compiled_modules(run.model) == ["backbone.body.layer2"]


@pytest.mark.parametrize("fault", [wrong_compiler, wrong_library])
def test_the_run_goes_on_without_what_was_wrong(fault):
    run = TinyRun()
    fault(run)
    alarm, batches = run.step(0)
    assert alarm is not None
    action = decide(investigate(run.case(alarm, batches)), History(step=0, images=24))
    assert action.kind == "precision"
    run_eagerly(run.model, action.detail.get("eager_modules", []))
    if action.detail.get("libraries") is False:
        with own_kernels():
            assert run.step(0)[0] is None
    else:
        assert run.step(0)[0] is None


def test_the_reference_is_a_private_eager_copy():
    """Also of a module whose forward was patched: the copy must not call into the run's model."""
    model = tiny_model()
    keep_fp32(model, "roi_heads.box_head")
    model.backbone.body["layer2"].compile(backend="eager")
    copy = reference_of(model)
    assert compiled_modules(copy) == [] and {p.dtype for p in copy.parameters()} == {torch.float32}
    with torch.no_grad():
        for p in model.roi_heads.box_head.parameters():
            p.fill_(float("nan"))
    assert bool(copy.roi_heads.box_head(torch.ones(2, 16, 7, 7)).isfinite().all())
