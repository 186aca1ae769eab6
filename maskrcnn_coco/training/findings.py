"""The findings of a run: looked for before the first step, said once, everywhere."""

from __future__ import annotations

from typing import Any

from maskrcnn_coco.errors import DataError
from maskrcnn_coco.evaluation.finding_pictures import Evaluated
from maskrcnn_coco.findings.facts import Facts, Way
from maskrcnn_coco.findings.judge import finding_key, judge
from maskrcnn_coco.findings.parameters import decay_of, norms_in_eval
from maskrcnn_coco.findings.rules import masks_elsewhere
from maskrcnn_coco.findings.watch import Watch
from maskrcnn_coco.records import RunFinding, plain, record_from
from maskrcnn_coco.training.before_training import look_before, rates_of
from maskrcnn_coco.training.session import Session
from maskrcnn_coco.wording import named

VALIDATION = "validation data"
"""What findings call the data that are not the training's."""


def prepare(session: Session, way: Way, *, own_model: bool, resuming: bool) -> list[RunFinding]:
    """Look at everything that is known before the first step of a new run; what is found is said by `tell_all`, later.

    Raises:
        DataError: nothing can be learned; or, with --strict, anything was found.
    """
    session.way = way
    session.norms_in_eval = norms_in_eval(session.model) if own_model else []
    session.watch = Watch(session.model, samples=False, say=lambda f: keep(session, f), way=session.way)
    session.watch.clips_at(session.config.max_grad_norm)
    session.watch.decays_by(decay_of(session.optimizer, rates_of(session))[0])
    if resuming:
        return []
    found = look_together(session)
    refuse(found, strict=session.config.strict)
    return found


def look_together(session: Session) -> list[RunFinding]:
    """The main process looks, and all have what it found, or its refusal."""
    if session.ranks.world == 1:
        return _found(session)
    answer: list[dict[str, object]] | str = ""
    if session.ranks.is_main:
        try:
            answer = [plain(f) for f in _found(session)]
        except DataError as e:
            answer = e.render()
    answer = session.ranks.broadcast_object(answer)
    if isinstance(answer, str):
        raise DataError(answer)
    return [record_from(RunFinding, f) for f in answer]


def _found(session: Session) -> list[RunFinding]:
    found = distinct([f for facts in look_before(session) for f in judge(facts)])
    return [with_command(session, f) for f in found]


def distinct(findings: list[RunFinding]) -> list[RunFinding]:
    """Each kind of finding once, errors first."""
    kept = {}
    for finding in findings:
        kept.setdefault(finding_key(finding), finding)
    return sorted(kept.values(), key=lambda f: ("error", "warning", "info").index(f.severity))


def refuse(found: list[RunFinding], *, strict: bool) -> None:
    """Raise where nothing can be learned, or where ``strict`` makes every warning an error."""
    errors = [f for f in found if f.severity == "error" or (strict and f.severity == "warning")]
    if not errors:
        return
    first = errors[0]
    more = [f"{f.code}: {f.message} ({f.fix})" for f in found if f is not first and f.severity != "info"]
    why = "nothing can be learned" if first.severity == "error" else "--strict"
    raise DataError(
        "\n".join([f"{first.code}: {first.message} ({why})", *(f"  also {m}" for m in more)]),
        got="; ".join(f"{e.test}: {e.outcome}" for e in first.evidence),
        fix=f"{first.fix}; {first.explain} tells more",
    )


def with_command(session: Session, finding: RunFinding) -> RunFinding:
    """``finding`` with the files in its command that the caller has given."""
    table = session.data.val if finding.detail.get("of") == VALIDATION else session.data.train
    if table is not None:
        finding.fix = named(finding.fix, table.flags)
    return finding


def tell_all(session: Session, found: list[RunFinding]) -> None:
    """Say what `prepare` found; what a resumed run has said before is not said again."""
    if session.watch is not None:
        session.watch.known([*found, *(record_from(RunFinding, f) for f in session.progress.findings)])
    for finding in found:
        keep(session, finding)


def keep(session: Session, finding: RunFinding) -> None:
    """Say one finding, everywhere."""
    source = _source(session, finding.detail.get("of") == VALIDATION)
    if finding.code == masks_elsewhere.CODE and session.evaluation is not None:
        source = Evaluated(session.val_source, session.evaluation)
    session.log.finding(with_command(session, finding), session.progress, source)


def _source(session: Session, validation: bool) -> Any:
    """Where the images of a finding are: the table as its file has it, or a data set of the caller's own."""
    table = session.data.val if validation else session.data.train
    return table if table is not None else session.val_source if validation else session.train_source


def tell(session: Session, facts: Facts, moment: str) -> None:
    """Say what is new in what the rules find in ``facts``."""
    if session.watch is not None:
        facts.way = session.way
        session.watch.tell(facts, moment)
