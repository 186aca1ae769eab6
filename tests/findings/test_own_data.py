"""A data set of the caller's own: what is wrong with it is said before the first step, and nothing of an honest one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from silent.changes import FAULTS, HONEST, Drawing, edit
from silent.scene import Scene

from maskrcnn_coco.data.audit.whole_set import facts_of
from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.data.user_data import UserData
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.findings.facts import Facts, Labels, Stage, Targets
from maskrcnn_coco.findings.judge import judge
from maskrcnn_coco.findings.samples import Samples
from maskrcnn_coco.records import RunFinding
from maskrcnn_coco.training.before_training import _draws, look_at_samples, look_at_validation


class Model(torch.nn.Module):
    """As much of a detector as a look needs: its classifier, and its normalisation."""

    def __init__(self, classes: int = 3, mean: float = 0.45, std: float = 0.225) -> None:
        super().__init__()
        self.roi_heads = torch.nn.Module()
        self.roi_heads.box_predictor = torch.nn.Module()
        self.roi_heads.box_predictor.cls_score = torch.nn.Linear(2, classes)
        self.transform = torch.nn.Module()
        self.transform.image_mean, self.transform.image_std = [mean] * 3, [std] * 3


def found(scene: Any, model: torch.nn.Module | None = None, classes: int = 3) -> list[RunFinding]:
    return judge(look_at_samples(UserData(scene), model or Model(classes), classes))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_whole_set_is_named(name: str):
    change, code, what = FAULTS[name]
    said = found(Scene(change=change))
    assert [(f.code, f.detail["what"]) for f in said] == [(code, what)]
    assert said[0].evidence and said[0].explain == f"maskrcnn-coco explain {code}"
    assert "--data" not in said[0].fix  # there is no path to give


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_set_is_not_accused(name: str):
    assert found(HONEST[name]) == []


def test_normalised_once_is_no_fault():
    scene = Scene(change=edit(image=lambda v: (v - 0.45) / 0.225))
    assert found(scene, Model(mean=0.0, std=1.0)) == []


def test_a_few_wrong_labels_are_the_guards_business():
    scene = Scene(count=40, change=lambda i, t: (i, t | {"labels": t["labels"] * (t["image_id"] != 103)}))
    assert all(f.severity != "error" for f in found(scene))


def test_no_object_anywhere_ends_the_run():
    said = found(Scene(objects=0, count=90))
    assert [(f.code, f.severity) for f in said] == [("NO_TARGETS", "error")]


def test_a_rare_object_is_looked_for():
    assert found(Scene(objects=lambda i: int(i == 71), count=150)) == []


def test_every_label_out_of_range_is_an_error_with_the_number_to_give():
    said = found(Scene(classes=1, change=edit(labels=lambda v: v - 1)), classes=2)
    assert (said[0].code, said[0].severity) == ("CLASSES", "error")
    assert 'target["labels"] + 1' in said[0].fix and "num_classes=2" in said[0].fix


def test_background_counts():
    said = found(Scene(classes=2), Model(2), classes=2)
    assert said[0].severity == "error" and said[0].fix.startswith("background counts: num_classes=3")


def test_head_and_num_classes_that_differ_are_said():
    said = found(Scene(), Model(4), classes=3)
    assert [f.detail["what"] for f in said] == ["head"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda i, t: (i, {"boxes": t["boxes"], "image_id": 1}), "no 'labels'"),
        (lambda i, t: (i.permute(1, 2, 0), t), "channels come first"),
        (lambda i, t: (i, t | {"labels": t["labels"].float()}), "int64"),
        (lambda i, t: (i, t | {"masks": t["masks"].transpose(1, 2)}), "must be equal"),
        (lambda i, t: (i, t | {"boxes": t["boxes"][:, :2]}), "(N, 4)"),
        (lambda i, t: (i, t | {"boxes": t["boxes"].tolist()}), "as_tensor"),
    ],
)
def test_a_form_that_nothing_can_read_is_named(change, word: str):
    with pytest.raises(DataError, match="no sample") as error:
        look_at_samples(UserData(Scene(change=change)), Model(), 3)
    assert word in error.value.what


@pytest.mark.parametrize(
    ("how", "workers", "what"),
    [
        ("own", 2, ["own generator"]),
        ("own", 0, []),
        ("seeded", 0, ["seeded"]),
        ("torch seeded", 2, ["seeded"]),
        ("global", 2, []),
        ("none", 2, []),
    ],
)
def test_draws_that_repeat_are_named(how: str, workers: int, what: list[str]):
    from maskrcnn_coco.findings.facts import Facts

    data = Drawing(how)
    before = data.own.bit_generator.state
    said = judge(Facts(way="own", draws=_draws(UserData(data), workers)))
    assert [f.detail["what"] for f in said] == what
    assert data.own.bit_generator.state == before


def test_samples_without_forms_are_counted_not_raised():
    samples = Samples()
    samples.add(torch.zeros(3, 8, 8), {}, 1)
    assert samples.form is not None and samples.objects == 0


MIXES = {
    "a third not divided by 255": (lambda i, t: (i * 255 if t["image_id"] % 3 == 0 else i, t), "two scales"),
    "every picture the same": (lambda i, t: (Scene().plain(0)[0], t), "one picture"),
}


@pytest.mark.parametrize("name", MIXES)
def test_pictures_that_cannot_be_are_named(name: str):
    change, what = MIXES[name]
    assert ("PIXELS", what) in {(f.code, f.detail["what"]) for f in found(Scene(change=change))}


@pytest.mark.parametrize("bad", [lambda i, t: (t, i), lambda i, t: (i.numpy(), t), lambda i, t: (i, [t])])
def test_where_no_item_can_be_read_the_run_ends_before_it_begins(bad):
    with pytest.raises(DataError, match="no item of the data set"):
        look_at_samples(UserData(Scene(change=bad)), Model(), 3)


def test_validation_data_without_objects_cost_figures_not_the_run():
    facts = Facts(targets=[Targets(6, [Stage("annotated", 0)], of="validation data")])
    (one,) = judge(facts)
    assert (one.code, one.severity) == ("NO_TARGETS", "warning") and "measure" in one.message


@pytest.mark.parametrize(
    ("known", "used", "shift"),
    [((1, 2), (0, 1), 1), ((0, 1), (1, 2), -1), ((1, 2), (1, 2), 0), ((1, 2, 3), (0, 1), 0), ((1, 2, 3), (0, 1, 2), 1)],
)
def test_category_ids_one_off_are_named(tmp_path: Path, known: tuple[int, ...], used: tuple[int, ...], shift: int):
    doc = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "categories": [{"id": k, "name": f"class {k}"} for k in known],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": used[n % len(used)], "bbox": [n, n, 9, 9], "iscrowd": 0}
            for n in range(9)
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(doc), encoding="utf-8")
    table = load_coco(tmp_path / "a.json", tmp_path)
    said = [f.detail["shift"] for f in judge(facts_of(table, [])) if f.detail["what"] == "shifted"]
    assert said == ([shift] if shift else [])


@pytest.mark.parametrize("image", [torch.zeros(3, 8, 8, dtype=torch.complex64), torch.zeros(3, 0, 8)])
def test_one_image_that_no_look_can_read_costs_no_run(image: torch.Tensor):
    scene = Scene(change=lambda i, t: (image if t["image_id"] == 103 else i, t))
    assert [f.detail["what"] for f in found(scene)] == ["some forms"]
    with pytest.raises(DataError, match=r"(complex|empty)"):
        found(Scene(change=lambda i, t: (image, t)))


VAL_FAULTS = [
    ("normalised", "PIXELS"),
    ("not scaled", "PIXELS"),
    ("boxes as sizes", "GEOMETRY"),
    ("one label too many", "CLASSES"),
    ("labels from 0", "CLASSES"),
    ("picture mirrored alone", "GEOMETRY"),
]


@pytest.mark.parametrize(("name", "code"), VAL_FAULTS)
def test_validation_data_are_looked_at_too_and_never_end_the_run(name: str, code: str):
    val = UserData(Scene(12, seed=3, change=FAULTS[name][0]))
    said = [f for facts in look_at_validation(val, UserData(Scene()), Model(), 3) for f in judge(facts)]
    assert [f.code for f in said] == [code]
    assert said[0].severity == "warning" and "validation data" in said[0].message


@pytest.mark.parametrize("name", HONEST)
def test_honest_validation_data_are_not_accused(name: str):
    facts = look_at_validation(UserData(HONEST[name]), UserData(Scene()), Model(), 3)
    assert [f for part in facts for f in judge(part)] == []


def test_validation_data_that_are_the_training_data_are_said():
    data = Scene()
    said = judge(look_at_validation(UserData(data), UserData(data), Model(), 3)[0])
    assert [(f.code, f.detail["what"]) for f in said] == [("MEMORISED", "same data")]


def test_a_model_that_normalises_bytes_is_given_bytes_or_it_is_said():
    assert [f.detail["what"] for f in found(Scene(), Model(mean=123.7, std=58.4))] == ["mean of bytes"]
    assert found(Scene(change=edit(image=lambda v: v * 255)), Model(mean=123.7, std=58.4)) == []


def test_objects_that_are_there_twice():
    twice = Scene(change=lambda i, t: (i, {k: torch.cat([v, v]) if torch.is_tensor(v) else v for k, v in t.items()}))
    assert [(f.code, f.detail["what"]) for f in found(twice)] == [("GEOMETRY", "twice")]


def test_a_class_that_only_validation_has_is_named():
    said = judge(Facts(labels=Labels({1: 30}, 10, num_classes=3, untaught={"cell": 7})))
    assert [(f.code, f.detail["what"]) for f in said] == [("CLASSES", "untaught")]
    assert "cell (7)" in said[0].message
