"""``--deterministic``."""

from __future__ import annotations

import pytest
import torch
from runs import run

from maskrcnn_coco.model.fast import roi_align
from maskrcnn_coco.model.fast.roi_align import FastPool, flatten, gather_rois
from maskrcnn_coco.system.determinism import deterministic


def switches() -> tuple[bool, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )


@pytest.mark.parametrize("error", [False, True])
def test_the_process_is_as_before(error, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = switches()
    with pytest.raises(KeyError) if error else deterministic(False), deterministic(True):
        assert switches() == (True, True, True, False)
        if error:
            raise KeyError
    assert switches() == before


def test_a_run_is_inside_and_its_end_is_outside(tiny_shapes, tmp_path):
    before, seen = switches(), []
    run(
        tiny_shapes.root, tmp_path, observers=[lambda record: seen.append(switches()[:3])], epochs=1, deterministic=True
    )
    assert set(seen) == {(True, True, True)}
    assert switches() == before


def pool_of(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], FastPool]:
    """A pool whose ways are noted."""
    ways: list[str] = []
    monkeypatch.setattr(FastPool, "_by_level", lambda *_: ways.append("kernel") or torch.zeros(0))
    monkeypatch.setattr(roi_align, "gather_rois", lambda *a: ways.append("gather") or gather_rois(*a))
    return ways, FastPool(["0", "1"], 7, 2)


@pytest.mark.parametrize(("on", "way"), [(False, "kernel"), (True, "gather")])
def test_a_device_gathers_instead_of_adding_atomically(on, way, monkeypatch):
    ways, pool = pool_of(monkeypatch)
    asked = roi_align.gathers
    monkeypatch.setattr(roi_align, "gathers", lambda device: asked(torch.device("cuda")))
    maps = {"0": torch.rand(1, 4, 16, 16), "1": torch.rand(1, 4, 8, 8)}
    with deterministic(on):
        pool(maps, [torch.tensor([[1.0, 1, 9, 9]])], [(64, 64)])
    assert ways == [way]


def test_the_gather_has_a_gradient_that_repeats():
    maps = {"0": torch.rand(2, 8, 16, 16, requires_grad=True), "1": torch.rand(2, 8, 8, 8, requires_grad=True)}
    boxes = torch.rand(40, 4) * 30
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] + 1], 1)
    grads = []
    for _ in range(2):
        with deterministic(True):
            pyramid = flatten(maps, ("0", "1"))
            level, image = torch.arange(40) % 2, torch.arange(40) // 20
            out = gather_rois(pyramid, boxes / 4, level, image, (7, 7), 2)
            grads.append(torch.autograd.grad((out * torch.arange(49.0).view(7, 7)).sum(), list(maps.values())))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
