"""Sources of samples and the plan of a run."""

from __future__ import annotations

from typing import Any

import msgspec

from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.data.augment import Policy, Scale
from maskrcnn_coco.data.augment_file import policy_of
from maskrcnn_coco.data.balance import repeat_factors
from maskrcnn_coco.data.dataset import CocoDataset, UserData
from maskrcnn_coco.data.plan import Plan
from maskrcnn_coco.data.prepare import RunData
from maskrcnn_coco.distributed.ranks import Ranks


def sources(
    data: RunData, config: Config, train_data: Any, val_data: Any, *, small: bool
) -> tuple[CocoDataset | UserData, CocoDataset | UserData | None]:
    """Training and validation source of samples."""
    if data.train is None:
        own, val = UserData(train_data, seed=config.seed), val_data
        return own, None if val is None else UserData(val, seed=config.seed)
    assert config.min_size and config.max_size
    train = CocoDataset(
        data.train,
        train=True,
        seed=config.seed,
        min_size=config.min_size,
        max_size=config.max_size,
        policy=policy_of_run(config, small=small),
    )
    train.quarantine(sorted(data.bad_annotations))
    if data.val is None:
        return train, None
    return train, CocoDataset(
        data.val, train=False, seed=config.seed, min_size=config.min_size, max_size=config.max_size
    )


def policy_of_run(config: Config, *, small: bool) -> Policy:
    """The augmentation of a run.

    Raises:
        ConfigError: ``config.augment`` is neither a preset nor a readable file.
    """
    policy = policy_of(config.augment, config.flip, config.copy_paste)
    if small and config.augment == "light":
        # The built-in images have the size they are trained at: smaller scales only lose the small shapes.
        policy = msgspec.structs.replace(policy, scale=Scale())
    return policy


def make_plan(source: CocoDataset | UserData, data: RunData, config: Config, ranks: Ranks) -> Plan:
    """Which images make each step; images left out from the start are never in it."""
    plan = Plan(
        config.seed,
        source.image_ids,
        config.images_a_pass,
        config.accumulate,
        rank=ranks.rank,
        world=ranks.world,
        aspect_ratios=source.aspect_ratios,
        repeats=None if config.class_balance == "none" or data.train is None else repeat_factors(data.train),
    )
    plan.quarantine(sorted(data.bad_images))
    return plan
