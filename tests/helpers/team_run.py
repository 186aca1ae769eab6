"""Run by torchrun in test_team.py: a small run of several processes. Arguments: data folder, out folder, what."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)

from runs import OwnData, config, small_model  # noqa: E402

from maskrcnn_coco import train  # noqa: E402
from maskrcnn_coco.records import StepRecord  # noqa: E402


def main(data: str, out: str, what: str) -> int:
    seen: list[list[int]] = []

    def look(record: Any) -> None:
        if isinstance(record, StepRecord):
            seen.append(record.image_ids)

    def die_once(record: Any) -> None:
        if isinstance(record, StepRecord) and record.step == 7 and os.environ["RANK"] == "1":
            marker = Path(out) / "killed"
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    changes: dict[str, Any] = {"batch_size": 2}
    if what == "bad":
        settings = config(None, Path(out), epochs=2, **changes)
        result = train(settings, model=small_model(classes=2), train_data=OwnData(bad=(5,)), observers=[look])
    else:
        if what == "killed":
            changes |= {"resume": "auto", "checkpoint_every": "2"}
        settings = config(Path(data), Path(out), epochs=2, **changes)
        result = train(settings, model=small_model(), observers=[look, *([die_once] if what == "killed" else [])])
    rank = os.environ.get("RANK", "0")
    (Path(out) / f"seen_{rank}.json").write_text(json.dumps(seen))
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
