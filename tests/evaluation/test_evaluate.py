"""Evaluation of a model: same masks as torchvision's, ids and modes right, any data set, shards add up."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from coco_sets import ORACLE_WARNING, oracle, random_set
from PIL import Image
from torch import nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.data.masks import decode_mask
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.evaluation.detect import _painted, infer
from maskrcnn_coco.evaluation.evaluate import detect, evaluate_model, score
from maskrcnn_coco.evaluation.ground_truth import as_eval_set
from maskrcnn_coco.evaluation.metrics import METRICS
from maskrcnn_coco.model.build import build_model

pytestmark = pytest.mark.filterwarnings(ORACLE_WARNING)


def detector() -> nn.Module:
    torch.manual_seed(0)
    model = build_model("maskrcnn_resnet18_fpn", 5, small=True, min_size=64, max_size=96, detections_per_image=20)
    model.roi_heads.score_thresh = 0.0
    return model.train()


class Oracle(nn.Module):
    """Answers with the results it was given, in torchvision's form, from the image's number in its first pixel."""

    def __init__(self, answers: dict[int, list[dict]], label_of: dict[int, int]) -> None:
        super().__init__()
        self.answers, self.label_of = answers, label_of

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        out = []
        for image in images:
            rs = self.answers.get(round(float(image[0, 0, 0]) * 255), [])
            h, w = image.shape[-2:]
            boxes = torch.tensor(
                [[*r["bbox"][:2], r["bbox"][0] + r["bbox"][2], r["bbox"][1] + r["bbox"][3]] for r in rs]
            )
            masks = np.array([decode_mask(r["segmentation"], h, w) for r in rs], np.float32)
            out.append({
                "boxes": boxes, "scores": torch.tensor([r["score"] for r in rs]),
                "labels": torch.tensor([self.label_of[r["category_id"]] for r in rs]),
                "masks": torch.from_numpy(masks.reshape(-1, 1, h, w)),
            })  # fmt: skip
        return out


@pytest.fixture
def on_disk(tmp_path: Path) -> tuple[dict, list[dict], Any, Oracle]:
    truth, results = random_set(8, images=6, detections=15)
    for n, image in enumerate(truth["images"]):
        pixels = np.zeros((image["height"], image["width"], 3), np.uint8)
        pixels[0, 0] = n
        Image.fromarray(pixels).save(tmp_path / image["file_name"])
    (tmp_path / "a.json").write_text(json.dumps(truth))
    for r in results:  # scores are float32 in a model
        r["score"] = float(np.float32(r["score"]))
    answers: dict[int, list[dict]] = {}
    for n, image in enumerate(truth["images"]):
        answers[n] = [r for r in results if r["image_id"] == image["id"]]
    labels = {c["id"]: n for n, c in enumerate(truth["categories"], 1)}
    return truth, results, load_coco(tmp_path / "a.json", tmp_path), Oracle(answers, labels)


def test_the_whole_way_equals_pycocotools(on_disk: Any) -> None:
    truth, results, table, model = on_disk
    got = evaluate_model(model, table, device="cpu", batch_size=2)
    bbox, _ = oracle(truth, results, "bbox")
    segm, per_class = oracle(truth, [{k: v for k, v in r.items() if k != "bbox"} for r in results], "segm")
    for kind, stats in (("bbox", bbox), ("segm", segm)):
        for name, value in zip(METRICS, stats, strict=True):
            assert abs(got.metrics[f"{kind}/{name}"] - value) < 1e-6, (kind, name)
    for category, value in per_class.items():
        assert abs(got.per_class[f"class {category}"]["segm/AP"] - value) < 1e-6
    assert {r["image_id"] for r in got.detections} <= {i["id"] for i in truth["images"]}
    assert {r["category_id"] for r in got.detections} <= {c["id"] for c in truth["categories"]}
    assert sum(v["objects"] for v in got.per_class.values()) == len(truth["annotations"])
    again, _ = oracle(truth, got.detections, "bbox")  # what is written is what was scored
    assert again == pytest.approx(bbox, abs=1e-6)


def test_shards_add_up(on_disk: Any) -> None:
    _, _, table, model = on_disk
    data = as_eval_set(table)
    whole = evaluate_model(model, table, device="cpu")
    shards = [detect(model, data, range(r, len(data), 3), device="cpu", batch_size=2) for r in range(3)]
    parts = score(shards, data)
    assert parts.metrics == whole.metrics
    assert parts.detections == whole.detections


def test_a_data_set_of_ones_own(on_disk: Any) -> None:
    truth, _, table, model = on_disk

    class Own(torch.utils.data.Dataset):
        class_names = ("background", "a", "b", "c", "d")

        def __len__(self) -> int:
            return len(table)

        def __getitem__(self, row: int) -> tuple[torch.Tensor, dict]:
            example = as_eval_set(table).load(row)
            anns = example.annotations
            masks = [decode_mask(a["segmentation"], example.height, example.width) for a in anns]
            boxes = np.array([a["bbox"] for a in anns]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            return example.image, {
                "boxes": torch.from_numpy(boxes), "labels": torch.tensor([a["category_id"] for a in anns]),
                "masks": torch.from_numpy(np.array(masks, np.uint8).reshape(-1, example.height, example.width)),
                "image_id": example.image_id, "iscrowd": torch.tensor([a["iscrowd"] for a in anns]),
            }  # fmt: skip

    own = evaluate_model(model, Own(), device="cpu")
    table_result = evaluate_model(model, table, device="cpu")
    assert own.metrics == pytest.approx(table_result.metrics, abs=1e-6)
    assert set(own.per_class) == {"a", "b", "c", "d"}
    assert {r["image_id"] for r in own.detections} <= {i["id"] for i in truth["images"]}


def test_modes_and_random_numbers_are_left_as_found() -> None:
    model = detector()
    model.backbone.body.eval()  # a frozen part in a model that trains
    before = {name: m.training for name, m in model.named_modules()}
    state = torch.get_rng_state()
    image = SimpleNamespace(row=0, image=torch.rand(3, 60, 70), height=60, width=70)
    torch.set_rng_state(state)
    infer(model, [image], device="cpu")
    assert {name: m.training for name, m in model.named_modules()} == before
    assert torch.equal(torch.get_rng_state(), state)
    assert "postprocess" not in vars(model.transform)
    target = {"boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([1]), "masks": torch.ones(1, 60, 70)}
    sum(model([image.image], [target]).values()).backward()  # what evaluation cached can still be trained on


def test_boxes_and_masks_equal_torchvisions_own_pasting() -> None:
    model = detector()
    images = [torch.rand(3, 60, 70), torch.rand(3, 90, 50)]
    wanted = [SimpleNamespace(row=n, image=i, height=i.shape[1], width=i.shape[2]) for n, i in enumerate(images)]
    got = infer(model, wanted, device="cpu")
    model.eval()
    with torch.no_grad():
        expected = model(images)
    for mine, theirs in zip(got, expected, strict=True):
        order = torch.argsort(theirs["scores"], descending=True, stable=True)
        assert len(mine.results) == len(order) > 0
        for r, n in zip(mine.results, order.tolist(), strict=True):
            x, y, w, h = r["bbox"]
            assert [x, y, x + w, y + h] == pytest.approx(theirs["boxes"][n].tolist(), abs=1e-4)
            full = (theirs["masks"][n, 0] > 0.5).numpy()
            assert np.array_equal(decode_mask(r["segmentation"], *full.shape), full)


def test_painting_at_and_beyond_the_border_equals_torchvisions() -> None:
    torch.manual_seed(1)
    masks = torch.rand(40, 1, 28, 28)
    boxes = torch.rand(40, 4) * 50 - 12
    boxes[:, 2:] = boxes[:, :2].clamp_min(0) + 1 + torch.rand(40, 2) * 40  # torchvision's own fails on boxes outside
    expected = paste_masks_in_image(masks, boxes, (40, 50)) > 0.5
    for rle, full in zip(_painted(masks, boxes, 40, 50), expected, strict=True):
        assert np.array_equal(decode_mask(rle, 40, 50), full[0].numpy())


def test_not_finite_detections_are_dropped_and_counted() -> None:
    class Broken(nn.Module):
        def forward(self, images: list) -> list:
            boxes = torch.tensor([[0.0, 0, 5, 5], [0, 0, float("nan"), 5], [0, 0, 5, 5]])
            scores = torch.tensor([0.5, 0.9, float("nan")])
            return [{"boxes": boxes, "scores": scores, "labels": torch.ones(3, dtype=torch.int64)} for _ in images]

    image = SimpleNamespace(row=0, image=torch.zeros(3, 9, 9), height=9, width=9)
    (found,) = infer(Broken(), [image], device="cpu")
    assert found.dropped == 2
    assert [r["score"] for r in found.results] == [0.5]
    assert not found.has_masks


def test_an_unreadable_image_is_left_out_and_named(on_disk: Any) -> None:
    truth, _, table, model = on_disk
    (table.image_root / truth["images"][2]["file_name"]).write_bytes(b"not an image")
    got = evaluate_model(model, table, device="cpu")
    assert got.images == len(table) - 1
    assert any("2.png" in text for text in got.left_out)
    assert truth["images"][2]["id"] not in {r["image_id"] for r in got.detections}


def test_a_model_with_more_classes_than_the_data_is_refused(on_disk: Any) -> None:
    _, _, table, model = on_disk
    model.label_of = {c: n + 3 for c, n in model.label_of.items()}
    with pytest.raises(DataError, match="4 classes"):
        evaluate_model(model, table, device="cpu")


def test_progress_counts_images(on_disk: Any) -> None:
    _, _, table, model = on_disk
    seen: list[tuple[int, int]] = []
    evaluate_model(model, table, device="cpu", batch_size=4, progress=lambda *a: seen.append(a))
    assert seen == [(4, 6), (6, 6)]
