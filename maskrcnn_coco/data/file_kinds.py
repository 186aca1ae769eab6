"""What a file is that is not what was asked for, by its first bytes or its name: in words, with what to do about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

HEAD = 512
"""Bytes that are looked at."""


class FileKind(NamedTuple):
    """``what`` it is, with its article; ``fix``: what to do to get what was asked for, "" where that is plain."""

    what: str
    fix: str = ""


_POINTER = FileKind("a pointer of Git LFS, not the file itself", "git lfs pull in that repository brings the files")
_PAGE = FileKind("a web page (a failed download?)", "download it again, signed in where that is needed")
_MARKS: tuple[tuple[bytes, FileKind], ...] = (
    (b"version https://git-lfs", _POINTER),
    (b"<!doctype html", _PAGE),
    (b"<html", _PAGE),
    (b"<?xml version", FileKind("an XML file")),
    (b"<svg", FileKind("an SVG drawing", "draw it as PNG: cairosvg IN.svg -o OUT.png")),
    (b"%pdf", FileKind("a PDF", "extract its pictures: pdfimages -all IN.pdf OUT")),
    (b"\x93numpy", FileKind("a NumPy array", "save it as an image: PIL.Image.fromarray(array).save('OUT.png')")),
    (b"\x00\x00\x00\x0cjp", FileKind("a JPEG 2000 image", "convert it: magick IN.jp2 OUT.png")),
    (b"\xff\x4f\xff\x51", FileKind("a JPEG 2000 image", "convert it: magick IN.jp2 OUT.png")),
    (b"\xff\xd8\xff", FileKind("a JPEG image")),
    (b"\x89png", FileKind("a PNG image")),
    (b"gif8", FileKind("a GIF image")),
    (b"ii*\x00", FileKind("a TIFF image")),
    (b"mm\x00*", FileKind("a TIFF image")),
    (b"pk\x03\x04", FileKind("a zip archive", "unpack it, and name the folder: unzip FILE -d FOLDER")),
    (b"rar!", FileKind("a RAR archive", "unpack it, and name the folder")),
    (b"7z\xbc\xaf", FileKind("a 7z archive", "unpack it, and name the folder")),
    (b"\xfd7zxz", FileKind("an xz archive", "unpack it, and name the folder: tar xf FILE")),
    (b"par1", FileKind("a Parquet table", "export images and COCO annotations from it")),
    (b"\x89hdf", FileKind("an HDF5 file", "export images and COCO annotations from it")),
    (b"sqlite format 3", FileKind("an SQLite data base", "export images and COCO annotations from it")),
)
_FTYP = {
    b"heic": FileKind("an HEIC image (of a phone)", "convert it: heif-convert IN.heic OUT.jpg, or sips -s format jpeg"),
    b"avif": FileKind("an AVIF image", "convert it: magick IN.avif OUT.png"),
    b"mp4": FileKind("a video", "extract its frames: ffmpeg -i IN.mp4 %06d.png"),
}
_NAMES = {
    ".tfrecord": FileKind("a TFRecord file", "export images and COCO annotations from it"),
    ".parquet": FileKind("a Parquet table", "export images and COCO annotations from it"),
    ".arrow": FileKind("an Arrow table", "export images and COCO annotations from it"),
    ".roi": FileKind("a region of ImageJ", "export the regions as GeoJSON, or as mask images"),
    ".pkl": FileKind("a Python pickle", "write its annotations as COCO json"),
    ".pickle": FileKind("a Python pickle", "write its annotations as COCO json"),
}
_TABLE = re.compile(rb"[^\n{}<>\[\]]+,[^\n{}<>\[\]]+\r?\n")


def kind_of(head: bytes, name: str = "") -> FileKind | None:
    """What a file is that begins with ``head``; None: not known."""
    suffix = Path(name).suffix.lower()
    if not head:
        return FileKind("an empty file", "copy or download it again")
    if head[128:132] == b"DICM":
        return FileKind("a DICOM image", "convert it: dcm2pnm +on2 IN.dcm OUT.png, or pydicom and Pillow")
    if head[257:262] == b"ustar":
        return FileKind("a tar archive", "unpack it, and name the folder: tar xf FILE")
    if head[4:8] == b"ftyp":
        brands = head[8:64]
        if any(b in brands for b in (b"heic", b"heix", b"hevc", b"mif1")) and b"avif" not in brands:
            return _FTYP[b"heic"]
        return _FTYP[b"avif"] if b"avif" in brands else _FTYP[b"mp4"]
    if head[:2] == b"PK" and (suffix in (".pth", ".pt", ".ckpt") or b"data.pkl" in head or b"archive/" in head):
        return FileKind("a checkpoint of PyTorch", "it belongs to --weights or --resume")
    if head[:2] == b"\x1f\x8b" and suffix in (".tgz", ".gz") and not name.lower().endswith(".json.gz"):
        return FileKind("a gzip archive", "unpack it, and name the folder: tar xf FILE")
    low = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower() if head[:1] not in b"\x00\x93\x89\xff" else head.lower()
    found = next((kind for mark, kind in _MARKS if low.startswith(mark)), None)
    if found is None and suffix in _NAMES:
        return _NAMES[suffix]
    if found is None and suffix in (".csv", ".tsv") and _TABLE.match(head):
        return FileKind("a table", "name a COCO json; of tables those of VIA, and of runs (image, RLE), are read")
    return found
