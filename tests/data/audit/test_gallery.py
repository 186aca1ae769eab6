"""The page shows each kind with pictures, holds nothing but what it shows, and hostile names stay text."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.audit.gallery import write_gallery
from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.wording import clean

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=y>{{ 7*7 }}\x1b[2J\u202e"


class Tags(HTMLParser):
    """Elements and attribute names in order, and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, tuple(name for name, _ in attrs)))
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def page(folder, name: str) -> str:
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    for n in ("a.png", "b.png"):
        Image.fromarray(pixels).save(folder / n)
    images = [
        {"id": 1, "file_name": "a.png", "height": 60, "width": 80},
        {"id": 2, "file_name": name, "height": 60, "width": 80},
    ]
    triangle = [[5, 5, 40, 5, 40, 40]]
    anns = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": 600, "iscrowd": 0, "segmentation": triangle}
        for i, box in enumerate([[5, 5, 35, -35], [900, 900, 5, 5], [1e300, 5, 35, 35]], 1)
    ]
    cats = [{"id": 1, "name": "x"}, {"id": 2, "name": name}, {"id": 3, "name": name}]
    (folder / "a.json").write_text(
        json.dumps({"images": images, "annotations": anns, "categories": cats}), encoding="utf-8"
    )
    table = load_coco(folder / "a.json", folder)
    write_gallery(table, audit(table), folder / "out.html")
    return (folder / "out.html").read_text(encoding="utf-8")


def test_each_kind_is_there_with_its_count_and_pictures(tmp_path):
    text = page(tmp_path / "x", "none.png")
    for words in ("BOX_INVERTED", "IMAGE_MISSING", "CATEGORY_NAME_DUPLICATE", "none.png", "data:image/jpeg;base64,"):
        assert words in text


def test_it_loads_nothing_and_forbids_scripts(tmp_path):
    text = page(tmp_path / "x", "none.png")
    assert "default-src 'none'" in text
    tags = Tags(text)
    assert "script" not in {t for t, _ in tags.seen}
    assert all(link.startswith(("data:image/", "#")) for link in tags.links)


def test_hostile_names_change_no_element(tmp_path):
    benign, hostile = page(tmp_path / "x", "none.png"), page(tmp_path / "y", HOSTILE)
    assert Tags(hostile).seen == Tags(benign).seen
    assert "&lt;script&gt;" in hostile and "{{ 7*7 }}" in hostile
    assert "\x1b" not in hostile and "\u202e" not in hostile


def test_clean_shows_what_a_terminal_would_obey():
    assert clean("a\x1b[31m\n\u202eé\xa0b") == "a\\u001b[31m \\u202eé b"
    assert clean("x" * 20, 5) == "xxxx…"
