"""Small files of others: pipes and devices never block, aliases and depth never hang."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from maskrcnn_coco.system.plain_files import read_regular, read_yaml

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "missing", "large"])
def test_only_regular_files_of_bounded_size_are_read(kind: str, tmp_path: Path):
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        path.write_bytes(b"x" * 101)
    began = time.monotonic()
    with pytest.raises(OSError):
        read_regular(path, most=100)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "text",
    [BOMB, "a: " + "[" * 5000, "\0", "a: &a [*a]\n", "x: !!python/object/apply:os.system [ls]\n", "\xff: [", "a: *b"],
)
def test_yaml_that_would_hang_or_run_is_one_error(text: str, tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode("latin-1"))
    began = time.monotonic()
    with pytest.raises(ValueError):
        read_yaml(path)
    assert time.monotonic() - began < 10


def test_plain_yaml_is_read(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("lr: 0.1\nname: é\n", encoding="utf-8")
    assert read_yaml(tmp_path / "c.yaml") == {"lr": 0.1, "name": "é"}
