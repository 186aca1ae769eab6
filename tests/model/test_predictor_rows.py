from __future__ import annotations

import pytest
import torch

from maskrcnn_coco.data.classes import Classes
from maskrcnn_coco.model.build import build_model
from maskrcnn_coco.model.predictor_rows import PREDICTORS

SMALL = "maskrcnn_resnet18_fpn"
HAD = ("car", "dent", "scratch")


def build(names, **options):
    return build_model(SMALL, 1 + len(names), small=True, min_size=64, max_size=64, classes=Classes(names), **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of three classes in which each predictor's numbers tell whose they are: 0 for the background, 1 …"""
    path = tmp_path_factory.mktemp("rows") / "trained.pth"
    state = build(HAD).state_dict()
    for name in (n for n in state if n.startswith(PREDICTORS)):
        each = len(state[name]) // 4
        for label in range(4):
            state[name][label * each : (label + 1) * each] = label
    torch.save({"model": state, "classes": ["background", *HAD]}, path)
    return path


def owners(net) -> dict[str, list[int]]:
    """Predictor → for each label the class whose numbers it holds; -1 where they are drawn at random."""
    found = {}
    for name, value in net.state_dict().items():
        if name.startswith(PREDICTORS):
            rows = value.unflatten(0, (net.roi_heads.box_predictor.cls_score.out_features, -1)).flatten(1)
            found[name] = [int(r[0]) if bool((r == r[0]).all()) and float(r[0]).is_integer() else -1 for r in rows]
    return found


@pytest.mark.parametrize(
    ("names", "rows", "words"),
    [
        (HAD, [0, 1, 2, 3], None),
        (("scratch", "car", "dent"), [0, 3, 1, 2], "scratch, car, dent is kept"),
        (("dent", "rust", "car"), [0, 2, -1, 1], "dent, car is kept, rust starts at random"),
        (("dent",), [0, 2], "dent is kept"),
        (("rust", "scratch", "hole", "dent", "car"), [0, -1, 3, -1, 2, 1], "rust, hole start at random"),
        (("a", "b", "c"), [-1] * 4, "no class in common"),
        (("a",), [-1] * 2, "no class in common"),
        (("class 1", "class 2", "class 3"), [0, 1, 2, 3], "the data set names no classes"),
        (("class 1", "class 2"), [-1] * 3, "start at random"),
        (("car", "car", "dent"), [0, -1, -1, 2], "car, car start at random"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, tuple) else "",
)
def test_predictors_go_by_the_names_of_classes(trained, names, rows, words):
    net = build(names, weights=str(trained))
    # A bias of one number a class is always of one value: it tells nothing where it is drawn at random.
    found = {n: v for n, v in owners(net).items() if "weight" in n or -1 not in rows}
    assert set(map(tuple, found.values())) == {tuple(rows)}
    said = [n for n in net.notes if n != f"weights from {trained}"]
    assert said == [] if words is None else len(said) == 1 and words in said[0]


def test_a_file_without_names_goes_by_place_and_says_so(trained, tmp_path):
    torch.save(torch.load(trained, weights_only=True)["model"], tmp_path / "bare.pth")
    net = build(("a", "b", "c"), weights=str(tmp_path / "bare.pth"))
    assert set(map(tuple, owners(net).values())) == {(0, 1, 2, 3)}
    assert any("names no classes: the 3 that" in n for n in net.notes)
