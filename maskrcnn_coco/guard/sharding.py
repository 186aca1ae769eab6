"""Parameters of which each process holds a share: which of them a guard understands, and the norms of the whole.

Understood is FSDP2's `fully_shard` over all processes: every trained parameter is a DTensor cut along one dimension. A
process then measures its own share, the squares are added up over all of them (one small exchange a step), and all
judge the same gradient. Everything else is refused: two processes that part ways in silence, one refusing and one
applying, are worse than no guard at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from maskrcnn_coco.errors import ConfigError


def local(tensor: Tensor) -> Tensor:
    """This process's share of a DTensor; any other tensor is its own."""
    return getattr(tensor, "_local_tensor", tensor)


def refuse_shards(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise ConfigError where parameters are shards (FSDP, DeepSpeed): each process would judge its own share."""
    params = _params(optimizer)
    if _sharded(model, params):
        raise ConfigError(
            "the model's parameters are shards, and a guard that sees only one process's share cannot judge a step",
            got=_kind(params),
            expected="whole parameters on every process: one process, or DistributedDataParallel",
            fix="with FSDP2 (fully_shard): attach(model, optimizer) without diagnose; "
            "else use DistributedDataParallel, or train without the guard",
        )


def shares_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Shares | None:
    """How the optimizer's parameters are shared out; None where every process has the whole.

    Raises:
        ConfigError: they are shared out in a way that is not understood.
    """
    params = _params(optimizer)
    if not _sharded(model, params):
        return None
    why = _not_understood([p for p in params if p.requires_grad])
    if why:
        raise ConfigError(
            f"the model's parameters are shards in a way that the guard does not understand: {why}",
            got=_kind(params),
            expected="fully_shard (FSDP2) of the whole model over all processes, or whole parameters on each",
            fix="fully_shard(model) after its parts, or DistributedDataParallel; or train without the guard",
        )
    first: Any = params[0]
    return Shares(first.device_mesh.get_group())


class Shares:
    """Adds up over the processes what each measured of its share."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def whole(self, norms: Tensor, where: list[int], count: int) -> Tensor:
        """2-norms of whole tensors from those of shares, (len(norms),), on every process the same bits.

        Args:
            norms: of this process's shares of the tensors at the positions ``where``.
            count: of all tensors, so that all processes exchange as many numbers.
        """
        squares = torch.zeros(count, dtype=torch.float64, device=norms.device)
        places = torch.tensor(where, dtype=torch.long, device=norms.device)
        squares[places] = norms.double().square()
        dist.all_reduce(squares, group=self.group)
        return squares[places].sqrt()


def _params(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _sharded(model: nn.Module, params: Iterable[Any]) -> bool:
    kinds = {type(m).__name__ for m in model.modules()}
    params = list(params)
    foreign = any(type(p).__name__ == "FlatParameter" or hasattr(p, "ds_id") for p in params)
    return foreign or "FullyShardedDataParallel" in kinds or any(hasattr(p, "to_local") for p in params)


def _kind(params: list[Any]) -> str:
    return "FSDP2 (DTensor)" if any(hasattr(p, "to_local") for p in params) else "FSDP or DeepSpeed"


def _not_understood(params: list[Any]) -> str:
    if not all(hasattr(p, "to_local") and hasattr(p, "device_mesh") for p in params):
        return "some are whole and some are not, or they lie flat in one (FSDP1, DeepSpeed)"
    meshes = [p.device_mesh for p in params]
    if any(m != meshes[0] for m in meshes) or meshes[0].ndim != 1 or meshes[0].size() != dist.get_world_size():
        return "their device mesh is not one row of all processes (tensor parallel, hybrid shards)"
    if not all(len(p.placements) == 1 and p.placements[0].is_shard() for p in params):
        return "they are not cut along one dimension"
    return ""
