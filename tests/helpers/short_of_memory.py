"""Run by tests/system/test_memory_limit.py: from step 3 on, next to no memory is to be had. Arguments: out folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import resource

import torch
from runs import OwnData, config, small_model

from maskrcnn_coco import train
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.records import StepRecord

torch.set_num_threads(1)
LEFT, BLOCK = 12, 1 << 20
held: list[torch.Tensor] = []


def take_nearly_all(record: Any) -> None:
    """Other parts of the program hold what the limit allows, but for 12 MiB: less than a step takes."""
    if not isinstance(record, StepRecord) or record.step != 3 or held:
        return
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    most = pages * resource.getpagesize() + (64 << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        while len(held) < 4000:
            held.append(torch.ones(BLOCK, dtype=torch.uint8))
    except RuntimeError:
        del held[:LEFT]


settings = config(None, Path(sys.argv[1]), epochs=3)
try:
    train(settings, model=small_model(), train_data=OwnData(12), observers=[take_nearly_all], quiet=True)
except ConfigError as error:
    sys.exit(error.render())
