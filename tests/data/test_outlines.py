"""Samples with outlines are the samples with masks, undrawn; and whatever is done to a batch can be done to them."""

from __future__ import annotations

import copy

import pytest
import torch
from runs import loadable_model
from tiny_faults import pixels, put
from tiny_run import TinyRun

from maskrcnn_coco.data.batch import make_batch
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.outlines import Outlines
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.data.shared_memory import pack
from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.guard.inputs import Expected, check
from maskrcnn_coco.model.build import build_model
from maskrcnn_coco.model.fast.accelerate import takes_outlines
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.training.case_file import load_case, save_case
from tests.report.test_incident_files import rig_of


def source(table, *, outlines: bool = True) -> CocoDataset:
    dataset = CocoDataset(table, train=True, seed=3, min_size=64, max_size=100)
    dataset.outlines = outlines
    return dataset


def batch_of(table, count: int = 6, *, outlines: bool = True):
    dataset = source(table, outlines=outlines)
    return make_batch(dataset, [SampleKey(0, i, int(dataset.image_ids[i])) for i in range(count)])


def same(a: Outlines, b: Outlines) -> bool:
    tensors = ("points", "parts", "windows", "pixels")
    return a.size == b.size and all(torch.equal(getattr(a, n), getattr(b, n)) for n in tensors)


def test_the_same_objects_undrawn(tiny_table):
    drawn, undrawn = source(tiny_table, outlines=False), source(tiny_table)
    bitmaps = polygons = 0
    for index in range(len(tiny_table)):
        (image, a), (other, b) = drawn.sample(1, index), undrawn.sample(1, index)
        assert torch.equal(image, other) and a["annotation_ids"].tolist() == b["annotation_ids"].tolist()
        masks = b["outlines"].masks()
        assert masks.dtype == torch.uint8 and torch.equal(masks, a["masks"])
        bitmaps += int((b["outlines"].windows[:, 2] > 0).sum())
        polygons += len(b["outlines"].parts)
    assert bitmaps and polygons, "the set has objects of both kinds"


def test_a_transform_of_the_user_s_own_sees_masks(tiny_table):
    dataset = CocoDataset(tiny_table, train=True, min_size=64, transform=lambda image, target: (image, target))
    dataset.outlines = True
    assert "masks" in dataset.sample(0, 0)[1] and "outlines" not in dataset.sample(0, 0)[1]


def test_they_survive_a_worker_and_lose_annotations_with_their_rows(tiny_table):
    batch = batch_of(tiny_table)
    (back,) = pack([batch]).open()
    assert all(same(a["outlines"], b["outlines"]) for a, b in zip(batch.targets, back.targets, strict=True))
    place = max(range(len(batch)), key=lambda i: len(batch.targets[i]["boxes"]))
    ids, masks = batch.targets[place]["annotation_ids"].tolist(), batch.targets[place]["outlines"].masks()
    left = back.drop_annotations(place, ids[:1]).targets[place]
    assert len(ids) > 1 and left["annotation_ids"].tolist() == ids[1:]
    assert torch.equal(left["outlines"].masks(), masks[1:])
    assert len(back.drop_annotations(place, ids).targets[place]["outlines"].masks()) == 0


def test_losses_are_those_of_full_size_masks_and_gradients_close(tiny_table):
    model = loadable_model().train()
    forward = Forward(model, device=torch.device("cpu"), precision="fp32", seed=0)
    found = []
    for outlines in (False, True):
        own = copy.deepcopy(model)
        losses = forward.losses(own, batch_of(tiny_table, outlines=outlines), 3, 0)
        sum(losses.values(), torch.zeros(())).backward()
        found.append((losses, torch.cat([p.grad.flatten() for p in own.parameters() if p.grad is not None])))
    (a, gradient), (b, other) = found
    for name in a:
        # A target of 1 or 0 at an outline, where torchvision has the share that the object covers.
        tolerance = 0.02 if name == "loss_mask" else 0.0
        assert abs(float(a[name].detach()) - float(b[name].detach())) <= tolerance * float(a[name].detach())
    assert (gradient - other).norm() < 0.1 * gradient.norm()


def test_who_takes_them():
    cpu = torch.device("cpu")
    assert takes_outlines(loadable_model(), cpu) and not takes_outlines(loadable_model(), torch.device("cuda"))
    slow = build_model("maskrcnn_resnet18_fpn", 4, small=True, min_size=64, max_size=64, fast=False)
    assert not takes_outlines(slow, cpu) and not takes_outlines(torch.nn.Linear(2, 2), cpu)


def test_outlines_that_do_not_fit_are_refused_before_the_model(tiny_table):
    batch = batch_of(tiny_table).to("cpu")
    assert check([batch], Expected(4)) == []
    place = next(i for i, t in enumerate(batch.targets) if len(t["boxes"]) > 1)
    own = batch.targets[place]
    keep = torch.arange(len(own["boxes"])) > 0
    batch.targets[place] = {**own, "outlines": own["outlines"][keep]}
    (problem,) = check([batch], Expected(4))
    assert problem.kind == "shape" and "outlines" in problem.message


def with_outlines(tmp_path):
    """A saved case, one target of which has an object as a polygon and one as a bitmap, in place of masks."""
    case = TinyRun(spoil=pixels(put((0, 3, 4), float("nan")))).until_alarm()
    assert case.batches is not None
    own = case.batches[0].targets[0]
    size = tuple(own["masks"].shape[-2:])
    square = torch.tensor([[4.0, 4], [20, 4], [20, 20], [4, 20]], dtype=torch.float64)
    bitmap = torch.ones(6, dtype=torch.uint8)
    own["outlines"] = Outlines(size, square, torch.tensor([[0, 4]]), torch.tensor([[0] * 4, [5, 6, 2, 3]]), bitmap)
    del own["masks"]
    return case, save_case(tmp_path, "0001", case)


def test_they_are_kept_with_a_case(tmp_path):
    case, path = with_outlines(tmp_path)
    loaded = load_case(path, rig_of)
    assert case.batches is not None and loaded.batches is not None
    back = loaded.batches[0].targets[0]["outlines"]
    assert same(back, case.batches[0].targets[0]["outlines"])
    assert back.masks().flatten(1).sum(1).tolist() == [256, 6]


@pytest.mark.parametrize(("key", "value"), [("points", torch.full((4, 2), float("nan"))), ("pixels", torch.ones(2))])
def test_a_case_with_bad_outlines_is_damaged(tmp_path, key, value):
    path = with_outlines(tmp_path)[1]
    state = torch.load(path, weights_only=True)
    state["batches"][0]["targets"][0]["outlines"][key] = value
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="damaged"):
        load_case(path, rig_of)
