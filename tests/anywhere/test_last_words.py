"""An error of the loop's own loss, which ends the process: the sample that brings it about is named first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import torch
from torch import nn
from torch.nn import functional as F
from maskrcnn_coco import attach

torch.set_num_threads(1)
torch.manual_seed(0)
x, y = torch.randn(64, 8), torch.randint(0, 4, (64,))
if "label" in sys.argv:
    y[37] = 4
if "backward" in sys.argv:
    x[37, 0] = 77.0


class Inverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, bad):
        ctx.bad = bad
        return h.clone()

    @staticmethod
    def backward(ctx, g):
        if ctx.bad:
            raise ArithmeticError("no inverse")
        return g, None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.b(Inverse.apply(self.a(x).relu(), bool((x == 77.0).any())))


model = Net()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
loss_of = lambda m, b: F.cross_entropy(m(b[0]), b[1])
guard = attach(model, optimizer, diagnose=True, forward=loss_of, logdir=sys.argv[1])
for step in range(16):
    ids = list(range(8 * step % 64, 8 * step % 64 + 8))
    batch = guard.batch((x[ids], y[ids]), ids)
    loss = guard.see(F.cross_entropy(model(batch[0]), batch[1]))
    if step == 9 and "log" in sys.argv:
        raise IndexError("the log is full")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def ended(folder: Path, what: str) -> tuple[str, list[Path]]:
    """What such a script says as it ends, and the incidents that it leaves."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), what], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    return done.stderr, sorted(folder.glob("incidents/*.json"))


def test_a_label_that_is_no_class_is_named_before_the_loss_s_own_error(tmp_path: Path) -> None:
    said, (incident,) = ended(tmp_path, "label")
    assert said.index("DATA_LABEL (sample 37)") < said.index("Target 4 is out of bounds")
    assert json.loads(incident.read_text())["culprit"]["image_ids"] == [37]


def test_an_error_of_the_backward_pass_is_explained_before_it_ends_the_loop(tmp_path: Path) -> None:
    said, (incident,) = ended(tmp_path, "backward")
    assert said.index("(sample 37)") < said.index("ArithmeticError: no inverse\n")
    assert json.loads(incident.read_text())["culprit"]["image_ids"] == [37]


def test_what_no_batch_brings_about_ends_the_loop_as_ever(tmp_path: Path) -> None:
    said, incidents = ended(tmp_path, "log")
    assert said.strip().endswith("IndexError: the log is full") and incidents == []
    assert "confidence" not in said


CELLS = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
script, folder, what = sys.argv[1:]
sys.argv = ["cell", folder, what]
shell.run_cell(script)
shell.run_cell("1 / 0")
"""
STAND_IN = """
import sys, types, traceback
class Events:
    def register(self, name, function):
        assert name == "post_run_cell"
        self.function = function
events = Events()
IPython = types.ModuleType("IPython")
IPython.get_ipython = lambda: types.SimpleNamespace(events=events)
sys.modules["IPython"] = IPython
script, folder, what = sys.argv[1:]
sys.argv = ["cell", folder, what]
for cell in (script, "1 / 0"):
    try:
        exec(cell, {})
        error = None
    except Exception as e:
        error = e
        traceback.print_exc()
    events.function(types.SimpleNamespace(error_in_exec=error))
"""


@pytest.mark.parametrize("shell", ["IPython", "a stand-in for it"])
def test_a_cell_of_a_notebook_that_ends_in_an_error_has_its_sample_named_below_it(tmp_path: Path, shell: str) -> None:
    """Once: the error of a later cell is not the loop's."""
    if shell == "IPython":
        pytest.importorskip("IPython")
    runner = CELLS if shell == "IPython" else STAND_IN
    command = [sys.executable, "-c", runner, SCRIPT, str(tmp_path), "label"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert done.stderr.count("DATA_LABEL (sample 37)") == 1
    assert len(list(tmp_path.glob("incidents/*.json"))) == 1
    assert "Target 4 is out of bounds" in said and "ZeroDivisionError" in said
