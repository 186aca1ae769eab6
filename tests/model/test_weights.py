"""Weights files: nothing in them may ask for more memory than they hold."""

from __future__ import annotations

import pytest
import torch

from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.model.weights import detector_state, read_weights


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s}])
def test_a_small_file_that_asks_for_terabytes_is_refused_in_a_sentence(wrap, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(wrap({"backbone.body.conv1.weight": torch.zeros(1).expand(10**12)}), path)
    assert path.stat().st_size < 4096
    with pytest.raises(CheckpointError, match="repeats what it stores"):
        detector_state(read_weights(path), path)


def test_views_of_one_buffer_are_no_more_than_it_holds(tmp_path):
    whole = torch.arange(12.0)
    torch.save({"a": whole[:6], "b": whole[6:].view(2, 3), "c": whole}, tmp_path / "w.pth")
    assert set(detector_state(read_weights(tmp_path / "w.pth"), "w")) == {"a", "b", "c"}
