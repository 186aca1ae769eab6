"""Run by torchrun in test_peers.py: two processes of somebody else's training. Argument: out folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from maskrcnn_coco import Guard, attach
from maskrcnn_coco.errors import ConfigError

RANK = int(os.environ.get("RANK", "0"))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def data(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(100 * seed + RANK)
    x = torch.randn(16, 8, generator=g)
    return x, (x[:, 0] > 0).long()


def digest(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()[:12]


BAD = {"nan": math.nan, "far": 1e6, "none": 1.0}


def run(way: str, fault: str, wrapped: bool) -> dict[str, Any]:
    """Seven steps; in the fifth process 1 has the fault."""
    model = net()
    ddp = DistributedDataParallel(model) if wrapped else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    guard: Any = attach(ddp, optimizer) if way == "attach" else Guard(ddp, optimizer)
    records, digests, alarms = [], [], []
    for i in range(7):
        here = i == 5 and RANK == 1
        factor = BAD.get(fault, 1.0) if here else 1.0
        x, y = data(i)
        if here and fault == "crash":
            y = y + 9

        def forward(batch: Any, factor: float = factor, spoil: bool = here and fault == "buffer") -> Tensor:
            loss = F.cross_entropy(ddp(batch[0]), batch[1]) * factor
            if spoil:
                model[1].running_var.data.fill_(math.nan)
            return loss

        if way == "attach":
            optimizer.zero_grad()
            guard.see(forward((x, y))).backward()
            if not wrapped:
                for p in model.parameters():
                    dist.all_reduce(p.grad)
                    p.grad /= 2
            optimizer.step()
            records.append(guard.records[-1].applied)
        else:
            records.append(guard.step(forward, (x, y)).applied)
        digests.append(digest(model))
        alarms.append(None if guard.alarm is None else [guard.alarm.symptom, guard.alarm.measured.get("rank")])
    return {"applied": records, "digests": digests, "alarms": alarms}


def sharded() -> str:
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(nn.Linear(8, 8))
    try:
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    except ConfigError as e:
        return e.what
    return ""


def main(out: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    found: dict[str, Any] = {}
    for way, fault, wrapped in CASES:
        found[f"{way}-{fault}-{'ddp' if wrapped else 'own'}"] = run(way, fault, wrapped)
    found["sharded"] = sharded()
    Path(out, f"{RANK}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


CASES = [
    ("attach", "none", True),
    ("attach", "nan", True),
    ("attach", "far", True),
    ("attach", "buffer", True),
    ("attach", "nan", False),
    ("attach", "far", False),
    ("step", "none", True),
    ("step", "nan", True),
    ("step", "far", True),
    ("step", "buffer", True),
    ("step", "crash", True),
]

if __name__ == "__main__":
    main(sys.argv[1])
