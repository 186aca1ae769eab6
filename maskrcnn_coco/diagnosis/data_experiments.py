"""The tests that leave samples out or repair them."""

from __future__ import annotations

from maskrcnn_coco.replay.snapshot import Snapshot


def weights(snapshot: Snapshot | None) -> str:
    """Which weights a replay used, where they are not the failing step's own."""
    return "" if snapshot is None else f", weights of step {snapshot.step}"
