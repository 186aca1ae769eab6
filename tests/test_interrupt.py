"""Signals: remembered once, acted on at once the second time, restored afterwards."""

import os
import signal

import pytest

from maskrcnn_coco.interrupt import Interrupts


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
