"""`--track` against the real services, in an environment that has them: ``make trackers``.

Not collected by the main suite: the packages are large and pin their own. MLflow gets a server of its own on the
loopback with an sqlite store; wandb writes offline, trackio into its local folder. Nothing leaves the machine.

    python tests/integrations/real_trackers.py [mlflow] [wandb] [trackio]
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "helpers")]

from runs import OwnData, config, lines, small_model  # noqa: E402

from maskrcnn_coco import train  # noqa: E402
from maskrcnn_coco.records import Result, StepRecord  # noqa: E402


class MlflowServer:
    """``mlflow server`` in a process group of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        store = [
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination",
            str(folder / "files"),
        ]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *store]
        self.log = folder / "server.log"
        with self.log.open("wb") as log:
            # More workers than one would take minutes to come up on a small machine.
            self.process = subprocess.Popen(
                [*command, "--workers", "1"], stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2)
                return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.1)
        raise AssertionError("mlflow's server did not come up")

    def signal(self, number: int) -> None:
        """To the server and its workers."""
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """End it, whatever state it is in."""
        self.signal(signal.SIGKILL)
        self.process.wait()


def run(
    out: Path,
    service: str,
    observer: Callable[[Any], None] | None = None,
    *,
    stop_after: int | None = None,
    **changes: Any,
) -> Result:
    """Six steps with one image that is NaN: one incident."""
    settings = config(None, out, epochs=2, track=(service,), **changes)
    observers = [] if observer is None else [observer]
    data = OwnData(12, bad=(5,))
    return train(
        settings,
        model=small_model(classes=2),
        train_data=data,
        val_data=OwnData(4),
        observers=observers,
        stop_after=stop_after,
    )


def steps_of(out: Path) -> list[int]:
    """Steps with a loss, as the run's own file has them."""
    return [d["step"] for d in lines(out) if d["loss"] == d["loss"] and d["loss"] != "nan"]


def mlflow_has_all(out: Path, server: MlflowServer) -> None:
    """Settings, numbers, incident, files and the model with its card; after a resume in the same run."""
    from mlflow import MlflowClient

    first = run(out, "mlflow", stop_after=3)
    assert first.exit_code == 0
    result = run(out, "mlflow", resume="auto")
    assert (result.exit_code, result.steps) == (0, 6)
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("maskrcnn_coco")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["lr"] == "0.002" and found.data.params["batch_size"] == "4"
    history = client.get_metric_history(found.info.run_id, "loss/total")
    assert sorted(m.step for m in history) == steps_of(out), (history, steps_of(out))

    assert client.get_metric_history(found.info.run_id, "val/segm/AP"), sorted(found.data.metrics)
    assert any("DATA_PIXEL" in text for text in found.data.tags.values()), found.data.tags
    files = {f.path for f in client.list_artifacts(found.info.run_id)}
    assert {"best.pth", "report.html", "result.json", "MODEL_CARD.md"} <= files, files
    (model,) = client.search_model_versions("name='maskrcnn_coco'")[:1]
    assert model.run_id == found.info.run_id and "segm/AP" in model.description


def mlflow_that_dies(out: Path, server: MlflowServer) -> None:
    """A server that is killed, and one that answers no more, end and hold up no run."""
    for name, number in (("frozen", signal.SIGSTOP), ("killed", signal.SIGKILL)):

        def harm(record: Any, number: int = number) -> None:
            if isinstance(record, StepRecord) and record.step == 1:
                server.signal(number)

        result = run(out / name, "mlflow", harm)
        assert (result.exit_code, result.steps) == (0, 6), result
        assert len(lines(out / name)) == 6
        if number == signal.SIGSTOP:
            server.signal(signal.SIGCONT)


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of wandb's file, which is laid out as a log of LevelDB: blocks of 32 KiB, records in parts."""
    raw, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
        parts += raw[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def wandb_offline(out: Path, server: None) -> None:
    """All in the file that ``wandb sync`` would send."""
    from wandb.proto import wandb_internal_pb2

    os.environ["WANDB_MODE"] = "offline"
    assert run(out, "wandb").exit_code == 0
    (file,) = (out / "run").glob("wandb/offline-run-*/*.wandb")
    steps: list[int] = []
    settings: dict[str, Any] = {}
    for raw in wandb_records(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(raw)
        if record.WhichOneof("record_type") == "history":
            row = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            if row.get("loss/total", "NaN") not in ("NaN", None) and row["loss/total"] == row["loss/total"]:
                steps.append(int(row["planned step"]))
        if record.WhichOneof("record_type") == "run":
            settings |= {i.key: json.loads(i.value_json) for i in record.run.config.update}
    assert sorted(set(steps)) == steps_of(out), steps
    assert settings["lr"] == 0.002, settings


def trackio_local(out: Path, server: None) -> None:
    """All in its sqlite file."""
    assert run(out, "trackio").exit_code == 0
    (file,) = Path(os.environ["TRACKIO_DIR"]).rglob("*.db")
    with sqlite3.connect(file) as db:
        rows = db.execute("select step, metrics from metrics").fetchall()
    told = sorted(step for step, text in rows if "loss/total" in json.loads(text))
    assert told == steps_of(out), told


def main() -> None:
    """Every service that is installed; at least one."""
    found, wanted = 0, sys.argv[1:]
    for package, check in (
        ("mlflow", mlflow_has_all),
        ("mlflow", mlflow_that_dies),
        ("wandb", wandb_offline),
        ("trackio", trackio_local),
    ):
        if wanted and package not in wanted:
            continue
        os.environ["TRACKIO_DIR"] = tempfile.mkdtemp()  # read when it is imported
        try:
            __import__(package)
        except ModuleNotFoundError:
            print(f"{check.__name__:20} {package} is not installed")
            continue
        with tempfile.TemporaryDirectory() as folder:
            server = MlflowServer(Path(folder)) if package == "mlflow" else None
            try:
                if server is not None:
                    os.environ["MLFLOW_TRACKING_URI"] = server.uri
                check(Path(folder) / "out", server)  # type: ignore[operator]
            finally:
                if server is not None:
                    server.stop()
        print(f"{check.__name__:20} right")
        found += 1
    assert found, "none of the services is installed: pip install 'maskrcnn-coco[track]'"


if __name__ == "__main__":
    main()
