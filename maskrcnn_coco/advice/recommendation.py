"""What is advised, and how it is said."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maskrcnn_coco.advice.candidates import Choice
from maskrcnn_coco.advice.ladder import Rung, table
from maskrcnn_coco.advice.limits import Limit
from maskrcnn_coco.config.settings import flag
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.wording import duration, rate_flag

ADVISED = ("lr", "head_lr_multiplier", "rpn_lr_multiplier", "warmup_steps", "max_grad_norm", "batch_size", "epochs")


def over_limit(rates: Mapping[str, float], advice: Advice, whose: str) -> list[str]:
    """A sentence for each component whose rate is above its measured limit, with the flag that sets it."""
    return [
        f"{c}: {whose} learning rate {rates[c]:.2g} is above the measured limit {limit:.2g} "
        f"({span[0]:.2g} to {span[1]:.2g}); lower {rate_flag(c)}"
        for c, limit in advice.max_stable_lr.items()
        if limit is not None and (span := advice.interval[c]) is not None
        if rates.get(c, 0.0) > limit and math.isfinite(span[1])
    ]


def command_line(advice: Advice, given: Mapping[str, Any]) -> str:
    """The command that trains with the advice; flags that were given and are not advised are kept."""
    words = ["maskrcnn-coco", "train"]
    for name, value in given.items():
        if name not in ADVISED and value is not None and value is not False:
            words += [flag(name)] if value is True else [flag(name), str(value)]
    for name in ADVISED:
        words += [flag(name), f"{getattr(advice, name):g}"]
    return shlex.join(words)


def shell_lines(command: str, width: int = 78) -> list[str]:
    """``command`` in lines that a shell takes as one, broken before flags: a terminal of 80 columns breaks none."""
    parts: list[str] = []
    for word in shlex.split(command):
        if word.startswith("--") or not parts:
            parts.append(shlex.quote(word))
        else:
            parts[-1] += f" {shlex.quote(word)}"
    lines, line = [], parts[0]
    for part in parts[1:]:
        if len(line) + len(part) + 3 > width:  # with a space before it, and the backslash behind it
            lines.append(line + " \\")
            line = "   " + part
        else:
            line = f"{line} {part}"
    return [*lines, line]


def show(advice: Advice, console: Console) -> None:
    """Print the advice: limits, reasons, the ladder, the command."""
    rates = Choice("", advice.lr, advice.head_lr_multiplier, advice.rpn_lr_multiplier).rates
    rows = []
    for component, value in advice.max_stable_lr.items():
        advised, measured = f"{rates.get(component, advice.lr):.2g}", advice.interval[component]
        if value is None or measured is None:
            rows.append([component, "not measured", "", advised])
            continue
        low, high = measured
        advised += " (above)" if rates.get(component, advice.lr) > value else ""  # of a rate that was given, and stays
        span = f"{low:.2g} to {high:.2g}" if math.isfinite(high) else f"{low:.2g} or more"
        rows.append([component, f"{value:.2g}", span, advised])
    console.table("Largest stable learning rate", rows, ["component", "limit", "interval", "advised"])
    for reason in advice.reasons:
        console.note(f"- {reason}")
    for warning in advice.warnings:
        console.warn(warning)
    if advice.ladder:
        header, cells = table(advice.ladder)
        console.table("Ladder of head multipliers", cells, header)
    steps = duration(60 * advice.expected_minutes)
    console.note(
        f"about {steps} for the steps of {advice.epochs} epochs, evaluation on top; measured in {advice.seconds:.0f} s"
    )
    console.command(shell_lines(advice.command))


@dataclass
class Advice:
    """What `advise` recommends. Rates per step; ``max_stable_lr`` and ``interval`` per component, others kept safe.

    None: not measured; such a component is not in ``limits`` either. ``memory_bytes`` is the highest use seen while
    measuring; ``expected_minutes`` is for the whole run on this machine, as busy as it was.
    """

    lr: float
    head_lr_multiplier: float
    rpn_lr_multiplier: float
    warmup_steps: int
    max_grad_norm: float
    batch_size: int
    epochs: int
    max_stable_lr: dict[str, float | None]
    interval: dict[str, tuple[float, float] | None]
    reasons: list[str]
    command: str
    expected_minutes: float
    memory_bytes: int
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)
    limits: dict[str, Limit] = field(default_factory=dict)
    ladder: list[Rung] = field(default_factory=list)
    ladder_svg: str | None = None
