"""Every pixel format comes out as RGB, nothing outside the folder is opened, bombs cost no memory."""

from __future__ import annotations

import os
import struct
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from maskrcnn_coco.data.images import MAX_PIXELS, probe, read_image
from maskrcnn_coco.errors import DataError


def gradient(h: int = 12, w: int = 20) -> np.ndarray:
    return np.stack(
        [np.tile(np.arange(w) * 9, (h, 1)), np.tile(np.arange(h)[:, None] * 9, (1, w)), np.full((h, w), 7)], 2
    ).astype(np.uint8)


def test_rgb_and_rgba_keep_their_colours(tmp_path):
    rgb = gradient()
    Image.fromarray(rgb).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([rgb, np.full(rgb.shape[:2], 10, np.uint8)])).save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        assert np.array_equal(read_image(tmp_path, name), rgb)


def test_grey_palette_one_bit_and_grey_alpha(tmp_path):
    grey = gradient()[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "l.png")
    Image.fromarray(grey).convert("LA").save(tmp_path / "la.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "p.png")
    Image.fromarray(grey > 80).save(tmp_path / "1.png")
    for name in ("l.png", "la.png", "p.png"):
        assert np.array_equal(read_image(tmp_path, name), np.repeat(grey[:, :, None], 3, 2)), name
    assert np.array_equal(read_image(tmp_path, "1.png")[:, :, 1], (grey > 80) * 255)


def test_16_bit_is_scaled_and_float_is_read(tmp_path):
    deep = np.arange(0, 65536, 273, dtype=np.uint16).reshape(1, -1)
    Image.fromarray(deep).save(tmp_path / "d.png")
    assert np.abs(read_image(tmp_path, "d.png")[0, :, 0] - deep[0] / 257).max() <= 0.5
    Image.fromarray(np.linspace(0, 1, 50, dtype=np.float32)[None]).save(tmp_path / "f.tif")
    assert read_image(tmp_path, "f.tif")[0, -1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    rgb = gradient()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    turned = {1: rgb, 2: rgb[:, ::-1], 3: rgb[::-1, ::-1], 4: rgb[::-1], 5: rgb.transpose(1, 0, 2)}
    turned |= {6: np.rot90(rgb, -1), 7: np.rot90(rgb, 2).transpose(1, 0, 2), 8: np.rot90(rgb)}
    assert np.array_equal(read_image(tmp_path, "a.png"), turned[orientation])
    facts = probe(tmp_path, "a.png", decode=True)
    assert (facts.height, facts.width) == turned[orientation].shape[:2] and facts.turned == (orientation > 1)


@pytest.mark.parametrize(
    "name", ["../out.png", "a/../../out.png", "/etc/hostname", "link.png", "c:\\x.png", "..\\out.png", "x\0", ""]
)
def test_nothing_outside_the_folder_is_opened(tmp_path, name, monkeypatch):
    inside = tmp_path / "images"
    inside.mkdir()
    Image.fromarray(gradient()).save(tmp_path / "out.png")
    os.symlink(tmp_path / "out.png", inside / "link.png")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
    with pytest.raises(DataError, match="not opened"):
        read_image(inside, name)


def test_fifos_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    start = time.monotonic()
    for name in ("fifo.png", "folder.png"):
        with pytest.raises(DataError, match="not a regular file"):
            read_image(tmp_path, name)
    assert time.monotonic() - start < 1


def test_missing_truncated_and_not_an_image_are_told_apart(tmp_path):
    Image.fromarray(gradient(200, 200)).save(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-1500])
    (tmp_path / "text.jpg").write_text("hello", encoding="utf-8")
    for name, words in (("none.jpg", "does not exist"), ("cut.jpg", "cannot be read"), ("text.jpg", "not an image")):
        with pytest.raises(DataError, match=words) as caught:
            read_image(tmp_path, name)
        assert name in caught.value.what


def test_a_bomb_is_refused_by_its_header(tmp_path):
    side = int(MAX_PIXELS**0.5) + 1
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    body = b"IDAT" + zlib.compress(bytes(1000))
    data += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(DataError, match="too large") as caught:
        read_image(tmp_path, "bomb.png")
    assert str(side) in (caught.value.got or "")


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_has_the_same_pixels_with_and_without_torchvision(tmp_path, mode, orientation, monkeypatch):
    import torchvision.io

    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3)).repeat(5, 0).repeat(5, 1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).convert(mode).save(path, quality=80, subsampling=orientation % 3, exif=exif)
    calls = []
    decode = torchvision.io.decode_jpeg
    monkeypatch.setattr(torchvision.io, "decode_jpeg", lambda *a, **k: calls.append(1) or decode(*a, **k))
    fast = read_image(tmp_path, "a.jpg")
    assert len(calls) == (mode != "CMYK") and fast.flags.c_contiguous
    monkeypatch.delitem(sys.modules, "torchvision.io")
    assert np.array_equal(fast, read_image(tmp_path, "a.jpg"))


def test_a_damaged_jpeg_is_said_in_one_way(tmp_path, monkeypatch):
    import torchvision.io  # noqa: F401

    Image.fromarray(gradient(200, 200)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    for cut in (20, 200, len(whole) // 2, len(whole) - 3):
        (tmp_path / "cut.jpg").write_bytes(whole[:cut])
        said = []
        for hide in (False, True):
            with monkeypatch.context() as patch:
                if hide:
                    patch.delitem(sys.modules, "torchvision.io")
                try:
                    said.append(read_image(tmp_path, "cut.jpg").tobytes())
                except DataError as e:
                    said.append(str(e))
        assert said[0] == said[1]


@pytest.mark.skipif(os.name == "nt", reason="a colon is no part of a name there")
def test_a_colon_in_a_name_makes_it_no_drive(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "1:2.png")
    assert read_image(tmp_path, "1:2.png").shape[:2] == (6, 8)
    with pytest.raises(DataError, match="absolute"):
        read_image(tmp_path, "C:\\x.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_reading_that_the_annotations_fit_is_used(tmp_path, orientation, suffix):
    """Stored 40 × 24: an entry of that size speaks of the stored image, one of the shown size of the turned one."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.kron(np.random.default_rng(0).integers(0, 255, (3, 5, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", exif=exif, **({"quality": 100} if suffix == "jpg" else {}))
    shown = read_image(tmp_path, f"a.{suffix}")
    stored = np.array(Image.open(tmp_path / f"a.{suffix}").convert("RGB"))
    sideways = orientation >= 5
    as_entry = read_image(tmp_path, f"a.{suffix}", size=(24, 40))
    assert np.abs(as_entry.astype(int) - (stored if sideways else shown)).max() <= 2
    assert np.array_equal(read_image(tmp_path, f"a.{suffix}", size=shown.shape[:2]), shown)
    assert np.array_equal(read_image(tmp_path, f"a.{suffix}", size=(7, 9)), shown)


def test_a_jpeg_is_read_where_torchvision_has_no_decoder_or_warns_and_warnings_are_errors(tmp_path, monkeypatch):
    import torchvision.io

    def deprecated(*_: object, **__: object) -> None:
        raise DeprecationWarning("decoding is deprecated since torchvision 0.29")

    Image.fromarray(gradient(60, 40)).save(tmp_path / "a.jpg")
    expected = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB"))
    monkeypatch.setattr(torchvision.io, "decode_jpeg", deprecated)
    assert np.array_equal(read_image(tmp_path, "a.jpg"), expected)
    monkeypatch.delattr(torchvision.io, "decode_jpeg")
    assert np.array_equal(read_image(tmp_path, "a.jpg"), expected)
