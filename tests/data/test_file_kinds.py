"""A file that is something else is said to be that, with what to do."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.data.file_kinds import kind_of
from maskrcnn_coco.data.images import read_image
from maskrcnn_coco.errors import DataError

PAGE = b"<!DOCTYPE html><html><body>404</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
DICOM = b"\0" * 128 + b"DICM" + b"\2\0" * 50


def packed(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a.json", "{}")
    elif kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("a"))
    elif kind == "tgz":
        buffer.write(gzip.compress(b"a tar"))
    elif kind == "npy":
        np.save(buffer, np.zeros((4, 4)))
    elif kind == "pth":
        torch.save({"model": {}}, buffer)
    else:
        Image.new("RGB", (16, 16)).save(buffer, kind)
    return buffer.getvalue()


FILES = [
    ("a.png", PAGE, "web page", "download"),
    ("a.png", b"\n " + PAGE, "web page", "download"),
    ("a.png", POINTER, "Git LFS", "git lfs pull"),
    ("a.png", b"", "empty", "again"),
    ("a.dcm", DICOM, "DICOM", "dcm2pnm"),
    ("a.npy", packed("npy"), "NumPy", "fromarray"),
    ("a.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC", "heif-convert"),
    ("a.avif", packed("AVIF"), "AVIF", "magick"),
    ("a.jp2", packed("JPEG2000"), "JPEG 2000", "magick"),
    ("a.mp4", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2mp41", "video", "ffmpeg"),
    ("a.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG", "PNG"),
    ("a.png", packed("zip"), "zip", "unzip"),
]


@pytest.mark.parametrize(("name", "data", "what", "fix"), FILES)
def test_a_picture_that_is_none_is_named(name: str, data: bytes, what: str, fix: str, tmp_path: Path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as e:
        read_image(tmp_path, name)
    assert what in e.value.what and fix in (e.value.fix or "") and fix in e.value.what


OTHERS = [
    ("set.zip", packed("zip"), "zip archive"),
    ("set.json", packed("zip"), "zip archive"),
    ("set.tar", packed("tar"), "tar archive"),
    ("best.pth", packed("pth"), "checkpoint"),
    ("a.json", PAGE, "web page"),
    ("a.json", POINTER, "Git LFS"),
    ("a.png", packed("PNG"), "PNG image"),
    ("a.jpg", packed("JPEG"), "JPEG image"),
    ("t.csv", b"filename,width\na.png,3\n", "table"),
    ("a.json", b"// mine\n{}", "comment"),
    ("a.parquet", b"PAR1" + b"\0" * 40, "Parquet"),
]


@pytest.mark.parametrize(("name", "data", "what"), OTHERS)
def test_annotations_that_are_none_are_named(name: str, data: bytes, what: str, tmp_path: Path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as e:
        load_coco(tmp_path / name, tmp_path)
    assert what in e.value.what and e.value.fix


@pytest.mark.parametrize("head", [b'{"images": []', b"[1, 2]", b'{"a,b": 1,\n', b"plain text", b"\x00\x01\x02"])
def test_what_is_not_known_is_not_named(head: bytes):
    assert kind_of(head, "a.json") is None
