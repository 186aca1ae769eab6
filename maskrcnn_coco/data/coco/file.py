"""The bytes of an annotation file, read safely: regular files only, BOM and gzip undone, bombs refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import stat
import zlib
from pathlib import Path

from maskrcnn_coco.data.coco.forms import tool_of
from maskrcnn_coco.data.file_kinds import HEAD, kind_of
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.system.files import READING

SHAPE = '{"images": [...], "annotations": [...], "categories": [...]}'
"""What a COCO file looks like, for messages."""
_GZIP_FLOOR, _GZIP_RATIO = 64 << 20, 200
_HEAD = 4096
_WRAPPED = re.compile(rb'\[\s*\{\s*"(images|annotations|categories|info|licenses)"')
"""A list that holds a COCO file's object."""
_ENCODED_TWICE = re.compile(rb'"\s*\{\s*\\"(images|annotations|categories|info|licenses)\\"')
"""Its text inside a string: json.dumps was called twice."""


def read_text(path: Path) -> bytes:
    """The JSON text of ``path`` as UTF-8 without BOM.

    Raises:
        DataError: no such file, not a regular file, larger than the free memory, a damaged or bomb-like gzip file, or
            plainly not a JSON object.
    """
    data = _read_regular(path)
    if data[:2] == b"\x1f\x8b":
        data = _gunzip(path, data)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            data = data.decode("utf-16").encode()
        except UnicodeError as e:
            raise DataError(f"{path} starts like UTF-16 but is not: {e}", fix="save it again as UTF-8") from e
    data = data.removeprefix(b"\xef\xbb\xbf")
    _check_start(path, data[:_HEAD])
    return _decoded_once(data) if _ENCODED_TWICE.match(data[:_HEAD]) else data


def _decoded_once(data: bytes) -> bytes:
    try:
        inner = json.loads(data)
    except ValueError:
        return data
    return inner.encode() if isinstance(inner, str) else data


def _read_regular(path: Path) -> bytes:
    try:
        fd = os.open(path, READING)
        with os.fdopen(fd, "rb") as file:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise DataError(f"{path} is not a regular file", expected="a COCO json file", fix="check --data")
            _check_memory(path, info.st_size)
            head = file.read(_HEAD)
            if head[:2] not in (b"\x1f\x8b", b"\xff\xfe", b"\xfe\xff"):
                _check_start(path, head)
            file.seek(0)
            return file.read(info.st_size + 1)
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise DataError(
            f"cannot read the annotation file {path}: {why}", fix="check the path and its permissions"
        ) from e


def _check_memory(path: Path, size: int) -> None:
    if size == 0:
        raise DataError(f"{path} is empty", expected=SHAPE, fix="export the annotations again")
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo)
    if found and size > int(found[1]) * 1024 * 0.8:
        raise DataError(
            f"{path} is larger than the memory that is free",
            got=f"{size / 2**30:.1f} GiB, {int(found[1]) / 2**20:.1f} GiB free",
            fix="split the file, or use a machine with more memory",
        )


_EXPORTS = {
    "detectron2's list of dicts": "detectron2.data.datasets.convert_to_coco_json(NAME, 'coco.json') writes COCO",
    "a FiftyOne data set": "dataset.export(labels_path='coco.json', label_field=FIELD, "
    "dataset_type=fiftyone.types.COCODetectionDataset) writes COCO",
    "a Datumaro data set": "datum convert -if datumaro -i FOLDER -f coco_instances -o OUT writes COCO",
}


def _check_start(path: Path, head: bytes) -> None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if (text[:1] == b"{" and tool_of(text) is None) or (not text and len(head) == _HEAD):
        return
    if _WRAPPED.match(text) or _ENCODED_TWICE.match(text):
        return
    tool = tool_of(text)
    if tool is not None:
        raise DataError(
            f"{path} is {tool}, not a COCO annotation file",
            expected=SHAPE,
            fix=_EXPORTS.get(tool, "export it as COCO (instance segmentation) there, and name that file"),
        )
    if text[:1] == b"[":
        raise DataError(
            f"{path} is a JSON list, not a COCO annotation file",
            expected=SHAPE,
            fix="a list is what COCO *results* look like; name the file with `images`, `annotations` and `categories`",
        )
    kind = kind_of(head[:HEAD], path.name)
    if kind is not None:
        raise DataError(f"{path} is {kind.what}, not a COCO json file", expected=SHAPE, fix=kind.fix or "check --data")
    if text[:2] in (b"//", b"/*", b"# "):
        raise DataError(
            f"{path} begins with a comment: JSON has none", expected=SHAPE, fix="delete the lines before the first {"
        )
    shown = repr(text[:24].decode("utf-8", "replace"))
    raise DataError(
        f"{path} is not a COCO json file", got=f"a file that starts with {shown}", expected=SHAPE, fix="check --data"
    )


def _gunzip(path: Path, data: bytes) -> bytes:
    limit = max(_GZIP_FLOOR, len(data) * _GZIP_RATIO)
    chunks: list[bytes] = []
    total = 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while chunk := file.read(1 << 20):
                total += len(chunk)
                chunks.append(chunk)
                if total > limit:
                    raise DataError(
                        f"{path} unpacks to more than {limit >> 20} MiB, more than {_GZIP_RATIO} times its size",
                        fix="unpack it yourself if it is to be trusted",
                    )
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path} is a damaged gzip file: {e}", fix="copy or download it again") from e
    return b"".join(chunks)
