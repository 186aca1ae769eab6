"""Sources of samples and the plan of a run."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.data.augment import Policy, Scale
from maskrcnn_coco.data.augment_file import policy_of
from maskrcnn_coco.data.balance import repeat_factors
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.kept_images import KeptImages, room
from maskrcnn_coco.data.plan import Plan
from maskrcnn_coco.data.prepare import RunData, require_items
from maskrcnn_coco.data.tile_grid import Tiles
from maskrcnn_coco.data.user_data import UserData
from maskrcnn_coco.distributed.ranks import Ranks


def sources(
    data: RunData, config: Config, train_data: Any, val_data: Any, *, small: bool, world: int = 1
) -> tuple[CocoDataset | UserData, CocoDataset | UserData | None]:
    """Training and validation source of samples, in a run of ``world`` processes."""
    if data.train is None:
        own, val = UserData(train_data, seed=config.seed), val_data
        alike = own.images_of_one_id()
        if alike is not None:
            own.by_place = True
            data.notes.append(
                f"items {alike[0]} and {alike[1]} of the data set have one `image_id`, {alike[2]}: its images are "
                "named by their place, from 0"
            )
        if val is not None:
            require_items(val, "val_data")
        return own, None if val is None else UserData(val, seed=config.seed)
    assert config.min_size and config.max_size
    train_tiles, val_tiles = (tiles_of_run(table, config) for table in (data.train, data.val))
    processes = (1 + (config.workers or 0)) * world
    train = CocoDataset(
        data.train,
        train=True,
        seed=config.seed,
        min_size=config.min_size,
        max_size=config.max_size,
        policy=policy_of_run(config, small=small),
        tiles=train_tiles,
        kept=None if train_tiles is None else KeptImages(room(processes)),
    )
    train.quarantine(sorted(data.bad_annotations))
    if data.val is None:
        return train, None
    low, high = config.min_size, config.max_size
    # Tiles are evaluated image by image: the process that evaluates needs one or two of them.
    kept = None if val_tiles is None else KeptImages(room(2 * processes))
    val = CocoDataset(data.val, train=False, seed=config.seed, min_size=low, max_size=high, tiles=val_tiles, kept=kept)
    return train, val


def tiles_of_run(table: CocoTable | None, config: Config) -> Tiles | None:
    """The tiles that --tile cuts the images of ``table`` into; None where it cuts none."""
    if table is None or config.tile is None:
        return None
    side = config.min_size if config.tile == "auto" else config.tile
    tiles = Tiles.of(table.heights, table.widths, int(side or 0))
    return tiles if len(tiles.cut) else None


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
        repeats=_repeats(source, data, config),
    )
    plan.quarantine(sorted(data.bad_images))
    return plan


def _repeats(source: CocoDataset | UserData, data: RunData, config: Config) -> np.ndarray | None:
    """How often each sample comes an epoch; a tile as often as its image."""
    if config.class_balance == "none" or data.train is None:
        return None
    factors, tiles = repeat_factors(data.train), getattr(source, "tiles", None)
    return factors if tiles is None else factors[tiles.rows]
