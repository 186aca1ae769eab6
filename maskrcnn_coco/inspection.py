"""What a checkpoint file holds, found out without building any of it, before ``torch.load`` reads the file.

Nothing compressed, only tensors and plain data, every tensor inside its storage, no more bytes than the file has.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from maskrcnn_coco.errors import CheckpointError

_PICKLE_LIMIT = 16 << 20
_DEPTH_LIMIT = 64
_ENTRY = re.compile(
    r"[^/]+/(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|data/\d+|\.data/serialization_id)"
)
# fmt: off
_OPCODES = frozenset((
    "PROTO", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "MARK", "BINUNICODE", "BINPUT", "LONG_BINPUT", "BINGET",
    "LONG_BINGET", "GLOBAL", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINPERSID", "REDUCE", "NEWTRUE", "NEWFALSE",
    "NONE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SETITEM", "SETITEMS", "APPEND", "APPENDS", "STOP",
))
# fmt: on
DTYPES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}
"""The dtypes a checkpoint may hold, by the name torch gives their storage."""


class TensorSpec(NamedTuple):
    """A tensor as its file describes it; nothing is allocated. ``nbytes`` counts its elements, not its storage."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    numel: int


def hostile(path: Path, why: str) -> CheckpointError:
    """The error for a file that no save of this project can have written; ``why`` finishes the sentence."""
    return CheckpointError(
        f"the checkpoint {path} was refused and nothing in it was run: {why}",
        expected="tensors and plain data, as this project writes them",
        fix="do not use this file; train again, or take a checkpoint from a source that you trust",
    )


def inspect(file: BinaryIO, path: Path) -> Any:
    """What the file holds, with a `TensorSpec` in place of each tensor. Allocates no tensor, runs no code of the file.

    Raises:
        CheckpointError: compressed or unknown entries, a pickle that asks for more than tensors and plain data, a
            tensor outside its storage or strided to look larger than it is, more bytes than 2 × the file + 64 MiB.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            sizes, data = _entries(archive, size, path)
        return _Inspector(data, sizes, path, 2 * size + (64 << 20)).document()
    except (zipfile.BadZipFile, struct.error, NotImplementedError, EOFError) as e:
        raise hostile(path, f"it is not a readable zip archive ({e})") from e
    except (pickle.UnpicklingError, ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as e:
        raise hostile(path, f"its table of contents is malformed ({type(e).__name__}: {e})") from e


def _entries(archive: zipfile.ZipFile, file_size: int, path: Path) -> tuple[dict[str, int], bytes]:
    """Bytes of each storage by its key, and the pickle."""
    entries = archive.infolist()
    folders = {e.filename.split("/")[0] for e in entries}
    names = {e.filename for e in entries}
    if len(folders) != 1 or len(names) != len(entries):
        raise hostile(path, "its zip directory names entries twice or in several folders")
    for e in entries:
        if not _ENTRY.fullmatch(e.filename):
            raise hostile(path, f"it has an entry {e.filename[:80]!r}, which a checkpoint has not")
        if e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size or e.flag_bits & 1:
            raise hostile(path, f"entry {e.filename!r} is compressed or encrypted, and would expand when read")
    if sum(e.file_size for e in entries) > file_size:
        raise hostile(path, "its entries claim more bytes than the file has")
    folder = folders.pop()
    if f"{folder}/data.pkl" not in names:
        raise hostile(path, "it has no table of contents (data.pkl)")
    if archive.getinfo(f"{folder}/data.pkl").file_size > _PICKLE_LIMIT:
        raise hostile(path, f"its table of contents is larger than {_PICKLE_LIMIT >> 20} MiB")
    sizes = {e.filename.removeprefix(f"{folder}/data/"): e.file_size for e in entries if "/data/" in e.filename}
    return sizes, archive.read(f"{folder}/data.pkl")


class _Inspector(pickle.Unpickler):
    """Reads a pickle into `TensorSpec` and plain data. Its names lead to the harmless methods below, never to code."""

    def __init__(self, data: bytes, sizes: dict[str, int], path: Path, limit: int) -> None:
        super().__init__(io.BytesIO(data))
        self._data, self._sizes, self._path, self._left = data, sizes, path, limit

    def document(self) -> Any:
        self._scan()
        value = self.load()
        self._require_plain(value)
        return value

    def _scan(self) -> None:
        # Before the unpickler sees it: a single opcode with a huge memo index would make it allocate gigabytes.
        for count, (op, argument, _) in enumerate(pickletools.genops(self._data)):
            if op.name not in _OPCODES:
                raise hostile(self._path, f"its pickle uses the instruction {op.name}")
            if op.name in ("BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > count:
                raise hostile(self._path, "its pickle asks for a huge table")
            if op.name == "GLOBAL":
                self.find_class(*str(argument).split(" ", 1))

    def find_class(self, module_name: str, global_name: str, /) -> Callable[..., Any]:
        if (module_name, global_name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module_name, global_name) == ("collections", "OrderedDict"):
            return _empty_dict
        if module_name == "torch" and global_name in DTYPES:
            dtype = DTYPES[global_name]
            return lambda: dtype
        raise hostile(self._path, f"its pickle asks for {module_name}.{global_name}"[:300])

    def persistent_load(self, pid: Any, /) -> _Storage:
        kind, dtype, key, _location, numel = pid
        dtype = dtype()
        known = self._sizes.get(key)
        if kind != "storage" or type(numel) is not int or known != numel * dtype.itemsize:
            raise hostile(self._path, f"storage {str(key)[:40]!r} has not the size that its table of contents says")
        return _Storage(key, dtype, numel)

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any) -> TensorSpec:
        del grad
        whole = (
            type(shape) is tuple and type(stride) is tuple and len(shape) == len(stride) and type(storage) is _Storage
        )
        if (
            not whole
            or hooks
            or len(shape) > _DEPTH_LIMIT
            or not all(type(n) is int and n >= 0 for n in (offset, *shape, *stride))
        ):
            raise hostile(self._path, "a tensor's shape is not a list of whole numbers")
        dense = 1
        for n, step in zip(reversed(shape), reversed(stride), strict=True):
            if n > 1 and step != dense:
                raise hostile(self._path, f"a tensor of shape {list(shape)[:8]} claims elements that it does not store")
            dense *= max(n, 1)
        nbytes = math.prod(shape) * storage.dtype.itemsize
        if offset + math.prod(shape) > storage.numel:
            raise hostile(self._path, f"a tensor of shape {list(shape)[:8]} reaches outside its storage")
        self._left -= nbytes
        if self._left < 0:
            raise hostile(self._path, "its tensors claim more than twice the bytes that the file has")
        return TensorSpec(shape, storage.dtype, nbytes)

    def _require_plain(self, root: Any) -> None:
        """Dicts, lists, tuples, scalars and tensors; each container in one place only, so that a walk stays linear."""
        seen: set[int] = set()
        todo = [(root, 0)]
        while todo:
            value, depth = todo.pop()
            if value is None or type(value) in (bool, int, float, str, TensorSpec):
                continue
            if type(value) not in (dict, list, tuple):
                raise hostile(self._path, f"it holds a {type(value).__name__} where data should be")
            if depth > _DEPTH_LIMIT or (value and id(value) in seen):
                raise hostile(self._path, "its data is nested too deep, or in itself")
            seen.add(id(value))
            children = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            todo.extend((child, depth + 1) for child in children)


def _empty_dict() -> dict[Any, Any]:
    # torch gives each tensor an empty OrderedDict of hooks; one with content has arguments, and is refused.
    return {}
