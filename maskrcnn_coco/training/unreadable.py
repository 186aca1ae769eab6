"""An image that cannot be read is left out with an incident, and the run goes on; all processes of it agree on that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from maskrcnn_coco import recovery
from maskrcnn_coco.data.batch import SampleError
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.records import Alarm, Culprit, Evidence, Finding
from maskrcnn_coco.training.incident import compose, history_at
from maskrcnn_coco.training.session import Session


def readable(session: Session, loader: Iterable[list[Any]]) -> Iterator[list[Any]]:
    """The loader's steps, until one has an image that some process cannot read: then the loop has to fetch anew.

    Raises:
        DataError: too many images cannot be read, or the guard is not to leave any out; on every process.
    """
    steps = iter(loader)
    while True:
        batches, error = None, None
        try:
            batches = next(steps, None)
        except SampleError as e:
            error = e
        errors = everywhere(session.ranks, error)
        for rank, found in errors:
            leave_out_unreadable(session, found, rank)
        if batches is None or errors:
            return
        yield batches


def everywhere(ranks: Ranks, error: SampleError | None) -> list[tuple[int | None, SampleError]]:
    """The errors of all processes at this step, with their ranks (None where there is one process only)."""
    if ranks.world == 1:
        return [] if error is None else [(None, error)]
    if not any(f["unreadable"] for f in ranks.all_flags({"unreadable": float(error is not None)})):
        return []
    mine = None if error is None else [error.what, error.got, error.expected, error.fix, list(error.key)]
    said = enumerate(ranks.gather_objects(mine))
    return [(rank, _from_process(rank, *e)) for rank, e in said if e is not None]


def _from_process(rank: int, what: str, got: Any, expected: Any, fix: Any, key: list[int]) -> SampleError:
    error = DataError(f"process {rank}: {what}", got=got, expected=expected, fix=fix)
    return SampleError(error, SampleKey(*key))


def leave_out_unreadable(session: Session, error: SampleError, rank: int | None) -> None:
    """Quarantine the image of ``error``: there is nothing to replay, the file itself is the proof."""
    if session.config.guard not in ("recover", "observe"):
        raise error
    step, image_id = session.progress.step, error.key.image_id
    # An item whose image is sound and whose target is none is not the pixels' fault.
    code = "DATA_BOX" if str(error.got).startswith("(Tensor,") else "DATA_PIXEL"
    evidence = [Evidence(f"read: image {image_id}", error.what, code)]
    culprit = Culprit(image_ids=[image_id], rank=rank)
    own = session.train_source.provisional
    fix = (error.fix if own else None) or "repair the file: maskrcnn-coco check --data …"
    finding = Finding(code, 1.0, culprit, evidence, fix=fix)
    action = recovery.decide([finding], history_at(session, step), session.budgets)
    if action.kind == "stop":
        raise error
    alarm = Alarm("input_nonfinite", step, session.epoch_of(step), step, error.what)
    incident = compose(session, alarm, [finding], action)
    if own:
        # It may not have said its true id, and the number that stands for it may be another image's.
        session.progress.quarantine.append({"id": image_id, "index": error.key.index, "incident": incident.id})
        session.plan.quarantine_at(error.key.index)
    session.leave_out([] if own else [image_id], [], incident.id)
    session.keep_incident(incident)
