"""Whether a checkpoint file is what was written, and what is refused before torch reads it."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from states import state_at

from maskrcnn_coco.checkpoint.archive import open_regular
from maskrcnn_coco.checkpoint.inspection import TensorSpec, inspect
from maskrcnn_coco.checkpoint.store import save
from maskrcnn_coco.checkpoint.verification import check_digest, reading, verify, verify_written
from maskrcnn_coco.errors import CheckpointError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "last.pth"
    save(file, state_at(4), serial=7)
    return file


def test_a_file_as_it_was_written_is_verified_and_tells_its_header(path: Path):
    assert verify(path).serial == 7
    verify_written(path)


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "SHA-256"),
        (lambda d: d[:-1], "cut short or damaged"),
        (lambda d: d[: len(d) // 2], "cut short or damaged"),
        (lambda d: d + b"0", "cut short or damaged"),
        (lambda d: d[:-1] + (b"0" if d[-1:] != b"0" else b"1"), "SHA-256"),
        (lambda d: b"", "cut short or damaged"),
    ],
)
def test_damage_is_told_by_name_in_reading_and_in_writing(damage: Callable[[bytes], bytes], said: str, path: Path):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=said) as error:
        verify(path)
    assert str(path) in error.value.what and "--resume auto" in (error.value.fix or "")
    with pytest.raises(OSError, match="not what was written"):
        verify_written(path)


def test_what_the_disk_refuses_is_a_checkpoint_error(path: Path):
    with pytest.raises(CheckpointError, match=r"cannot read .*last\.pth.*Input/output"), reading(path):
        raise OSError(5, os.strerror(5))


def test_the_digest_is_of_every_byte_before_it(path: Path):
    data = path.read_bytes()
    for at in range(0, len(data) - 64, max(1, len(data) // 40)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with open_regular(path) as file, pytest.raises(CheckpointError):
            check_digest(file, path)


def looked_at(content: object, path: Path) -> object:
    torch.save(content, path)
    with path.open("rb") as file:
        return inspect(file, path)


def test_a_look_builds_no_tensor_and_tells_its_form(tmp_path: Path):
    found = looked_at({"a": [torch.zeros(3, 4), 5], "b": {"c": torch.ones(2, dtype=torch.int64).t()}}, tmp_path / "x")
    assert found["a"] == [TensorSpec((3, 4), torch.float32, 48), 5]  # type: ignore[index]
    assert found["b"]["c"] == TensorSpec((2,), torch.int64, 16)  # type: ignore[index]


class Called:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.getcwd, ())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": Called()}, "its pickle asks for posix.getcwd"),
        ({"a": {1, 2}}, "its pickle asks for __builtin__.set"),
        ({"a": torch.nn.Linear(2, 2)}, "its pickle asks for torch.nn"),
        ({"a": torch.zeros(4).expand(1000, 4)}, "claims elements that it does not store"),
        ({("a", "b"): 1}, "its table of contents is malformed"),
    ],
)
def test_anything_but_plain_data_and_tensors_is_refused(content: object, said: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=said):
        looked_at(content, tmp_path / "x")


def test_a_compressed_entry_is_refused(tmp_path: Path):
    plain, path = io.BytesIO(), tmp_path / "x"
    torch.save({"a": torch.zeros(1000)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with path.open("rb") as file, pytest.raises(CheckpointError, match="compressed"):
        inspect(file, path)
