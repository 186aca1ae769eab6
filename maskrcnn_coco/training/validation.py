"""Losses on validation images: the same losses as in training, without a gradient and without a trace in the run.

A rising curve under a falling training loss is overfitting, which AP alone shows late. A pass in train mode draws
random numbers and moves running statistics; both are kept away from the run: it trains in the same bits with it and
without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean

import torch
from torch import Tensor, nn

from maskrcnn_coco.data.augment import NONE
from maskrcnn_coco.data.batch import Batch
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.data.user_data import UserData
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.guard.inputs import Expected, check
from maskrcnn_coco.model.fast.accelerate import takes_outlines
from maskrcnn_coco.replay.isolation import forked_random
from maskrcnn_coco.system import memory
from maskrcnn_coco.training.session import Session

MOST = 16
"""Images that are looked at, evenly spread over the validation data and the same ones each time."""
_FIXED = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.modules.dropout._DropoutNd)
"""Modules that stay as in evaluation: what is asked is what the weights have learned."""


def validation_losses(session: Session) -> dict[str, float]:
    """Each loss of the current weights, a mean over up to `MOST` validation images; {} where there are none.

    Boxes and masks are resized as in training, without augmentation; crowd regions are no targets. Samples that cannot
    be read, or that the guard would refuse, are left out: the evaluation names them. All processes must call it.
    """
    source = _source(session)
    if source is None:
        return {}
    count = min(MOST, len(source))
    rows = [n * len(source) // count for n in range(count)][session.ranks.rank :: session.ranks.world]
    found = _measured(session, source, rows)
    if session.ranks.world > 1:
        found = [one for part in session.ranks.gather_objects(found) for one in part]
    names = dict.fromkeys(name for one in found for name in one)
    return {name: fmean(one[name] for one in found if name in one) for name in names}


def _source(session: Session) -> CocoDataset | UserData | None:
    val, config = session.val_source, session.config
    if not isinstance(val, CocoDataset):
        return val
    low, high = config.min_size or 800, config.max_size or 1333
    source = CocoDataset(
        val.table, train=True, seed=config.seed, min_size=low, max_size=high, policy=NONE, tiles=val.tiles
    )
    source.outlines = takes_outlines(session.model, session.device)
    return source


def _measured(session: Session, source: CocoDataset | UserData, rows: list[int]) -> list[dict[str, float]]:
    """The losses on each image of ``rows`` that can be measured."""
    found, expected, model = [], Expected.of(session.model), session.model
    with torch.no_grad(), forked_random(session.device.type == "cuda"), without_trace(model):
        for row in rows:
            try:
                image, target = source.sample(0, row)
            except DataError:
                continue
            batch = Batch([image], [_usable(target)], [SampleKey(0, row, row)], resized=source.resized)
            if check([batch], expected):
                continue
            try:
                losses = session.forward.losses(model, batch, 0, row)
            except Exception as error:  # a stranger's model may raise anything
                if memory.ran_out(error):
                    return []  # the evaluation of the epoch is worth more than this curve
                continue
            values = {name: float(value) for name, value in losses.items()}
            if all(map(math.isfinite, values.values())):
                found.append(values)
    return found


def _usable(target: dict) -> dict:
    """``target`` without crowd regions, which are no targets in training either."""
    crowd = target.get("iscrowd")
    if not isinstance(crowd, Tensor) or not bool(crowd.any()):
        return target
    keep = crowd == 0
    per_object = {k: v for k, v in target.items() if isinstance(v, Tensor) and v.ndim and len(v) == len(keep)}
    return {**target, **{k: v[keep] for k, v in per_object.items()}}


@contextmanager
def without_trace(model: nn.Module) -> Iterator[None]:
    """Train mode inside, norms and dropout as in evaluation; every mode and buffer is as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    model.train()
    for module, _ in modes:
        if isinstance(module, _FIXED):
            module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for buffer, was in before:
            if not torch.equal(buffer, was):  # a copy would tell the guard that it was changed outside the step
                buffer.copy_(was)
