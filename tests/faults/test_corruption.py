"""Every damage to a saved file is noticed, and an older one is found; a slice, the whole is ``make faults``."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from maskrcnn_coco.checkpoint.store import load_newest
from maskrcnn_coco.checkpoint.verification import verify


def test_every_damage_is_noticed(fast_folder: Path):
    import damage

    damage.build(fast_folder)
    outcome = damage.sweep(fast_folder, 2000, seed=7)
    assert outcome.failures == []
    assert sum(outcome.noticed.values()) == sum(outcome.tried.values()) == 2000
    assert len(outcome.tried) >= 10


def test_exchanged_files_are_noticed_and_the_newest_state_is_found(fast_folder: Path):
    import damage

    damage.build(fast_folder)
    outcome = damage.exchanges(fast_folder)
    assert outcome.failures == []
    assert outcome.tried["two files exchanged"] >= 8


def test_a_sound_file_is_never_refused(fast_folder: Path):
    import damage
    from states import digest, state_at

    damage.build(fast_folder)
    for path in fast_folder.glob("*.pth"):
        for _ in range(20):
            verify(path)
    _, state, skipped = load_newest(fast_folder)
    assert state is not None and skipped == []
    assert digest(state) == digest(state_at(27))


def test_torch_load_would_not_have_noticed(fast_folder: Path):
    """Why the digest is there; if torch learns to notice, this says so."""
    import damage

    damage.build(fast_folder)
    content = bytearray((fast_folder / "last.pth").read_bytes())
    content[len(content) // 2] ^= 1
    torch.load(io.BytesIO(bytes(content)), weights_only=True)
