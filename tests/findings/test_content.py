"""Outlines against the edges of their pictures: what boxes and masks, which agree, cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from silent.changes import Paired, thin
from silent.scene import Scene, write_coco

from maskrcnn_coco.data.audit.content import content_of_table
from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.findings.content import Picture, content_of, picture_of, score
from maskrcnn_coco.findings.facts import Content, Facts
from maskrcnn_coco.findings.judge import judge

Pictures = Callable[[np.ndarray], np.ndarray]


def pictures(change: Pictures = lambda i: i, count: int = 16, size: tuple[int, int] = (64, 96)) -> list[Picture]:
    scene = Scene(count, size=size)
    pairs = [scene.plain(n) for n in range(count)]
    return [picture_of(change(i.numpy()), t["masks"].numpy() != 0, n, n) for n, (i, t) in enumerate(pairs)]


def kinds(content: Content | None) -> list[str]:
    return [] if content is None else [f.detail["what"] for f in judge(Facts(contents=[content]))]


TURNED: dict[str, tuple[Pictures, tuple[int, int]]] = {
    "mirrored left to right": (lambda i: i[:, :, ::-1], (64, 96)),
    "mirrored top to bottom": (lambda i: i[:, ::-1], (64, 96)),
    "turned by half": (lambda i: i[:, ::-1, ::-1], (64, 96)),
    "x and y exchanged": (lambda i: i.transpose(0, 2, 1), (80, 80)),
    "turned to the right": (lambda i: np.rot90(i, -1, (1, 2)), (80, 80)),
    "turned to the left": (lambda i: np.rot90(i, 1, (1, 2)), (80, 80)),
    "exchanged and turned": (lambda i: i.transpose(0, 2, 1)[:, ::-1, ::-1], (80, 80)),
}


@pytest.mark.parametrize("name", TURNED)
def test_a_picture_that_was_turned_alone_is_named_by_its_turn(name: str) -> None:
    change, size = TURNED[name]
    assert kinds(content_of(pictures(change, size=size))) == [f"picture {name}"]


@pytest.mark.parametrize("size", [(64, 96), (80, 80), (32, 320)])
@pytest.mark.parametrize(
    "change",
    [lambda i: i, lambda i: 255 * i, lambda i: 1 - i, lambda i: 0.02 * i, lambda i: i.mean(0, keepdims=True)],
    ids=["as it is", "bright", "inverted", "dark", "grey"],
)
def test_pictures_that_belong_to_their_outlines_say_nothing(change: Pictures, size: tuple[int, int]) -> None:
    assert kinds(content_of(pictures(change, size=size))) == []


@pytest.mark.parametrize("level", [0.0, 0.5, 5.0])
def test_pictures_in_which_nothing_can_be_seen_say_nothing(level: float) -> None:
    """Noise as strong as the objects, ten times as strong, or nothing at all: it cannot be told, and is not."""
    noise = np.random.default_rng(0)
    plain = pictures(lambda i: 0 * i + level * noise.random(i.shape))
    assert kinds(content_of(plain)) == []


def test_a_fixed_camera_says_nothing() -> None:
    """All objects in one place: outlines fit every picture as well as their own."""
    scene = Scene(1)
    image, target = scene.plain(0)
    noise = np.random.default_rng(0)
    seen = [
        picture_of(image.numpy() + 0.05 * noise.random(image.shape), target["masks"].numpy() != 0, n, n)
        for n in range(12)
    ]
    assert kinds(content_of(seen)) == []


def test_a_part_is_named_and_counted() -> None:
    seen = pictures(count=20)
    turned = pictures(lambda i: i[:, :, ::-1], count=20)
    content = content_of([t if n % 2 else s for n, (s, t) in enumerate(zip(seen, turned, strict=True))])
    assert kinds(content) == ["part mirrored left to right"]
    assert content is not None and 5 <= content.parts["mirrored left to right"] <= 10


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 2.0])
def test_outlines_of_another_size_are_named_by_their_factor(factor: float) -> None:
    seen = [Picture(p.ranks, p.points * factor, p.image_id, p.index, p.sides) for p in pictures()]
    (kind,) = kinds(content_of(seen))
    assert abs(float(kind.rpartition(" ")[2]) * factor - 1) < 0.06


@pytest.mark.parametrize("step", [1, -1, 0])
def test_targets_of_another_item_are_named_by_the_way_there(step: int) -> None:
    data = Paired(step, 20)
    pairs = [data[n] for n in range(20)]
    content = content_of([picture_of(i.numpy(), t["masks"].numpy() != 0, n, n) for n, (i, t) in enumerate(pairs)])
    assert kinds(content) == ["other pictures"]
    assert content is not None and content.step == step


def test_too_few_pictures_say_nothing() -> None:
    assert content_of(pictures(lambda i: i[:, ::-1], count=7)) is None


def test_an_outline_at_random_scores_a_half_in_any_picture() -> None:
    (one, *_), points = pictures(), np.random.default_rng(0).random((20_000, 2))
    assert abs(score(one.ranks, points) - 0.5) < 0.02


def test_files_are_looked_at_as_they_are_read(tmp_path: Path) -> None:
    """A file of another size, with outlines to the size of its entry, fits: the sizes are a matter of their own."""
    data = write_coco(tmp_path, Scene(12))
    assert kinds(content_of_table(load_coco(data, tmp_path))) == []
    for path in tmp_path.glob("*.png"):
        Image.open(path).resize((192, 128)).save(path)
    assert kinds(content_of_table(load_coco(data, tmp_path))) == []
    for path in tmp_path.glob("*.png"):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    assert kinds(content_of_table(load_coco(data, tmp_path))) == ["picture mirrored left to right"]


def test_a_file_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    data = write_coco(tmp_path, Scene(12))
    (tmp_path / "003.png").write_bytes(b"no image")
    content = content_of_table(load_coco(data, tmp_path))
    assert content is not None and content.images == 11


def placed(place: Callable[[np.ndarray, np.ndarray], np.ndarray], size: tuple[int, int] = (64, 96)) -> list[Picture]:
    """Outlines of the built-in pictures, ``place`` (points in pixels, sides) says where their numbers are."""
    seen = pictures(size=size)
    sides = [np.array(p.sides) for p in seen]
    return [
        Picture(p.ranks, place(p.points * s, s) / s, p.image_id, p.index, p.sides)
        for p, s in zip(seen, sides, strict=True)
    ]


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ((10, 8), "10 pixels left and 8 pixels up"),
        ((-14, 0), "14 pixels right"),
        ((0, 12), "12 pixels up"),
        ((-9, 9), "9 pixels right and 9 pixels up"),
    ],
)
def test_outlines_that_lie_beside_their_objects_are_named_by_the_way_back(way: tuple[int, int], words: str) -> None:
    content = content_of(placed(lambda p, _: p + way))
    (kind,) = kinds(content)
    assert kind == f"picture moved about {words}"
    assert content is not None and "margin" in judge(Facts(contents=[content]))[0].fix


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (lambda p, s: 640 * p / s, "read in pictures of 640 × 640"),
        (lambda p, s: p * s / s.max(), "read in shares of the longer side"),
        (lambda p, s: (p + (s.max() - s) / 2) * 512 / s.max(), "read in pictures padded to 512 × 512"),
    ],
)
def test_numbers_of_stretched_shrunk_and_padded_pictures_are_named(
    place: Callable[[np.ndarray, np.ndarray], np.ndarray], words: str
) -> None:
    assert kinds(content_of(placed(place))) == [f"picture {words}"]


def test_pictures_of_many_sizes_that_were_shrunk_alike_are_named_by_that_size() -> None:
    seen = [p for size in ((64, 96), (96, 64), (48, 120)) for p in placed(lambda p, s: p * 640 / s.max(), size)[:6]]
    assert kinds(content_of(seen)) == ["picture read in pictures whose longer side is 640"]


def test_thin_lines_within_objects_are_not_said_to_lie_elsewhere() -> None:
    """Cracks, wires: no edge lies under their masks, and several ways lead to one; that proves nothing."""
    pairs = [thin(*Scene(24).plain(n)) for n in range(24)]
    assert (
        kinds(content_of([picture_of(i.numpy(), t["masks"].numpy() != 0, n, n) for n, (i, t) in enumerate(pairs)]))
        == []
    )
