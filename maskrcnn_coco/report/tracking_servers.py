"""MLflow, Weights & Biases and trackio behind one door, as `fence.Server`. Each is imported when it is asked for.

Where they write follows their own variables (``MLFLOW_TRACKING_URI``, ``WANDB_MODE``, ``TRACKIO_DIR`` …). A run that is
resumed in its folder goes on in the same run there: its name stands in ``trackers.json``.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.report.tracking_thread import About, Ending, Row, Server
from maskrcnn_coco.system.files import write_text

PROJECT = "maskrcnn_coco"
"""Experiment or project, where the service's own variable names none."""
REMEMBERED = "trackers.json"


class Mlflow:
    """Parameters, metrics, tags, artefacts and a registered model with its card, through MLflow's own client."""

    def __init__(self) -> None:
        mlflow = importlib.import_module("mlflow")
        self._parts = importlib.import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        self._run = ""

    def begin(self, about: About) -> None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        self._run = remembered(about.folder, "mlflow") or ""
        if not self._run:
            found = self._client.get_experiment_by_name(name)
            experiment = self._client.create_experiment(name) if found is None else found.experiment_id
            made = self._client.create_run(experiment, run_name=about.name)
            self._run = made.info.run_id
            remember(about.folder, "mlflow", self._run)
            params = [self._parts.Param(k, str(v)[:6000]) for k, v in about.settings.items()]
            for i in range(0, len(params), 100):
                self._client.log_batch(self._run, params=params[i : i + 100])
        else:
            self._client.set_terminated(self._run, "RUNNING")
        for key, text in about.tags.items():
            self._client.set_tag(self._run, key, text[:5000])

    def rows(self, rows: list[Row]) -> None:
        points = [
            self._parts.Metric(_mlflow_name(k), v, int(row.time * 1000), row.step)
            for row in rows
            for k, v in row.values.items()
            if math.isfinite(v)
        ]
        for i in range(0, len(points), 1000):
            self._client.log_batch(self._run, metrics=points[i : i + 1000])

    def note(self, key: str, text: str, step: int) -> None:
        self._client.set_tag(self._run, key, text[:5000])

    def end(self, ending: Ending) -> None:
        for file in ending.files:
            self._client.log_artifact(self._run, str(file))
        if any(f.name == "best.pth" for f in ending.files):
            self._register(ending)
        status = {"finished": "FINISHED", "interrupted": "KILLED"}
        ended = "" if ending.result is None else ending.result.status
        self._client.set_terminated(self._run, status.get(ended, "FAILED"))

    def _register(self, ending: Ending) -> None:
        name = os.environ.get("MLFLOW_REGISTERED_MODEL_NAME", PROJECT)
        errors = importlib.import_module("mlflow.exceptions").MlflowException
        try:
            self._client.create_registered_model(name)
        except errors as e:
            if getattr(e, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                raise
        run = self._client.get_run(self._run)
        source = f"{run.info.artifact_uri}/best.pth"
        self._client.create_model_version(name, source, self._run, description=ending.card[:90_000])


def _mlflow_name(tag: str) -> str:
    """MLflow allows letters, digits, "_-. /:"; a class may be called anything."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in tag)[:250]


class Wandb:
    """Weights & Biases; offline where ``WANDB_MODE`` says so."""

    def __init__(self) -> None:
        self._wandb = importlib.import_module("wandb")
        self._run: Any = None

    def begin(self, about: About) -> None:
        known = remembered(about.folder, "wandb")
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=about.name,
            id=known,
            resume="allow",
            config=about.settings,
            dir=str(about.folder),
            settings=self._wandb.Settings(console="off", silent=True),
        )
        if known is None:
            remember(about.folder, "wandb", self._run.id)
        self._run.define_metric("*", step_metric="planned step")
        self._run.summary.update(about.tags)

    def rows(self, rows: list[Row]) -> None:
        for row in rows:  # its own step may never go back, ours does after a roll-back
            self._run.log({**row.values, "planned step": row.step})

    def note(self, key: str, text: str, step: int) -> None:
        self._run.summary[key] = text

    def end(self, ending: Ending) -> None:
        if ending.files:
            artifact = self._wandb.Artifact(f"{self._run.id}-results", type="model", description=ending.card[:10_000])
            for file in ending.files:
                artifact.add_file(str(file))
            self._run.log_artifact(artifact)
        self._run.finish(exit_code=1 if ending.result is None else ending.result.exit_code)


class Trackio:
    """trackio, in its local folder."""

    def __init__(self) -> None:
        self._trackio = importlib.import_module("trackio")

    def begin(self, about: About) -> None:
        known = remembered(about.folder, "trackio")
        name = known or f"{about.name}-{os.getpid()}-{len(about.settings)}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._run = self._trackio.init(project=project, name=name, config=about.settings, resume="allow", embed=False)
        if known is None:
            remember(about.folder, "trackio", name)

    def rows(self, rows: list[Row]) -> None:
        for row in rows:
            self._run.log({k: v for k, v in row.values.items() if math.isfinite(v)}, step=row.step)

    def note(self, key: str, text: str, step: int) -> None:
        self._run.log({key: text}, step=step)

    def end(self, ending: Ending) -> None:
        self._run.finish()


SERVERS: dict[str, Callable[[], Server]] = {"mlflow": Mlflow, "wandb": Wandb, "trackio": Trackio}


def require_installed(names: Sequence[str]) -> None:
    """Raise ConfigError where a service that is asked for is not installed: before a run, not in its middle."""
    missing = [n for n in names if importlib.util.find_spec(n) is None]
    if missing:
        raise ConfigError(
            f"--track {missing[0]}: {missing[0]} is not installed",
            fix=f"pip install 'maskrcnn-coco[{','.join(missing)}]'",
        )


def remembered(folder: Path, service: str) -> str | None:
    """The run's name at ``service``, of an earlier start in this folder."""
    try:
        known = json.loads((folder / REMEMBERED).read_text(encoding="utf-8"))
        name = known[service]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def remember(folder: Path, service: str, name: str) -> None:
    """Keep the run's name at ``service`` for the next start. Raises OSError."""
    try:
        known = json.loads((folder / REMEMBERED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    write_text(folder / REMEMBERED, json.dumps({**known, service: name}))
