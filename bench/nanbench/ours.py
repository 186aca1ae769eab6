"""This project's run of a scene, through `maskrcnn_coco.train`; faults are put in from outside, here only."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from maskrcnn_coco import Config, train
from maskrcnn_coco.checkpoint import content
from maskrcnn_coco.checkpoint.store import load, peek, save
from maskrcnn_coco.model import forward, optim
from maskrcnn_coco.records import Incident, StepRecord, plain
from maskrcnn_coco.system import precision
from maskrcnn_coco.training import response, session
from nanbench.files import write_files
from nanbench.scenario import Outcome
from nanbench.scene import STEPS, Live, Scene, make_optimizer

RESUME_AT = 12


class Watch:
    """What the run does, seen through an observer and around three functions of the session."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.live: Live | None = None
        self.incidents: list[dict[str, Any]] = []
        self.first_bad: int | None = None
        self.investigations: list[float] = []
        self.step_seconds: list[float] = []
        self.began = 0.0
        self.interrupt_at: int | None = None
        self.warned: dict[str, int] = {}

    def __call__(self, record: Any) -> None:
        """The run's observer."""
        if isinstance(record, Incident):
            self.incidents.append(
                {
                    "step": record.step,
                    "cause": record.cause,
                    "confidence": record.confidence,
                    "symptom": record.symptom,
                    "culprit": plain(record.culprit),
                    "action": record.action.kind,
                    "lost_steps": record.lost_steps,
                    "others": record.detail.get("other_findings", [])[:2],
                    "inner": record.detail.get("inner"),
                    "message": str(record.detail.get("message", ""))[:160],
                    "evidence": [f"{e.test}: {e.outcome}"[:200] for e in record.evidence[:6]],
                }
            )
        if isinstance(record, StepRecord):
            if self.scene.bad_id in record.image_ids and self.first_bad is None:
                self.first_bad = record.step
            if record.applied:
                self.step_seconds.append(time.perf_counter() - self.began)
            if self.interrupt_at is not None and record.step + 1 == self.interrupt_at:
                os.kill(os.getpid(), signal.SIGTERM)

    def patches(self) -> ExitStack:
        """Faults happen where the session sets the learning rates; investigations are timed."""
        watch, scene = self, self.scene
        set_lr, investigate = session.Session.set_lr, response.investigate
        call = forward.Forward.__call__

        def with_faults(self: Any, step: int) -> dict[str, float]:
            rates = set_lr(self, step)
            watch.warned = self.warned
            if step == self.progress.step:
                watch.live = Live(self.model, self.optimizer, self.scaler, step)
                scene.fire(watch.live)
                watch.began = time.perf_counter()
            return rates

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            found = investigate(*args, **kwargs)
            watch.investigations.append(time.perf_counter() - began)
            return found

        def undivided(self: Any, batch: Any) -> Any:
            losses = call(self, batch)
            factor = scene.setup.accumulate if scene.undivided and scene.undivided(scene.step) else 1
            return {k: v * factor for k, v in losses.items()}

        stack = ExitStack()
        stack.enter_context(mock.patch.object(session.Session, "set_lr", with_faults))
        stack.enter_context(mock.patch.object(response, "investigate", timed))
        if scene.setup.optimizer not in ("sgd", "adamw") or scene.optimizer_options:
            # A caller's own class: `train` has none to choose, the parts below it take any.
            stack.enter_context(mock.patch.object(optim, "build_optimizer", lambda m, **_: built(scene, m)))
        if scene.undivided:
            stack.enter_context(mock.patch.object(forward.Forward, "__call__", undivided))
        # This CPU has no native float16; autocast emulates it, which is all that is asked here.
        stack.enter_context(mock.patch.object(precision, "fp16_is_native", lambda device: True))
        return stack


def built(scene: Scene, model: torch.nn.Module) -> torch.optim.Optimizer:
    """An optimizer of the scene's own class in this project's groups; its state is made at the first step."""
    groups = optim.parameter_groups(model, scene.weight_decay)
    return make_optimizer(scene, [{**g, "lr": 1e-9} for g in groups])


def config(scene: Scene, folder: Path, **changes: Any) -> Config:
    """The scene's settings."""
    base, setup = scene.multipliers["backbone"], scene.setup
    settings: dict[str, Any] = {
        "num_classes": 4,
        "batch_size": setup.batch // setup.accumulate // setup.ranks,
        "accumulate": setup.accumulate,
        "epochs": scene.epochs,
        "lr": scene.lr * base,
        "head_lr_multiplier": scene.multipliers["box_head"] / base,
        "rpn_lr_multiplier": scene.multipliers["rpn"] / base,
        "warmup_steps": scene.warmup,
        "max_grad_norm": scene.max_grad_norm,
        "momentum": scene.momentum,
        "weight_decay": scene.weight_decay,
        "amp": {"fp32": "off"}.get(setup.precision, setup.precision),
        "min_size": 64,
        "max_size": 64,
        "seed": scene.seed,
        "workers": 0,
        "device": "cpu",
        "logdir": str(folder / "run"),
        "checkpoint_dir": str(folder / "checkpoints"),
    }
    if setup.way == "files":
        settings |= {"data": str(folder / "data"), "num_classes": None}
    settings["optimizer"] = setup.optimizer if setup.optimizer in ("sgd", "adamw") else "sgd"
    return Config(**(settings | scene.settings | changes))


def run(scene: Scene, folder: Path) -> Outcome:
    """Train the scene to its end, in as many processes as it asks for."""
    if scene.setup.way == "pair":
        from nanbench import ours_pair

        return ours_pair.run(scene, folder)
    if scene.setup.way in ("guard", "attach", "see"):
        from nanbench import ours_loop

        return ours_loop.run(scene, folder)
    if scene.setup.ranks == 1:
        return alone(scene, folder)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    world = scene.setup.ranks

    def rank(number: int) -> Outcome:
        os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(world))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        return alone(scene, folder)

    others = [multiprocessing.get_context("fork").Process(target=rank, args=(n,)) for n in range(1, world)]
    for process in others:
        process.start()
    try:
        return rank(0)
    finally:
        for process in others:
            process.join(20)
            process.kill()


def alone(scene: Scene, folder: Path) -> Outcome:
    """One process of the run."""
    watch = Watch(scene)
    began = time.perf_counter()
    with watch.patches():
        if scene.on_resume is None:
            result = train(
                config(scene, folder), model=scene.model, train_data=data_of(scene, folder), observers=[watch]
            )
        else:
            result = interrupted_and_resumed(scene, watch, folder)
    median = statistics.median(watch.step_seconds) if watch.step_seconds else 0.0
    for incident, seconds in zip([i for i in watch.incidents if i["symptom"]], watch.investigations, strict=False):
        incident["seconds"] = seconds
    return Outcome(
        # A folder's run holds images back to validate on: its own plan has fewer steps.
        finished=result.status == "finished" and (scene.setup.way == "files" or result.steps == STEPS),
        finite=all_finite(watch.live, scene),
        steps=result.steps,
        incidents=watch.incidents,
        stopped=None if result.status == "finished" else result.status,
        seconds=time.perf_counter() - began,
        step_seconds=median,
        first_bad=watch.first_bad,
        warned=watch.warned,
    )


def data_of(scene: Scene, folder: Path) -> Any:
    """The data set in memory, or None where it was written as files, which the settings then name."""
    if scene.setup.way != "files":
        return scene.data()
    scene.folder = write_files(scene, folder / "data")
    return None


def interrupted_and_resumed(scene: Scene, watch: Watch, folder: Path) -> Any:
    """Half of the run, its newest checkpoint changed by somebody, and the rest with ``--resume``."""
    assert scene.on_resume is not None
    fresh = {k: v.clone() for k, v in scene.model.state_dict().items()}
    watch.interrupt_at = RESUME_AT
    train(config(scene, folder), model=scene.model, train_data=scene.data(), observers=[watch])
    watch.interrupt_at = None
    change_checkpoint(folder / "checkpoints", scene.on_resume, backups_too=scene.backups_too)
    scene.model.load_state_dict(fresh)
    last = str(folder / "checkpoints" / "last.pth")
    return train(config(scene, folder, resume=last), model=scene.model, train_data=scene.data(), observers=[watch])


def change_checkpoint(folder: Path, change: Any, *, backups_too: bool = False) -> None:
    """Rewrite every file of the newest step, as another program would: sound as a file, with other values in it."""
    newest = load(folder / "last.pth")["loop"]["step"]
    with mock.patch.object(content, "nonfinite", lambda state: []):
        for path in sorted(folder.glob("*.pth")):
            state, serial = load(path), peek(path).serial
            if backups_too or state["loop"]["step"] == newest:
                change(state)
                path.unlink()
                save(path, state, serial=serial)


def all_finite(live: Live | None, scene: Scene) -> bool:
    """Weights, buffers and optimizer state at the end."""
    tensors = list(scene.model.state_dict().values())
    if live is not None:
        tensors += [v for state in live.optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    return all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())
