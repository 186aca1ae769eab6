"""Run by torchrun in test_team.py: a small run of several processes. Arguments: data folder, out folder, what."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)

from runs import config, small_model  # noqa: E402

from maskrcnn_coco import train  # noqa: E402
from maskrcnn_coco.records import StepRecord  # noqa: E402


class OneBad(torch.utils.data.Dataset):
    """Twelve images with one square each; image 105 has a NaN pixel."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[torch.Tensor, dict[str, Any]]:
        image = torch.full((3, 64, 64), 0.2)
        x, y = 5 + 3 * (i % 8), 10 + 2 * (i % 10)
        image[:, y : y + 20, x : x + 24] = 0.9
        if i == 5:
            image[0, 0, 0] = math.nan
        mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
        mask[0, y : y + 20, x : x + 24] = 1
        boxes = torch.tensor([[x, y, x + 24.0, y + 20.0]])
        return image, {"boxes": boxes, "labels": torch.tensor([1]), "masks": mask, "image_id": 100 + i}


def main(data: str, out: str, what: str) -> int:
    seen: list[list[int]] = []

    def look(record: Any) -> None:
        if isinstance(record, StepRecord):
            seen.append(record.image_ids)

    changes: dict[str, Any] = {"batch_size": 2}
    if what == "bad":
        plain = config(Path(data), Path(out), epochs=2, num_classes=2, **changes)
        settings = msgspec.structs.replace(plain, data=None)
        result = train(settings, model=small_model(classes=2), train_data=OneBad(), observers=[look])
    else:
        if what == "resume":
            changes["resume"] = "auto"
        settings = config(Path(data), Path(out), epochs=2, **changes)
        stop = 2 if what == "half" else None
        result = train(settings, model=small_model(), observers=[look], stop_after=stop)
    rank = os.environ.get("RANK", "0")
    (Path(out) / f"seen_{rank}.json").write_text(json.dumps(seen))
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
