"""Runs in which the FPN has a rate of its own: what they write, and how they go on."""

from __future__ import annotations

import pytest
import torch
import yaml
from runs import OwnData, config, lines, loadable_model, small_model, weights

from maskrcnn_coco import train
from maskrcnn_coco.checkpoint.store import load, save
from maskrcnn_coco.components import TIMES
from maskrcnn_coco.config.recipes import component_lrs
from maskrcnn_coco.config.settings import load_config
from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.model.rig import rig_from_settings
from maskrcnn_coco.records import Alarm
from maskrcnn_coco.replay.replay import Replay
from maskrcnn_coco.training.before_training import rates_of
from maskrcnn_coco.training.case import build_case
from maskrcnn_coco.training.start import open_session

TIMES_FASTER = 3.7


def go(out, *, stop=None, seed=0, **changes):
    settings = config(None, out, epochs=2, batch_size=2, **changes)
    return train(settings, model=small_model(seed, classes=2), train_data=OwnData(4), stop_after=stop, quiet=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert go(out, fpn_lr_multiplier=TIMES_FASTER).exit_code == 0
    return out


def same_end(a, b):
    one, other = weights(a / "checkpoints" / "last.pth"), weights(b / "checkpoints" / "last.pth")
    return all(torch.equal(one[name], other[name]) for name in one)


def older(out):
    """Make the checkpoints below ``out`` those of a version without the setting."""
    for path in (out / "checkpoints").glob("*.pth"):
        state = load(path)
        del state["config"]["fpn_lr_multiplier"]
        save(path, state, serial=1)


def before_the_setting(settings):
    return {**settings, "config": {k: v for k, v in settings["config"].items() if k != "fpn_lr_multiplier"}}


def test_records_say_the_backbone_s_rate_and_a_resumed_run_ends_in_the_same_bits(whole, tmp_path):
    assert go(tmp_path, stop=3, fpn_lr_multiplier=TIMES_FASTER).steps == 3
    assert go(tmp_path, resume="auto", seed=9).exit_code == 0
    assert same_end(whole, tmp_path)
    for record, again in zip(lines(whole), lines(tmp_path), strict=True):
        assert (record["loss"], record["lr"]) == (again["loss"], again["lr"])
    assert {r["lr"]["backbone"] * 2.0 == r["lr"]["box_head"] for r in lines(whole)} == {True}
    with open(whole / "run" / "config.yaml", encoding="utf-8") as file:
        assert yaml.safe_load(file)["fpn_lr_multiplier"] == TIMES_FASTER
    groups = load(whole / "checkpoints" / "last.pth")["optimizer"]["param_groups"]
    assert [g.get(TIMES) for g in groups if g["component"] == "backbone"][-1] == TIMES_FASTER


def test_a_checkpoint_of_before_the_setting_goes_on_as_it_was(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert go(whole, weights="imagenet", fpn_lr_multiplier=1.0).exit_code == 0
    assert go(stopped, stop=2, weights="imagenet", fpn_lr_multiplier=1.0).steps == 2
    older(stopped)
    assert go(stopped, resume="auto", seed=9, weights="imagenet").exit_code == 0
    assert same_end(whole, stopped)
    said = load_config(stopped / "run" / "config.yaml")
    assert (said.weights, said.fpn_lr_multiplier, said.rpn_lr_multiplier) == ("imagenet", 1.0, 2.5)


@pytest.mark.parametrize(("was", "now"), [(None, 5.0), (5.0, 1.0)])
def test_an_fpn_cannot_come_apart_or_together_within_a_run_and_that_is_said(was, now, tmp_path):
    assert go(tmp_path, stop=1, fpn_lr_multiplier=was).steps == 1
    with pytest.raises(CheckpointError, match="the FPN") as e:
        go(tmp_path, resume="auto", fpn_lr_multiplier=now)
    assert "--fpn-lr-multiplier" in str(e.value.got) and "--weights" in str(e.value.fix)


def test_a_multiplier_given_now_is_in_force_in_a_resumed_run(tmp_path):
    assert go(tmp_path, stop=1, fpn_lr_multiplier=5.0).steps == 1
    settings = config(None, tmp_path, epochs=2, batch_size=2, resume="auto", fpn_lr_multiplier=3.0)
    with open_session(settings, model=small_model(classes=2), train_data=OwnData(4), quiet=True) as session:
        session.set_lr(3)
        assert {g["lr"] / session.set_lr(3)["backbone"] for g in session.optimizer.param_groups if TIMES in g} == {3.0}


def test_a_case_of_such_a_run_replays_to_the_digit_and_what_looks_at_rates_sees_the_fpn_s(tmp_path):
    settings = config(None, tmp_path, epochs=3, batch_size=2, warmup_steps=4, fpn_lr_multiplier=TIMES_FASTER)
    with open_session(settings, model=loadable_model(classes=2), train_data=OwnData(4), quiet=True) as session:
        rates = component_lrs(session.config)
        assert {r for r, g in zip(rates_of(session), session.optimizer.param_groups, strict=True) if TIMES in g} == {
            rates["backbone"] * TIMES_FASTER
        }
        for epoch in range(3):
            for batches in session.batches(epoch):
                step = session.progress.step
                if session.snapshot_due(step):
                    session.keep_snapshot(step)
                session.history.append(session.take_step(batches))
                session.progress.step += 1
                session.progress.by_plan = step > 1  # nothing is above the plan, then, and the FPN's rate is in it
                assert (session.guard.instruments.lowered.limits != {}) is (step > 2)
        assert all(entry.lr == session.schedule.at(entry.step) for entry in session.tape)
        case = build_case(session, Alarm("diverged", step, 2, step, "made up"), batches)
        state = {k: v.clone() for k, v in case.now.model.items()}
        for said, times in ((case.settings, TIMES_FASTER), (before_the_setting(case.settings), None)):
            saved = rig_from_settings(said, state)
            groups = saved.build_optimizer(saved.model()).param_groups
            assert [g.get(TIMES) for g in groups if g["component"] == "backbone"][-1] == times
        outcome = Replay(case).walk("again", next(s for s in case.earlier if s.step == 0))
        assert [p[1] for p in outcome.path[: len(session.history)]] == [r.loss for r in session.history]


@pytest.mark.parametrize("given", [None, 4.0])
def test_a_model_without_such_an_fpn_has_no_such_rate(given, tmp_path):
    model = small_model(classes=2)
    model.backbone.neck = model.backbone.fpn
    del model.backbone.fpn
    settings = config(None, tmp_path, weights="imagenet", fpn_lr_multiplier=given)
    with open_session(settings, model=model, train_data=OwnData(4), quiet=True, dry_run=True) as session:
        assert session.config.fpn_lr_multiplier == (given or 1.0)
        assert not any(TIMES in g for g in session.optimizer.param_groups)
