"""Findings in a terminal: counts first, then what and where."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from maskrcnn_coco.data.audit.checks import summary
from maskrcnn_coco.data.audit.overview import Overview, overview_lines
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.records import DataFinding
from maskrcnn_coco.system.streams import stated_width

PER_KIND = 5
"""Findings shown of each kind; --json and --html list more."""
_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def print_findings(
    table: CocoTable,
    findings: Sequence[DataFinding],
    fixed: object = None,
    html: object = None,
    *,
    whole: bool = False,
    file: TextIO | None = None,
) -> None:
    """Print the counts of each kind, its first `PER_KIND` places, and its fix. Names from the data are shown inert.

    Args:
        fixed, html: the repaired copy and the page, where they were written. file: stdout where None.
        whole: something was said of the whole set already.
    """
    console = _console(file)
    if not findings:
        if whole:
            console.print(Text("Entry by entry, there is nothing to report."))
        else:
            console.print(Text("Nothing to report.", "green"))
    else:
        console.print(_counts(list(findings)))
        _places(console, findings)
    for what, path in (("repaired copy", fixed), ("pictures", html)):
        if path is not None:
            console.print(Text(f"{what}: {path}"))


def print_overview(table: CocoTable, known: Overview, *, file: TextIO | None = None) -> None:
    """Print what the set is."""
    console = _console(file)
    first, *rest = overview_lines(known)
    console.print(Text(f"{table.json_path}: {first}"), soft_wrap=True)
    for line in rest:
        console.print(Text(line), soft_wrap=True)


def _console(file: TextIO | None) -> Console:
    return Console(file=file or sys.stdout, width=stated_width(), markup=False, highlight=False, emoji=False)


def _counts(findings: list[DataFinding]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("severity", "code", "count", "what"):
        table.add_column(name, justify="right" if name == "count" else "left", no_wrap=name != "what")
    for severity, code, count, title in summary(findings):
        table.add_row(Text(severity, _STYLES[severity]), Text(code), Text(str(count)), Text(title))
    return table


def _places(console: Console, findings: Sequence[DataFinding]) -> None:
    by_kind: defaultdict[tuple[str, str], list[DataFinding]] = defaultdict(list)
    for f in findings:
        by_kind[f.severity, f.code].append(f)
    for severity, code, _, title in summary(list(findings)):
        console.print()
        console.print(Text.assemble((code, _STYLES[severity]), f" · {title}"))
        for f in by_kind[severity, code][:PER_KIND]:
            console.print(Text(f"  {f.message}"), soft_wrap=True)
        listed = len(by_kind[severity, code])
        if listed > PER_KIND:
            console.print(Text(f"  … and {listed - PER_KIND} more (--json lists all)", "dim"))
        console.print(Text(f"  what to do: {by_kind[severity, code][0].fix}", "dim"), soft_wrap=True)
