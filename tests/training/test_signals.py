"""Signals: remembered once, acted on at once the second time, restored afterwards."""

import os
import signal

import pytest

from maskrcnn_coco.training.signals import Interrupts


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
