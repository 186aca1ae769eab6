"""What must not reach the model is named by image and annotation; what only looks odd goes through."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from nanbench.tiny import tiny_detector

from maskrcnn_coco.guard.inputs import Expected, check, image_ids


def batch() -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    images = [torch.rand(3, 20, 30), torch.rand(3, 24, 24)]
    targets = []
    for i, image in enumerate(images):
        masks = torch.zeros(2, *image.shape[-2:], dtype=torch.uint8)
        masks[:, 2:8, 2:8] = 1
        targets.append(
            {
                "boxes": torch.tensor([[2.0, 2.0, 8.0, 8.0], [1.0, 3.0, 9.0, 9.0]]),
                "labels": torch.tensor([1, 2]),
                "masks": masks,
                "image_id": 70 + i,
                "annotation_ids": torch.tensor([700 + i, 800 + i]),
            }
        )
    return images, targets


LIMITS = Expected(num_classes=3)


def test_a_sound_batch_has_no_problem() -> None:
    assert check([batch(), batch()], LIMITS) == []
    assert image_ids([batch()]) == [70, 71]


@pytest.mark.parametrize(
    "box",
    [
        [math.nan, 2, 8, 8],
        [2, 2, math.inf, 8],
        [-math.inf, 2, 8, 8],
        [8, 2, 2, 8],
        [2, 8, 8, 8],
        [2, 2, 1e9, 8],
    ],
)
def test_a_bad_box_is_named(box: list[float]) -> None:
    images, targets = batch()
    targets[1]["boxes"][0] = torch.tensor(box)
    (problem,) = check([(images, targets)], LIMITS)
    assert (problem.kind, problem.image_id, problem.annotation_id, problem.position) == ("box", 71, 701, 1)
    assert "image 71, annotation 701" in problem.message


@pytest.mark.parametrize("label", [0, -1, 3, 99])
def test_a_bad_label_is_named(label: int) -> None:
    images, targets = batch()
    targets[0]["labels"][1] = label
    (problem,) = check([(images, targets)], LIMITS)
    assert (problem.kind, problem.image_id, problem.annotation_id) == ("label", 70, 800)
    assert ("labels start at 1" in problem.message) == (label == 0)
    assert bool(check([(images, targets)], Expected(None))) == (label < 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 255.0, 65535.0, -300.0])
def test_bad_pixels_are_named(value: float) -> None:
    images, targets = batch()
    images[1][0, 3, 3] = value
    (problem,) = check([(images, targets)], LIMITS)
    assert (problem.kind, problem.image_id) == ("pixel", 71)


@pytest.mark.parametrize("value", [255, 2])
def test_a_mask_that_is_not_binary_is_named(value: int) -> None:
    images, targets = batch()
    targets[0]["masks"][1] *= value
    (problem,) = check([(images, targets)], LIMITS)
    assert (problem.kind, problem.annotation_id) == ("mask", 800)


def test_float_masks_with_nan_and_shapes_that_do_not_fit() -> None:
    images, targets = batch()
    targets[0]["masks"] = targets[0]["masks"].float()
    assert check([(images, targets)], LIMITS) == []
    targets[0]["masks"][0, 0, 0] = math.nan
    assert [p.kind for p in check([(images, targets)], LIMITS)] == ["mask"]
    images, targets = batch()
    targets[1]["masks"] = targets[1]["masks"][:, :10]
    targets[0]["labels"] = targets[0]["labels"][:1]
    assert [p.kind for p in check([(images, targets)], LIMITS)] == ["shape", "shape"]
    assert [p.kind for p in check([(images[:1], targets)], LIMITS)] == ["batch"]


def test_every_problem_is_listed() -> None:
    images, targets = batch()
    images[0][0, 0, 0] = math.nan
    targets[0]["boxes"][0, 0] = math.nan
    targets[1]["labels"][1] = 9
    assert [p.kind for p in check([(images, targets)], LIMITS)] == ["pixel", "box", "label"]


def test_what_only_looks_odd_goes_through() -> None:
    images, targets = batch()
    targets[0]["boxes"] = torch.tensor([[500.0, 500.0, 510.0, 510.0], [0.0, 0.0, 1e-5, 1e-5]])  # outside; tiny
    targets[1] = {k: v[:0] if isinstance(v, torch.Tensor) else v for k, v in targets[1].items()}  # no objects
    targets[1]["boxes"] = torch.zeros(0, 4)
    images[1] = torch.full_like(images[1], 0.5)  # constant
    assert check([(images, targets)], LIMITS) == []
    images, targets = batch()
    images = [(i - 0.45) / 0.225 for i in images]  # normalised by the user
    assert check([(images, targets)], LIMITS) == []
    assert check([([(i * 255).byte() for i in images], targets)], LIMITS) == []
    caffe = Expected(3, mean=110.0, std=57.0)
    assert check([([i * 255 for i in batch()[0]], targets)], caffe) == []


def test_any_other_batch_is_searched_for_what_is_not_finite() -> None:
    good = {"x": torch.rand(4, 3), "n": [torch.ones(2, dtype=torch.long), (torch.rand(()), "text", None)]}
    assert check([good, torch.rand(3)], Expected()) == []
    assert check([torch.full((4,), 3e38)], Expected()) == []  # huge, but finite
    good["x"][2, 1] = math.inf
    (problem,) = check([good], Expected())
    assert problem.kind == "input"
    assert problem.position == 2


def test_an_image_without_pixels_is_the_image_s_fault_and_not_its_masks() -> None:
    images, targets = batch()
    found = check([([images[0][:, :0], images[1]], targets)], LIMITS)
    assert [(p.kind, p.image_id) for p in found] == [("pixel", 70)]
    assert "no pixels" in found[0].message


@pytest.mark.parametrize("kind", ["mask", "retina", "fcos", "ssd"])
def test_the_classes_of_every_torchvision_detector_are_known(kind: str) -> None:
    """A label that wrapped around to 253 is then refused before the loss indexes with it."""
    assert Expected.of(tiny_detector(kind, 0)).num_classes == 4


def test_a_sparse_image_is_the_models_business() -> None:
    images, targets = batch()
    images[0] = images[0].to_sparse()
    assert check([(images, targets)], LIMITS) == []


def test_an_image_that_is_no_tensor_is_left_to_the_model():
    target = {"boxes": torch.tensor([[1.0, 1.0, 5.0, 5.0]]), "masks": torch.zeros(1, 8, 8, dtype=torch.uint8)}
    assert check([([None, torch.zeros(3, 8, 8)], [target, target])], Expected()) == []


def test_a_box_thinner_than_float32_can_tell_is_empty():
    boxes = torch.tensor([[40.0, 8.0, 40.0 + 1e-9, 30.0]], dtype=torch.float64)
    (problem,) = check([([torch.zeros(3, 64, 64)], [{"boxes": boxes}])], Expected())
    assert problem.kind == "box"
    boxes[0, 2] = 40.001
    assert check([([torch.zeros(3, 64, 64)], [{"boxes": boxes}])], Expected()) == []
