"""The plan is a pure function: of step, seed and quarantine, and of nothing that happened before."""

from __future__ import annotations

import time

import numpy as np
import pytest

from maskrcnn_coco.data.plan import Plan, SampleKey, aspect_groups
from maskrcnn_coco.errors import DataError


def ids(plan: Plan, step: int) -> list[int]:
    return [key.image_id for micro in plan.step(step)[1] for key in micro]


def plan(n: int = 50, batch: int = 4, accumulate: int = 1, **more) -> Plan:
    return Plan(7, np.arange(100, 100 + n), batch, accumulate, **more)


def test_any_step_is_the_same_in_any_order_of_questions():
    one, other = plan(), plan()
    asked = [one.step(s) for s in range(60)]
    assert [other.step(s) for s in reversed(range(60))] == asked[::-1]


def test_an_epoch_has_each_image_and_full_batches_of_the_asked_size():
    p = plan(50, 4, 3)
    assert p.steps_per_epoch == 5
    epoch, micros = p.step(4)
    assert epoch == 0 and [len(m) for m in micros] == [4, 4, 4]
    seen = [i for s in range(5) for i in ids(p, s)]
    assert set(seen) == set(range(100, 150))
    assert len(seen) == 60
    assert p.step(5)[0] == 1


def test_epochs_and_seeds_differ():
    p = plan()
    first = [ids(p, s) for s in range(p.steps_per_epoch)]
    assert first != [ids(p, s + p.steps_per_epoch) for s in range(p.steps_per_epoch)]
    assert first != [ids(Plan(8, p.image_ids, 4), s) for s in range(p.steps_per_epoch)]


def test_fewer_images_than_a_batch_are_repeated():
    p = plan(3, 8)
    assert p.steps_per_epoch == 1
    assert sorted(set(ids(p, 0))) == [100, 101, 102] and len(ids(p, 0)) == 8


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_batch_of_one_process_with_as_many_images(world: int):
    alone = plan(61, 4, world)
    ranks = [plan(61, 4, 1, rank=r, world=world) for r in range(world)]
    assert {r.steps_per_epoch for r in ranks} == {alone.steps_per_epoch}
    for step in range(alone.steps_per_epoch * 2):
        shares = [ids(r, step) for r in ranks]
        assert sorted(i for s in shares for i in s) == sorted(ids(alone, step))
    whole = [i for s in range(alone.steps_per_epoch) for r in ranks for i in ids(r, s)]
    assert set(whole) == set(range(100, 161))


def test_batches_hold_images_of_like_shape():
    rng = np.random.default_rng(0)
    ratios = np.exp2(rng.uniform(-1.5, 1.5, 400))
    p = Plan(0, np.arange(400), 8, aspect_ratios=ratios)
    groups = aspect_groups(ratios)
    mixed = sum(len({groups[k.index] for k in p.step(s)[1][0]}) > 1 for s in range(p.steps_per_epoch))
    assert mixed <= len(set(groups)) - 1
    order = [groups[p.step(s)[1][0][0].index] for s in range(p.steps_per_epoch)]
    assert order != sorted(order), "batches of one shape must not all come together"


def test_groups_are_those_of_torchvision():
    # edges of its create_aspect_ratio_groups(k=3): 2 ** linspace(-1, 1, 7), bisect_right
    edges = [0.5, 0.63, 0.79, 1.0, 1.26, 1.59, 2.0]
    middle = [0.4, 0.55, 0.7, 0.9, 1.1, 1.4, 1.8, 2.5]
    assert aspect_groups(np.array(middle)).tolist() == list(range(len(edges) + 1))
    assert aspect_groups(np.array([1.0])).tolist() == [4]


def test_quarantine_replaces_only_what_is_in_it():
    p, q = plan(), plan()
    bad = {103, 117, 140}
    q.quarantine(bad)
    assert q.steps_per_epoch == p.steps_per_epoch and q.quarantined == sorted(bad)
    for step in range(2 * p.steps_per_epoch):
        for a, b in zip(ids(p, step), ids(q, step), strict=True):
            assert a == b if a not in bad else (b not in bad)


def test_quarantine_does_not_depend_on_when_and_in_which_order():
    together, apart = plan(), plan()
    together.quarantine([103, 117, 140])
    apart.step(3)
    apart.quarantine([140])
    apart.step(9)
    apart.quarantine([117])
    apart.quarantine([103])
    assert [together.step(s) for s in range(40)] == [apart.step(s) for s in range(40)]


def test_substitutes_have_the_same_shape_where_there_are_some():
    ratios = np.where(np.arange(40) < 20, 0.6, 1.7)
    p = Plan(0, np.arange(40), 4, aspect_ratios=ratios)
    p.quarantine(range(15))
    for step in range(p.steps_per_epoch):
        assert len({ratios[k.index] for k in p.step(step)[1][0]}) == 1
    p.quarantine(range(20))
    assert all(i >= 20 for s in range(p.steps_per_epoch) for i in ids(p, s))


def test_a_quarantine_that_leaves_nothing_is_refused_and_changes_nothing():
    p = plan(5, 2)
    before = p.step(0)
    with pytest.raises(DataError, match="no training image is left"):
        p.quarantine(range(100, 105))
    assert p.step(0) == before and p.quarantined == []


def test_no_images_is_an_error():
    with pytest.raises(DataError):
        Plan(0, [], 2)


def test_names_that_come_late_are_honoured():
    p = Plan(0, np.arange(4), 2)
    p.quarantine([17, 2])  # 2 is a true id here, not a position
    p.expect_names()
    assert {k.index for s in range(2) for k in p.step(s)[1][0]} == {0, 1, 2, 3}
    assert not p.rename(2, 15)
    assert p.rename(1, 17)
    assert not p.rename(1, 17)
    assert p.quarantined == [2, 17]
    assert all(k.index != 1 for s in range(8) for k in p.step(s)[1][0])
    assert {k.image_id for s in range(2) for k in p.step(s)[1][0] if k.index == 2} <= {15}


def test_the_last_step_of_a_long_run_is_planned_at_once():
    p = Plan(0, np.arange(118_000), 16, aspect_ratios=np.exp2(np.random.default_rng(0).uniform(-1, 1, 118_000)))
    began = time.perf_counter()
    p.step(20 * p.steps_per_epoch - 1)
    assert time.perf_counter() - began < 2.0


def test_repeats_keep_the_length_of_an_epoch_and_come_as_often_as_asked():
    repeats = np.linspace(1, 3.7, 50)
    p = plan(50, 4, repeats=repeats)
    assert p.images_per_epoch == round(repeats.sum()) and p.steps_per_epoch == -(-p.images_per_epoch // 4)
    seen = np.zeros(50)
    for epoch in range(40):
        drawn = p._drawn(np.random.default_rng(epoch))
        assert len(drawn) == p.images_per_epoch
        times = np.bincount(drawn, minlength=50)
        assert (times >= np.floor(repeats) - 1).all() and (times <= np.ceil(repeats) + 1).all() and times.min() >= 0
        seen += times
    np.testing.assert_allclose(seen / 40, repeats, rtol=0.15)
    assert plan(50, 4).step(7) == plan(50, 4, repeats=None).step(7)
    again = plan(50, 4, repeats=repeats)
    assert [again.step(s) for s in range(40)] == [p.step(s) for s in range(40)]


def test_ones_as_repeats_are_each_image_once():
    p = plan(31, 4, repeats=np.ones(31))
    seen = [i for s in range(p.steps_per_epoch) for i in ids(p, s)]
    assert set(seen) == set(range(100, 131)) and len(seen) == 32


def test_each_time_of_a_repeated_image_has_a_number_of_its_own():
    repeats = np.linspace(1, 3.7, 50)
    for world in (1, 2):
        ranks = [plan(50, 4, repeats=repeats, rank=r, world=world) for r in range(world)]
        for epoch in range(3):
            steps = range(epoch * ranks[0].steps_per_epoch, (epoch + 1) * ranks[0].steps_per_epoch)
            keys = [key for p in ranks for s in steps for micro in p.step(s)[1] for key in micro]
            assert len(set(keys)) == len(keys), "no sample comes twice"
            times = np.bincount([k.index for k in keys], minlength=50)
            assert sorted((k.index, k.repeat) for k in keys) == [(i, n) for i in range(50) for n in range(times[i])]
            assert times.max() > 2


def test_without_repeats_a_key_is_what_it_was():
    p = plan(5, 3)
    assert ids(p, 0) + ids(p, 1) == [100, 104, 102, 102, 103, 101], "what fills the last step comes as it came before"
    assert all(tuple(key) == (0, key.image_id - 100, key.image_id, 0) for s in (0, 1) for key in p.step(s)[1][0])


def test_what_takes_the_place_of_a_repeated_image_is_numbered_too():
    repeats = np.where(np.arange(20) == 3, 4.0, 1.0)
    p = plan(20, 4, repeats=repeats)
    p.quarantine([103])
    keys = [key for s in range(p.steps_per_epoch) for key in p.step(s)[1][0]]
    counts = np.bincount([k.index for k in keys], minlength=20)
    (substitute,) = np.flatnonzero(counts > 2)
    assert {k.repeat for k in keys if k.index == substitute} == {0, 1, 2, 3}


def test_a_draw_that_was_bad_gets_other_random_numbers_at_its_place_alone() -> None:
    p = plan()

    def keys() -> list[SampleKey]:
        return [key for s in range(2 * p.steps_per_epoch) for micro in p.step(s)[1] for key in micro]

    before = keys()
    bad = before[7]
    p.redraw([(bad.epoch, bad.index, bad.repeat)])
    assert keys() == [bad.anew() if key == bad else key for key in before]
    p.redraw([(bad.epoch, bad.index, bad.anew().repeat)])
    assert keys() == [bad.anew().anew() if key == bad else key for key in before]
