"""What a detector's predictors learned of each class, put where the data has that class now.

A label is a place in a list of classes. Weights taken over by place would go on as another class, without a word.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from maskrcnn_coco.data.classes import Classes, match_classes
from maskrcnn_coco.wording import clean, listed

PREDICTORS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
"""The layers whose size depends on the number of classes: a row, or four, for each, the background's first."""


def rows_by_name(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, had: Classes | None, has: Classes, source: object
) -> tuple[dict[str, Tensor], list[str]]:
    """``state`` with the rows of its predictors in the order of the classes ``has``, and what was done, in words.

    A class that ``had`` lacks keeps the row that ``own`` (the model's tensors) drew at random; where none is known, the
    predictors are left out of what is returned. Without names on one side the rows are left as they are.

    Args:
        had: the classes that ``state`` was trained on; None: its file names none.
    """
    count = len(state["roi_heads.box_predictor.cls_score.weight"]) - 1
    if had is None or had.generic or has.generic:
        if count != len(has.names) or (had is not None and had.generic == has.generic):
            return dict(state), []  # of another number: they start at random, which is said elsewhere
        who = "the data set" if has.generic else source
        return dict(state), [f"{who} names no classes: the {count} that {source} knows are taken in their order"]
    labels = match_classes(has, had, range(1, len(has.names) + 1)).labels
    if labels == tuple(range(1, count + 1)):
        return dict(state), []
    found = [n for n, label in enumerate(labels, 1) if label]
    lists = f"{source} was trained on {_names(had.names)}; the data has {_names(has.names)}"
    if not found:
        rest = {k: v for k, v in state.items() if not k.startswith(PREDICTORS)}
        return rest, [f"{lists}: no class in common, so the box and the mask predictor start at random"]
    kept, new = ([has.names[n] for n, label in enumerate(labels) if bool(label) is there] for there in (True, False))
    said = f"{lists}: matched by name, what it learned of {_names(kept)} is kept"
    said += f", {_names(new)} {'starts' if len(new) == 1 else 'start'} at random" if new else ""
    return _moved(state, own, [0, *labels]), [said]


def _moved(state: Mapping[str, Tensor], own: Mapping[str, Tensor], labels: list[int]) -> dict[str, Tensor]:
    """The predictors with row ``labels[n]`` of ``state`` at place n; 0 after the first place: as in ``own``."""
    moved = dict(state)
    to = torch.tensor([n for n, label in enumerate(labels) if label or n == 0])
    source = torch.tensor([label for n, label in enumerate(labels) if label or n == 0])
    for name, value in state.items():
        mine = own.get(name)
        if not name.startswith(PREDICTORS) or mine is None or mine.shape[1:] != value.shape[1:]:
            continue
        rows = mine.detach().clone().unflatten(0, (len(labels), -1))
        rows[to] = value.unflatten(0, (-1, rows.shape[1]))[source].to(rows)
        moved[name] = rows.flatten(0, 1)
    return moved


def _names(names: tuple[str, ...] | list[str]) -> str:
    return listed([clean(name) for name in names])
