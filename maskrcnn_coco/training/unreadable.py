"""An image that cannot be read is left out with an incident, and the run goes on; all processes of it agree on that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from maskrcnn_coco import recovery
from maskrcnn_coco.data.batch import SampleError
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.data.user_data import UserData
from maskrcnn_coco.diagnosis.draws import mostly
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
        batches, failed = None, None
        try:
            batches = next(steps, None)
        except SampleError as e:
            failed = unreadable(session.train_source, e)
        errors = everywhere(session.ranks, failed)
        for rank, found in errors:
            respond(session, found, rank)
        if batches is None or errors:
            return
        yield batches


class Unreadable(NamedTuple):
    """A sample that cannot be made, and whether others of its draws can: then it is not the image."""

    error: SampleError
    in_this_draw: bool


def unreadable(source: CocoDataset | UserData, error: SampleError) -> Unreadable:
    """What ``error`` was, after its sample was drawn anew."""

    def made(key: SampleKey) -> bool:
        try:
            source.sample(key.epoch, key.index, key.repeat)
        except DataError:
            return False
        return True

    return Unreadable(error, mostly(made, error.key, SampleKey.anew))


def everywhere(ranks: Ranks, found: Unreadable | None) -> list[tuple[int | None, Unreadable]]:
    """What all processes could not read at this step, with their ranks (None where there is one process only)."""
    if ranks.world == 1:
        return [] if found is None else [(None, found)]
    if not any(f["unreadable"] for f in ranks.all_flags({"unreadable": float(found is not None)})):
        return []
    mine = None
    if found is not None:
        error = found.error
        mine = [error.what, error.got, error.expected, error.fix, list(error.key), found.in_this_draw]
    said = enumerate(ranks.gather_objects(mine))
    return [(rank, _from_process(rank, *e)) for rank, e in said if e is not None]


def _from_process(
    rank: int, what: str, got: Any, expected: Any, fix: Any, key: list[int], in_this_draw: bool
) -> Unreadable:
    error = DataError(f"process {rank}: {what}", got=got, expected=expected, fix=fix)
    return Unreadable(SampleError(error, SampleKey(*key)), in_this_draw)


def respond(session: Session, found: Unreadable, rank: int | None) -> None:
    """Draw the sample anew or quarantine its image: there is nothing to replay, the file itself is the proof."""
    error = found.error
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
    if found.in_this_draw:
        _of_this_draw(finding, error.key)
    action = recovery.decide([finding], history_at(session, step), session.budgets)
    if action.kind == "stop":
        raise error
    alarm = Alarm("input_nonfinite", step, session.epoch_of(step), step, error.what)
    incident = compose(session, alarm, [finding], action)
    if "redraw" in action.detail:
        session.draw_anew(action.detail["redraw"])
        session.keep_incident(incident)
        return
    if own:
        # It may not have said its true id, and the number that stands for it may be another image's.
        session.progress.quarantine.append({"id": image_id, "index": error.key.index, "incident": incident.id})
        session.plan.quarantine_at(error.key.index)
    session.leave_out([] if own else [image_id], [], incident.id)
    session.keep_incident(incident)


def _of_this_draw(finding: Finding, key: SampleKey) -> None:
    image = finding.culprit.image_ids[0]
    finding.evidence.append(Evidence(f"read: image {image} drawn anew", "it can be made"))
    finding.detail["redraw"] = [[key.epoch, key.index, key.repeat]]
    finding.fix = f"look at what is drawn at random for image {image}, and at its disk: made anew it is sound"
