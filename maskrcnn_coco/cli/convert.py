"""``convert``: what another tool wrote, as COCO."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from maskrcnn_coco.data.convert.mask_images import Meaning
from maskrcnn_coco.data.convert.recognise import Kind, Source, chosen
from maskrcnn_coco.data.convert.written import Part, write_parts
from maskrcnn_coco.data.layouts import find_data
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.wording import clean, count


def convert_source(
    path: Path, out: Path, *, kind: Kind | None = None, images: Path | None = None, masks_are: Meaning | None = None
) -> dict[str, Any]:
    """Convert and write; the training part at ``out``, others beside it. What was done, as plain values.

    Raises:
        DataError: nothing there that is known, or nothing that becomes a mask. OSError: ``out`` cannot be written.
    """
    try:
        source = chosen(path, kind)
    except DataError as e:
        if path.exists() and _is_coco(path):
            command = shlex.join(["maskrcnn-coco", "check", "--data", str(path)])
            raise DataError(f"{clean(path)} is COCO already: there is nothing to convert", fix=command) from e
        raise
    parts = write_parts(source, out, images=images, masks_are=masks_are)
    return {
        "source": str(path),
        "kind": source.kind,
        "title": source.title,
        "parts": [_summary(part) for part in parts],
        "next": _next(source, parts, images),
    }


def _is_coco(path: Path) -> bool:
    try:
        find_data(path)
    except DataError:
        return False
    return True


def _summary(part: Part) -> dict[str, Any]:
    objects = {c["name"]: 0 for c in part.plain["categories"]}
    names = {c["id"]: c["name"] for c in part.plain["categories"]}
    for annotation in part.plain["annotations"]:
        objects[names[annotation["category_id"]]] += 1
    return {
        "part": part.name or "all",
        "file": str(part.path),
        "images": len(part.plain["images"]),
        "objects": objects,
        "notes": part.document.notes(),
    }


def _next(source: Source, parts: list[Part], images: Path | None) -> str:
    where = images or source.root
    words = ["maskrcnn-coco", "check", "--data", str(parts[0].path), "--images", str(where)]
    val = next((p for p in parts[1:] if p.name == "val"), None)
    if val is not None:
        words += ["--val", str(val.path), "--val-images", str(where)]
    return shlex.join(words)


def print_summary(done: dict[str, Any]) -> None:
    """What was made of what, what was left out, and what to do next."""
    print(f"{clean(done['source'])}: {done['title']}")
    for part in done["parts"]:
        classes = ", ".join(f"{clean(name)} {n}" for name, n in list(part["objects"].items())[:12])
        total = sum(part["objects"].values())
        print(f"{part['file']}: {count(part['images'], 'image')}, {count(total, 'object')} ({classes})")
        for note in part["notes"]:
            print(f"  {clean(note, 400)}")
    print(f"next: {done['next']}")
