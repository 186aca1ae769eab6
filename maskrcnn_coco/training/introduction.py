"""What a run says about itself before its first step."""

from __future__ import annotations

import os

import msgspec
import numpy as np
import torch

from maskrcnn_coco import wording
from maskrcnn_coco.config import recipes
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.prepare import complaints
from maskrcnn_coco.report.run_files import write_run_info
from maskrcnn_coco.system import environment
from maskrcnn_coco.system.backends import passed_over
from maskrcnn_coco.system.known_faults import known_faults
from maskrcnn_coco.training.session import Session


def introduce(session: Session, resolved: recipes.Resolved, *, resuming: bool) -> None:
    """Say what will be trained, with what, and why."""
    console, data = session.console, session.data
    for note in (*data.notes, *getattr(session.model, "notes", ())):
        console.note(note)
    for sentence in (*complaints(data), *known_faults(session.device.type)):
        console.warn(sentence)
    idle = passed_over(session.config.device)
    if idle is not None:
        console.note(idle)
    if not resuming:
        console.settings(
            msgspec.structs.asdict(session.config), resolved.reasons, lr=recipes.component_lrs(session.config)
        )
    for warning in resolved.warnings:
        console.warn(warning)
    if session.ranks.is_main and session.log.tracker is not None:
        describe(session, resolved)
    console.note(
        f"{wording.count(len(session.plan), 'training image')}, "
        f"{wording.count(data.num_classes - 1, 'class', 'classes')}, "
        f"{wording.count(session.plan.steps_per_epoch, 'step')} an epoch, {session.total_steps} in all; "
        f"{session.device}, {session.precision}, {wording.count(torch.get_num_threads(), 'thread')}"
    )
    for sentence in tiles_said(session):
        console.note(sentence)
    crowd = crowded(torch.get_num_threads()) if session.device.type == "cpu" else None
    if crowd is not None:
        console.warn(crowd)


def tiles_said(session: Session) -> list[str]:
    """What --tile cuts, and what that means for steps, AP and prediction."""
    source, side = session.train_source, session.config.tile
    if side is None:
        return []
    tiles = source.tiles if isinstance(source, CocoDataset) else None
    if tiles is None:
        return ["--tile cuts nothing: no training image is longer than 1.5 tiles"]
    config = session.config
    images, samples = wording.count(len(np.unique(tiles.rows)), "image"), wording.count(len(tiles), "sample")
    return [
        f"{len(tiles.cut)} of {images} are cut into tiles of {tiles.side} pixels that overlap by a quarter: {samples} "
        f"an epoch. Each is resized to {config.min_size}, as an image is: a step needs the memory of "
        f"{wording.count(config.images_a_pass, 'image')} of that size, whatever they were cut from",
        "AP is of tiles, too, and ignores what their edges cut off; `maskrcnn-coco evaluate` and `predict` "
        "with --tile auto put the objects of whole images together",
    ]


def crowded(threads: int) -> str | None:
    """A warning where other programs leave fewer cores than a run on the CPU has threads; None: there is room.

    Threads that share a core wait for each other at the end of every operation: a step of the built-in set on 4 cores,
    one or two of them busy, took 4 to 23 times as long as on idle ones. The load is of the last minute, so a run of
    one's own that has just ended counts too.
    """
    try:
        busy, cores = os.getloadavg()[0], os.cpu_count() or 1
    except (AttributeError, OSError):  # Windows
        return None
    room = max(1, round(cores - busy))
    if threads <= room or busy < 0.7:
        return None
    return (
        f"other programs kept {min(busy, cores):.1f} of {cores} cores busy in the last minute, and {threads} threads "
        f"that have to share cores are many times slower: OMP_NUM_THREADS={room} in front of the command may be faster"
    )


def describe(session: Session, resolved: recipes.Resolved) -> None:
    """``run.json``: what the report shows beside settings and curves; and the settings for TensorBoard."""
    if session.log.tracker is not None:
        session.log.tracker.settings(msgspec.structs.asdict(session.config))
    data = session.data
    facts: dict[str, object] = {
        "training images": len(session.plan),
        "steps an epoch": session.plan.steps_per_epoch,
        "classes": list(data.class_names[1:]),
    }
    if data.train is not None:
        facts["train"] = str(data.train.json_path)
    if data.val is not None:
        facts |= {"val": str(data.val.json_path), "validation images": len(data.val)}
    write_run_info(
        session.log.folder,
        reasons=resolved.reasons,
        environment=environment.fingerprint(session.ranks.world, device=session.device),
        data=facts,
        lr=recipes.component_lrs(session.config),
        notes=[*data.notes, *getattr(session.model, "notes", ()), *resolved.warnings],
        findings=[*data.findings, *data.val_findings],
        counts=data.class_counts,
    )
