"""A limit of memory that is really met (``ulimit -d``): what was trained until then is saved, and a resume has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from runs import OwnData, config, small_model

from maskrcnn_coco import train
from maskrcnn_coco.checkpoint.store import load
from maskrcnn_coco.system import memory

SCRIPT = Path(__file__).parents[1] / "helpers" / "short_of_memory.py"
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")


@linux
@pytest.mark.slow
def test_a_run_that_meets_its_limit_saves_what_it_has_without_a_copy(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, timeout=240)
    assert "memory ran out on cpu at step 4; the run so far is saved: add --resume auto" in done.stderr, done.stderr
    assert load(tmp_path / "checkpoints" / "last.pth")["loop"]["step"] == 4
    again = config(None, tmp_path, epochs=3, resume="auto")
    result = train(again, model=small_model(1), train_data=OwnData(12), quiet=True)
    assert (result.status, result.steps, result.skipped_steps) == ("finished", 9, 0)


@linux
def test_the_process_s_own_limit_counts(tmp_path):
    said = "from maskrcnn_coco.system.memory import main_memory as m; print(m()['total'], m()['available'])"
    script = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33)); {said}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    total, available = map(int, done.stdout.split())
    assert total == 1 << 33 and 0 < available < total


def test_words_that_may_mean_memory_mean_it_where_it_is_short(monkeypatch):
    error = RuntimeError("could not create a primitive")
    for available, taken in ((20 << 30, False), (1 << 30, True), (None, False)):
        monkeypatch.setattr(memory, "main_memory", lambda a=available: {"total": 32 << 30, "available": a})
        assert memory.ran_out(error) is taken
