"""Run by test_peers.py: two processes of somebody else's training. Argument: out folder."""

from __future__ import annotations

import contextlib
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
from forked import team
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from maskrcnn_coco import Guard, attach
from maskrcnn_coco.errors import ConfigError

RANK = 0
"""Of this process, once it is one of two."""


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
        if here and fault == "momentum":
            optimizer.state[model[0].weight]["momentum_buffer"].mul_(1e3)

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


def refused(model: nn.Module, **options: Any) -> str:
    try:
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)
    except ConfigError as e:
        return e.what
    return ""


def shards() -> dict[str, str]:
    """What the guard says to shards that it does not understand."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    part, mesh = net(), init_device_mesh("cpu", (2, 1), mesh_dim_names=("rows", "columns"))
    fully_shard(part[0])
    return {
        "diagnose": refused(fully_shard(nn.Linear(8, 8)), diagnose=True),
        "partly": refused(part),
        "hybrid": refused(fully_shard(nn.Linear(8, 8), mesh=mesh)),
    }


def fsdp(fault: str) -> dict[str, Any]:
    """Seven steps on shards; in the fifth process 1 has the fault."""
    from torch.distributed.fsdp import fully_shard

    model = net()
    for layer in (model[0], model[1], model[3]):
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, eps=1e-8)
    guard: Any = attach(model, optimizer)
    records, digests, alarms, norms = [], [], [], []
    for i in range(7):
        here = i == 5 and RANK == 1
        x, y = data(i)
        if here and fault == "state":
            optimizer.state[model[0].weight]["exp_avg"].to_local().view(-1)[0] = math.nan
        if here and fault == "scaled":
            optimizer.state[model[0].weight]["exp_avg"].to_local().mul_(1e4)
        optimizer.zero_grad()
        guard.see(F.cross_entropy(model(x), y) * (BAD.get(fault, 1.0) if here else 1.0)).backward()
        total = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).full_tensor().item()
        optimizer.step()
        record = guard.records[-1]
        records.append(record.applied)
        norms.append(abs(record.grad_norm / total - 1) if math.isfinite(total) else 0.0)
        whole = [p.full_tensor().detach().numpy().tobytes() for p in model.parameters()]
        digests.append(hashlib.sha256(b"".join(whole)).hexdigest()[:12])
        alarms.append(None if guard.alarm is None else [guard.alarm.symptom, guard.alarm.measured.get("rank")])
    return {"applied": records, "digests": digests, "alarms": alarms, "norms": norms}


def diagnosed(fault: str) -> dict[str, Any]:
    """Fifteen steps of a DistributedDataParallel model; in the twelfth process 1 has a bad sample."""
    model = net()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    guard: Any = attach(
        ddp,
        optimizer,
        diagnose=True,
        forward=lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        logdir=None,
    )
    digests = []
    for i in range(15):
        x, y = data(i)
        if i == 12 and RANK == 1 and fault == "sample":
            x[3] = math.nan
        if i == 12 and fault == "state":
            optimizer.state[model[0].weight]["momentum_buffer"].view(-1)[0] = math.nan
        batch = guard.batch((x, y), [100 * i + 50 * RANK + n for n in range(16)])
        optimizer.zero_grad()
        guard.see(F.cross_entropy(ddp(batch[0]), batch[1])).backward()
        optimizer.step()
        digests.append(digest(model))
    said = [
        [i.step, i.cause, i.culprit.image_ids, i.culprit.rank, i.action.kind, i.action.detail.get("to_step")]
        for i in guard.incidents
    ]
    return {"incidents": said, "digests": digests, "finite": all(bool(p.isfinite().all()) for p in model.parameters())}


def accumulated(fault: str, diagnose: bool) -> dict[str, Any]:
    """Three micro-batches a step, the first two under ``no_sync``; in step 12 one of process 1 has the fault."""
    model = net()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    options: dict[str, Any] = {"forward": lambda m, b: F.cross_entropy(m(b[0]), b[1]), "logdir": None}
    guard: Any = attach(ddp, optimizer, diagnose=diagnose, **(options if diagnose else {}))
    digests, refused = [], []
    for i in range(24):
        optimizer.zero_grad()
        for micro in range(3):
            x, y = data(3 * i + micro)
            if i == 12 and micro == 1 and RANK == 1 and fault == "sample":
                x[3] = math.nan
            if diagnose:
                x, y = guard.batch((x, y), [100 * i + 50 * RANK + 16 * micro + n for n in range(16)])
            with ddp.no_sync() if micro < 2 else contextlib.nullcontext():
                weight = 200.0 if fault == "weight" and i >= 12 else 1.0
                (guard.see(weight * F.cross_entropy(ddp(x), y)) / 3).backward()
        optimizer.step()
        digests.append(digest(model))
        refused += [i] if guard.refused else []
    said = (
        [[i.step, i.cause, i.culprit.image_ids, i.culprit.rank, i.action.kind] for i in guard.incidents]
        if diagnose
        else []
    )
    return {"digests": digests, "refused": refused, "incidents": said, "regimes": [r["step"] for r in guard.regimes]}


def main(out: str) -> None:
    global RANK
    RANK = int(os.environ["RANK"])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    found: dict[str, Any] = {}
    for way, fault, wrapped in CASES:
        found[f"{way}-{fault}-{'ddp' if wrapped else 'own'}"] = run(way, fault, wrapped)
    for fault in ("none", "nan", "far", "state", "scaled"):
        found[f"fsdp-{fault}"] = fsdp(fault)
    found["shards"] = shards()
    for fault in ("sample", "state"):
        found[f"diagnosed-{fault}"] = diagnosed(fault)
    for fault, diagnose in ACCUMULATED:
        found[f"accumulated-{fault}-{diagnose}"] = accumulated(fault, diagnose)
    Path(out, f"{RANK}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


CASES = [
    ("attach", "none", True),
    ("attach", "nan", True),
    ("attach", "far", True),
    ("attach", "buffer", True),
    ("attach", "nan", False),
    ("attach", "far", False),
    ("attach", "momentum", True),
    ("step", "momentum", True),
    ("step", "none", True),
    ("step", "nan", True),
    ("step", "far", True),
    ("step", "buffer", True),
    ("step", "crash", True),
]

ACCUMULATED = [("none", False), ("sample", False), ("sample", True), ("weight", False)]

if __name__ == "__main__":
    import torch.distributed.fsdp  # once, for both

    team(2, lambda: main(sys.argv[1]))
