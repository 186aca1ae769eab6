"""A source of another tool written as COCO files: where somebody asks for it, or in the cache, for ``--data``."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskrcnn_coco.data.convert.document import Document
from maskrcnn_coco.data.convert.mask_images import Meaning
from maskrcnn_coco.data.convert.recognise import Source, convert
from maskrcnn_coco.records import to_json
from maskrcnn_coco.system.files import cache_folder, write_text
from maskrcnn_coco.wording import count

ABOUT, VERSION = "about.json", 2
"""What a kept conversion is of; another number makes all of them anew."""


@dataclass(frozen=True)
class Part:
    """One COCO file: ``name`` is "train", "val", "test", or "" where the source has no parts."""

    name: str
    path: Path
    document: Document
    plain: dict[str, Any]


def write_parts(
    source: Source, out: Path, *, images: Path | None = None, masks_are: Meaning | None = None
) -> list[Part]:
    """Convert and write; the training part, which comes first, at ``out``, others beside it.

    Raises:
        DataError: nothing becomes a mask. OSError: ``out`` cannot be written.
    """
    documents = convert(source, images=images, masks_are=masks_are)
    made = {part: (document, document.plain()) for part, document in documents.items() if document.images}
    if not made:
        made = {part: (document, document.plain()) for part, document in documents.items()}  # says why
    first = next((p for p in ("train", "") if p in made), next(iter(made)))
    parts = [
        Part(name, out if name == first else _beside(out, name), document, plain)
        for name, (document, plain) in made.items()
    ]
    for part in parts:
        part.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(part.path, to_json(part.plain))
    return sorted(parts, key=lambda p: p.name != first)


def _beside(out: Path, part: str) -> Path:
    stem = out.name.removesuffix(".json")
    name = stem.replace("train", part) if "train" in stem else f"{stem}_{part}"
    return out.with_name(f"{name}.json")


@dataclass(frozen=True)
class Kept:
    """A conversion in the cache: its COCO files, the folder of the images, and what was done, in sentences."""

    train: Path
    val: Path | None
    images: Path
    notes: list[str]


def keep(source: Source, path: Path, images: Path | None) -> Kept:
    """``source``, found at ``path``, as COCO in the cache; made again where one of its files is another one.

    Raises:
        DataError: nothing in it becomes a mask.
    """
    root = (images or source.root).absolute()
    folder = cache_folder("converted") / hashlib.sha256(f"{path.absolute()}:{root}".encode()).hexdigest()[:24]
    state = _state(source, path, root)
    about = _about(folder)
    if about.get("state") != state or not (folder / "train.json").is_file():
        parts = write_parts(source, folder / "train.json", images=images)
        val = next((p.path.name for p in parts[1:] if p.name == "val"), None)
        notes = [note for part in parts for note in part.document.notes()]
        objects = sum(len(p.plain["annotations"]) for p in parts)
        about = {"state": state, "val": val, "notes": notes, "objects": objects}
        write_text(folder / ABOUT, to_json(about))
    command = f"maskrcnn-coco convert {shlex.quote(str(path))} --out FILE.json"
    notes = [
        f"{path} is {source.title}: {count(int(about['objects']), 'object')} are read, as COCO in "
        f"{folder / 'train.json'}; {command} writes it where you like"
    ]
    val = about.get("val")
    return Kept(folder / "train.json", folder / val if val else None, root, [*notes, *about["notes"]])


def _about(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = isinstance(found, dict) and {"state", "val", "notes", "objects"} <= found.keys()
    return found if known else {}


def _state(source: Source, path: Path, root: Path) -> str:
    """Names, sizes and times of all files of the source."""
    digest = hashlib.sha256(f"{VERSION}:{source.kind}:{source.tool}:{root}".encode())
    for name, info in sorted(_files(source.root if path.is_dir() else path)):
        digest.update(f"{name}\0{info.st_size}\0{info.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _files(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    if path.is_file():
        yield str(path), path.stat()
        return
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            try:
                yield file, os.stat(file)
            except OSError:
                continue
