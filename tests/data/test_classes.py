"""Two lists of classes: whatever the order and the ids, a name keeps its label or is refused."""

from __future__ import annotations

import random

import pytest

from maskrcnn_coco.data.classes import Classes, match_classes, named_classes, saved_classes


@pytest.mark.parametrize("seed", range(20))
def test_names_decide(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"n{k}" for k in range(8)]
    theirs = Classes(tuple(rng.sample(names, 6)), tuple(rng.sample(range(100), 6)))
    mine = Classes(tuple(rng.sample(names, 5)), tuple(rng.sample(range(100), 5)))
    used = set(rng.sample(range(1, 6), 3))
    match = match_classes(mine, theirs, used)
    for label, there in enumerate(match.labels, 1):
        name = mine.names[label - 1]
        assert (theirs.names[there - 1] == name) if there else name not in theirs.names
    assert set(match.unknown) == {mine.names[n - 1] for n in used} - set(theirs.names) and not match.repeated


def test_twins_go_by_id_where_both_lists_give_them_the_same_ids() -> None:
    twins = Classes(("a", "a", "b"), (3, 7, 9))
    assert match_classes(twins, twins, {1, 2, 3}).labels == (1, 2, 3)
    assert match_classes(Classes(("b", "a", "a"), (1, 7, 3)), twins, {1, 2, 3}).labels == (3, 2, 1)
    other = match_classes(Classes(("a", "a"), (1, 2)), twins, {1, 2})
    assert other.labels == (0, 0) and other.repeated == ("a",)
    assert match_classes(Classes(("a", "b"), (3, 9)), twins, {1, 2}).repeated == ("a",)
    assert match_classes(Classes(("a", "a"), (1, 2)), twins, set()).repeated == ()


def test_letters_and_blanks_that_nobody_sees_do_not_count() -> None:
    assert match_classes(Classes(("e\u0301tui ", "b")), Classes(("b", "\u00e9tui")), {1, 2}).labels == (2, 1)
    assert match_classes(Classes(("Cat",)), Classes(("cat",)), {1}).unknown == ("Cat",)


@pytest.mark.parametrize(
    "contents",
    [{}, {"classes": None}, {"classes": ["background", "a"]}, {"classes": ["background", 1, 2]}, {"classes": "abc"}],
)
def test_checkpoints_without_usable_names(contents: dict) -> None:
    assert saved_classes(contents, 3) is None
    assert named_classes(contents, 3).names == ("class 1", "class 2") and named_classes(contents, 3).generic


def test_ids_that_do_not_fit_are_not_taken() -> None:
    for ids in (None, [1], ["1", "2"], [True, 2], 5):
        found = saved_classes({"classes": ["background", "a", "b"], "category_ids": ids}, 3)
        assert found is not None and found.ids is None and found.id_of(2) == 2
    found = saved_classes({"classes": ["background", "a", "b"], "category_ids": [9, 4]}, 3)
    assert found is not None and (found.id_of(1), found.id_of(2)) == (9, 4)
