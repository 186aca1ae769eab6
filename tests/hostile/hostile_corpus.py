"""Curated hostile inputs: each names the finding, or the words of the DataError, that it must lead to."""

from __future__ import annotations

import copy
import gzip
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

HEIGHT, WIDTH = 24, 32
SQUARE = [4, 4, 14, 4, 14, 14, 4, 14]
REFUSED = "DataError: "


@dataclass(frozen=True)
class Case:
    """``expect``: a finding's code, or `REFUSED` + a word of the message; "" for an input that is fine."""

    name: str
    text: bytes | Callable[[Path], None]
    expect: str
    setup: Callable[[Path], None] | None = None


def document() -> dict[str, Any]:
    """Three images, two categories, three sound annotations."""
    anns = [
        {
            "id": i,
            "image_id": i,
            "category_id": 1 + i % 2,
            "bbox": [4, 4, 10, 10],
            "area": 100,
            "iscrowd": 0,
            "segmentation": [SQUARE],
        }
        for i in (1, 2, 3)
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2, 3)]
    return {"images": images, "annotations": anns, "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}


def text_of(value: object) -> bytes:
    """JSON text; a str that starts with "§" stands for the literal after it."""
    out = json.dumps(value)
    while '"\\u00a7' in out:
        start = out.index('"\\u00a7')
        stop = out.index('"', start + 7)
        out = out[:start] + out[start + 7 : stop] + out[stop + 1 :]
    return out.encode("utf-8", "surrogatepass")


def draw_images(folder: Path) -> None:
    """The images of `document`."""
    for i in (1, 2, 3):
        image = Image.new("RGB", (WIDTH, HEIGHT), (10 * i, 20, 30))
        image.putpixel((i, i), (255, 255, 255))
        image.save(folder / f"{i}.png")


def with_annotation(**changes: object) -> bytes:
    """The document with the second annotation changed; a value of ... removes the field."""
    doc = document()
    for name, value in changes.items():
        if value is ...:
            del doc["annotations"][1][name]
        else:
            doc["annotations"][1][name] = value
    return text_of(doc)


def with_image(**changes: object) -> bytes:
    doc = document()
    for name, value in changes.items():
        if value is ...:
            del doc["images"][1][name]
        else:
            doc["images"][1][name] = value
    return text_of(doc)


def with_top(**changes: object) -> bytes:
    doc = document()
    for name, value in changes.items():
        if value is ...:
            del doc[name]
        else:
            doc[name] = value
    return text_of(doc)


def deep(n: int, left: bytes = b"[", right: bytes = b"]") -> bytes:
    return left * n + right * n


def files() -> Iterator[Case]:
    """What the file itself is."""
    good = text_of(document())
    refused = {
        "empty": (b"", "empty"),
        "blank": (b" \n\t ", "not a COCO"),
        "null": (b"null", "not a COCO"),
        "number": (b"1e400", "not a COCO"),
        "text": (b'"images"', "not a COCO"),
        "results list": (b'[{"image_id": 1, "score": 0.5}]', "JSON list"),
        "empty list": (b"[]", "JSON list"),
        "png": (b"\x89PNG\r\n\x1a\n" + bytes(50), "not a COCO"),
        "pickle": (b"\x80\x04\x95cposix\nsystem\n.", "not a COCO"),
        "html": (b"<!doctype html><script>alert(1)</script>", "not a COCO"),
        "yaml": (b"images:\n- id: 1\n", "not a COCO"),
        "zip": (b"PK\x03\x04" + bytes(40), "not a COCO"),
        "nul bytes": (bytes(5000), "not a COCO"),
        "bom only": (b"\xef\xbb\xbf", "not a COCO"),
        "open brace": (b"{", "not valid JSON"),
        "empty object": (b"{}", "no `images`"),
        "cut in half": (good[: len(good) // 2], "not valid JSON"),
        "cut at the end": (good[:-1], "not valid JSON"),
        "two documents": (good + good, "not valid JSON"),
        "comment": (b"{/* */" + good[1:], "not valid JSON"),
        "single quotes": (good.replace(b'"', b"'"), "not valid JSON"),
        "trailing comma": (good[:-1] + b",}", "not valid JSON"),
        "nul inside": (good.replace(b"cat", b"c\0t"), "not valid JSON"),
        "NaN misspelt": (good.replace(b"100", b"nan"), "not valid JSON"),
        "leading zeros": (good.replace(b"100", b"0100"), "not valid JSON"),
        "broken UTF-16": (b"\xff\xfe" + b"{\x00\x00\xd8", "UTF-16"),
        "gzip cut": (gzip.compress(good)[:-9], "gzip"),
        "gzip garbage": (b"\x1f\x8b" + bytes(range(200)), "gzip"),
        "gzip of a list": (gzip.compress(b"[]"), "JSON list"),
        "gzip of gzip": (gzip.compress(gzip.compress(good)), "not a COCO"),
        "gzip bomb": (gzip.compress(b'{"a":"' + b"a" * (80 << 20), 9), "unpacks"),
        "deep info": (b'{"info":' + deep(100_000) + b"," + good[1:], "deep"),
        "deep object": (b'{"info":' + deep(50_000, b'{"a":', b"}").replace(b":}", b":1}") + b"," + good[1:], "deep"),
        "deep, never closed": (b'{"info":' + b"[" * 500_000, "deep"),
        "deep segmentation": (good.replace(b"[[4", deep(1)[:1] * 60_000 + b"[[4", 1), "deep"),
        "deep bbox": (good.replace(b"[4, 4, 10, 10]", deep(60_000), 1), "deep"),
        "info is cut": (b'{"info": {"a": [1, 2', "not valid JSON"),
    }
    for name, (text, word) in refused.items():
        yield Case(f"file: {name}", text, REFUSED + word)
    fine = {
        "bom": b"\xef\xbb\xbf" + good,
        "gzip": gzip.compress(good),
        "utf-16": good.decode().encode("utf-16"),
        "gzip with bom": gzip.compress(b"\xef\xbb\xbf" + good),
        "leading blank": b"\n" * 100 + good,
        "unknown fields": with_top(info={"NaN": "Infinity"}, extra=[1, None, {"x": "NaN"}]),
        "NaN in a name": with_top(info={"description": 'say "NaN", then [NaN, Infinity]'}),
        "NaN in info": with_top(info={"version": "§NaN", "x": ["§-Infinity"]}),
    }
    for name, text in fine.items():
        yield Case(f"file: {name}", text, "")


def tops() -> Iterator[Case]:
    """The three lists, missing or something else."""
    for name in ("images", "categories"):
        yield Case(f"top: no {name}", with_top(**{name: ...}), f"{REFUSED}no `{name}`")
        yield Case(f"top: {name} null", with_top(**{name: None}), f"{REFUSED}no `{name}`")
        yield Case(f"top: {name} empty", with_top(**{name: []}), f"{REFUSED}no {name}")
    for name in ("images", "categories", "annotations"):
        for label, value in (("object", {"1": {}}), ("text", "x"), ("number", 3), ("true", True)):
            yield Case(f"top: {name} is {label}", with_top(**{name: value}), f"{REFUSED}not a list")
    yield Case("top: no annotations", with_top(annotations=...), "NO_ANNOTATIONS")
    yield Case("top: annotations empty", with_top(annotations=[]), "NO_ANNOTATIONS")
    for label, entry in (("null", None), ("number", 7), ("text", "x"), ("list", []), ("nested", [[[]]])):
        doc = document()
        yield Case(f"entry: image {label}", with_top(images=[*doc["images"], entry]), "IMAGE_ENTRY_BAD")
        yield Case(f"entry: annotation {label}", with_top(annotations=[*doc["annotations"], entry]), "ANN_ENTRY_BAD")
        yield Case(f"entry: category {label}", with_top(categories=[*doc["categories"], entry]), "CATEGORY_BAD")
    twice = text_of(document())[:-1] + b', "images": []}'
    yield Case("top: images twice", twice, f"{REFUSED}no images")


def boxes() -> Iterator[Case]:
    """Boxes that no training should see."""
    for at in (0, 2):
        for value, code in (
            ("§NaN", "BOX_NONFINITE"),
            ("§Infinity", "BOX_NONFINITE"),
            ("§-Infinity", "BOX_NONFINITE"),
            ("§1e400", "BOX_NONFINITE"),
            ("§-1e400", "BOX_NONFINITE"),
            ("§" + "9" * 5000, "BOX_MALFORMED"),
            ("nan", "BOX_NONFINITE"),
            ("4", "BOX_STRING"),
            ("four", "BOX_NONFINITE"),
            ("", "BOX_NONFINITE"),
            (None, "BOX_NONFINITE"),
            (True, "BOX_NONFINITE"),
            ([4], "BOX_NONFINITE"),
            ({"x": 4}, "BOX_NONFINITE"),
        ):
            box: list[object] = [4, 4, 10, 10]
            box[at] = value
            yield Case(f"box: {str(value)[:12]} at {at}", with_annotation(bbox=box), code)
    for label, value, code in (
        ("missing", ..., "BOX_MISSING"),
        ("null", None, "BOX_MISSING"),
        ("text", "4,4,10,10", "BOX_FORM"),
        ("object", {"x": 4, "y": 4}, "BOX_MALFORMED"),
        ("empty", [], "BOX_MALFORMED"),
        ("three", [4, 4, 10], "BOX_MALFORMED"),
        ("five", [4, 4, 10, 10, 1], "BOX_MALFORMED"),
        ("a million", [1] * 100_000, "BOX_MALFORMED"),
        ("inverted", [14, 14, -10, -10], "BOX_INVERTED"),
        ("negative zero", [4, 4, -0.0, 10], "BOX_EMPTY"),
        ("empty width", [4, 4, 0, 10], "BOX_EMPTY"),
        ("thin", [4, 4, 0.25, 10], "BOX_TINY"),
        ("denormal", [4, 4, 5e-324, 10], "BOX_TINY"),
        ("negative start", [-3, 4, 10, 10], "BOX_PARTLY_OUTSIDE"),
        ("beyond", [4, 4, 40, 10], "BOX_PARTLY_OUTSIDE"),
        ("outside", [100, 4, 10, 10], "BOX_OUTSIDE"),
        ("left of it", [-100, 4, 10, 10], "BOX_OUTSIDE"),
        ("65535", [4, 4, 65535, 10], "BOX_FAR"),
        ("1e308", [1e308, 1e308, 1e308, 1e308], "BOX_OUTSIDE"),
        ("-1e308", [-1e308, 4, 1e308, 10], "BOX_OUTSIDE"),
        ("1e308 wide", [4, 4, 1e308, 1e308], "BOX_FAR"),
        ("elsewhere", [20, 15, 8, 8], "MASK_BOX_DISAGREE"),
    ):
        yield Case(f"box: {label}", with_annotation(bbox=value), code)
    doc = document()
    for i, ann in enumerate(doc["annotations"] * 3):
        doc["annotations"][i % 3] = ann
    many = [dict(a, id=i, bbox=[12 + i % 3, 12, 28, 22]) for i, a in enumerate(document()["annotations"] * 5)]
    yield Case("box: xyxy", with_top(annotations=many), "BOX_XYXY")


def numbers() -> Iterator[Case]:
    """Ids, labels and flags that are not what they should be."""
    for value, code in (
        ("2", "ID_STRING"),
        (2.0, ""),
        (2.5, "ANN_ID_BAD"),
        (None, "ANN_ID_BAD"),
        (..., "ANN_ID_BAD"),
        (True, "ANN_ID_BAD"),
        ([], "ANN_ID_BAD"),
        ("§1e400", "ANN_ID_BAD"),
        ("§NaN", "ANN_ID_BAD"),
        (2**63, "ANN_ID_BAD"),
        (2**64, "ANN_ID_BAD"),
        (-(2**63) - 1, "ANN_ID_BAD"),
        ("§" + "1" * 5000, "ANN_ID_BAD"),
        (1, "ANN_ID_DUPLICATE"),
        (-5, ""),
        (2**53 + 1, ""),
    ):
        yield Case(f"annotation id: {str(value)[:12]}", with_annotation(id=value), code)
    for value in (99, -1, None, ..., 2.5, "two", "§NaN", 2**63, 2**70, []):
        yield Case(f"image_id: {str(value)[:12]}", with_annotation(image_id=value), "ANN_IMAGE_UNKNOWN")
        yield Case(f"category_id: {str(value)[:12]}", with_annotation(category_id=value), "LABEL_UNKNOWN")
    yield Case("category_id: text", with_annotation(category_id="2"), "ID_STRING")
    yield Case("category_id: 0", with_annotation(category_id=0), "LABEL_UNKNOWN")
    for value, code in (
        (2, "ISCROWD_BAD"),
        ("yes", "ISCROWD_BAD"),
        (None, ""),
        (True, ""),
        ("1", ""),
        ([], "ISCROWD_BAD"),
    ):
        yield Case(f"iscrowd: {value}", with_annotation(iscrowd=value), code)
    for value, code in (
        ("§NaN", "AREA_BAD"),
        ("§1e400", "AREA_BAD"),
        ("100", "AREA_BAD"),
        ("big", "AREA_BAD"),
        ([], "AREA_BAD"),
        (-1, "MASK_AREA_DISAGREE"),
        (1e308, "MASK_AREA_DISAGREE"),
        (..., "AREA_MISSING"),
    ):
        yield Case(f"area: {value}", with_annotation(area=value), code)


def polygons() -> Iterator[Case]:
    """Polygons and things in their place."""
    zigzag = [v for i in range(4000) for v in (i % 2 * 200 - 80, i % 24)] * 10
    for label, value, code in (
        ("missing", ..., "SEGMENTATION_MISSING"),
        ("null", None, "SEGMENTATION_MISSING"),
        ("empty", [], "SEGMENTATION_MISSING"),
        ("empty part", [[]], "POLYGON_SHORT"),
        ("text", "4,4,14,4", "SEGMENTATION_BAD"),
        ("number", 7, "SEGMENTATION_BAD"),
        ("true", True, "SEGMENTATION_BAD"),
        ("flat list", SQUARE, "POLYGON_FORM"),
        ("list of text", ["4,4"], "SEGMENTATION_BAD"),
        ("list of null", [None], "SEGMENTATION_BAD"),
        ("list of objects", [{"x": 1}], "SEGMENTATION_BAD"),
        ("points as pairs", [[[4, 4], [14, 4], [14, 14]]], "POLYGON_FORM"),
        ("one point", [[4, 4]], "POLYGON_SHORT"),
        ("two points, a box to pycocotools", [[4, 4, 10, 10]], "POLYGON_SHORT"),
        ("a short part", [SQUARE, [1, 1, 2, 2]], "POLYGON_PART_SHORT"),
        ("odd", [[*SQUARE, 4]], "POLYGON_ODD"),
        ("one number", [[4]], "POLYGON_ODD"),
        ("NaN", [["§NaN", *SQUARE[1:]]], "POLYGON_NONFINITE"),
        ("Infinity", [[*SQUARE[:-1], "§Infinity"]], "POLYGON_NONFINITE"),
        ("1e400", [["§1e400", *SQUARE[1:]]], "POLYGON_NONFINITE"),
        ("5000 digits", [["§" + "9" * 5000, *SQUARE[1:]]], "POLYGON_NONFINITE"),
        ("text number", [["4", *SQUARE[1:]]], "SEGMENTATION_FORM"),
        ("null number", [[None, *SQUARE[1:]]], "POLYGON_NONFINITE"),
        ("true number", [[True, *SQUARE[1:]]], "POLYGON_NONFINITE"),
        ("1e9", [[1e9, *SQUARE[1:]]], "POLYGON_FAR"),
        ("-1e9", [[-1e9, *SQUARE[1:]]], "POLYGON_FAR"),
        ("1e308", [[1e308, -1e308, -1e308, 1e308, 1e308, 1e308]], "POLYGON_FAR"),
        ("2 to the 31", [[2**31, 2**31, *SQUARE]], "POLYGON_FAR"),
        ("over the border", [[4, 4, 40, 4, 40, 14, 4, 14]], "POLYGON_OUTSIDE"),
        ("outside", [[50, 50, 60, 50, 60, 60]], "MASK_EMPTY"),
        ("a point thrice", [[4, 4, 4, 4, 4, 4]], "MASK_EMPTY"),
        ("between pixels", [[4.1, 4.1, 4.2, 4.1, 4.2, 4.2]], "MASK_EMPTY"),
        ("bow tie", [[4, 4, 14, 14, 14, 4, 4, 14]], "POLYGON_CROSSING"),
        ("two parts", [SQUARE, [20, 4, 24, 4, 24, 8, 20, 8]], "POLYGON_MULTIPART"),
        ("endless zigzag", [zigzag * 4], "POLYGON_LONG"),
        ("100,000 points", [[v for i in range(100_000) for v in (4 + i % 10, 4 + i % 9)]], ""),
        ("20,000 parts", [SQUARE] * 20_000, ""),
        ("100,000 empty parts", [SQUARE, *([[]] * 100_000)], "POLYGON_PART_SHORT"),
        ("denormals", [[5e-324, 0, 5e-324, 5e-324, 0, 5e-324]], "MASK_EMPTY"),
        ("another mask", [[20, 16, 30, 16, 30, 22, 20, 22]], "MASK_BOX_DISAGREE"),
    ):
        yield Case(f"polygon: {label}", with_annotation(segmentation=value), code)
    doc = document()
    for ann in doc["annotations"]:
        del ann["segmentation"]
    yield Case("polygon: none at all", text_of(doc), "NO_MASKS")
    doc = document()
    for ann in doc["annotations"]:
        ann.update(segmentation=[[4, 4, 14, 4, 14, 14]], area=100)
    yield Case("area: of the box", text_of(doc), "AREA_IS_BOX")


def rles() -> Iterator[Case]:
    """RLE, compressed and not."""
    size, pixels = [HEIGHT, WIDTH], HEIGHT * WIDTH
    good = [100, 100, pixels - 200]
    for label, rle, code in (
        ("no counts", {"size": size}, "RLE_BAD"),
        ("no size", {"counts": good}, "SEGMENTATION_FORM"),
        ("empty object", {}, "SEGMENTATION_BAD"),
        ("size null", {"size": None, "counts": good}, "SEGMENTATION_FORM"),
        ("size text", {"size": "24x32", "counts": good}, "RLE_SIZE"),
        ("size swapped", {"size": size[::-1], "counts": good}, "RLE_SIZE"),
        ("size zero", {"size": [0, 0], "counts": []}, "RLE_SIZE"),
        ("size negative", {"size": [-24, -32], "counts": good}, "RLE_SIZE"),
        ("size 2**33", {"size": [2**33, 2**33], "counts": [2**66]}, "RLE_SIZE"),
        ("size 2**20", {"size": [2**20, 2**20], "counts": [2**40]}, "RLE_SIZE"),
        ("size of three", {"size": [24, 32, 1], "counts": good}, "RLE_SIZE"),
        ("size nested", {"size": [[24], [32]], "counts": good}, "RLE_SIZE"),
        ("size NaN", {"size": ["§NaN", 32], "counts": good}, "RLE_SIZE"),
        ("counts null", {"size": size, "counts": None}, "RLE_BAD"),
        ("counts number", {"size": size, "counts": pixels}, "RLE_BAD"),
        ("counts empty", {"size": size, "counts": []}, "RLE_SUM"),
        ("counts empty text", {"size": size, "counts": ""}, "RLE_BAD"),
        ("sum short", {"size": size, "counts": [100, 100]}, "RLE_SUM"),
        ("sum long", {"size": size, "counts": [100, pixels]}, "RLE_SUM"),
        ("run 2**31", {"size": size, "counts": [2**31, 1]}, "RLE_BAD"),
        ("run 2**64", {"size": size, "counts": [2**64]}, "RLE_BAD"),
        ("run negative", {"size": size, "counts": [200, -100, pixels - 100]}, "RLE_BAD"),
        ("run NaN", {"size": size, "counts": ["§NaN"]}, "RLE_BAD"),
        ("run 1e400", {"size": size, "counts": ["§1e400"]}, "RLE_BAD"),
        ("run half", {"size": size, "counts": [0.5, pixels - 0.5]}, "RLE_BAD"),
        ("run text", {"size": size, "counts": ["100", pixels - 100]}, "RLE_BAD"),
        ("run true", {"size": size, "counts": [True, pixels - 1]}, "RLE_BAD"),
        ("run list", {"size": size, "counts": [[100], pixels - 100]}, "RLE_BAD"),
        ("zero runs", {"size": size, "counts": [0] * 200_000}, "RLE_BAD"),
        ("no foreground", {"size": size, "counts": [pixels]}, "MASK_EMPTY"),
        ("zero foreground", {"size": size, "counts": [5, 0, pixels - 5]}, "MASK_EMPTY"),
        ("good", {"size": size, "counts": good}, "RLE_NOT_CROWD"),
        ("text below the alphabet", {"size": size, "counts": "\x01\x02"}, "RLE_BAD"),
        ("text above the alphabet", {"size": size, "counts": "~~~"}, "RLE_BAD"),
        ("text not ASCII", {"size": size, "counts": "é中"}, "RLE_BAD"),
        ("text goes on", {"size": size, "counts": "ooo"}, "RLE_BAD"),
        ("text of 100,000", {"size": size, "counts": "0" * 100_000}, "RLE_BAD"),
        ("text of 64-bit runs", {"size": size, "counts": "ooooooooooooo0"}, "RLE_BAD"),
        ("text negative", {"size": size, "counts": "O0"}, "RLE_SUM"),
        ("text surrogate", {"size": size, "counts": "\ud800"}, "RLE_BAD"),
        ("counts object", {"size": size, "counts": {"0": 1}}, "RLE_BAD"),
    ):
        yield Case(f"rle: {label}", with_annotation(segmentation=rle), code)


def categories() -> Iterator[Case]:
    """Category entries."""
    for label, entry, code in (
        ("id null", {"id": None, "name": "x"}, "CATEGORY_BAD"),
        ("id text", {"id": "3", "name": "x"}, "ID_STRING"),
        ("id 1e400", {"id": "§1e400", "name": "x"}, "CATEGORY_BAD"),
        ("id 2**63", {"id": 2**63, "name": "x"}, "CATEGORY_ID_TEXT"),
        ("id twice", {"id": 1, "name": "x"}, "CATEGORY_ID_DUPLICATE"),
        ("id far", {"id": 2**40, "name": "x"}, "CATEGORY_GAP"),
        ("id 0", {"id": 0, "name": "x"}, "CATEGORY_ZERO"),
        ("id negative", {"id": -7, "name": "x"}, "CATEGORY_ZERO"),
        ("name null", {"id": 3, "name": None}, "CATEGORY_BAD"),
        ("name missing", {"id": 3}, "CATEGORY_BAD"),
        ("name number", {"id": 3, "name": 5}, "CATEGORY_BAD"),
        ("name twice", {"id": 3, "name": "cat"}, "CATEGORY_NAME_DUPLICATE"),
        ("name empty", {"id": 3, "name": ""}, "CATEGORY_UNUSED"),
        ("name markup", {"id": 3, "name": "<script>alert(1)</script>"}, "CATEGORY_UNUSED"),
        ("name escape", {"id": 3, "name": "\x1b[2J\x1b]0;x\x07"}, "CATEGORY_UNUSED"),
        ("name turned", {"id": 3, "name": "\u202egnp.exe"}, "CATEGORY_UNUSED"),
        ("name template", {"id": 3, "name": "{{ 7 * 7 }}{% for x in y %}"}, "CATEGORY_UNUSED"),
        ("name markup of rich", {"id": 3, "name": "[bold red][/]"}, "CATEGORY_UNUSED"),
        ("name surrogate", {"id": 3, "name": "\ud800"}, "CATEGORY_UNUSED"),
        ("name long", {"id": 3, "name": "x" * 1_000_000}, "CATEGORY_UNUSED"),
    ):
        yield Case(f"category: {label}", with_top(categories=[*document()["categories"], entry]), code)
    parent = [{"id": 0, "name": "pets", "supercategory": "none"}]
    parent += [dict(c, supercategory="pets") for c in document()["categories"]]
    yield Case("category: Roboflow's parent", with_top(categories=parent), "CATEGORY_PARENT")
    many = [{"id": i, "name": f"c{i}"} for i in range(1, 3000)]
    yield Case("category: 3000", with_top(categories=many), "CATEGORY_UNUSED")


def png(width: int, height: int, body: bytes = b"", *, bits: int = 8, kind: int = 2) -> bytes:
    """A PNG with this header, whatever its body."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def _write(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "x").write_bytes(data) and None


def _link(target: str) -> Callable[[Path], None]:
    return lambda folder: os.symlink(target, folder / "x")


def _outside(folder: Path) -> None:
    (folder.parent / "secret.png").write_bytes(png(WIDTH, HEIGHT, bytes((WIDTH * 3 + 1) * HEIGHT)))
    os.symlink(folder.parent / "secret.png", folder / "x")


def _saved(
    mode: str, suffix: str, *, orientation: int = 1, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Callable[[Path], None]:
    def setup(folder: Path) -> None:
        image = Image.new(mode, size)
        image.paste(200 if len(image.getbands()) == 1 else (200,) * len(image.getbands()), (3, 3, 12, 12))
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(folder / "x", format=suffix, exif=exif) if orientation != 1 else image.save(
            folder / "x", format=suffix
        )

    return setup


def _palette(ground: tuple[int, int, int], square: tuple[int, int, int]) -> Callable[[Path], None]:
    """A square of index 1 on ground of index 0; what is seen are the colours that the palette gives them."""

    def setup(folder: Path) -> None:
        image = Image.new("P", (WIDTH, HEIGHT))
        image.putpalette([*ground, *square])
        image.paste(1, (3, 3, 12, 12))
        image.save(folder / "x", format="PNG")

    return setup


def _cut(mode: str, suffix: str) -> Callable[[Path], None]:
    def setup(folder: Path) -> None:
        _saved(mode, suffix, size=(WIDTH, HEIGHT))(folder)
        data = (folder / "x").read_bytes()
        (folder / "x").write_bytes(data[: len(data) * 2 // 3])

    return setup


def images() -> Iterator[Case]:
    """File names and files."""
    for name in (
        "../secret.png",
        "a/../../secret.png",
        "..",
        "/etc/passwd",
        "C:\\x.png",
        "..\\secret.png",
        "\\\\host\\x",
    ):
        yield Case(f"name: {name}", with_image(file_name=name), "IMAGE_PATH")
    for name in ("http://host/x.png", "file:///etc/passwd", "a\0b.png", "/proc/self/environ"):
        yield Case(f"name: {name!r}", with_image(file_name=name), "IMAGE_PATH")
    for name in (
        "nothere.png",
        "2.png/x",
        "x" * 5000,
        "\ud800.png",
        "\x1b[31m.png",
        "<img src=x>",
        "./missing",
        "|ls",
        "~root",
    ):
        yield Case(f"name: {name[:20]!r}", with_image(file_name=name), "IMAGE_MISSING IMAGE_UNREADABLE IMAGE_PATH")
    for value in ("", None, 5, ["1.png"], ...):
        yield Case(f"file_name: {value}", with_image(file_name=value), "IMAGE_FILE_NAME_BAD IMAGE_PATH IMAGE_MISSING")
    yield Case("name: twice", with_image(file_name="1.png"), "IMAGE_NAME_DUPLICATE")
    for value, code in ((None, "IMAGE_ID_BAD"), (1.5, "IMAGE_ID_BAD"), ("§NaN", "IMAGE_ID_BAD"), ("2", "ID_STRING")):
        yield Case(f"image id: {value}", with_image(id=value), code)
    for value in (2**63, 2**80, "two"):
        yield Case(f"image id: {value}", with_image(id=value), "IMAGE_ID_TEXT")
    for value in (..., [], True):
        yield Case(f"image id: {value}", with_image(id=value), "IMAGE_ID_BAD")
    yield Case("image id: twice", with_image(id=1), "IMAGE_ID_DUPLICATE")
    for side in ("height", "width"):
        for value in (0, -5, None, ..., "24", 2.5, "§NaN", "§1e400", 2**31, 2**64, []):
            yield Case(f"{side}: {str(value)[:12]}", with_image(**{side: value}), "IMAGE_SIZE_INVALID IMAGE_SIZE_WRONG")
        yield Case(f"{side}: too large", with_image(**{side: 2**20}), "IMAGE_SIZE_WRONG")
    yield Case("size: both too large", with_image(height=2**20, width=2**20), "IMAGE_TOO_LARGE")
    at_x = with_image(file_name="x")
    for label, setup, code in (
        ("empty", _write(b""), "IMAGE_UNREADABLE"),
        ("text", _write(b"not an image"), "IMAGE_UNREADABLE"),
        ("json", _write(b"{}"), "IMAGE_UNREADABLE"),
        ("eps", _write(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n"), "IMAGE_UNREADABLE"),
        ("svg", _write(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), "IMAGE_UNREADABLE"),
        ("pdf", _write(b"%PDF-1.4\n%%EOF"), "IMAGE_UNREADABLE"),
        ("header only", _write(png(WIDTH, HEIGHT)[:40]), "IMAGE_UNREADABLE"),
        ("no pixels", _write(png(WIDTH, HEIGHT)), "IMAGE_UNREADABLE"),
        ("bomb 20000", _write(png(20_000, 20_000, bytes(60_000_000))), "IMAGE_TOO_LARGE IMAGE_UNREADABLE"),
        ("bomb 2**31", _write(png(2**31 - 1, 2**31 - 1)), "IMAGE_TOO_LARGE IMAGE_UNREADABLE"),
        ("bomb wide", _write(png(2**26, 2)), "IMAGE_TOO_LARGE IMAGE_UNREADABLE"),
        ("zero size", _write(png(0, 0)), "IMAGE_UNREADABLE IMAGE_SIZE_WRONG"),
        (
            "bad checksum",
            _write(png(WIDTH, HEIGHT, bytes(97 * HEIGHT))[:-20] + bytes(20)),
            "IMAGE_UNREADABLE IMAGE_CONSTANT",
        ),
        ("jpeg cut", _cut("RGB", "JPEG"), "IMAGE_UNREADABLE"),
        ("png cut", _cut("RGB", "PNG"), "IMAGE_UNREADABLE"),
        ("gif cut", _cut("P", "GIF"), "IMAGE_UNREADABLE IMAGE_CONSTANT"),
        ("tiff cut", _cut("RGB", "TIFF"), "IMAGE_UNREADABLE"),
        ("webp cut", _cut("RGB", "WEBP"), "IMAGE_UNREADABLE"),
        ("constant", _write(png(WIDTH, HEIGHT, bytes((WIDTH * 3 + 1) * HEIGHT))), "IMAGE_CONSTANT"),
        ("16 bit", _saved("I;16", "PNG"), "IMAGE_16BIT"),
        ("32 bit float", _saved("F", "TIFF"), "IMAGE_16BIT"),
        ("grey", _saved("L", "PNG"), ""),
        ("rgba", _saved("RGBA", "PNG"), ""),
        ("grey alpha", _saved("LA", "PNG"), ""),
        ("palette", _palette((0, 0, 0), (200, 40, 90)), ""),
        ("palette of grey", _palette((0, 0, 0), (200, 200, 200)), ""),
        ("palette of one colour", _palette((9, 9, 9), (9, 9, 9)), "IMAGE_CONSTANT"),
        ("one bit", _saved("1", "PNG"), ""),
        ("cmyk", _saved("CMYK", "JPEG"), ""),
        ("other size", _saved("RGB", "PNG", size=(31, 24)), "IMAGE_SIZE_WRONG"),
        ("turned, as stored", _saved("RGB", "JPEG", orientation=6), "IMAGE_EXIF_MISMATCH"),
        ("turned, as shown", _saved("RGB", "JPEG", orientation=8, size=(HEIGHT, WIDTH)), "IMAGE_EXIF_ROTATED"),
        ("mirrored", _saved("RGB", "JPEG", orientation=2), "IMAGE_EXIF_ROTATED"),
        ("orientation 99", _saved("RGB", "JPEG", orientation=99), ""),
        ("folder", lambda f: (f / "x").mkdir(), "IMAGE_UNREADABLE"),
        ("fifo", lambda f: os.mkfifo(f / "x"), "IMAGE_UNREADABLE"),
        ("link out", _outside, "IMAGE_PATH"),
        ("link to a device", _link("/dev/zero"), "IMAGE_PATH"),
        ("link to itself", _link("x"), "IMAGE_MISSING IMAGE_PATH IMAGE_UNREADABLE"),
        ("link to nothing", _link("gone.png"), "IMAGE_MISSING"),
        ("same bytes", lambda f: (f / "x").write_bytes((f / "1.png").read_bytes()) and None, "IMAGE_DUPLICATE"),
    ):
        yield Case(f"image: {label}", at_x, code, setup)


def paths() -> Iterator[Case]:
    """The annotation file is something else than a file."""
    yield Case("path: missing", lambda p: None, REFUSED + "No such file")
    yield Case("path: folder", lambda p: p.mkdir(), REFUSED)
    yield Case("path: fifo", lambda p: os.mkfifo(p), REFUSED + "regular")
    yield Case("path: device", lambda p: os.symlink("/dev/zero", p), REFUSED + "regular")
    yield Case("path: link to itself", lambda p: os.symlink(p.name, p), REFUSED)
    yield Case("path: sparse terabyte", lambda p: _sparse(p), REFUSED)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b'{"images": [')
        file.truncate(2**40)


def combined() -> Iterator[Case]:
    """Several faults at once, and the same twice."""
    doc = document()
    doc["annotations"].append(copy.deepcopy(doc["annotations"][0]) | {"id": 9})
    yield Case("twice: annotation", text_of(doc), "ANN_DUPLICATE")
    doc = document()
    doc["images"].append(copy.deepcopy(doc["images"][0]))
    yield Case("twice: image entry", text_of(doc), "IMAGE_ENTRY_REPEATED")
    doc = document()
    doc["annotations"][0]["bbox"] = ["§NaN"] * 4
    doc["annotations"][1]["segmentation"] = [[1, 2, 3]]
    doc["annotations"][2]["category_id"] = 77
    yield Case("all bad, each its own way", text_of(doc), "BOX_NONFINITE")
    doc = document()
    doc["annotations"] = [{} for _ in range(50)]
    yield Case("fifty empty objects", text_of(doc), "BOX_MISSING")
    doc = document()
    doc["annotations"] = [dict(doc["annotations"][0], id=i, bbox=[i % 9, 4, 10, 10]) for i in range(2000)]
    yield Case("2000 objects in one image", text_of(doc), "IMAGES_EMPTY")


def cases() -> list[Case]:
    """All of them, in order."""
    groups = (files, tops, boxes, numbers, polygons, rles, categories, images, paths, combined)
    return [case for group in groups for case in group()]
