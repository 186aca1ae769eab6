"""What a run tells tracking servers (--track) first, and what stands beside its best checkpoint: ``MODEL_CARD.md``."""

from __future__ import annotations

from pathlib import Path

import msgspec

from maskrcnn_coco.data.prepare import RunData
from maskrcnn_coco.evaluation.ceiling import ceiling_of
from maskrcnn_coco.records import Result
from maskrcnn_coco.report.model_card import CARD, model_card
from maskrcnn_coco.report.run_files import read_run
from maskrcnn_coco.report.tracking_servers import SERVERS
from maskrcnn_coco.report.tracking_thread import About, Fence
from maskrcnn_coco.system.files import write_text
from maskrcnn_coco.training.run_log import end_tracking
from maskrcnn_coco.training.session import Session


def track(session: Session) -> None:
    """Begin to send records to the servers that --track names; from the main process only."""
    log, config = session.log, session.config
    if not session.ranks.is_main or log.fences:
        return
    about = About(log.folder.resolve().name, log.folder, msgspec.to_builtins(config), _tags(session.data))
    log.fences = [Fence(name, SERVERS[name], about, session.console.warn) for name in dict.fromkeys(config.track)]


def _tags(data: RunData) -> dict[str, str]:
    tags = {"classes": ", ".join(data.class_names[1:])}
    return tags | ({"data": str(data.train.json_path)} if data.train is not None else {})


def write_card(session: Session) -> str:
    """Write the card beside best.pth, if there is one; returns it, or "" where it could not be written."""
    folder = Path(session.config.checkpoint_dir)
    if not (folder / "best.pth").exists():
        return ""
    try:
        ceiling = None
        if session.val_source is not None:
            ceiling = ceiling_of(session.val_source, session.data.class_names, max_dets=session.config.eval_max_dets)
        card = model_card(read_run(session.log.folder), ceiling=None if ceiling is None else ceiling.scores)
        write_text(folder / CARD, card)
    except Exception as e:  # a run that is over and saved must not fail for its card
        session.console.warn(f"{folder / CARD} was not written: {type(e).__name__}: {e}")
        return ""
    return card


def close_tracking(session: Session, result: Result, card: str) -> None:
    """Everything that is worth keeping goes to the servers, and the run ends there."""
    checkpoints, log = Path(session.config.checkpoint_dir), session.log
    kept = [log.folder / "report.html", log.folder / "result.json", checkpoints / "best.pth", checkpoints / CARD]
    end_tracking(log, result, [*kept, *sorted((log.folder / "incidents").glob("*.json"))], card)
