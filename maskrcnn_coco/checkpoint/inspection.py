"""What a checkpoint file holds, found out without building any of it, before ``torch.load`` reads the file.

Nothing compressed, only tensors and plain data, every tensor inside its storage, no more bytes than the file has.
"""

from __future__ import annotations

import math
import os
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
_PUSH = frozenset(("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"))
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
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


class _Name(NamedTuple):
    text: str


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
        return _Reader(data, sizes, path, 2 * size + (64 << 20)).document()
    except (zipfile.BadZipFile, struct.error, NotImplementedError, EOFError) as e:
        raise hostile(path, f"it is not a readable zip archive ({e})") from e
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise hostile(path, "its table of contents is malformed") from e


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


class _Reader:
    """Follows the few instructions that torch writes for plain data and tensors, building `TensorSpec` for the latter.

    Not an unpickler: a name in the file is compared with the three that may stand there, and never looked up.
    """

    def __init__(self, data: bytes, sizes: dict[str, int], path: Path, limit: int) -> None:
        self._data, self._sizes, self._path, self._left = data, sizes, path, limit
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[Any, Any] = {}

    def document(self) -> Any:
        for op, argument, _ in pickletools.genops(self._data):
            if op.name in _PUSH:
                self._stack.append(argument)
            elif op.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[op.name]())
            else:
                self._follow(op.name, argument)
        (value,) = self._stack
        self._require_plain(value)
        return value

    def _follow(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                if argument > len(self._memo):  # an unpickler with a table would allocate up to there
                    raise hostile(self._path, "its pickle asks for a huge table")
                self._memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(name[-1]))]
                stack.append(tuple(reversed(items)))
            case "APPEND":
                self._extend([stack.pop()])
            case "APPENDS":
                self._extend(self._since_mark())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set([key, value])
            case "SETITEMS":
                self._set(self._since_mark())
            case "GLOBAL":
                stack.append(self._name(argument))
            case "BINPERSID":
                stack.append(self._storage(*stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self._reduce(function, arguments))
            case _:
                raise hostile(self._path, f"its pickle uses the instruction {name}")

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise ValueError("items are added to what is no list")
        self._stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        keys = items[::2]
        if type(self._stack[-1]) is not dict or not all(
            type(k) is str or (type(k) is int and abs(k) < 2**31) for k in keys
        ):
            raise ValueError("a dict with keys that are neither text nor small whole numbers")
        self._stack[-1].update(zip(keys, items[1::2], strict=True))

    def _name(self, name: str) -> _Name:
        if name in ("torch._utils _rebuild_tensor_v2", "collections OrderedDict"):
            return _Name(name)
        module, _, kind = name.partition(" ")
        if module == "torch" and kind in DTYPES:
            return _Name(kind)
        raise hostile(self._path, f"its pickle asks for {name.replace(' ', '.')}"[:300])

    def _reduce(self, function: Any, arguments: Any) -> Any:
        text = function.text if type(function) is _Name else ""
        if text == "collections OrderedDict" and arguments == ():
            return {}  # the hooks that torch gives each tensor; with content they would come with arguments
        if text == "torch._utils _rebuild_tensor_v2":
            return self._tensor(*arguments)
        raise hostile(self._path, "its pickle calls something other than torch's rebuilding of a tensor")

    def _storage(self, kind: Any, dtype_name: Any, key: Any, location: Any, numel: Any) -> _Storage:
        del location
        dtype = DTYPES[dtype_name.text]
        if kind != "storage" or type(numel) is not int or self._sizes.get(key) != numel * dtype.itemsize:
            raise hostile(self._path, f"storage {str(key)[:40]!r} has not the size that its table of contents says")
        return _Storage(key, dtype, numel)

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any) -> TensorSpec:
        del grad
        plain = type(shape) is tuple and type(stride) is tuple and type(storage) is _Storage and hooks == {}
        if not plain or not len(shape) == len(stride) <= _DEPTH_LIMIT:
            raise hostile(self._path, "a tensor has no proper shape, or something hooked to it")
        if not all(type(n) is int and 0 <= n < 2**63 for n in (offset, *shape, *stride)):
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
            children = value.values() if isinstance(value, dict) else value
            todo.extend((child, depth + 1) for child in children)
