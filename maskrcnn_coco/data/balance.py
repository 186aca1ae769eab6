"""Rare classes seen more often: repeat factors of images (Gupta, Dollár and Girshick 2019, LVIS)."""

from __future__ import annotations

import numpy as np

from maskrcnn_coco.data.coco.table import CocoTable

MOST = 10.0
"""An image comes at most this often an epoch: more would teach that image, not its class."""


def repeat_factors(table: CocoTable) -> np.ndarray:
    """How often each image of ``table`` comes an epoch, float64 (N,), 1 or more.

    A class in a share f of the images asks for √(t / f), where t is the share of the class in the middle; an image
    comes as often as the rarest of its classes asks. The paper's t, 0.001, is for 1,203 classes and would do nothing
    with a few. Crowd regions count for nothing, images without objects come once.
    """
    usable = (table.labels > 0) & ~table.iscrowd & (table.ann_image >= 0)
    images, labels = table.ann_image[usable], table.labels[usable]
    pairs = np.unique(np.stack([images, labels], 1), axis=0) if len(images) else np.zeros((0, 2), np.int64)
    counts = np.bincount(pairs[:, 1], minlength=table.num_classes)
    present = counts > 0
    factors = np.ones(len(table))
    if present.sum() < 2:
        return factors
    middle = float(np.median(counts[present]))
    wanted = np.ones(len(counts))
    wanted[present] = np.clip(np.sqrt(middle / counts[present]), 1.0, MOST)
    np.maximum.at(factors, pairs[:, 0], wanted[pairs[:, 1]])
    return factors
