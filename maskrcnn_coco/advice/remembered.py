"""Limits measured before, and for what they hold."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskrcnn_coco.advice.limits import CEILING, STRIDE, Limit
from maskrcnn_coco.system.files import cache_folder, write_text
from maskrcnn_coco.system.plain_files import read_regular
from maskrcnn_coco.wording import rate_flag

if TYPE_CHECKING:
    from maskrcnn_coco.config.settings import Config
    from maskrcnn_coco.data.prepare import RunData


KEPT_WIDTH = 4.0
"""Intervals wider than this factor (time ran out) are measured again rather than remembered."""


MATTERS = (
    *("model", "weights", "backbone_weights", "optimizer", "momentum", "weight_decay", "batch_size", "accumulate"),
    *("max_grad_norm", "min_size", "max_size", "freeze_stages", "box_batch_size_per_image", "seed"),
    "fpn_lr_multiplier",
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
    wide = (v.width > KEPT_WIDTH and v.low * STRIDE <= CEILING for v in limits.values())
    if key is None or any(wide) or not all(v.measured for v in limits.values()):
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
        found = json.loads(read_regular(_file(key)))
        return {str(c): (float(v[0]), float(v[1]), float(v[2])) for c, v in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, IndexError):
        return {}


def above(rates: Mapping[str, float], spans: Spans) -> list[str]:
    """A warning for each component whose rate is above its limit: component, limit and flag."""
    return [
        f"{c}: learning rate {rates[c]:.2g} is above the measured limit {value:.2g} ({low:.2g} to {high:.2g}): "
        f"lower {rate_flag(c)}"
        for c, (value, low, high) in spans.items()
        if rates.get(c, 0.0) > value
    ]
