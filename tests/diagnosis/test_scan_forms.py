"""Forms that a detector does not take: each named by its key, its image, what it is and what it should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nanbench.tiny import sample, tiny_model

from maskrcnn_coco.anywhere.samples import Key, Samples
from maskrcnn_coco.data.batch import Batch
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.diagnosis.scan_batch import (
    broken_entries,
    flat_images,
    scan_anchors,
    scan_images,
    scan_targets,
    scan_transformed,
)
from maskrcnn_coco.diagnosis.scan_forms import scan_forms

MODEL = tiny_model()


def batch_with(index: int, change: Any) -> Batch:
    pairs = [sample(i) for i in range(3)]
    pairs[index] = change(*pairs[index])
    return Batch([i for i, _ in pairs], [t for _, t in pairs], [SampleKey(0, i, 100 + i) for i in range(3)])


def put(key: str, value: Any) -> Any:
    return lambda image, target: (image, {**target, key: value(target[key])})


def drop(key: str) -> Any:
    return lambda image, target: (image, {k: v for k, v in target.items() if k != key})


TARGETS = [
    (put("labels", torch.Tensor.float), "DATA_LABEL", "float32, expected int64"),
    (put("labels", torch.Tensor.int), "DATA_LABEL", "int32, expected int64"),
    (put("labels", lambda v: v[:, None]), "DATA_LABEL", "(2, 1), expected (N,)"),
    (put("labels", lambda v: v[0]), "DATA_LABEL", "(), expected (N,)"),
    (put("labels", lambda v: v[:1]), "DATA_LABEL", "1 labels for 2 boxes"),
    (put("labels", torch.Tensor.tolist), "DATA_LABEL", "a list"),
    (drop("labels"), "DATA_LABEL", "no 'labels'"),
    (put("boxes", lambda v: torch.cat([v, v[:, :1]], 1)), "DATA_BOX", "(2, 5), expected (N, 4)"),
    (put("boxes", lambda v: v[0]), "DATA_BOX", "(4,), expected (N, 4)"),
    (put("boxes", lambda v: v.new_zeros(0)), "DATA_BOX", "(0,), expected (N, 4)"),
    (put("boxes", lambda v: v.numpy()), "DATA_BOX", "a ndarray"),
    (drop("boxes"), "DATA_BOX", "no 'boxes'"),
    (lambda image, target: (image, None), "DATA_BOX", "a NoneType, expected a dict"),
    (drop("masks"), "DATA_MASK", "no 'masks'"),
    (put("masks", lambda v: v[:1]), "DATA_MASK", "1 masks for 2 boxes"),
    (put("masks", lambda v: v[0]), "DATA_MASK", "(64, 64), expected (N, H, W)"),
    (put("masks", lambda v: v[..., :40]), "DATA_MASK", "(64, 40) for an image of (64, 64)"),
]
IMAGES = [
    (lambda image, target: (torch.cat([image, image[:1]]), target), "4 channels, the model expects 3"),
    (lambda image, target: (image[0], target), "shape (64, 64), expected (3, H, W)"),
    (lambda image, target: (image.double(), target), "float64"),
    (lambda image, target: (None, target), "a NoneType"),
    (lambda image, target: (image.to(torch.complex64), target), "complex64"),
    (lambda image, target: (image[:, :0], target), "no pixels"),
    (lambda image, target: (image[..., :0], target), "no pixels"),
]


@pytest.mark.parametrize(("change", "code", "what"), TARGETS)
@pytest.mark.parametrize("index", [0, 2])
def test_a_target_of_another_form_is_named(change: Any, code: str, what: str, index: int):
    targets, inputs = scan_forms(batch_with(index, change), MODEL, refused=False, raised="x")
    assert [(t.code, t.image_id, t.lethal, t.form) for t in targets] == [(code, 100 + index, False, True)]
    assert what in targets[0].what
    assert inputs == []


@pytest.mark.parametrize(("change", "what"), IMAGES)
def test_an_image_of_another_form_is_named(change: Any, what: str):
    targets, inputs = scan_forms(batch_with(1, change), MODEL, refused=True, raised="")
    assert targets == []
    assert [(i.image_id, i.lethal, i.form) for i in inputs] == [(101, True, True)]
    assert what in inputs[0].what


@pytest.mark.parametrize("change", [c for c, *_ in TARGETS] + [c for c, _ in IMAGES])
def test_the_other_scans_pass_over_odd_forms(change: Any):
    odd = batch_with(1, change)
    assert all(t.image_id == 101 for t in scan_targets(odd, 4))
    assert scan_images(odd, MODEL.transform) == []


def test_what_torchvision_takes_is_no_fault():
    for change in (put("masks", torch.Tensor.bool), put("boxes", torch.Tensor.double), put("boxes", torch.Tensor.long)):
        assert scan_forms(batch_with(0, change), MODEL, refused=False, raised="x") == ([], [])
    bytes_ = batch_with(0, lambda image, target: ((image * 255).to(torch.uint8), target))
    assert scan_forms(bytes_, MODEL, refused=False, raised="x") == ([], [])


def test_the_generators_own_words_name_the_anchors():
    said = "AssertionError: Anchors should be Tuple[Tuple[int]] because each feature map could potentially …"
    assert "2 tuples of sizes" in scan_anchors(MODEL, said)[0].what
    assert scan_anchors(MODEL, "RuntimeError: something else") == []


@pytest.mark.parametrize(
    ("change", "what"), [(torch.Tensor.to_sparse, "layout sparse_coo"), (lambda v: v.to("meta"), "without data")]
)
def test_an_image_that_is_no_dense_tensor(change: Any, what: str) -> None:
    _, inputs = scan_forms(batch_with(1, lambda i, t: (change(i), t)), MODEL, refused=False, raised="")
    assert [i.image_id for i in inputs] == [101] and what in inputs[0].what


def own_loop(index: int, change: Any) -> Samples:
    """The same batch as a loop of somebody's own hands it to the guard."""
    made = batch_with(index, change)
    keys = [Key(0, 0, i, i, i) for i in range(3)]
    return Samples((list(made.images), list(made.targets)), [100, 101, 102], keys)


@pytest.mark.parametrize(("change", "code", "words"), TARGETS, ids=lambda v: v if isinstance(v, str) else "")
def test_targets_in_a_loop_of_ones_own(change: Any, code: str, words: str):
    targets, _ = scan_forms(own_loop(1, change), MODEL, refused=False, raised="KeyError: 'boxes'")
    assert [(t.code, t.image_id) for t in targets] == [(code, 101)] and words in targets[0].what


def test_bytes_are_a_form_only_where_the_model_says_so():
    batch = own_loop(1, lambda image, target: ((image * 255).to(torch.uint8), target))
    assert scan_forms(batch, MODEL, refused=False, raised="RuntimeError: shapes")[1] == []
    _, (fault,) = scan_forms(batch, MODEL, refused=False, raised="TypeError: images to be of floating type (in range")
    assert fault.image_id == 101


def test_only_what_the_transform_makes_of_pictures_counts_in_a_loop_of_ones_own():
    model = tiny_model()
    assert scan_transformed(own_loop(0, lambda image, target: (image * 200, target)), model.transform) == []
    model.transform.image_std = [0.0, 0.2, 0.2]
    found = scan_transformed(own_loop(0, lambda image, target: (image, target)), model.transform)
    assert [f.image_id for f in found] == [100, 101, 102] and "image_std" in found[0].what
    assert scan_transformed(Samples(torch.zeros(3, 2), [0, 1, 2], []), model.transform) == []


def test_an_image_of_one_colour_is_seen_in_a_loop_of_ones_own():
    assert flat_images(own_loop(1, lambda image, target: (torch.full_like(image, 0.45), target))) == [101]


@pytest.mark.parametrize("make", [batch_with, own_loop])
@pytest.mark.parametrize("value", [float("nan"), torch.tensor([1.0, float("inf")])])
def test_an_entry_that_only_the_guilty_image_has_without_a_number_is_named(make: Any, value: Any):
    batch = make(1, lambda image, target: (image, {**target, "weight": value}))
    (found,) = broken_entries(batch, [101])
    assert (found.code, found.image_id) == ("DATA_LABEL", 101) and "'weight'" in found.what
    assert broken_entries(batch, [100]) == []


def test_what_is_unknown_in_innocent_images_too_is_so_by_design():
    batch = batch_with(1, lambda image, target: (image, {**target, "depth": float("nan")}))
    batch.targets[2]["depth"] = torch.tensor(float("nan"))
    assert broken_entries(batch, [101]) == []
