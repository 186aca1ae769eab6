"""The loop: files, resume to the bit, interruption, the guard's modes, a user's own data and model."""

from __future__ import annotations

import json
import math
import os
import signal

import pytest
import torch
from runs import OwnData, config, incidents, lines, run, small_model, weights

from maskrcnn_coco import Config, train, train_one_epoch
from maskrcnn_coco.errors import CheckpointError, ConfigError, DataError
from maskrcnn_coco.records import EvalRecord, StepRecord


@pytest.fixture(scope="module")
def done(tiny_shapes, tmp_path_factory):
    """One undisturbed run of two epochs: its folder and result."""
    out = tmp_path_factory.mktemp("done")
    seen: list[object] = []
    result = run(tiny_shapes.root, out, epochs=2, observers=[seen.append])
    return out, result, seen


def test_a_run_writes_everything_the_contract_names(done):
    out, result, _ = done
    assert (result.status, result.exit_code, result.finite) == ("finished", 0, True)
    for name in ("config.yaml", "metrics.jsonl", "result.json", "report.html"):
        assert (out / "run" / name).is_file(), name
    assert list((out / "run").glob("events.out.tfevents.*"))
    assert {p.name for p in (out / "checkpoints").glob("*.pth")} >= {"epoch_001.pth", "epoch_002.pth", "last.pth"}
    written = json.loads((out / "run" / "result.json").read_text())
    assert written["steps"] == result.steps == 12
    assert set(written) == set(vars(result))


def test_records_have_every_field_and_no_gap(done):
    out, _, _ = done
    steps = lines(out)
    assert [s["step"] for s in steps] == list(range(12))
    for s in steps:
        assert s["applied"] is True
        assert set(s["lr"]) == set(s["group_grad_norm"]) == {"backbone", "rpn", "box_head", "mask_head"}
        assert s["loss"] == pytest.approx(sum(s["losses"].values()), rel=1e-4)
        assert len(s["image_ids"]) == 4
    assert [e["epoch"] for e in lines(out, "epoch")] == [0, 1]
    assert len(lines(out, "eval")) == 2


def test_losses_fall(done):
    _, result, _ = done
    assert result.last_loss < 0.8 * result.first_loss


def test_observers_see_every_record(done):
    _, _, seen = done
    assert sum(isinstance(r, StepRecord) for r in seen) == 12
    assert sum(isinstance(r, EvalRecord) for r in seen) == 2


def test_checkpoints_are_plain_and_finite(done):
    out, _, _ = done
    for path in (out / "checkpoints").glob("*.pth"):
        assert all(torch.isfinite(t).all() for t in weights(path).values() if t.is_floating_point())


@pytest.mark.parametrize("stop_at", [5, 7])
def test_a_resumed_run_ends_in_the_same_bits(done, tiny_shapes, tmp_path, stop_at):
    """Step 5 is the last of its epoch: the evaluation is still to be done."""
    out, _, _ = done

    def interrupt(record):
        if isinstance(record, StepRecord) and record.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    first = run(tiny_shapes.root, tmp_path, epochs=2, observers=[interrupt])
    assert (first.status, first.exit_code) == ("interrupted", 143)
    second = run(tiny_shapes.root, tmp_path, epochs=2, resume="auto", model=small_model(seed=99))
    assert second.exit_code == 0
    whole, resumed = weights(out / "checkpoints" / "last.pth"), weights(tmp_path / "checkpoints" / "last.pth")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    times = ("seconds", "images_per_second")
    strip = lambda records: [{k: v for k, v in r.items() if k not in times} for r in records]  # noqa: E731
    for kind in ("step", "epoch", "eval"):
        assert strip(lines(tmp_path, kind)) == strip(lines(out, kind))


def test_resume_takes_the_saved_settings_and_needs_none_again(done, tiny_shapes, tmp_path):
    run(tiny_shapes.root, tmp_path, epochs=1)
    again = train(
        Config(resume="auto", epochs=2, logdir=str(tmp_path / "run"), checkpoint_dir=str(tmp_path / "checkpoints")),
        model=small_model(),
    )
    assert (again.steps, again.exit_code) == (12, 0)


def test_resume_auto_without_a_checkpoint_starts_anew(tiny_shapes, tmp_path):
    assert run(tiny_shapes.root, tmp_path, resume="auto").steps == 6


def test_resume_of_a_missing_file_is_exit_5(tiny_shapes, tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.pth") as e:
        run(tiny_shapes.root, tmp_path, resume=str(tmp_path / "nothing.pth"))
    assert e.value.exit_code == 5


def test_a_damaged_newest_checkpoint_falls_back_and_is_said(tiny_shapes, tmp_path):
    run(tiny_shapes.root, tmp_path, epochs=2)
    folder = tmp_path / "checkpoints"
    for name in ("last.pth", "epoch_002.pth"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-1000])
    result = run(tiny_shapes.root, tmp_path, epochs=2, resume=str(folder / "last.pth"))
    assert (result.exit_code, result.steps) == (0, 12)
    assert any(i["cause"] == "POISONED_STATE" and "last.pth" in i["culprit"]["checkpoint"] for i in incidents(tmp_path))


def test_a_roll_back_to_an_epoch_s_border_ends_no_epoch(tiny_shapes, tmp_path, monkeypatch):
    """Back at step 0 from the second epoch: nothing was completed, so nothing is evaluated or saved for it."""
    from maskrcnn_coco.training import loop

    inner, calls, ended = loop.train_epoch, [], []

    def once_back(session, interrupts):
        calls.append(session.progress.step)
        inner(session, interrupts)
        if len(calls) == 2:
            session.progress.step = 0

    monkeypatch.setattr(loop, "train_epoch", once_back)
    monkeypatch.setattr(loop, "end_epoch", lambda session: ended.append(session.progress.step))
    run(tiny_shapes.root, tmp_path, epochs=2)
    assert (calls, ended) == ([0, 6, 0, 6], [6, 6, 12])


def test_an_older_run_is_kept_under_its_start_time(tiny_shapes, tmp_path):
    run(tiny_shapes.root, tmp_path)
    run(tiny_shapes.root, tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert len(names) == 4
    assert names[0].startswith("checkpoints")
    assert names[2] == "run"
    assert names[3].startswith("run_20")


def test_with_the_guard_off_a_divergence_is_reported_and_no_dead_checkpoint_is_written(tiny_shapes, tmp_path):
    result = run(tiny_shapes.root, tmp_path, guard="off", lr=1.0, max_grad_norm=0, warmup_steps=0)
    assert (result.finite, result.exit_code) == (False, 4)
    assert list((tmp_path / "checkpoints").glob("*.pth")) == []


def test_guard_stop_writes_its_verdict_and_exits_4(tiny_shapes, tmp_path):
    result = run(tiny_shapes.root, tmp_path, guard="stop", lr=1.0, max_grad_norm=0, warmup_steps=0)
    assert (result.status, result.exit_code, result.finite) == ("stopped", 4, True)
    assert incidents(tmp_path)[0]["outcome"] == "stopped"


def test_a_users_own_data_set_and_model(tmp_path):
    result = train(
        config(None, tmp_path, epochs=2), model=small_model(classes=2), train_data=OwnData(), val_data=OwnData(4)
    )
    assert (result.exit_code, result.steps) == (0, 6)
    assert "segm/AP" in result.metrics
    assert {i for s in lines(tmp_path) for i in s["image_ids"]} == set(range(100, 112))


def test_an_image_with_a_nan_is_named_left_out_and_costs_one_incident(tmp_path):
    result = train(config(None, tmp_path, epochs=3), model=small_model(classes=2), train_data=OwnData(bad=(5,)))
    assert (result.exit_code, result.finite, result.steps) == (0, True, 9)
    (incident,) = incidents(tmp_path)
    assert incident["cause"] == "DATA_PIXEL"
    assert incident["culprit"]["image_ids"] == [105]
    assert incident["action"]["kind"] == "quarantine"
    quarantine = json.loads((tmp_path / "run" / "quarantine.json").read_text())
    assert [q["id"] for q in quarantine["images"]] == [105]
    steps = lines(tmp_path)
    assert [s["step"] for s in steps] == list(range(9))
    assert all(s["applied"] for s in steps)


def test_a_lowered_weight_decay_outlives_a_roll_back(tmp_path):
    """A snapshot holds the weight decay of its time; what recovery decided since stays in force."""
    settings = config(None, tmp_path, epochs=2, lr=2e-3, weight_decay=2500.0)
    result = train(settings, model=small_model(classes=2), train_data=OwnData())
    assert result.exit_code == 0
    (incident,) = incidents(tmp_path)
    assert incident["action"]["detail"]["weight_decay"] == 1e-4
    state = torch.load(tmp_path / "checkpoints" / "last.pth", weights_only=True)
    assert max(g["weight_decay"] for g in state["optimizer"]["param_groups"]) == 1e-4


@pytest.mark.parametrize("older", [False, True])
def test_a_finite_but_poisoned_checkpoint_is_passed_over_for_an_older_one(older, tmp_path):
    """Adam's second moments went through half precision: the file is intact and finite, and ruins the run.

    Files that tell a digest of each tensor are noticed at once; older ones (``older``) when training diverges.
    """
    from maskrcnn_coco.checkpoint.store import load, peek, save

    adam = {"optimizer": "adamw", "lr": 1e-4}
    train(config(None, tmp_path, epochs=2, **adam), model=small_model(classes=2), train_data=OwnData())
    folder = tmp_path / "checkpoints"
    for name in ("last.pth", "epoch_002.pth"):
        state, serial = load(folder / name), peek(folder / name).serial
        for entry in state["optimizer"]["state"].values():
            entry["exp_avg_sq"] = entry["exp_avg_sq"].half().float()
        if older:
            del state["digests"]
        (folder / name).unlink()
        save(folder / name, state, serial=serial)
    again = config(None, tmp_path, **adam, epochs=3, resume=str(folder / "last.pth"))
    result = train(again, model=small_model(classes=2), train_data=OwnData())
    assert (result.exit_code, result.steps) == (0, 9)
    found = incidents(tmp_path)
    assert {i["cause"] for i in found} == {"POISONED_STATE"} and len(found) == (1 if older else 2)
    assert found[0]["culprit"]["checkpoint"].endswith("last.pth")
    if older:
        assert (found[0]["action"]["kind"], found[0]["lost_steps"]) == ("reload", 3)


def test_own_data_needs_the_number_of_classes(tmp_path):
    with pytest.raises(ConfigError, match="num_classes"):
        train(config(None, tmp_path, epochs=2, num_classes=None), train_data=OwnData())


def test_nothing_is_touched_when_the_data_is_missing(tmp_path, tiny_shapes):
    with pytest.raises(DataError):
        train(config(tmp_path / "nowhere", tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_train_one_epoch_returns_the_mean_loss_and_refuses_a_bad_batch(capsys):
    model = small_model(classes=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    data = OwnData(8, bad=(5,))
    loader = [tuple(zip(*[data[i] for i in range(b, b + 4)], strict=True)) for b in (0, 4)]
    loss = train_one_epoch(model, loader, optimizer, "cpu")
    assert math.isfinite(loss)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert "step 1 refused" in capsys.readouterr().err


class Missing(OwnData):
    """Item 5 cannot be read. The true id of item 2 is 5, which stands for item 5 as long as that has none."""

    def __getitem__(self, i: int):
        if i == 5:
            raise OSError("gone")
        image, target = super().__getitem__(i)
        return image, {**target, "image_id": 5 if i == 2 else 100 + i}


def test_an_unreadable_item_of_a_user_s_data_set_is_left_out_and_no_other(tmp_path):
    seen = []
    looks = [lambda r: seen.append(r.image_ids) if isinstance(r, StepRecord) else None]
    plain = config(None, tmp_path, epochs=2, batch_size=2)
    result = train(plain, model=small_model(classes=2), train_data=Missing(), observers=looks, stop_after=7)
    assert (result.exit_code, len(result.incidents)) == (0, 1)
    again = config(None, tmp_path, epochs=2, batch_size=2, resume="auto")
    result = train(again, model=small_model(classes=2), train_data=Missing(), observers=looks)
    assert (result.exit_code, result.steps, len(result.incidents)) == (0, 12, 1)
    assert len(seen) == 12
    assert {i for ids in seen[6:] for i in ids} == {5, *(100 + i for i in range(12) if i not in (2, 5))}


class Thin(OwnData):
    """One image is 3000 × 1 pixels; another has its position for an id."""

    def __getitem__(self, i: int):
        image, target = super().__getitem__(i)
        target = {**target, "image_id": 5 if i == 2 else 100 + i}
        if i == 5:
            target |= {"boxes": torch.tensor([[0.0, 0, 3000, 1]]), "labels": torch.tensor([1])}
            target |= {"masks": torch.ones(1, 1, 3000, dtype=torch.uint8)}
        return torch.rand(3, 1, 3000) if i == 5 else image, target


def test_an_image_of_which_resizing_leaves_nothing_is_left_out_by_its_name_and_no_other(tmp_path):
    seen = []
    looks = [lambda r: seen.append(r.image_ids) if isinstance(r, StepRecord) else None]
    mine = config(None, tmp_path, epochs=1, batch_size=2)
    result = train(mine, model=small_model(classes=2), train_data=Thin(), observers=looks)
    assert (result.exit_code, result.steps, len(result.incidents)) == (0, 6, 1)
    (incident,) = incidents(tmp_path)
    assert (incident["cause"], incident["action"]["kind"]) == ("DATA_PIXEL", "quarantine")
    assert incident["culprit"]["image_ids"] == [105]
    assert "too thin" in incident["evidence"][0]["outcome"] and "3000×1" in incident["evidence"][0]["outcome"]
    assert {i for ids in seen for i in ids} == {5, *(100 + i for i in range(12) if i not in (2, 5))}


def test_an_image_that_cannot_be_read_is_left_out_and_the_run_goes_on(tiny_shapes, tmp_path):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(tiny_shapes.root, data)
    victim = sorted((data / "train").glob("*.png"))[3]

    def vanish(record):
        if isinstance(record, StepRecord) and record.step == 0:
            victim.unlink()

    result = run(data, tmp_path, observers=[vanish], epochs=2)
    assert (result.exit_code, result.steps) == (0, 12)
    (incident,) = incidents(tmp_path)
    assert (incident["cause"], incident["action"]["kind"]) == ("DATA_PIXEL", "quarantine")
    assert victim.name in incident["evidence"][0]["outcome"]


def test_max_steps_ends_within_an_epoch_which_is_then_evaluated(tiny_shapes, tmp_path):
    looks, seen = [], [0, 0]
    looks.append(lambda r: seen.__setitem__(0, seen[0] + isinstance(r, StepRecord)))
    looks.append(lambda r: seen.__setitem__(1, seen[1] + isinstance(r, EvalRecord)))
    mine = {"max_steps": 8, "augment": "heavy", "class_balance": "repeat", "schedule": "step"}
    result = run(tiny_shapes.root, tmp_path, observers=looks, epochs=2, **mine)
    assert (result.status, result.steps, seen) == ("finished", 8, [8, 2])
    again = run(tiny_shapes.root, tmp_path, observers=looks, epochs=2, resume="auto", **mine)
    assert (again.status, again.steps, seen) == ("finished", 8, [8, 2])


def test_an_observer_that_changes_the_folder_takes_no_file_along(tiny_shapes, tmp_path, monkeypatch):
    """Relative folders, as by default, and somebody's code that says ``os.chdir``."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    changes = {"logdir": "run", "checkpoint_dir": "checkpoints", "epochs": 2}
    result = run(tiny_shapes.root, tmp_path, observers=[lambda record: os.chdir(tmp_path / "there")], **changes)
    assert result.exit_code == 0 and result.best_checkpoint is not None
    assert (tmp_path / "here" / "checkpoints" / "last.pth").exists()
    assert (tmp_path / "here" / "run" / "result.json").exists()
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("model", [{}, "maskrcnn_resnet50_fpn", torch.nn.Linear, lambda images: images, 3])
def test_a_model_that_is_none_is_told(model, tmp_path):
    with pytest.raises(ConfigError, match=r"no torch\.nn\.Module"):
        train(config(None, tmp_path), model=model, train_data=OwnData())
    assert list(tmp_path.iterdir()) == []
