"""Batches of any kind, cut along their samples."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from maskrcnn_coco.anywhere.rig import Kept
from maskrcnn_coco.anywhere.samples import Key, Samples, cut, leaves, own_ids, size_of
from maskrcnn_coco.anywhere.unlike_others import named
from maskrcnn_coco.records import Alarm, Culprit, Finding


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Named:
    x: Tensor
    scale: float


X, Y = torch.arange(12.0).reshape(4, 3), torch.arange(4)


@pytest.mark.parametrize(
    "batch",
    [
        X,
        (X, Y),
        [X, Y],
        {"x": X, "y": Y},
        {"x": X, "deep": [X, {"y": Y}], "mask": torch.zeros(3, 3), "t": torch.tensor(0.1)},
        ((X,), {"labels": Y, "flag": True, "none": None}),
        Pair(X, Y),
        Named(X, 2.0),
        UserDict(x=X, y=Y),
        ([X[i] for i in range(4)], [{"boxes": torch.zeros(i, 4)} for i in range(4)]),
        (X, ["a", "b", "c", "d"]),
    ],
    ids=lambda b: type(b).__name__,
)
def test_every_form_is_cut(batch: Any) -> None:
    assert size_of(batch) == 4
    part = cut(batch, [2, 0], 4)
    assert size_of(part) == 2
    assert any(torch.equal(t, X[[2, 0]]) or torch.equal(t, X[2]) for t in leaves(part))


@pytest.mark.parametrize("odd", [torch.zeros(3, 8, 8, dtype=torch.uint16), torch.zeros(8, 8), None, "a.jpg"])
@pytest.mark.parametrize("count", [2, 4])
def test_a_list_of_pictures_is_cut_also_where_one_has_another_form(odd: Any, count: int) -> None:
    if count == 2 and isinstance(odd, Tensor) and odd.ndim == 2:
        return  # as torch collates inputs and a table of labels: cannot be told
    images = [odd, *(torch.zeros(3, 8, 8) for _ in range(count - 1))]
    targets = [{"boxes": torch.zeros(2, 4)} for _ in range(count)]
    batch = Samples((images, targets), list(range(count)), [Key(0, 0, i, i, i) for i in range(count)])
    assert size_of(batch.data) == count
    part = batch.subset([1])
    assert len(part.data[0]) == len(part.data[1]) == 1 and part.data[0][0].shape == (3, 8, 8)
    assert part.detection is not None and part.detection.image_ids == [1]


def test_fields_of_a_batch_are_no_samples() -> None:
    x, y = torch.zeros(2, 5, 7), torch.zeros(2, dtype=torch.int64)
    assert [tuple(v.shape) for v in cut([x, y], [1], 2)] == [(1, 5, 7), (1,)]
    assert Samples([x, y], [0, 1], []).detection is None


def test_what_is_not_per_sample_stays() -> None:
    mask = torch.zeros(3, 3)
    part = cut({"x": X, "mask": mask, "t": 0.1}, [1], 4)
    assert part["mask"] is mask and part["t"] == 0.1
    assert cut((X, ["a", "b", "c", "d"]), [3], 4)[1] == ["d"]
    assert size_of({"t": 0.1}) == 1


def detection(first: int, count: int = 4) -> tuple[list[Tensor], list[dict[str, Any]]]:
    targets = [
        {
            "boxes": torch.tensor([[1.0, 1.0, 5.0, 5.0]] * 2),
            "labels": torch.tensor([1, 2]),
            "image_id": torch.tensor(first + i),
            "annotation_ids": torch.tensor([10 * (first + i), 10 * (first + i) + 1]),
        }
        for i in range(count)
    ]
    return [torch.rand(3, 8, 8) for _ in range(count)], targets


def test_a_detection_batch_names_its_own_images() -> None:
    assert own_ids(detection(40), 4) == [40, 41, 42, 43]
    assert own_ids((detection(40), {}), 4) == [40, 41, 42, 43], "the arguments of a forward pass"
    images, targets = detection(40)
    assert own_ids((images, [{**t, "image_id": 0} for t in targets]), 4) is None, "one number for all names nobody"
    assert own_ids((X, Y), 4) is None


def test_the_largest_number_of_an_image_is_no_label_out_of_range() -> None:
    """The guilty image may well be the last of the data set."""
    kept = Kept()
    for step in range(4):
        keys = [Key(step, 0, p, 4 * step + p, 4 * step + p) for p in range(4)]
        ids = [4 * step + p for p in range(4)]
        kept.add(step, Samples(detection(4 * step), ids, keys), torch.get_rng_state(), None)
    finding = Finding("UNKNOWN", 0.5, Culprit(image_ids=[15]), detail={"proved_on_healthy_weights": True})
    assert named(finding, Alarm("loss_nonfinite", 3, 0, 3, "loss"), kept).cause == "UNKNOWN"


def test_sparse_tensors_and_those_without_data_are_kept_like_others() -> None:
    """Their bytes cannot be counted by where they lie: asking raised at every step that followed."""
    odd = [torch.eye(4).to_sparse(), torch.zeros(4, 2, device="meta"), torch.zeros(4)]
    kept = Kept()
    kept.add(0, Samples(odd, [0, 1, 2, 3], []), torch.get_rng_state(), None)
    assert kept.nbytes >= 16 + 32


def steps(kept: Kept, *, far: tuple[int, ...]) -> Alarm:
    """Three steps of eight samples, of the last of which those at ``far`` are far out of scale."""
    for step in range(3):
        x = torch.randn(8, 4)
        if step == 2:
            x[list(far)] *= 1e4
        ids = list(range(10 * step, 10 * step + 8))
        keys = [Key(step, 0, p, i, i) for p, i in enumerate(ids)]
        kept.add(step, Samples((x, torch.arange(8)), ids, keys), torch.get_rng_state(), None)
    return Alarm("loss_nonfinite", 2, 0, 2, "not finite")


@pytest.mark.parametrize("cause", ["UNKNOWN", "FP16_OVERFLOW"])
def test_one_sample_far_out_of_scale_is_named_where_no_replay_names_any(cause: str) -> None:
    kept = Kept()
    found = named(Finding(cause, 0.97), steps(kept, far=(5,)), kept)
    assert (found.cause, found.culprit.image_ids) == ("DATA_PIXEL", [25]) and found.confidence < 0.9
    assert named(Finding(cause, 0.97), steps(Kept(), far=(5,)), kept, first=False).cause == cause


@pytest.mark.parametrize("far", [(), (1, 5)])
def test_none_or_several_out_of_scale_are_no_culprit(far: tuple[int, ...]) -> None:
    kept = Kept()
    found = named(Finding("UNKNOWN", 0.1), steps(kept, far=far), kept)
    assert (found.cause, found.culprit.image_ids, found.confidence) == ("UNKNOWN", [], 0.1)


def test_of_several_samples_found_guilty_those_out_of_scale_are_meant() -> None:
    """A loss of variances fails on any sample alone."""
    kept = Kept()
    alarm = steps(kept, far=(5,))
    finding = Finding("UNKNOWN", 0.5, Culprit(image_ids=[24, 25]), detail={"proved_on_healthy_weights": True})
    found = named(finding, alarm, kept)
    assert (found.cause, found.culprit.image_ids) == ("DATA_PIXEL", [25])
