"""Several views of one image: each is turned back exactly, and they vote."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from colours import ColourEngine, picture

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.inference.detections import Window, found_of
from maskrcnn_coco.inference.torch_engine import TorchEngine
from maskrcnn_coco.inference.tta import TtaEngine, mirrored, parse_ways, vote
from maskrcnn_coco.model.build import build_model


@pytest.mark.parametrize("seed", range(4))
def test_a_detector_without_fault_finds_the_same_in_a_mirror(seed: int) -> None:
    image = picture(80, 101, 6, seed)
    (plain,), (several,) = ColourEngine().run([image]), TtaEngine(ColourEngine(), ("flip",)).run([image])
    assert len(plain) == len(several) > 2
    assert np.allclose(np.sort(plain.boxes, 0), np.sort(several.boxes, 0))
    assert np.allclose(plain.scores, several.scores, atol=1e-3)
    ours = {w.full(80, 101).tobytes() for w in several.windows}
    assert ours == {w.full(80, 101).tobytes() for w in plain.windows}


def test_mirrored_twice_is_as_before() -> None:
    (found,) = ColourEngine().run([picture(60, 75, 5, 1)])
    again = mirrored(mirrored(found, 75), 75)
    assert np.array_equal(again.boxes, found.boxes)
    assert all((a.full(60, 75) == b.full(60, 75)).all() for a, b in zip(again.windows, found.windows, strict=True))


def test_what_one_of_two_views_sees_counts_half() -> None:
    square = Window(5, 5, np.ones((10, 10), bool))
    one = found_of([[5, 5, 15, 15]], [0.8], [1], [square])
    other = found_of([[5, 5, 15, 17], [40, 40, 50, 50]], [0.4, 0.6], [1, 2], [
        Window(5, 5, np.ones((12, 10), bool)), Window(40, 40, np.ones((10, 10), bool)),
    ])  # fmt: skip
    out = vote([one, other])
    assert out.scores.tolist() == pytest.approx([0.6, 0.3])
    assert out.labels.tolist() == [1, 2]
    assert out.boxes[0].tolist() == pytest.approx([5, 5, 15, 15 + 2 / 3])
    assert out.windows[0].rectangle == (5, 5, 15, 15), "the surer view decides over its pixels"
    assert len(vote([one, found_of([], [], [], [])])) == 1
    assert len(vote([found_of([], [], [], [])] * 2)) == 0


def test_objects_of_one_view_stay_apart() -> None:
    both = [Window(5, 5, np.ones((10, 10), bool)), Window(6, 5, np.ones((10, 10), bool))]
    assert len(vote([found_of([[5, 5, 15, 15], [6, 5, 16, 15]], [0.8, 0.7], [1, 1], both)])) == 2


def test_the_model_s_own_size_comes_back_whatever_happens() -> None:
    torch.manual_seed(0)
    model = build_model("maskrcnn_resnet18_fpn", 3, small=True, min_size=64, max_size=96)
    engine = TtaEngine(TorchEngine(model, "cpu"), ("flip", "scale"))
    assert engine.views == 6
    (found,) = engine.run([picture(64, 80, 3, 0)])
    assert (found.scores[:-1] >= found.scores[1:]).all()
    assert (model.transform.min_size, model.transform.max_size) == ((64,), 96)
    engine.engine.run = lambda images: (_ for _ in ()).throw(RuntimeError("no"))  # pyright: ignore
    with pytest.raises(RuntimeError), engine._at(0.8):
        assert model.transform.max_size == 77
        engine.run([])
    assert model.transform.max_size == 96


def test_words_that_are_no_way_are_named() -> None:
    assert parse_ways(" scale, flip,") == ("flip", "scale")
    assert parse_ways(None) == ()
    for text in ("", "rotate", "flip,turn"):
        with pytest.raises(ConfigError):
            parse_ways(text)
    with pytest.raises(ConfigError, match="resizes"):
        TtaEngine(ColourEngine(), ("scale",))
