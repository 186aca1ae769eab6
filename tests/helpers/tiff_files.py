"""TIFF and 16-bit PNG files written by hand, for kinds that Pillow does not write. After the TIFF 6.0 and PNG texts."""

from __future__ import annotations

import struct
import zlib

import numpy as np

KINDS = {"u": 1, "i": 2, "f": 3}


def tiff_bytes(*pages: np.ndarray, deflate: bool = False) -> bytes:
    """A little-endian TIFF: each page (H, W) or (H, W, bands), in one strip."""
    out = bytearray(b"II*\0\0\0\0\0")
    link = 4
    for page in pages:
        bands = page.shape[2] if page.ndim == 3 else 1
        data = np.ascontiguousarray(page).astype(page.dtype.newbyteorder("<")).tobytes()
        data = zlib.compress(data) if deflate else data
        strip = _put(out, data)
        long = {256: page.shape[1], 257: page.shape[0], 273: strip, 278: page.shape[0], 279: len(data)}
        short = {259: [8 if deflate else 1], 262: [2 if bands >= 3 else 1], 277: [bands], 284: [1]}
        short |= {258: [page.dtype.itemsize * 8] * bands, 339: [KINDS[page.dtype.kind]] * bands}
        short |= {338: [0] * (bands - 3)} if bands > 3 else {}
        entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in long.items()]
        for tag, values in short.items():
            packed = struct.pack(f"<{len(values)}H", *values)
            field = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", _put(out, packed))
            entries.append(struct.pack("<HHI", tag, 3, len(values)) + field)
        entries.sort(key=lambda e: struct.unpack_from("<H", e)[0])
        start = _put(out, struct.pack("<H", len(entries)) + b"".join(entries) + b"\0\0\0\0")
        struct.pack_into("<I", out, link, start)
        link = start + 2 + 12 * len(entries)
    return bytes(out)


def _put(out: bytearray, data: bytes) -> int:
    at = len(out)
    out += data + b"\0" * (len(data) % 2)
    return at


def png16_bytes(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel: uint16 (H, W), (H, W, 3) or (H, W, 4)."""
    height, width = pixels.shape[:2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2] if pixels.ndim == 3 else 1]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body
