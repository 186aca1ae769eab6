"""A run that has ended leaves nothing of itself in memory: notebooks and sweeps start one after another."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import OwnData, config, tiny_model
from torch.utils.data import Dataset

from maskrcnn_coco import train
from maskrcnn_coco.errors import MaskRCNNError
from maskrcnn_coco.training import loop

HELD = ("model", "optimizer", "guard", "ring", "tape", "saver", "log", "train_source", "plan", "ema", "forward")


class Interrupted(Dataset):
    """`OwnData` that a Ctrl-C reaches while its sixth item is read."""

    def __init__(self) -> None:
        self.inner, self.read = OwnData(), 0

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> Any:
        self.read += 1
        if self.read > 30:
            raise KeyboardInterrupt
        return self.inner[i]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, weakref.ref[Any]]]:
    """Weak references to what the newest session holds; nothing looks for circles of references meanwhile."""
    seen: dict[str, weakref.ref[Any]] = {}
    open_session = loop.open_session

    def opened(*arguments: Any, **settings: Any) -> Any:
        session = open_session(*arguments, **settings)
        seen["session"] = weakref.ref(session)
        seen.update({n: weakref.ref(v) for n in HELD if (v := getattr(session, n)) is not None})
        return session

    monkeypatch.setattr(loop, "open_session", opened)
    gc.collect()
    gc.disable()
    yield seen
    gc.enable()


def go(out: Path, data: Any = None, *, stop_after: int | None = None, **changes: Any) -> str:
    try:
        settings = config(None, out, num_classes=4, epochs=2, **changes)
        return train(
            settings, model=tiny_model(), train_data=data or OwnData(), val_data=OwnData(4), stop_after=stop_after
        ).status
    except (MaskRCNNError, KeyboardInterrupt) as e:
        return type(e).__name__


@pytest.mark.parametrize(
    ("end", "status", "data", "changes"),
    [
        ("finished", "finished", OwnData, {"ema": 0.9}),
        ("cut short", "finished", OwnData, {"stop_after": 2}),
        ("an incident", "finished", lambda: OwnData(bad=(3,)), {}),
        ("stopped", "stopped", lambda: OwnData(bad=(3,)), {"guard": "stop"}),
        ("Ctrl-C in the reader", "KeyboardInterrupt", Interrupted, {}),
    ],
)
def test_nothing_of_a_run_stays_in_memory_when_it_has_ended(end, status, data, changes, parts, tmp_path):
    assert go(tmp_path, data(), **changes) == status, end
    assert parts and not {n for n, r in parts.items() if r() is not None}, end


def test_resumes_in_one_process_hold_no_more_than_the_first(parts, tmp_path):
    for _ in range(3):
        go(tmp_path, resume="auto", stop_after=1)
        assert not {n for n, r in parts.items() if r() is not None}
