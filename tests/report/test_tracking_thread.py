"""Servers that fail, hang, are slow or die behind the fence of a run."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_coco.records import StepRecord, to_json
from maskrcnn_coco.report import tracking_thread
from maskrcnn_coco.report.tracking_servers import remember, remembered, require_installed
from maskrcnn_coco.report.tracking_thread import About, Ending, Fence, Row


def record(step: int) -> StepRecord:
    return StepRecord(step, 0, {"loss_mask": 1.0}, 1.0 + step, 2.0, {}, {"backbone": 0.1}, None, [1], True)


class Fake:
    """A server that raises ``failures`` times, and takes ``slow`` seconds for each call."""

    def __init__(self, failures: int = 0, slow: float = 0.0) -> None:
        self.failures, self.slow = failures, slow
        self.got: list[Row] = []
        self.told: list[Any] = []

    def _answer(self) -> None:
        time.sleep(self.slow)
        if self.failures > 0:
            self.failures -= 1
            raise ConnectionError("no route to the server")

    def begin(self, about: About) -> None:
        self._answer()
        self.told.append(about)

    def rows(self, rows: list[Row]) -> None:
        self._answer()
        self.got += rows

    def note(self, key: str, text: str, step: int) -> None:
        self.told.append((key, text, step))

    def end(self, ending: Ending) -> None:
        self._answer()
        self.told.append(ending)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracking_thread, "RETRY", (0.01, 0.02))
    monkeypatch.setattr(tracking_thread, "FINISH", 5.0)
    monkeypatch.setattr(tracking_thread, "FAILED", 1.0)


def fenced(server: Fake, folder: Path) -> tuple[Fence, list[str]]:
    said: list[str] = []
    return Fence("fake", lambda: server, About("run", folder, {"lr": 0.1}, {}), said.append), said


def test_everything_arrives_in_order(tmp_path: Path):
    server = Fake()
    run, said = fenced(server, tmp_path)
    for step in range(700):
        run(record(step))
    assert run.finish(Ending(None))
    assert [r.step for r in server.got] == list(range(700))
    assert server.got[3].values["loss/total"] == 4.0
    assert said == []


def test_a_server_that_fails_is_named_once_and_gets_all_of_it_later(tmp_path: Path):
    server = Fake(failures=4)
    run, said = fenced(server, tmp_path)
    for step in range(50):
        run(record(step))
    assert run.finish(Ending(None))
    assert [r.step for r in server.got] == list(range(50))
    assert len(said) == 1
    assert "fake does not take" in said[0]
    assert "no route to the server" in said[0]


@pytest.mark.parametrize("server", [Fake(failures=10**9), Fake(slow=3600.0)], ids=["dead", "hanging"])
def test_a_dead_or_hanging_server_holds_nothing_up(server: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracking_thread, "FINISH", 0.3)
    monkeypatch.setattr(tracking_thread, "FAILED", 0.3)
    run, said = fenced(server, tmp_path)
    began = time.monotonic()
    for step in range(5000):
        run(record(step))
    assert time.monotonic() - began < 2
    assert len(run._queue) <= tracking_thread.WAITING
    assert not run.finish(Ending(None))
    assert time.monotonic() - began < 5
    assert "metrics.jsonl" in said[-1]
    assert len(said) <= 2


def test_what_did_not_fit_is_read_from_the_run_s_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracking_thread, "WAITING", 10)
    server, gate = Fake(), threading.Event()
    server._answer = lambda: gate.wait(5) and None  # type: ignore[method-assign]
    run, _ = fenced(server, tmp_path)
    records = [record(step) for step in range(100)]
    records[50].loss = float("nan")
    (tmp_path / "metrics.jsonl").write_text("".join(to_json(r) + "\n" for r in records))
    for r in records:
        run(r)
    gate.set()
    assert run.finish(Ending(None))
    assert [r.step for r in server.got] == list(range(100))
    assert server.got[50].values["loss/total"] != server.got[50].values["loss/total"]


def test_what_a_server_prints_stays_off_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    server = Fake()
    server._answer = lambda: print("* view your dashboard")  # type: ignore[method-assign]
    run, _ = fenced(server, tmp_path)
    assert run.finish(Ending(None))
    run._thread.join(5)
    print("{}")
    out, err = capsys.readouterr()
    assert out == "{}\n"
    assert "dashboard" in err


def test_a_run_is_remembered_in_its_folder(tmp_path: Path):
    assert remembered(tmp_path, "mlflow") is None
    remember(tmp_path, "mlflow", "a")
    remember(tmp_path, "wandb", "b")
    assert (remembered(tmp_path, "mlflow"), remembered(tmp_path, "wandb")) == ("a", "b")
    (tmp_path / "trackers.json").write_text("[1]")
    assert remembered(tmp_path, "mlflow") is None


def test_a_service_that_is_not_installed_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch):
    from maskrcnn_coco.errors import ConfigError

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="wandb is not installed"):
        require_installed(["wandb"])
    require_installed([])
