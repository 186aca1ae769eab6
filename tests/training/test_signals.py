"""Signals: remembered once, acted on at once the second time, restored afterwards."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest
from runs import OwnData, config, lines, small_model, tiny_model

from maskrcnn_coco import train
from maskrcnn_coco.checkpoint.store import load
from maskrcnn_coco.training import epoch_end, response
from maskrcnn_coco.training.signals import AtOnce, Interrupts, breakable


def test_the_first_signal_is_remembered(capsys):
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.received == signal.SIGTERM
    assert "saving a checkpoint" in capsys.readouterr().err


def test_the_second_ctrl_c_stops_at_once(capsys):
    with Interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


class Two:
    """Two processes, of which the other has seen no signal; this one is hit while it waits for the other."""

    world = 2

    def __init__(self, hit: bool) -> None:
        self.hit = hit

    def all_flags(self, mine: dict[str, float]) -> list[dict[str, float]]:
        if self.hit:
            os.kill(os.getpid(), signal.SIGTERM)
        return [mine, {"signal": 0.0}]


def test_a_signal_during_the_exchange_is_acted_on_at_the_next_one_not_lost_and_not_alone():
    with Interrupts() as interrupts:
        interrupts.agree(Two(hit=True))  # type: ignore[arg-type]
        assert interrupts.received == 0
        interrupts.agree(Two(hit=False))  # type: ignore[arg-type]
        assert interrupts.received == signal.SIGTERM


def test_the_second_sigterm_stops_at_once():
    code = "import os, signal, time\nfrom maskrcnn_coco.training.signals import Interrupts\n"
    code += "with Interrupts():\n os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM)\n"
    code += " time.sleep(20)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=10)
    assert done.returncode == -signal.SIGTERM


class Dead(io.StringIO):
    """A stream whose reader has gone: `train 2>&1 | tee log` after Ctrl-C, or a full disk."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("dead", [("stderr",), ("stdout", "stderr"), ("stdout",)])
def test_an_interruption_with_dead_streams_saves_and_says_so_in_the_exit_code(
    dead, number, tiny_shapes, tmp_path, monkeypatch
):
    for name in dead:
        monkeypatch.setattr(sys, name, Dead())

    def interrupt(record):
        if getattr(record, "kind", "step") == "step" and record.step == 1:
            os.kill(os.getpid(), number)

    result = train(config(tiny_shapes.root, tmp_path), model=tiny_model(), observers=[interrupt])
    assert (result.status, result.exit_code) == ("interrupted", 128 + number)
    assert load(tmp_path / "checkpoints" / "last.pth")["loop"]["step"] == 2
    assert (tmp_path / "run" / "result.json").exists()


def test_sigterm_at_the_start_of_an_evaluation_ends_it_at_once_and_nothing_is_lost(tiny_shapes, tmp_path, monkeypatch):
    real = epoch_end.evaluate_model

    def asked(*arguments, **named):
        saved = tmp_path / "checkpoints" / "last.pth"
        deadline = time.monotonic() + 20
        while not saved.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert load(saved)["loop"]["step"] == 6, "saved first, evaluated second"
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(epoch_end, "evaluate_model", asked)
        result = train(config(tiny_shapes.root, tmp_path), model=tiny_model())
    assert (result.status, result.exit_code) == ("interrupted", 143)
    assert time.monotonic() - began < 25
    assert load(tmp_path / "checkpoints" / "last.pth")["loop"]["closed_epochs"] == 0
    assert epoch_end.evaluate_model is real
    again = train(config(tiny_shapes.root, tmp_path, resume="auto"), model=tiny_model())
    assert again.exit_code == 0 and "bbox/AP" in again.metrics
    assert [len(lines(tmp_path, kind)) for kind in ("step", "epoch", "eval")] == [6, 1, 1]


def test_ctrl_c_while_the_cause_is_looked_for_answers_at_once(tmp_path, monkeypatch, capsys):
    def long(*arguments, **named):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)

    monkeypatch.setattr(response, "investigate", long)
    began = time.monotonic()
    settings = config(None, tmp_path, workers=0)
    result = train(settings, model=small_model(classes=2), train_data=OwnData(bad=(5,)))
    assert (result.status, result.exit_code) == ("interrupted", 130)
    assert time.monotonic() - began < 25
    said = "".join(capsys.readouterr())
    assert "looking for the cause" in " ".join(said.split())
    assert load(tmp_path / "checkpoints" / "last.pth")["loop"]["incidents"] == []
    assert load(tmp_path / "checkpoints" / "last.pth")["loop"]["skipped_steps"] == 0, "it is counted when it is judged"
    loop = load(tmp_path / "checkpoints" / "last.pth")["loop"]
    assert loop["images_seen"] == 4 * loop["step"]


def test_of_several_processes_none_leaves_the_others_in_an_evaluation():
    with Interrupts() as interrupts, breakable(alone=False):
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.received == signal.SIGTERM
    with Interrupts(), pytest.raises(AtOnce), breakable(alone=True):
        os.kill(os.getpid(), signal.SIGTERM)
    with Interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(AtOnce), breakable(alone=True):
            raise AssertionError("it has come already")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_data_is_read_ends_the_start_at_once_and_leaves_no_folder(number, tmp_path, monkeypatch):
    from maskrcnn_coco.training import start

    def slow(*arguments: object) -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("the start went on")

    monkeypatch.setattr(start, "own_data", slow)
    with pytest.raises(AtOnce) as caught:
        train(config(None, tmp_path), model=small_model(classes=2), train_data=OwnData())
    assert caught.value.number == number and list(tmp_path.iterdir()) == []


def test_a_terminal_that_is_closed_saves_and_ends_with_129_and_nohup_goes_on(tmp_path):
    def closed(record: object) -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    def go(folder: str, **changes: object) -> object:
        made = config(None, tmp_path / folder, num_classes=4, checkpoint_every="1", **changes)
        return train(made, model=tiny_model(), train_data=OwnData(), observers=[closed], stop_after=2)

    assert (go("a").exit_code, load(tmp_path / "a" / "checkpoints" / "last.pth")["loop"]["step"]) == (129, 1)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert go("b").exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, before)
