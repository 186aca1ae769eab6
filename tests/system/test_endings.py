"""A verb that is asked to end ends like one that was interrupted; what a caller or nohup has set stays."""

import os
import signal
import threading

import pytest

from maskrcnn_coco.cli.command_line import main
from maskrcnn_coco.system.endings import Ended, code_of, ended_like_ctrl_c

ASKED = [signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", ASKED)
def test_a_signal_is_an_interruption_with_its_own_exit_code(number):
    with pytest.raises(KeyboardInterrupt) as caught, ended_like_ctrl_c():
        os.kill(os.getpid(), number)
    assert code_of(caught.value) == 128 + number
    assert signal.getsignal(number) == signal.SIG_DFL


def test_ctrl_c_is_130():
    assert code_of(KeyboardInterrupt()) == code_of(Ended()) == 130


@pytest.mark.parametrize("number", ASKED)
@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_what_somebody_else_has_set_stays(number, handler):
    before = signal.signal(number, handler)
    try:
        with ended_like_ctrl_c():
            assert signal.getsignal(number) == handler
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) == handler
    finally:
        signal.signal(number, before)


def test_other_threads_change_nothing():
    seen = []

    def other() -> None:
        with ended_like_ctrl_c():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


@pytest.mark.parametrize("number", [signal.SIGINT, *ASKED])
def test_json_prints_its_object_when_a_verb_is_interrupted(number, monkeypatch, capsys):
    from maskrcnn_coco.cli import verbs

    monkeypatch.setattr(verbs, "doctor", lambda args, words: os.kill(os.getpid(), number))
    assert main(["doctor", "--json"]) == 128 + number
    assert capsys.readouterr().out == f'{{"status": "interrupted", "exit_code": {128 + number}}}\n'
