"""YOLO segmentation: a text an image, a line an object: class number, then x and y of corners as shares of the size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskrcnn_coco.data.convert.document import Document
from maskrcnn_coco.data.convert.reading import read_text, shown
from maskrcnn_coco.data.file_names import IMAGE_SUFFIXES
from maskrcnn_coco.errors import DataError

_PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}


def yaml_of(folder: Path) -> Path | None:
    """The yaml that names the classes of a YOLO set."""
    return next((p for p in shown([*folder.glob("*.yaml"), *folder.glob("*.yml")]) if _names(p) is not None), None)


def label_folders(folder: Path) -> list[Path]:
    """Folders of label texts: ``labels`` itself, or the folders in it, beside folders of images of the same names."""
    found = []
    for labels in sorted(p for p in folder.glob("**/labels") if p.is_dir() and len(p.relative_to(folder).parts) <= 3):
        inside = [labels, *sorted(p for p in labels.iterdir() if p.is_dir())]
        found += [p for p in inside if any(p.glob("*.txt")) and _images_of(p).is_dir()]
    return found


def _images_of(labels: Path) -> Path:
    """``…/labels/train`` → ``…/images/train``, as the trainer itself finds them."""
    parts = list(labels.parts)
    at = len(parts) - 1 - parts[::-1].index("labels")
    return Path(*parts[:at], "images", *parts[at + 1 :])


def _names(path: Path) -> list[str] | None:
    import yaml

    try:
        value = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, DataError):
        return None
    names: Any = value.get("names") if isinstance(value, dict) else None
    if isinstance(names, dict):
        return [str(names[k]) for k in sorted(names)] if all(isinstance(k, int) for k in names) else None
    return [str(n) for n in names] if isinstance(names, list) else None


def _listed(folder: Path) -> list[str] | None:
    """The names in ``classes.txt`` or ``obj.names``, a line each, as LabelImg and Label Studio write them."""
    places = (folder, *(p.parent for p in label_folders(folder)), *label_folders(folder))
    path = next((p / n for p in places for n in ("classes.txt", "obj.names") if (p / n).is_file()), None)
    if path is None:
        return None
    return [line.strip() for line in read_text(path).splitlines() if line.strip()] or None


def convert_yolo(folder: Path) -> dict[str, Document]:
    """Part ("train", "val", "test", or "" where the set has none) → its document."""
    path = yaml_of(folder)
    names = _names(path) if path is not None else _listed(folder)
    documents: dict[str, Document] = {}
    for labels in label_folders(folder):
        part = _part(labels.relative_to(folder))
        document = documents.setdefault(part, Document(folder, names))
        images = shown(p for p in _images_of(labels).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        for image in images:
            _add(document, image, labels / f"{image.stem}.txt", names)
    for document in documents.values():
        _say_numbers(document, names)
    return documents


def _say_numbers(document: Document, names: list[str] | None) -> None:
    """What is told of class numbers that have no name, and of names that no number has."""
    found = {o["name"] for o in document.objects}
    beyond = sorted(n for n in found if n.startswith(_NO_NAME) and n not in (names or ()))
    if not beyond:
        return
    if names is None:
        document.said = (
            f"no file names the classes (data.yaml, or classes.txt): they are called {beyond[0]!r} and so on"
        )
        return
    says = f"the class numbers go beyond the {len(names)} names: {', '.join(map(repr, beyond[:3]))}"
    if names[0] not in found and beyond == [f"{_NO_NAME}{len(names)}"]:
        says += f"; none is 0 ({names[0]!r}): they seem to count from 1, and each has the name of the next class"
    document.said = says


_NO_NAME = "class "
_SHARES = 1.5
"""A coordinate beyond this is none of 0 to 1: outlines may lie a little outside, not this far."""


def _part(path: Path) -> str:
    words = [p.lower() for p in path.parts]
    return next((part for part, known in _PARTS.items() if any(w in known for w in words)), "")


def _add(document: Document, image: Path, labels: Path, names: list[str] | None) -> None:
    image_id = document.add_image(image)
    if image_id is None or not labels.is_file():  # no text: an image without objects
        return
    entry = document.images[image_id - 1]
    for line in read_text(labels).splitlines():
        words = line.split()
        if not words:
            continue
        try:
            number, values = int(float(words[0])), [float(w) for w in words[1:]]
        except ValueError:
            document.skip("lines that are no numbers")
            continue
        if len(values) == 4:
            document.skip("lines that are boxes, not outlines: a box is no mask")
            continue
        if len(values) % 2 or len(values) < 6:
            document.skip("lines of fewer than 3 points, or of half a point")
            continue
        if max(map(abs, values)) > _SHARES:
            document.skip("lines in pixels: YOLO's are shares of the width and height, 0 to 1; divide them")
            continue
        name = names[number] if names is not None and 0 <= number < len(names) else f"{_NO_NAME}{number}"
        points = [(x * entry["width"], y * entry["height"]) for x, y in zip(values[0::2], values[1::2], strict=True)]
        document.add_polygons(image_id, name, [points])
