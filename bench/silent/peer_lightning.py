"""What Lightning says about the scenarios' data, over four steps: run by run.py in an interpreter that has it.

    PATH/python bench/silent/peer_lightning.py [--only WORD]

Prints a JSON object: scenario → "nothing", its warning, or how it ends. What it says of good data too (workers,
loggers, no validation) says nothing of the fault and is left out.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import lightning.pytorch as L  # noqa: E402
import torch  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from silent.scenarios import scenarios  # noqa: E402
from silent.scene import Scene  # noqa: E402
from silent.ways import tiny_net  # noqa: E402


class Detector(L.LightningModule):
    """torchvision's detector as its own documentation would have it here."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = tiny_net(classes)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        """The sum of the losses."""
        losses = self.net([p[0] for p in batch], [p[1] for p in batch])
        self.log_dict(losses, batch_size=len(batch))
        return sum(losses.values())  # type: ignore[return-value]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As in the plain loop."""
        return torch.optim.SGD(self.net.parameters(), 0.005, momentum=0.9)


class Said(logging.Handler):
    """Keeps what Lightning logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        self.lines.append(record.getMessage())


def sentences(data: Any, classes: int) -> list[str]:
    """Warnings, logged lines, and the error that it ends with."""
    told, logger = Said(), logging.getLogger("lightning.pytorch")
    logger.addHandler(told)
    trainer = L.Trainer(
        max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    error = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            trainer.fit(Detector(classes), DataLoader(data, batch_size=2, collate_fn=list))
        except Exception as e:
            error = [f"{type(e).__name__}: {str(e).splitlines()[0][:70]}"]
    logger.removeHandler(told)
    return [str(w.message).splitlines()[0][:70] for w in seen] + told.lines + error


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    of_good_data = set(sentences(Scene(), 3))
    said = {}
    for s in scenarios():
        if s.data is not None and only in s.name:
            said[s.name] = next((t for t in sentences(s.data, s.classes) if t not in of_good_data), "nothing")
    print(json.dumps(said))


if __name__ == "__main__":
    main()
