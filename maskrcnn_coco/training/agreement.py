"""Several processes as one run: the same settings, data and weights in all, at the start and from time to time."""

from __future__ import annotations

from collections import Counter

import msgspec
import torch
from torch import nn

from maskrcnn_coco.data.fingerprint import data_fingerprint
from maskrcnn_coco.errors import ConfigError, GuardStop, MaskRCNNError
from maskrcnn_coco.training.session import Session

EVERY = 50
"""Steps between two comparisons of weights: one sum over each tensor, and one small exchange."""
_ROW = 1024
_OWN = ("device", "workers", "quarantine", "config", "data", "images", "val", "val_images")
"""Settings that may differ from machine to machine: of the data what is read is compared, not where it lies."""


def require_same_start(session: Session) -> None:
    """Raise ConfigError on every process where one has other settings, classes, data or weights than process 0."""
    ranks = session.ranks
    if ranks.world == 1:
        return
    settings = {k: v for k, v in msgspec.to_builtins(session.config).items() if k not in _OWN}
    parts = {
        **{f"--{name.replace('_', '-')}": value for name, value in settings.items()},
        "the list of classes": list(session.data.class_names),
        **data_fingerprint(session.data, files=False),
        "images of the plan": [int(i) for i in session.plan.image_ids[:1000]],
        "images left out": session.plan.quarantined,
        "weights at the start": digest(session.model),
    }
    for name, value in parts.items():
        try:
            ranks.same_everywhere(name, value)
        except MaskRCNNError as e:
            raise ConfigError(e.what, got=e.got, expected=e.expected, fix=e.fix) from e


def require_same_weights(session: Session) -> None:
    """Raise GuardStop on every process where the weights of one are not those of the others, bit for bit.

    A finite value that changes in one process alone (memory, a driver, a patch) is in no gradient and in no loss that
    the others see; the run would train several models and keep one of them.
    """
    ranks = session.ranks
    if ranks.world == 1:
        return
    found = ranks.gather_objects(digest(session.model))
    common, count = Counter(found).most_common(1)[0]
    odd = [rank for rank, value in enumerate(found) if value != common]
    if not odd:
        return
    who = f"process {', '.join(map(str, odd))} of {ranks.world} has other weights than the rest"
    if count == 1:  # of two nobody can tell which is right
        who = f"the {ranks.world} processes have different weights"
    raise GuardStop(
        f"stopped at step {session.progress.step}: {who}, and no step has changed them",
        expected="the same bits in all processes after each step",
        fix="--resume auto goes on from the newest checkpoint; if it happens again, that machine's memory is to blame",
    )


def digest(model: nn.Module) -> str:
    """Two sums over the bits of each parameter, one of them by place: one read for all; not for adversaries."""
    with torch.no_grad():
        sums = [part for p in model.parameters() for part in _sums(p.detach())]
        return ",".join(map(str, torch.stack(sums).tolist())) if sums else ""


def _sums(tensor: torch.Tensor) -> list[torch.Tensor]:
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32}.get(tensor.element_size(), torch.int64)
    bits = tensor.contiguous().view(-1).view(whole)
    rows = bits[: len(bits) // _ROW * _ROW].view(-1, _ROW)
    rest = bits[len(rows) * _ROW :].to(torch.int64)
    # Sums of rows and columns, each with its place as weight: nothing as large as the tensor itself is made.
    lines = torch.cat([rows.sum(0, dtype=torch.int64), rows.sum(1, dtype=torch.int64), rest])
    return [lines.sum(), (lines * torch.arange(1, len(lines) + 1, device=lines.device)).sum()]
