"""metrics.jsonl: cut from its end to what the whole-file way gives, read from its end, foreign lines and all."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn_coco.report import metrics_file
from maskrcnn_coco.report.metrics_file import cut, last_steps, lines_from_end, read_metrics, truncate

SPE = 3
FOREIGN = (
    b"\n",
    b"not json\n",
    b"[1]\n",
    b'{"kind": 3}\n',
    b'{"step": "x", "kind": "step"}\n',
    b'{"note": 1}\n',
    b"\xff\n",
)


def history(steps: int) -> list[bytes]:
    """The lines of an undisturbed run of ``steps`` steps, closed epochs and all."""
    made = []
    for s in range(steps):
        made.append({"kind": "step", "step": s, "epoch": s // SPE, "pad": "x" * (s % 7)})
        if s % SPE == SPE - 1:
            made += [{"kind": kind, "step": s + 1, "epoch": s // SPE} for kind in ("epoch", "eval")]
    return [json.dumps(d).encode() + b"\n" for d in made]


@given(steps=st.integers(0, 14), back=st.integers(0, 15), closed=st.integers(0, 5), torn=st.integers(0, 30))
def test_the_end_is_cut_as_the_whole_would_be(steps, back, closed, torn, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    step = min(back, steps)
    # What a checkpoint can say: the epoch that ends at this very step may still be open.
    closed = step // SPE - int(step > 0 and step % SPE == 0 and closed % 2)
    raw = b"".join(history(steps)) + b'{"kind": "step", "step": 99, "epoch": 9}'[:torn]
    for arguments in ((step, closed), (None, None)):
        path.write_bytes(raw)
        truncate(path, *arguments)
        assert path.read_bytes() == cut(raw, *arguments)


@given(lines=st.lists(st.sampled_from([*FOREIGN, *history(4)]), max_size=9), step=st.integers(0, 5))
def test_foreign_lines_raise_nothing_and_no_step_stays_past_the_cut(lines, step, tmp_path_factory):
    path = tmp_path_factory.mktemp("foreign") / "metrics.jsonl"
    path.write_bytes(b"".join([*history(3), *lines]))
    read_metrics(path)
    assert [d["step"] for d in last_steps(path, before=3, count=2)][-2:]
    truncate(path, step, 0)
    assert all(d["step"] < step for d in read_metrics(path)[-1:] if isinstance(d.get("step"), int))


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 18])
@given(pieces=st.lists(st.binary(max_size=20), max_size=8))
def test_lines_from_the_end_are_the_lines(block, pieces, tmp_path_factory):
    path = tmp_path_factory.mktemp("lines") / "f"
    raw = b"\n".join(pieces)
    path.write_bytes(raw)
    before, metrics_file._BLOCK = metrics_file._BLOCK, block
    try:
        found = list(lines_from_end(path))[::-1]
    finally:
        metrics_file._BLOCK = before
    assert b"".join(line for _, line in found) == raw
    assert all(raw[place : place + len(line)] == line for place, line in found)
    assert all(line.count(b"\n") <= 1 for _, line in found)


def test_a_long_run_that_goes_back_a_little_is_not_read_again(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    pad = "x" * 400
    with path.open("wb") as f:
        for s in range(60_000):
            f.write(json.dumps({"kind": "step", "step": s, "epoch": 0, "pad": pad}).encode() + b"\n")
    tracemalloc.start()
    began = time.perf_counter()
    truncate(path, 59_990, 0)
    found = last_steps(path, before=59_990, count=500)
    seconds, (_, most) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [d["step"] for d in found] == list(range(59_490, 59_990))
    assert most < 4 << 20, f"{most} bytes for ten lines of 26 MB"
    assert seconds < 1
    assert len((tmp_path / "metrics_undone.jsonl").read_bytes().splitlines()) == 10
