"""What of a guilty sample is unlike every other one, in whatever dtype it comes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskrcnn_coco.anywhere.rig import Kept
from maskrcnn_coco.anywhere.samples import Key, Samples
from maskrcnn_coco.anywhere.unlike_others import named
from maskrcnn_coco.records import Alarm, Culprit, Finding


def kept(values: Tensor) -> Kept:
    """One batch at step 5 with one number a sample, and the ids 0, 1, ..."""
    count = len(values)
    keys = [Key(5, 0, i, i, i) for i in range(count)]
    found = Kept()
    found.add(5, Samples((values,), list(range(count)), keys), torch.get_rng_state(), None)
    return found


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.int64])
def test_a_number_out_of_range_is_named_in_every_dtype_of_whole_numbers(dtype: torch.dtype) -> None:
    batch = kept(torch.tensor([3, 3, 200, 5]).to(dtype))
    guilty = Finding("UNKNOWN", 0.5, Culprit(image_ids=[2]), [], 5, "", {"proved_on_healthy_weights": True})
    found = named(guilty, Alarm("crash", 5, 0, 5, "it raises", {}), batch)
    assert (found.cause, found.confidence) == ("DATA_LABEL", 0.92)


@pytest.mark.parametrize(
    ("usual", "value", "cause"), [(0.0, 60.0, "UNKNOWN"), (0.0, 1e6, "DATA_PIXEL"), (0.1, 60.0, "DATA_PIXEL")]
)
def test_one_number_among_zeros_is_out_of_no_scale(usual: float, value: float, cause: str) -> None:
    """A reward, a count: rare, and what the training is about."""
    batch = kept(torch.tensor([usual, usual, value, usual]))
    guilty = Finding("UNKNOWN", 0.5, Culprit(image_ids=[2]), [], 5, "", {"proved_on_healthy_weights": True})
    assert named(guilty, Alarm("diverged", 5, 0, 5, "", {}), batch).cause == cause


def test_a_label_past_those_of_all_other_images_is_named_in_a_detectors_batch() -> None:
    images = [torch.zeros(3, 8, 8) for _ in range(4)]
    counts, labels = (2, 0, 1, 3), ([1, 2], [], [9], [1, 1, 3])
    targets = [
        {"boxes": torch.ones(n, 4), "labels": torch.tensor(v, dtype=torch.int64)}
        for n, v in zip(counts, labels, strict=True)
    ]
    batch = Kept()
    keys = [Key(5, 0, i, i, i) for i in range(4)]
    batch.add(5, Samples((images, targets), list(range(4)), keys), torch.get_rng_state(), None)
    guilty = Finding("UNKNOWN", 0.5, Culprit(image_ids=[2]), [], 5, "", {"proved_on_healthy_weights": True})
    found = named(guilty, Alarm("crash", 5, 0, 5, "IndexError", {}), batch)
    assert found.cause == "DATA_LABEL" and "label 9" in found.evidence[0].outcome


def test_boxes_are_not_taken_for_pixels() -> None:
    images = [torch.rand(3, 8, 8) for _ in range(4)]
    targets = [{"boxes": torch.full((2, 4), 800.0), "labels": torch.ones(2, dtype=torch.int64)} for _ in range(4)]
    batch = Kept()
    keys = [Key(5, 0, i, i, i) for i in range(4)]
    batch.add(5, Samples((images, targets), list(range(4)), keys), torch.get_rng_state(), None)
    guilty = Finding("LOSS_MATH", 0.6, Culprit(image_ids=[2]), [], 5, "", {"proved_on_healthy_weights": True})
    assert named(guilty, Alarm("loss_nonfinite", 5, 0, 5, "", {}), batch).cause == "LOSS_MATH"
    images[2] *= 1e5
    assert named(guilty, Alarm("loss_nonfinite", 5, 0, 5, "", {}), batch).cause == "DATA_PIXEL"


@pytest.mark.parametrize(("value", "confidence"), [(1.0, 0.97), (60.0, 0.97), (255.0, 0.85)])
@pytest.mark.parametrize("whole", [False, True])
def test_a_rate_is_less_sure_beside_a_sample_far_out_of_scale(value: float, confidence: float, whole: bool) -> None:
    """A mask of 255 among those of 0 and 1: the loss has no floor, and weights run after it at any rate."""
    found = Kept()
    for step in range(6):
        labels = torch.tensor([0.0, 1.0, value if step == 4 else 1.0, 0.0])
        names = [10 * step + i for i in range(4)]
        keys = [Key(step, 0, i, n, n) for i, n in enumerate(names)]
        data = (labels.long() if whole else labels,)
        found.add(step, Samples(data, names, keys), torch.get_rng_state(), None)
    rate = Finding("LR_TOO_HIGH", 0.97, Culprit(component="head"), [], 3, "", {})
    expected = 0.85 if whole and value > 10 else confidence
    assert named(rate, Alarm("diverged", 5, 0, 3, "", {}), found).confidence == expected


@pytest.mark.parametrize(("value", "cause"), [(1e3, "LR_TOO_HIGH"), (1e9, "DATA_PIXEL")])
def test_a_sample_of_garbage_in_the_failing_step_is_the_cause_and_no_rate(value: float, cause: str) -> None:
    batches = Kept()
    for step in range(6):
        values = torch.rand(4)
        ids = list(range(4 * step, 4 * step + 4))
        if step in (1, 5):  # one epoch before, too
            values[2], ids[2] = value, 22
        keys = [Key(step, 0, i, n, n) for i, n in enumerate(ids)]
        batches.add(step, Samples((values,), ids, keys), torch.get_rng_state(), None)
    rate = Finding("LR_TOO_HIGH", 0.97, Culprit(component="net"), [], 2, "", {"factors": {"net": 0.1}})
    found = named(rate, Alarm("diverged", 5, 0, 2, "", {}), batches)
    assert (found.cause, found.confidence) == (cause, 0.85)
    assert found.culprit.image_ids == ([22] if cause == "DATA_PIXEL" else [])


@pytest.mark.parametrize(("value", "cause"), [(-1, "DATA_LABEL"), (1, "UNKNOWN")])
def test_a_class_that_the_loss_refuses_is_named_though_others_span_it(value: int, cause: str) -> None:
    """Tags of -100 behind each sentence's end: -1 is within what others hold."""
    batch = kept(torch.tensor([[0, 1, -100], [1, 2, -100], [0, value, -100], [2, 1, -100]]))
    guilty = Finding("UNKNOWN", 0.5, Culprit(image_ids=[2]), [], 5, "", {"proved_on_healthy_weights": True})
    error = f"IndexError: Target {value} is out of bounds. (tags.py:12, in loss)"
    found = named(guilty, Alarm("crash", 5, 0, 5, error, {"error": error}), batch)
    assert found.cause == cause
