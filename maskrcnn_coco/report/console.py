"""What a person sees while a run goes: plain lines anywhere, a live bar and colour in a terminal.

Everything printed is plain text to rich (no markup is parsed), and names from data are cleaned of control characters.
Nothing here can stop a run: when the terminal or pipe is gone, the console falls silent.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich import box
from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from maskrcnn_coco.config.settings import flag
from maskrcnn_coco.records import EpochRecord, EvalRecord, Incident, Result, RunFinding, StepRecord
from maskrcnn_coco.system.streams import stated_width, unbreakable
from maskrcnn_coco.wording import (
    clean,
    count,
    duration,
    figure,
    finding_lines,
    incident_lines,
    lr_line,
    recovered,
    score,
    size,
)

_PLAIN_SECONDS = 15.0
"""Without a terminal, a progress line at most this often."""
_TABLE_COLUMNS = 90
"""Narrower terminals get lines, which wrap better than cells."""


class Console:
    """Prints a run. Under ``json_mode`` everything goes to stderr, so that stdout holds the one JSON object.

    Args:
        json_mode: keep stdout clean.
        quiet: print nothing (ranks other than 0).
        file, terminal, width: where to, whether it is a terminal, its columns; found by themselves.
    """

    def __init__(
        self,
        json_mode: bool = False,
        *,
        quiet: bool = False,
        file: TextIO | None = None,
        terminal: bool | None = None,
        width: int | None = None,
    ) -> None:
        stream = unbreakable(file or (sys.stderr if json_mode else sys.stdout))
        self.rich = RichConsole(
            file=stream,
            force_terminal=terminal,
            width=width or stated_width(),
            highlight=False,
            markup=False,
            emoji=False,
            quiet=quiet,
        )
        self.live = self.rich.is_terminal and not quiet

    def note(self, text: str) -> None:
        """One sentence."""
        self._lines([clean(text)])

    def warn(self, text: str) -> None:
        """One sentence that matters."""
        self._lines([f"warning: {clean(text)}"], "yellow")

    def error(self, text: str) -> None:
        """What went wrong; line breaks are kept."""
        self._lines([clean(line) for line in text.splitlines()], "red")

    def command(self, lines: Sequence[str]) -> None:
        """A command to be copied: its own line breaks, and none of the terminal's."""
        self._print(Text("\n".join(clean(line) for line in lines)), soft_wrap=True)

    def settings(
        self, values: Mapping[str, object], reasons: Mapping[str, str], *, lr: Mapping[str, float] | None = None
    ) -> None:
        """Every setting that has a value, with the reason for it; then the learning rate per component."""
        rows = [(flag(n), _value(v), clean(reasons.get(n, "default"))) for n, v in values.items() if v is not None]
        if self.live and self.rich.width >= _TABLE_COLUMNS:
            self._print(_settings_table(rows))
        elif self.live:
            self._lines(["Settings:", *(f"   {a} {b} ({c})" for a, b, c in rows)])
        else:
            wide = [max((len(r[i]) for r in rows if len(r[i]) < 32), default=0) for i in (0, 1)]
            self._lines(["Settings:", *(f"   {a:<{wide[0]}}  {b:<{wide[1]}}  {c}" for a, b, c in rows)])
        if lr:
            self._lines([f"lr after warm-up: {lr_line(lr)}", ""])

    def first_batch(self, record: StepRecord) -> None:
        """The losses of the very first batch: a look at them finds most mistakes in minutes."""
        head = "First batch losses:" if record.applied else f"First batch losses (refused: {record.symptom}):"
        self._lines([head, *_loss_lines(record.loss, record.losses)])

    @contextmanager
    def progress(self, epoch: int, epochs: int, steps: int) -> Iterator[Bar]:
        """A bar over the ``steps`` of ``epoch`` (from 0); call ``bar.update(record, next_step)`` after each step."""
        if not self.live:
            yield Bar(self, None, epoch, epochs, steps)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=self.rich, transient=True, expand=True) as progress:
            yield Bar(self, progress, epoch, epochs, steps)

    def epoch(self, record: EpochRecord, evaluation: EvalRecord | None, *, epochs: int, time_left: float) -> None:
        """The block of one epoch. ``time_left`` in seconds."""
        lines = [f"Epoch {record.epoch + 1}/{epochs}", "Training losses:", *_loss_lines(record.loss, record.losses)]
        lines += [
            f"lr: {lr_line(record.lr)}",
            f"grad norm: {figure(record.grad_norm)} · skipped steps: {record.skipped_steps}",
        ]
        if evaluation is not None:
            shown = ("bbox/AP", "segm/AP", "segm/AP50", "segm/AP@100")
            names = [n for n in shown if n in evaluation.metrics]
            lines.append(" · ".join(f"{n}: {score(evaluation.metrics[n])}" for n in names))
        if evaluation is not None and evaluation.losses:
            lines.append(f"validation loss: {sum(evaluation.losses.values()):.4f}")
        left = "" if record.epoch + 1 >= epochs else f" · time left: {duration(time_left)}"
        lines.append(f"images/s: {figure(record.images_per_second)}{left}")
        self._lines([*lines, ""])

    def incident(self, incident: Incident) -> None:
        """Five lines: cause, proof, what was done, the command that makes it permanent, where to read on."""
        lines = incident_lines(incident)
        style = "yellow" if recovered(incident) else "red"
        if not self.live:
            self._lines([f"incident {clean(incident.id)} {lines[0]}", *(f"   {line}" for line in lines[1:])])
            return
        body = Text("\n").join([Text(lines[0], style="bold"), *(_labelled(line) for line in lines[1:])])
        self._print(Panel(body, title=Text(f"incident {clean(incident.id)}"), border_style=style, box=box.ROUNDED))

    def finding(self, finding: RunFinding) -> None:
        """Something that keeps a run from learning: what, its proof, what to do."""
        first, *rest = finding_lines(finding)
        known = finding.severity == "info"
        lead = "" if known else f"{finding.severity}: "
        self._lines([f"{lead}{first}", *(f"   {line}" for line in rest)], "" if known else "yellow")

    def end(
        self, result: Result, *, report: Path | None, checkpoints: Path | None, next_steps: Sequence[str] = ()
    ) -> None:
        """How it ended, what came out, where it is, and the commands that come next."""
        ap = " · ".join(
            f"{n} {score(v)}"
            for n, v in result.metrics.items()
            if n in ("bbox/AP", "segm/AP", "segm/AP50", "segm/AP@100")
        )
        facts = [
            f"{result.status} after "
            + (f"{count(result.epochs, 'epoch')}, " if result.epochs else "")
            + count(result.steps, "step")
            + (f" ({result.skipped_steps} skipped)" if result.skipped_steps else ""),
            f"loss {figure(result.first_loss)} → {figure(result.last_loss)}" + (f" · {ap}" if ap else ""),
            f"{figure(result.images_per_second)} images/s · memory {size(result.peak_memory_bytes)} · "
            f"incidents: {', '.join(map(clean, result.incidents)) or 'none'}",
        ]
        if not result.finite:
            facts.append("the weights are NOT finite: no checkpoint of this state was written")
        places = {"report": report, "best": result.best_checkpoint, "checkpoints": checkpoints}
        where = [f"{name + ':':<13}{clean(place)}" for name, place in places.items() if place is not None]
        style = "green" if result.exit_code == 0 else "red"
        self._lines([facts[0]], f"bold {style}")
        self._lines([*facts[1:], *where])
        if next_steps:
            self._lines(["next:", *(f"   {clean(step, 1000)}" for step in next_steps)])

    def table(self, title: str, rows: Iterable[Sequence[str]], header: Sequence[str]) -> None:
        """A small table: ``header``, then ``rows`` of cells; all cells are cleaned, columns of numbers end flush."""
        cells = [[clean(cell) for cell in row] for row in rows]
        table = Table(title=Text(clean(title)), box=box.SIMPLE_HEAD if self.live else box.ASCII2, title_justify="left")
        for i, name in enumerate(header):
            numbers = all(row[i][:1].isdigit() or row[i][:1] in "–-" for row in cells if i < len(row))
            table.add_column(Text(clean(name)), justify="right" if numbers else "left", overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        self._print(table)

    def _lines(self, lines: Iterable[str], style: str = "") -> None:
        self._print(Text("\n".join(lines), style=style), soft_wrap=not self.live)

    def _print(self, what: RenderableType, *, soft_wrap: bool = False) -> None:
        self.rich.print(what, soft_wrap=soft_wrap)
        if getattr(self.rich.file, "dead", False):  # the reader of the pipe has gone, or the disk is full
            self.rich.quiet, self.live = True, False


class Bar:
    """The progress of one epoch."""

    def __init__(self, console: Console, progress: Progress | None, epoch: int, epochs: int, steps: int) -> None:
        self._console, self._progress = console, progress
        self._title, self._first, self._steps = f"Epoch {epoch + 1}/{epochs}", epoch * steps, steps
        self._task: TaskID | None = None
        self._began = self._said = time.monotonic()
        self._images = 0

    def update(self, record: StepRecord | None, next_step: int) -> None:
        """After a step: its record, and the planned step that comes next (it may have gone back)."""
        self._images += len(record.image_ids) if record is not None else 0
        done = min(max(next_step - self._first, 0), self._steps)
        if self._progress is not None:
            self._show(self._progress, done, record)
        elif time.monotonic() - self._said > _PLAIN_SECONDS:
            self._said = time.monotonic()
            self._console.note(f"{self._title} step {done}/{self._steps} {self._figures(record)}")

    def _show(self, progress: Progress, done: int, record: StepRecord | None) -> None:
        if self._task is None:
            self._task = progress.add_task(self._title, total=self._steps, figures="", completed=max(done - 1, 0))
        progress.update(self._task, completed=done, figures=self._figures(record))

    def _figures(self, record: StepRecord | None) -> str:
        seconds = time.monotonic() - self._began
        rate = f"{figure(round(self._images / seconds, 1))} img/s" if seconds > 0 else ""
        if record is None:
            return rate
        loss = f"loss {figure(record.loss)}" if record.applied else f"refused ({record.symptom or 'scale search'})"
        return f"{loss} {rate}"


def _loss_lines(total: float, losses: Mapping[str, float]) -> list[str]:
    return [f"   Total: {total:.4f}", *(f"   {clean(name)}: {losses[name]:.4f}" for name in sorted(losses))]


def _value(value: object) -> str:
    return figure(value) if isinstance(value, float) else clean(value)


def _settings_table(rows: list[tuple[str, str, str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold", style="cyan", max_width=48)
    table.add_column("why", overflow="fold", style="dim")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _labelled(line: str) -> Text:
    label, rest = line.split(":", 1)
    return Text.assemble((label + ":", "bold"), rest)
