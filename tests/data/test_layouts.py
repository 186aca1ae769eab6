"""Each layout is found by itself; where several files could be meant, the message says how to choose."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskrcnn_coco.data.layouts import find_data, split
from maskrcnn_coco.errors import DataError
from tests.helpers.odd_sets import OddSet


@pytest.fixture
def coco_set(tmp_path: Path) -> OddSet:
    found = OddSet(tmp_path / "set", images=2)
    found.write()
    return found


def write_set(
    json_path: Path, images: Path, count: int = 3, *, prefix: str = "", sizes: bool = True, names: str = "ab"
) -> None:
    images.mkdir(parents=True, exist_ok=True)
    json_path.parent.mkdir(parents=True, exist_ok=True)
    entries = []
    for i in range(count):
        Image.new("RGB", (32, 24), (i, 0, 0)).save(images / f"{json_path.stem}{i}.png")
        entry = {"id": i, "file_name": f"{prefix}{json_path.stem}{i}.png"}
        entries.append(entry | ({"height": 24, "width": 32} if sizes else {}))
    square = [[4, 4, 14, 4, 14, 14]]
    ann = {
        "id": 1,
        "image_id": 0,
        "category_id": 1,
        "bbox": [4, 4, 10, 10],
        "area": 50,
        "iscrowd": 0,
        "segmentation": square,
    }
    cats = [{"id": i + 1, "name": n} for i, n in enumerate(names)]
    json_path.write_text(json.dumps({"images": entries, "annotations": [ann], "categories": cats}), encoding="utf-8")


def test_coco(tmp_path):
    write_set(tmp_path / "annotations/instances_train2017.json", tmp_path / "train2017")
    write_set(tmp_path / "annotations/instances_val2017.json", tmp_path / "val2017", 2)
    (tmp_path / "annotations/captions_train2017.json").write_text("{}", encoding="utf-8")
    (tmp_path / "annotations/person_keypoints_train2017.json").write_text("{}", encoding="utf-8")
    found = find_data(tmp_path)
    assert found.train.image_root == tmp_path / "train2017" and len(found.train) == 3
    assert found.val is not None and found.val.image_root == tmp_path / "val2017" and len(found.val) == 2


def test_coco_with_one_folder_of_images(tmp_path):
    for part in ("train", "val"):
        write_set(tmp_path / f"annotations/instances_{part}.json", tmp_path / "images")
    found = find_data(tmp_path)
    assert found.train.image_root == tmp_path / "images" and found.val is not None


@pytest.mark.parametrize("val", ["valid", "val"])
def test_roboflow(tmp_path, val):
    for part in ("train", val, "test"):
        write_set(tmp_path / part / "_annotations.coco.json", tmp_path / part)
    for data in (tmp_path, tmp_path / "train", tmp_path / "train/_annotations.coco.json"):
        found = find_data(data)
        assert found.train.image_root == tmp_path / "train"
        assert found.val is not None and found.val.image_root == tmp_path / val


@pytest.mark.parametrize("images", ["images", "images/default"])
def test_cvat(tmp_path, images):
    write_set(tmp_path / "annotations/instances_default.json", tmp_path / images)
    found = find_data(tmp_path)
    assert found.val is None and found.train.image_root == tmp_path / images


@pytest.mark.parametrize("images", ["images", ".", "data"])
def test_images_and_one_json(tmp_path, images):
    write_set(tmp_path / "labels.json", tmp_path / images)
    found = find_data(tmp_path)
    assert found.val is None and found.train.image_root == tmp_path / images


def test_json_with_images_whose_names_repeat_the_folder(tmp_path):
    write_set(tmp_path / "x/parts_train.json", tmp_path / "train", prefix="train/")
    write_set(tmp_path / "x/parts_val.json", tmp_path / "val", prefix="val/")
    found = find_data(tmp_path / "x/parts_train.json", images=tmp_path / "train")
    assert found.train.image_root == tmp_path
    assert found.val is not None and found.val.json_path.name == "parts_val.json" and found.val.image_root == tmp_path


def test_a_json_in_each_part(tmp_path):
    for part in ("train", "val"):
        write_set(tmp_path / part / "labels.json", tmp_path / part / "images")
    found = find_data(tmp_path)
    assert found.train.image_root == tmp_path / "train/images"
    assert found.val is not None and found.val.image_root == tmp_path / "val/images"


def test_a_validation_set_without_images_is_used_only_if_it_was_asked_for(tmp_path):
    for part in ("train", "val"):
        write_set(tmp_path / f"annotations/instances_{part}.json", tmp_path / part)
    shutil.rmtree(tmp_path / "val")
    found = find_data(tmp_path)
    assert found.val is None and "instances_val.json is not used" in found.notes[-1]
    with pytest.raises(DataError, match="none of the images"):
        find_data(tmp_path, val=tmp_path / "annotations/instances_val.json")


def test_several_candidates_are_named_with_a_command(tmp_path):
    for name in ("parts", "damage"):
        write_set(tmp_path / f"annotations/{name}_train.json", tmp_path / "train")
    with pytest.raises(DataError) as caught:
        find_data(tmp_path)
    assert "parts_train.json" in str(caught.value) and "damage_train.json" in str(caught.value)
    assert f"--data {tmp_path / 'annotations/damage_train.json'} --images {tmp_path / 'train'}" in (
        caught.value.fix or ""
    )


def test_val_given_and_categories_in_another_order(tmp_path):
    write_set(tmp_path / "a/labels.json", tmp_path / "a")
    write_set(tmp_path / "b/labels.json", tmp_path / "b", names="ba")
    found = find_data(tmp_path / "a", val=tmp_path / "b")
    assert found.val is not None and found.val.class_names == found.train.class_names == ("background", "a", "b")
    assert found.val.labels.tolist() == [2]
    write_set(tmp_path / "c/labels.json", tmp_path / "c", names="xy")
    with pytest.raises(DataError, match="categories that the training data does not have"):
        find_data(tmp_path / "a", val=tmp_path / "c")


def test_sizes_that_the_json_lacks_come_from_the_files(tmp_path):
    write_set(tmp_path / "labels.json", tmp_path, sizes=False)
    assert find_data(tmp_path).train.heights.tolist() == [24] * 3


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="no file or folder"):
        find_data(tmp_path / "none")
    with pytest.raises(DataError, match="no training annotations"):
        find_data(tmp_path)
    write_set(tmp_path / "labels.json", tmp_path / "images")
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(DataError, match="none of the images") as caught:
        find_data(tmp_path)
    assert "labels0.png" in (caught.value.got or "")
    with pytest.raises(DataError, match="no image folder"):
        find_data(tmp_path / "labels.json", images=tmp_path / "gone")


def test_real_sets(shared_data):
    found = find_data(shared_data / "dsb2018")
    assert (len(found.train), found.val and len(found.val)) == (153, 30)
    with pytest.raises(DataError, match="2 annotation files"):
        find_data(shared_data / "car_damage")
    found = find_data(shared_data / "car_damage/annotations/parts_train.json", images=shared_data / "car_damage/train")
    assert (len(found.train), found.val and len(found.val)) == (62, 8)


def test_split_is_a_function_of_names_and_seed(tmp_path):
    write_set(tmp_path / "labels.json", tmp_path, 40)
    table = find_data(tmp_path).train
    train, val = split(table, 0.15, 3)
    assert len(val) == 6 and len(train) == 34
    assert not set(train.image_ids.tolist()) & set(val.image_ids.tolist())
    again = split(table.subset(np.arange(40)[::-1]), 0.15, 3)[1]
    assert set(again.image_ids.tolist()) == set(val.image_ids.tolist())
    assert set(split(table, 0.15, 4)[1].image_ids.tolist()) != set(val.image_ids.tolist())
    with pytest.raises(DataError, match="one image"):
        split(table.subset(np.array([0])), 0.15, 0)


def test_validation_images_that_were_named_are_not_replaced_in_silence(tmp_path):
    """``--val-images`` without ``--val``: the annotations are found, the folder named is the one or it is an error."""
    for part in ("train", "val"):
        write_set(tmp_path / f"annotations/instances_{part}.json", tmp_path / part)
    with pytest.raises(DataError, match="no image folder"):
        find_data(tmp_path, val_images=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        find_data(tmp_path, val_images=tmp_path / "empty")
    assert find_data(tmp_path, val_images=tmp_path / "val").val is not None
    (tmp_path / "annotations/instances_val.json").unlink()
    with pytest.raises(DataError, match="--val"):
        find_data(tmp_path, val_images=tmp_path / "val")


def test_the_one_coco_file_among_others_is_taken(coco_set: OddSet):
    for name, text in {
        "classes.json": '["cat"]',
        "metadata.json": '{"name": "x"}',
        "._a.json": "\0\5",
        "old.changes.json": '[{"image_id": 1}]',
    }.items():
        (coco_set.folder / name).write_text(text)
    assert find_data(coco_set.folder).train.json_path.name == "a.json"


def test_of_several_the_coco_files_are_suggested_first(coco_set: OddSet):
    (coco_set.folder / "0.json").write_text("{}")
    coco_set.write("b.json")
    with pytest.raises(DataError, match="3 annotation files") as caught:
        find_data(coco_set.folder)
    assert f"--data {coco_set.folder / 'a.json'}" in str(caught.value.fix)


def test_a_repaired_copy_beside_the_files_of_a_tool_is_not_taken_without_asking(coco_set: OddSet):
    (coco_set.folder / "1.json").write_text('{"shapes": [], "imagePath": "1.png"}')
    with pytest.raises(DataError, match="2 annotation files") as caught:
        find_data(coco_set.folder)
    assert "a.json" in str(caught.value.fix)


def test_another_tools_data_set_is_named_among_its_other_files(tmp_path: Path):
    (tmp_path / "metadata.json").write_text('{"name": "x"}')
    (tmp_path / "samples.json").write_text('{"samples": []}')
    with pytest.raises(DataError, match=r"FiftyOne data set, samples\.json"):
        find_data(tmp_path)


@pytest.mark.parametrize("fraction", [0.15, 0.3, 0.5])
def test_entries_of_one_file_stay_on_one_side(tmp_path: Path, fraction: float):
    data = OddSet(tmp_path, images=7)
    data.images += [image | {"id": image["id"] + 100 * n} for n in (1, 2) for image in data.images]
    for seed in range(8):
        train, val = split(data.table(), fraction, seed)
        assert not set(train.names.decoded()) & set(val.names.decoded()) and len(val) >= 3


def test_a_set_is_named_as_it_was_given_and_its_validation_part_so_that_it_is_found(tmp_path):
    pictures = tmp_path / "my pictures"
    for part in ("one", "two"):
        write_set(tmp_path / f"{part}.json", pictures)
    found = find_data(tmp_path / "one.json", images=pictures, val=tmp_path / "two.json")
    assert found.val is not None
    for table, name in ((found.train, "one.json"), (found.val, "two.json")):
        verb, data, images_flag, images = shlex.split(table.flags)
        assert (verb, data, images_flag, images) == ("--data", str(tmp_path / name), "--images", str(pictures))
        assert find_data(data, images=images).train.json_path == table.json_path
    for part in ("train", "val"):
        write_set(tmp_path / "set" / part / "labels.json", tmp_path / "set" / part / "images")
    found = find_data(tmp_path / "set")
    assert found.val is not None and found.train.flags == f"--data {tmp_path / 'set'}"
    _, data, _, images = shlex.split(found.val.flags)
    assert find_data(data, images=images).train.json_path == found.val.json_path
    assert found.train.subset(np.array([0])).flags == found.train.flags, "a part of a set has its name"
