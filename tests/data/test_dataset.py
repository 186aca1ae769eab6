"""Samples are pure functions, targets are always valid, and nothing is hidden from the guard."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.data.batch import Batch, SampleError, make_batch
from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.data.prepare import RunData
from maskrcnn_coco.data.sources import sources
from maskrcnn_coco.data.user_data import UserData, unique_in_image
from maskrcnn_coco.errors import DataError

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


def same_batch(a: Batch, b: Batch) -> bool:
    images = all(map(torch.equal, a.images, b.images))
    return images and all(map(same, a.targets, b.targets)) and a.keys == b.keys


def make_set(folder: Path, annotations: list[dict], *, size: tuple[int, int] = (48, 64)):
    """One image of ``size`` (height, width) with these annotations."""
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(folder / "a.png")
    data = {
        "images": [{"id": 5, "file_name": "a.png", "height": size[0], "width": size[1]}],
        "annotations": [
            {"id": 70 + n, "image_id": 5, "iscrowd": 0, "area": 1.0, **a} for n, a in enumerate(annotations)
        ],
        "categories": [{"id": 1, "name": "x"}],
    }
    (folder / "a.json").write_text(json.dumps(data))
    return load_coco(folder / "a.json", folder)


def square(**changes) -> dict:
    return {"category_id": 1, "bbox": [10, 10, 20, 20], "segmentation": SQUARE, **changes}


@pytest.fixture(scope="module")
def dataset(tiny_table) -> CocoDataset:
    return CocoDataset(tiny_table, train=True, seed=3, min_size=64, max_size=100)


def test_a_sample_depends_on_seed_epoch_and_image_only(tiny_table, dataset: CocoDataset):
    torch.manual_seed(1)
    first = [dataset.sample(2, i) for i in range(6)]
    random.seed(9)
    torch.manual_seed(99)
    again = CocoDataset(tiny_table, train=True, seed=3, min_size=64, max_size=100)
    for i in reversed(range(6)):
        image, target = again.sample(2, i)
        assert torch.equal(image, first[i][0]) and same(target, first[i][1])
    assert any(not same(dataset.sample(3, i)[1], first[i][1]) for i in range(6))


def test_a_sample_does_not_depend_on_its_row(tiny_table, dataset: CocoDataset):
    part = CocoDataset(tiny_table.subset(np.array([7, 3])), train=True, seed=3, min_size=64, max_size=100)
    assert torch.equal(part.sample(1, 1)[0], dataset.sample(1, 3)[0])


def test_targets_are_what_torchvision_takes(dataset: CocoDataset):
    empty = 0
    for index in range(len(dataset)):
        image, target = dataset.sample(0, index)
        n = len(target["boxes"])
        empty += n == 0
        assert image.dtype == torch.uint8 and image.shape[0] == 3
        assert target["boxes"].shape == (n, 4) and target["boxes"].dtype == torch.float32
        assert target["labels"].shape == (n,) and target["labels"].dtype == torch.int64
        assert target["masks"].shape == (n, *image.shape[1:]) and target["masks"].dtype == torch.uint8
        assert target["annotation_ids"].dtype == torch.int64 and len(target["annotation_ids"]) == n
        assert isinstance(target["image_id"], int) and not target["iscrowd"].any()
        if n:
            assert target["masks"].amax((1, 2)).eq(1).all()
            low, high = target["boxes"][:, :2], target["boxes"][:, 2:]
            assert (high - low >= 1).all() and (low >= 0).all()
            assert (high <= torch.tensor([image.shape[2], image.shape[1]])).all()
    assert empty, "the set has images without objects"


def test_the_model_takes_it_as_a_torchvision_data_set(dataset: CocoDataset):
    image, target = dataset[0]
    assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
    dataset.epoch = 4
    assert same(dataset[0][1], dataset.sample(4, 0)[1])
    dataset.epoch = 0
    assert same(dataset[0][1], target)


def test_evaluation_leaves_images_alone_and_keeps_crowds(tiny_table):
    found = CocoDataset(tiny_table, train=False, masks=False)
    samples = [found.sample(e, i) for e in (0, 1) for i in range(len(found))]
    assert all(i.shape == (3, 64, 64) and "masks" not in t for i, t in samples)
    half = len(found)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(samples[:half], samples[half:], strict=True))
    crowds = sum(int(t["iscrowd"].sum()) for _, t in samples[:half])
    assert crowds == tiny_table.iscrowd.sum() > 0


def test_degenerate_objects_leave_with_all_their_rows(tmp_path: Path):
    thin = square(bbox=[5, 5, 0.2, 9], segmentation=[[5, 5, 5.2, 5, 5.2, 14, 5, 14]])
    inverted = square(bbox=[30, 10, -20, 20])
    unseen = square(bbox=[2, 2, 5, 5], segmentation=[[2, 2, 2.1, 2, 2.1, 2.1]])
    table = make_set(tmp_path, [thin, square(), inverted, unseen, square(category_id=9), square()])
    _, target = CocoDataset(table, train=True, min_size=48).sample(0, 0)
    assert target["annotation_ids"].tolist() == [71, 75]
    assert len(target["boxes"]) == len(target["masks"]) == len(target["labels"]) == 2


def test_a_nan_box_reaches_the_guard(tmp_path: Path):
    (tmp_path / "a").mkdir()
    table = make_set(tmp_path / "a", [square(bbox=[float("nan"), 10, 20, 20]), square()])
    _, target = CocoDataset(table, train=True, min_size=48).sample(0, 0)
    assert target["annotation_ids"].tolist() == [70, 71]
    assert target["boxes"][0].isnan().any() and target["boxes"][1].isfinite().all()


def test_quarantined_annotations_are_left_out(dataset: CocoDataset, tiny_table):
    index = next(i for i in range(len(dataset)) if len(dataset.sample(0, i)[1]["boxes"]) > 1)
    before = dataset.sample(0, index)[1]["annotation_ids"].tolist()
    other = CocoDataset(tiny_table, train=True, seed=3, min_size=64, max_size=100)
    other.quarantine([before[0]])
    other.quarantine([])
    assert other.sample(0, index)[1]["annotation_ids"].tolist() == before[1:]


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (None, "no segmentation"),
        ([], "annotation 70 of image 5"),
        ([[1, 2, 3]], "3 coordinates"),
        ({"size": [9, 9], "counts": [81]}, "size"),
        ("text", "type str"),
    ],
)
def test_a_broken_segmentation_is_named(tmp_path: Path, segmentation, words: str):
    table = make_set(tmp_path, [square(segmentation=segmentation)])
    with pytest.raises(DataError, match=words) as caught:
        CocoDataset(table, train=True, min_size=48).sample(0, 0)
    assert "annotation 70 of image 5 (a.png)" in caught.value.what


def test_a_missing_image_is_named(tmp_path: Path):
    table = make_set(tmp_path, [square()])
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png"):
        CocoDataset(table, train=True).sample(0, 0)


def test_a_picture_that_was_exchanged_since_the_audit_is_named(dataset: CocoDataset, tiny_table):
    """Its boxes speak of another picture; training refuses it, whatever its size is now."""
    path = Path(tiny_table.image_root) / tiny_table.file_name(0)
    before = path.read_bytes()
    with Image.open(path) as image:
        half = image.resize((image.width // 2, image.height // 2))
        turned = image.rotate(90, expand=True) if image.width != image.height else half
    for other in (half, turned):
        other.save(path)
        with pytest.raises(DataError, match=f"{path.name} has another size than its entry"):
            dataset[0]
    path.write_bytes(before)
    dataset[0]


def test_your_own_transform_is_seeded_too(tiny_table):
    def noise(image, target):
        shift = torch.randint(0, 9, ()).item() + int(np.random.randint(9)) + random.randrange(9)
        return image.add(shift), target

    one = CocoDataset(tiny_table, train=True, seed=3, min_size=64, transform=noise)
    plain = CocoDataset(tiny_table, train=True, seed=3, min_size=64)
    before = torch.get_rng_state(), random.getstate()
    shifts = {i: (one.sample(0, i)[0] - plain.sample(0, i)[0]).unique().tolist() for i in range(5)}
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert all(len(s) == 1 for s in shifts.values()) and len({tuple(s) for s in shifts.values()}) > 1
    assert torch.equal(one.sample(0, 2)[0], one.sample(0, 2)[0])


def test_a_batch_is_made_again_from_its_keys(dataset: CocoDataset):
    keys = [SampleKey(1, i, int(dataset.image_ids[i])) for i in (4, 0, 9)]
    batch = make_batch(dataset, keys)
    assert same_batch(batch, make_batch(dataset, batch.keys))
    assert batch.image_ids == [int(dataset.image_ids[i]) for i in (4, 0, 9)] and len(batch) == 3 and batch.resized


def test_to_scales_on_the_device_and_subset_picks(dataset: CocoDataset):
    batch = make_batch(dataset, [SampleKey(0, i, int(dataset.image_ids[i])) for i in range(3)])
    moved = batch.to("cpu")
    for raw, image in zip(batch.images, moved.images, strict=True):
        assert image.dtype == torch.float32 and torch.equal(image, raw.float() / 255)
    assert moved.targets[0]["masks"].dtype == torch.uint8 and batch.images[0].dtype == torch.uint8
    part = batch.subset([2, 0])
    assert part.keys == [batch.keys[2], batch.keys[0]] and torch.equal(part.images[0], batch.images[2])
    assert part.resized


def test_drop_annotations_drops_every_row(dataset: CocoDataset):
    index = next(i for i in range(len(dataset)) if len(dataset.sample(0, i)[1]["boxes"]) > 1)
    batch = make_batch(dataset, [SampleKey(0, index, int(dataset.image_ids[index]))])
    ids = batch.targets[0]["annotation_ids"].tolist()
    left = batch.drop_annotations(0, [ids[0]]).targets[0]
    assert left["annotation_ids"].tolist() == ids[1:]
    assert {len(left[k]) for k in ("boxes", "labels", "masks", "iscrowd", "area")} == {len(ids) - 1}
    assert batch.targets[0]["annotation_ids"].tolist() == ids


class Own:
    """A data set as people write them: random augmentation, ids of their own, bad numbers."""

    def __init__(self, n: int = 6, *, ids: bool = True) -> None:
        self.n, self.ids = n, ids

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        image = torch.rand(3, 8, 8) + np.random.rand() + random.random()
        target = {"boxes": torch.tensor([[1.0, float("nan"), 5, float("inf")]]), "labels": torch.tensor([1])}
        target["annotation_ids"] = torch.tensor([1000 + i])
        if self.ids:
            target["image_id"] = torch.tensor([500 + i])  # type: ignore[assignment]
        image[0, 0, 0] = float("nan")
        return image.float(), target


def test_a_users_data_set_is_repeatable_and_passed_on_unchanged():
    data = UserData(Own(), seed=1)
    image, target = data.sample(2, 3)
    torch.manual_seed(5)
    other, _ = data.sample(2, 3)
    assert torch.equal(image.nan_to_num(), other.nan_to_num()) and image[0, 0, 0].isnan()
    assert not torch.equal(image.nan_to_num(), data.sample(3, 3)[0].nan_to_num())
    assert target["boxes"][0, 1].isnan() and target["boxes"][0, 3].isinf()


def test_a_users_image_ids_are_those_of_the_targets():
    keys = [SampleKey(0, 2, 2), SampleKey(0, 4, 4)]
    assert make_batch(UserData(Own()), keys).image_ids == [502, 504]
    assert make_batch(UserData(Own()), keys).keys[0].index == 2
    assert make_batch(UserData(Own(ids=False)), keys).image_ids == [2, 4]


def test_a_users_annotations_can_be_left_out():
    data = UserData(Own())
    data.quarantine([1003])
    assert len(data.sample(0, 3)[1]["boxes"]) == 0 and len(data.sample(0, 2)[1]["boxes"]) == 1


@pytest.mark.parametrize("image_ids", [[], [504]])
def test_a_users_annotation_is_left_out_of_its_own_image_alone(image_ids):
    class Again(Own):
        def __getitem__(self, i: int):
            image, target = super().__getitem__(i)
            return image, {**target, "annotation_ids": torch.tensor([0])}

    data = UserData(Again())
    data.quarantine([0], image_ids)
    assert [len(data.sample(0, i)[1]["boxes"]) for i in range(6)] == [
        0 if 500 + i in image_ids else 1 for i in range(6)
    ]


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        (torch.tensor([0, 0, 7]), [-1, -2, 7]),
        ([5, 6, 7], [5, 6, 7]),
        (np.array([4, -1, 4]), [-1, -2, -3]),
        (["a", "b"], [-1, -2]),
        ([1.0, 2.5], [1, -2]),
        ([2**70], [-1]),
        ([], []),
        (3, None),
        (torch.zeros(2, 2), None),
        (None, None),
    ],
    ids=str,
)
def test_annotation_ids_that_tell_nothing_become_places(given, ids):
    found = unique_in_image(given)
    assert ids is None if found is None else found.tolist() == ids


@pytest.mark.parametrize(("ids", "alike"), [([0] * 6, (0, 1, 0)), ([0, 1, 2, 0, 1, 2], (0, 3, 0)), (range(6), None)])
def test_image_ids_of_a_user_that_repeat_give_way_to_places(ids, alike):
    class Again(Own):
        def __getitem__(self, i: int):
            return super().__getitem__(i)[0], {**super().__getitem__(i)[1], "image_id": ids[i]}

    data = RunData(None, None, ("background", "a"), builtin=False)
    source, _ = sources(data, Config(num_classes=2), Again(), None, small=False)
    assert source.images_of_one_id() == (None if source.by_place else alike)
    assert source.by_place == bool(alike) and len(data.notes) == bool(alike)
    assert make_batch(source, [SampleKey(0, 4, 4)]).image_ids == [4 if alike else ids[4]]


@pytest.mark.parametrize("item", [KeyError("x"), 3, (torch.zeros(3, 4, 4), 5), (1, {})])
def test_a_users_data_set_that_fails_is_named_by_item(item):
    class Bad(Own):
        def __getitem__(self, i: int):
            if isinstance(item, Exception):
                raise item
            return item

    with pytest.raises(DataError, match="item 2"):
        UserData(Bad()).sample(0, 2)


@pytest.mark.parametrize("name", ["dsb2018/train/_annotations.coco.json", "car_damage/annotations/parts_train.json"])
def test_real_sets_give_sound_samples(shared_data: Path, name: str):
    path = shared_data / name
    root = path.parent if path.name.startswith("_") else path.parents[1]
    table = load_coco(path, root)
    data = CocoDataset(table.subset(np.arange(0, len(table), 9)), train=True, min_size=256, max_size=426)
    objects = 0
    for index in range(len(data)):
        image, target = data.sample(0, index)
        assert 204 <= min(image.shape[1:]) <= 256 or max(image.shape[1:]) in range(340, 427)
        objects += len(target["boxes"])
        for mask, box in zip(target["masks"].numpy(), target["boxes"].numpy(), strict=True):
            rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            found = np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1])
            assert np.abs(found - box).max() <= 4
    assert objects > 20


@pytest.mark.parametrize("longest", [96, 101, 1333])
def test_an_own_image_is_too_thin_exactly_where_torchvisions_resizing_fails(longest: int):
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    resize = GeneralizedRCNNTransform(64, longest, [0.0] * 3, [1.0] * 3)
    refused = 0
    for short in (1, 2, 3):
        for long in (longest // 2, longest * short - 1, longest * short, longest * short + 1, longest * short * 2):
            image, target = torch.rand(3, long, short), {"image_id": torch.tensor(77)}
            source = UserData([(image, target)])
            assert source.sample(0, 0)[0] is not None, "a model that does not resize takes it"
            source.longest = longest
            try:
                resize([image])
            except RuntimeError:
                refused += 1
                with pytest.raises(SampleError, match=rf"item 0 .*image 77.*{short}×{long} pixels") as caught:
                    make_batch(source, [SampleKey(4, 0, 0)])
                assert caught.value.key == SampleKey(4, 0, 77)
            else:
                assert source.sample(0, 0)[0] is image
    assert refused >= 6
