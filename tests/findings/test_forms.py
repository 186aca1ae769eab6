"""Samples and items of another form than torchvision's detectors take: named, with the line that makes them so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from silent.changes import edit
from silent.scene import Scene

from maskrcnn_coco.data.item_form import refusal
from maskrcnn_coco.data.user_data import UserData
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.findings.forms import form_of
from maskrcnn_coco.findings.judge import judge
from maskrcnn_coco.training.before_training import look_at_samples

IMAGE, TARGET = Scene()[0]
COUNT, (HEIGHT, WIDTH) = len(TARGET["boxes"]), IMAGE.shape[-2:]


class Model(torch.nn.Module):
    """As much of a detector as a look needs."""

    def __init__(self) -> None:
        super().__init__()
        self.roi_heads, self.transform = torch.nn.Module(), torch.nn.Module()
        self.roi_heads.mask_predictor = self.roi_heads.box_predictor = torch.nn.Module()
        self.roi_heads.box_predictor.cls_score = torch.nn.Linear(2, 3)
        self.transform.image_mean, self.transform.image_std = [0.45] * 3, [0.225] * 3


def look(data: Any) -> list[Any]:
    return judge(look_at_samples(UserData(data), Model(), 3))


MENDED: dict[str, Callable[[Any], Any]] = {
    "masks": lambda v: v.permute(1, 2, 0),
    "masks one channel": lambda v: v[:, None],
    "masks sparse": lambda v: v.to_sparse(),
    "masks list": lambda v: [m.numpy() for m in v],
    "masks tensors": lambda v: list(v),
    "masks array": lambda v: v.permute(1, 2, 0).numpy(),
    "labels column": lambda v: v[:, None],
    "labels float": lambda v: v.float(),
    "labels list": lambda v: v.tolist(),
    "boxes list": lambda v: v.tolist(),
}
"""Key and kind → another form of it; the line that the finding gives has to bring the right one back."""


@pytest.mark.parametrize("name", MENDED)
def test_the_line_that_is_given_mends_the_sample(name: str):
    key = name.split()[0]
    odd = TARGET | {key: MENDED[name](TARGET[key])}
    form = form_of(IMAGE, odd, 3, masks=True)
    assert form is not None and f"'{key}'" in form.what

    space = {"torch": torch, "np": np, "target": odd, "masks": odd["masks"], "labels": odd["labels"]}
    exec(form.fix, space)  # the line itself is under test

    mended = space["target"] | ({key: space[key]} if form.fix.startswith(key) else {})
    assert form_of(IMAGE, mended, 3, masks=True) is None
    assert torch.equal(mended[key], TARGET[key])


@pytest.mark.parametrize(
    "change",
    [
        lambda i, t: (i, t | {"masks": [[1, 2, 20, 2, 20, 30]] * COUNT}),
        lambda i, t: (i, t | {"masks": (t["masks"] * torch.arange(1, COUNT + 1)[:, None, None]).amax(0)}),
        lambda i, t: (i, t | {"masks": t["masks"][:, ::2, ::2]}),
        lambda i, t: (i, t | {"labels": t["labels"][:1]}),
        lambda i, t: (torch.cat([i, i[:1]]), t),
        lambda i, t: (i[None], t),
        lambda i, t: (i, {"bboxes": t["boxes"], "labels": t["labels"], "masks": t["masks"]}),
    ],
)
def test_every_sample_of_another_form_ends_the_run_with_a_line_to_write(change: Any):
    with pytest.raises(DataError, match="no sample of the data set can be trained on") as e:
        look(Scene(8, change=change))
    assert e.value.fix


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (lambda i, t: (i, t | {"boxes": t["boxes"].tolist()}) if t["image_id"] % 4 == 0 else (i, t), 6),
        (lambda i, t: None if t["image_id"] == 103 else (i, t), 1),
        (lambda i, t: (torch.cat([i, i[:1]]), t) if t["image_id"] % 2 else (i, t), 12),
    ],
)
def test_some_samples_of_another_form_are_counted_and_named(change: Any, count: int):
    said = look(Scene(24, change=change))
    assert [(f.code, f.severity, f.detail["what"]) for f in said] == [("NO_TARGETS", "warning", "some forms")]
    assert said[0].message.startswith(f"{count} of 24 samples") and said[0].image_id is not None


def test_indices_beyond_the_last_item_are_said():
    class Long(Scene):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, i: int) -> Any:
            if i >= 24:
                raise IndexError(i)
            return super().__getitem__(i)

    said = look(Long())
    assert "16 of 40 samples" in said[0].message and "IndexError" in said[0].message


@pytest.mark.parametrize(
    "change",
    [
        lambda i, t: (i[:1], t),  # grey: the model spreads it
        lambda i, t: (i[:1] if t["image_id"] % 2 else i, t),
        lambda i, t: (i, {k: v for k, v in t.items() if k != "masks"}),
        lambda i, t: (i, t | {"masks": t["masks"].bool()}),
        lambda i, t: (i, t | {"masks": t["masks"] * 255}),
        lambda i, t: (i, t | {"boxes": torch.zeros(0), "labels": torch.zeros(0), "masks": []} if i.sum() < 0 else t),
    ],
)
def test_forms_that_are_taken_are_not_spoken_of(change: Any):
    assert look(Scene(12, change=change)) == []


def test_a_model_without_masks_takes_them_in_any_form():
    net = Model()
    net.roi_heads.mask_predictor = None
    scene = Scene(8, change=edit(masks=lambda v: [m.numpy() for m in v]))
    assert judge(look_at_samples(UserData(scene), net, 3)) == []


ANNOTATIONS = [{"bbox": [1, 2, 3, 4], "category_id": 1, "segmentation": []}]
PICTURE = Image.new("RGB", (8, 8))
ITEMS: list[tuple[Any, str, str]] = [
    ((PICTURE, ANNOTATIONS), "COCO's annotations", "wrap_dataset_for_transforms_v2"),
    ((IMAGE, ANNOTATIONS), "COCO's annotations", "wrap_dataset_for_transforms_v2"),
    ((PICTURE, TARGET), "Pillow", "to_tensor"),
    ((np.zeros((8, 8, 3), np.uint8), TARGET), "NumPy", "permute(2, 0, 1)"),
    ((TARGET, IMAGE), "in this order", "return image, target"),
    ({"image": IMAGE, **TARGET}, "one dict", 'item.pop("image")'),
    ((IMAGE, TARGET, "a.png"), "3 values", "into the target"),
    ((IMAGE, [{"box": 1}]), "not one dict", "boxes"),
    (None, "None", "list"),
    (IMAGE, "no pair", "return image, target"),
    ("a.png", "no pair", "return image, target"),
]


@pytest.mark.parametrize(("item", "what", "fix"), ITEMS)
def test_an_item_that_is_no_sample_is_named_with_its_cure(item: Any, what: str, fix: str):
    error = refusal(item, 7)
    assert what in error.what and "item 7" in error.what
    assert fix in (error.fix or "")
    with pytest.raises(DataError, match="no item of the data set"):
        look([item] * 4)
