"""The fingerprint of what the bits depend on."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from maskrcnn_coco.system.environment import differs, fingerprint


def test_it_is_plain_data_and_the_same_twice():
    found = fingerprint(2)
    assert json.loads(json.dumps(found)) == found == fingerprint(2)
    assert found["world"] == 2
    assert type(found["torch"]) is str, "a checkpoint holds no other kind of text"
    assert differs(found, fingerprint(2)) == []


def test_threads_and_flags_show(monkeypatch: pytest.MonkeyPatch):
    before = fingerprint()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    said = differs({**before, "threads": 1, "deterministic": False}, fingerprint())
    assert said == [
        "threads per process was 1 and is now 7",
        "ONEDNN_MAX_CPU_ISA was not set and is now AVX2",
        "deterministic algorithms was off and is now on",
    ]


def test_an_older_fingerprint_without_a_field_is_a_difference():
    now = fingerprint()
    before = {k: v for k, v in now.items() if k != "numpy"} | {"extra": 1}
    assert [s.split(" was ")[0] for s in differs(before, now)] == ["NumPy", "extra"]


def test_the_device_can_be_named():
    assert fingerprint(device="cpu")["device"] == "cpu"


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9")
@pytest.mark.parametrize("new", ["tf32", "ieee"])
def test_either_name_of_the_tf32_switch_is_read(new):
    """Reading the old name raises once the new one was used, in a process of its own: the switch is global."""
    code = f"""
import torch
from maskrcnn_coco.system.environment import fingerprint
before = fingerprint()["tf32"]
torch.backends.cuda.matmul.allow_tf32 = True
legacy = fingerprint()["tf32"]
torch.backends.cuda.matmul.fp32_precision = {new!r}
print(before, legacy, fingerprint()["tf32"])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "True", str(new == "tf32")], done.stderr
