"""At the start of a run: is a learning rate above what this model stands? At most a hundredth of the run's steps.

Limits that `advise` measured for the same data and settings are remembered in the user's cache folder and cost nothing.
Otherwise the run's first steps are tried on a private copy of the model at the full rates. Only where that breaks is
each component tried alone, which may take more than a hundredth: the run itself would not have survived. What breaks
while nothing moves, or cannot be read, is not their fault: nothing is said, the run's guard will find it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskrcnn_coco.advice.limits import CEILING, STRIDE, Limit, judge, rising, settle
from maskrcnn_coco.advice.trials import Lab, State, Task, Trial
from maskrcnn_coco.data.batch import make_batch
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.guard.early_warning import FLAGS, own_level
from maskrcnn_coco.model.optim import build_optimizer
from maskrcnn_coco.system import memory
from maskrcnn_coco.system.files import write_text
from maskrcnn_coco.system.precision import make_scaler
from maskrcnn_coco.training.folders import cache_folder

if TYPE_CHECKING:
    from maskrcnn_coco.config.settings import Config
    from maskrcnn_coco.data.prepare import RunData
    from maskrcnn_coco.training.session import Session

SHARE = 100
"""One step in so many may be spent."""
FEWEST = 10
"""Fewer steps than this show nothing."""
STILL = 1e-6
"""At this share of the rates no weight moves enough to matter: what breaks then is in the data."""
KEPT_WIDTH = 4.0
"""Intervals wider than this factor (time ran out) are measured again rather than remembered."""
MATTERS = (
    *("model", "weights", "backbone_weights", "optimizer", "momentum", "weight_decay", "batch_size", "accumulate"),
    *("max_grad_norm", "min_size", "max_size", "freeze_stages", "box_batch_size_per_image", "seed"),
)
"""Settings that change a limit."""
METHOD = 2
"""To be raised when limits are measured in another way: older ones are then measured again."""
FILES = ("weights", "backbone_weights")
"""Settings that may name a file, whose content changes a limit."""

Spans = dict[str, tuple[float, float, float]]
"""Component → (limit, low, high)."""


def fingerprint(config: Config, data: RunData, precision: str) -> str | None:
    """A name for this model on these data with these settings, computed in ``precision`` ("fp32", "bf16", "fp16").

    None for a data set of the caller's own, and where the annotation file is gone.
    """
    if data.train is None:
        return None
    facts: dict[str, Any] = {name: getattr(config, name) for name in MATTERS}
    json_path = Path(data.train.json_path).resolve()
    files = {name: _stamp(getattr(config, name)) for name in FILES}
    facts |= {
        "method": METHOD,
        "precision": precision,
        "json": str(json_path),
        "changed": _stamp(json_path),
        "files": files,
    }
    if facts["changed"] is None:
        return None
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _stamp(path: str | Path | None) -> tuple[int, int] | None:
    """Size and time of the last change; None: no such file."""
    try:
        seen = os.stat(path or "")
    except OSError:
        return None
    return seen.st_size, seen.st_mtime_ns


def _file(key: str) -> Path:
    return cache_folder("limits") / f"{key}.json"


def remember(key: str | None, limits: Mapping[str, Limit]) -> None:
    """Keep measured limits if all are narrow or past all that is tried; not where the cache cannot be written."""
    if key is None or any(v.width > KEPT_WIDTH and v.low * STRIDE <= CEILING for v in limits.values()):
        return
    spans = {c: [limit.value, limit.low, limit.high] for c, limit in limits.items()}
    try:
        write_text(_file(key), json.dumps(spans))
    except OSError:
        return


def recall(key: str | None) -> Spans:
    """Limits that were measured before; empty where there are none, or the file is damaged."""
    if key is None:
        return {}
    try:
        found = json.loads(_file(key).read_text(encoding="utf-8"))
        return {str(c): (float(v[0]), float(v[1]), float(v[2])) for c, v in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, IndexError):
        return {}


def above(rates: Mapping[str, float], spans: Spans) -> list[str]:
    """A warning for each component whose rate is above its limit: component, limit and flag."""
    return [
        f"{c}: learning rate {rates[c]:.2g} is above the measured limit {value:.2g} ({low:.2g} to {high:.2g}): "
        f"lower {FLAGS.get(c, '--lr')}"
        for c, (value, low, high) in spans.items()
        if rates.get(c, 0.0) > value
    ]


def quick_check(session: Session) -> list[str]:
    """Warnings about learning rates of a run that is about to start; the session is not changed."""
    rates = dict(session.schedule.lr)
    # Limits are measured with the batches of one process: the mean over several stands more.
    alone = session.ranks.world == 1
    spans = recall(fingerprint(session.config, session.data, session.precision)) if alone else {}
    if spans:
        return above(rates, spans)
    steps = min(session.total_steps // SHARE, 20)
    if steps < FEWEST:
        return []
    try:
        return try_rates(Lab(_task(session, steps)), rates, steps)
    except DataError:
        return []  # an image that cannot be read, or no rate trains: the run leaves it out, or stops with the cause
    except (RuntimeError, MemoryError) as error:
        if not memory.ran_out(error):
            raise
        return []  # a second copy does not fit beside the run's own


def try_rates(lab: Lab, rates: Mapping[str, float], steps: int) -> list[str]:
    """Train ``steps`` steps at ``rates``; where that breaks, each component alone, to name the one that breaks.

    Raises:
        DataError: training fails at every rate.
    """
    few, fresh = max(3, steps // 4), lab.save(0)
    all_rates = {c: rates.get(c, rates.get("backbone", 0.0)) for c in lab.components}
    settled = settle(lab, {c: v / 20 for c, v in all_rates.items()}, few)
    levels = {c: own_level(settled.trial.records, c) for c in lab.components}

    def train(lr: dict[str, float], state: State) -> Trial:
        lab.load(state)
        return lab.run(lr, steps - few, first_step=few, ramp=rising((steps - few) // 2))

    def breaks(lr: dict[str, float], named: list[str]) -> list[str]:
        trial = train(lr, settled.state)
        return [c for c in named if not judge(trial, c, levels[c]).stable]

    if not breaks(all_rates, lab.components) or not train({c: v * STILL for c, v in all_rates.items()}, fresh).stable:
        return []
    if breaks(settled.lr, lab.components):
        return [
            f"the learning rates break training within {steps} steps, even at a twentieth of them: lower "
            "--lr and the multipliers, or use --lr auto"
        ]
    guilty = [c for c in lab.components if breaks(settled.lr | {c: all_rates[c]}, [c])]
    if not guilty:
        return [f"the learning rates together break within {steps} steps, none alone: lower --lr, or use --lr auto"]
    return [
        f"{c}: learning rate {all_rates[c]:.2g} breaks training within {steps} steps: lower {FLAGS.get(c, '--lr')}; "
        "maskrcnn-coco advise measures its limit"
        for c in guilty
    ]


def _task(session: Session, steps: int) -> Task:
    """The session's training, on a private copy of its model."""
    config = session.config
    micro = [[make_batch(session.train_source, keys) for keys in session.plan.step(s)[1]] for s in range(min(steps, 8))]
    return Task(
        lambda: copy.deepcopy(session.model),
        lambda model: build_optimizer(
            model, kind=config.optimizer, momentum=config.momentum, weight_decay=config.weight_decay or 0.0
        ),
        session.forward.losses,
        [m if len(m) > 1 else m[0] for m in micro],
        max_grad_norm=config.max_grad_norm,
        precision=session.precision,
        make_scaler=lambda: make_scaler(session.precision, session.device),
    )
