"""`check`: what a data set is, what is wrong with it, its repaired copy, and the command that comes next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.audit.content import content_of_table
from maskrcnn_coco.data.audit.gallery import write_gallery
from maskrcnn_coco.data.audit.overview import Overview, overview
from maskrcnn_coco.data.audit.quarantine import require_usable, to_quarantine
from maskrcnn_coco.data.audit.repair import Change, can_repair, changes_file, repair
from maskrcnn_coco.data.audit.show import print_findings, print_overview
from maskrcnn_coco.data.audit.whole_set import facts_of
from maskrcnn_coco.data.bit_range import given_range
from maskrcnn_coco.data.layouts import DataSource, find_data
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.findings.judge import judge
from maskrcnn_coco.records import DataFinding, RunFinding
from maskrcnn_coco.wording import finding_lines, flags_of, named

COPY = "repaired copy"
"""What messages call what ``--fix`` wrote."""


@dataclass
class Checked:
    """What `check` found; ``changes`` where a copy was written, ``next`` is the command to go on with."""

    source: DataSource
    overview: Overview
    findings: list[DataFinding]
    changes: list[Change] | None
    next: str
    whole: list[RunFinding] = field(default_factory=list)
    """What keeps a training on this set from learning; each follows from ``findings``, or from counts."""
    usable: bool = True
    """Something of the set can be trained on as it is."""

    @property
    def exit_code(self) -> int:
        """3 where something is to be looked at."""
        return 3 if any(f.severity in ("error", "warning") for f in (*self.findings, *self.whole)) else 0


def check_set(args: Any) -> Checked:
    """Look at the data that ``args`` (`CheckArgs`) names, and write what they ask for.

    Raises:
        DataError: as `find_data`, `repair`, `write_gallery`.
    """
    found = find_data(
        args.data,
        images=args.images,
        val=args.val,
        val_images=args.val_images,
        bit_range=given_range(args.bit_range),
    )
    low, high = args.min_size or 800, args.max_size or 1333
    options = {"images": not args.no_images, "gathered": True, "min_size": low, "max_size": high}
    findings = audit(found.train, other=found.val, **options)
    # Ids of the two parts overlap: the repair sees those of the training part alone.
    changes = repair(found.train, findings, args.fix) if args.fix is not None else None
    if found.val is not None and not _same(found):
        seen = {(f.code, f.file_name, f.annotation_id, f.row) for f in findings}
        more = audit(found.val, **options)
        findings += [f for f in more if (f.code, f.file_name, f.annotation_id, f.row) not in seen]
    if args.html is not None:
        write_gallery(found.train, findings, args.html)
    known = overview(found.train, files=not args.no_images)
    facts = facts_of(found.train, findings, min_size=low, max_size=high)
    table, of = found.train, "training data"
    if args.fix is not None:  # what a copy was written from may agree in another way than it was meant
        copy = find_data(args.fix, images=str(found.train.image_root), bit_range=given_range(args.bit_range))
        table, of = copy.train, COPY
    if not args.no_images:
        content = content_of_table(table, of, *to_quarantine(findings))
        facts.contents = [] if content is None else [content]
    whole = judge(facts)
    for finding in whole:
        finding.fix = named(finding.fix, (table if finding.detail.get("of") == of else found.train).flags)
    usable = args.fix is not None or _usable(found, findings, low, high)
    if _look_first([*findings, *whole]) and args.fix is None:
        usable = usable and args.html is None
    return Checked(found, known, findings, changes, _next(args, found, [*findings, *whole], usable), whole, usable)


def _usable(found: DataSource, findings: list[DataFinding], low: int, high: int) -> bool:
    try:
        require_usable(found.train, findings, min_size=low, max_size=high)
    except DataError:
        return False
    return True


def _same(found: DataSource) -> bool:
    return found.val is not None and found.val.json_path.resolve() == found.train.json_path.resolve()


def _next(args: Any, found: DataSource, findings: Sequence[DataFinding | RunFinding], usable: bool) -> str:
    """The command that takes the user on: a repair where one helps, else training, on what was named here; this one
    again where nothing could be trained on."""
    val = [("--val", args.val), ("--val-images", args.val_images)]
    val += [("--bit-range", args.bit_range if args.bit_range != "auto" else None)]
    if args.fix is not None:
        copy = [("--data", args.fix), ("--images", found.train.image_root)]
        if any(isinstance(f, RunFinding) and f.detail.get("of") == COPY for f in findings):
            return _command("check", [*copy, ("--html", "OUT.html")])
        return _command("train", [*copy, *val])
    data = [("--data", args.data), ("--images", args.images)]
    if _look_first(findings):
        return _command("check", [*data, ("--html", "OUT.html" if args.html is None else None)])
    mends = any(f.severity != "info" and "--fix OUT.json writes a copy" in f.fix for f in findings)
    if mends and (usable or can_repair(found.train, [f for f in findings if isinstance(f, DataFinding)])):
        name = found.train.json_path.name.removesuffix(".gz").removesuffix(".json")
        return _command("check", [*data, ("--fix", f"{name}.fixed.json")])
    return _command("train" if usable else "check", [*data, *val])


def _look_first(findings: Sequence[DataFinding | RunFinding]) -> bool:
    """Boxes and masks are in the wrong place throughout, which no copy mends: pictures show in what way."""
    return any(f.severity != "info" and "--html OUT.html" in f.fix for f in findings)


def _command(verb: str, flags: Sequence[tuple[str, object]]) -> str:
    return f"maskrcnn-coco {verb} {flags_of(flags)}"


def print_checked(checked: Checked, args: Any) -> None:
    """What the set is, the findings, what was written, and what comes next."""
    for note in checked.source.notes:
        print(note)
    table = checked.source.train
    print_overview(table, checked.overview)
    for line in (line for f in checked.whole for line in finding_lines(f)):
        print(line)
    print_findings(table, checked.findings, html=args.html, whole=bool(checked.whole))
    print()
    if args.fix is not None and checked.changes is not None:
        gone = sum(c.what == "removed" and c.annotation_id is not None for c in checked.changes)
        kept = f"{len(table.ann_ids) - gone} of {len(table.ann_ids)} annotations kept"
        print(
            f"repaired copy: {args.fix}, {kept}; {len(checked.changes)} changes are listed in {changes_file(args.fix)}"
        )
        print(f"its images: --images {shlex.quote(str(Path(table.image_root)))}")
    print(f"next{'' if checked.usable else ', when the errors are mended'}: {checked.next}")
