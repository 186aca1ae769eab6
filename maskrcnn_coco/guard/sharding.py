"""What a guard must not watch: parameters of which each process sees a share."""

from __future__ import annotations

import torch
from torch import nn

from maskrcnn_coco.errors import ConfigError


def refuse_shards(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise ConfigError where parameters are shards (FSDP, DeepSpeed): each process would judge its own share.

    Two processes that part ways in silence, one refusing and one applying, are worse than no guard at all.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    kinds = {type(m).__name__ for m in model.modules()}
    sharded = any(hasattr(p, "to_local") or type(p).__name__ == "FlatParameter" for p in params)
    if sharded or "FullyShardedDataParallel" in kinds or any(hasattr(p, "ds_id") for p in params):
        raise ConfigError(
            "the model's parameters are shards, and a guard that sees only one process's share cannot judge a step",
            got="FSDP2 (DTensor)" if any(hasattr(p, "to_local") for p in params) else "FSDP or DeepSpeed",
            expected="whole parameters on every process: one process, or DistributedDataParallel",
            fix="use DistributedDataParallel, or train without the guard",
        )
