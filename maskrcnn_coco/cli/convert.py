"""``convert``: what another tool wrote, as COCO."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from maskrcnn_coco.data.convert.document import Document
from maskrcnn_coco.data.convert.mask_images import Meaning
from maskrcnn_coco.data.convert.recognise import Kind, Source, chosen, convert
from maskrcnn_coco.records import to_json
from maskrcnn_coco.system.files import write_text
from maskrcnn_coco.wording import clean, count


def convert_source(
    path: Path, out: Path, *, kind: Kind | None = None, images: Path | None = None, masks_are: Meaning | None = None
) -> dict[str, Any]:
    """Convert and write; the training part at ``out``, others beside it. What was done, as plain values.

    Raises:
        DataError: nothing there that is known, or nothing that becomes a mask. OSError: ``out`` cannot be written.
    """
    source = chosen(path, kind)
    documents = convert(source, images=images, masks_are=masks_are)
    made = {part: (document, document.plain()) for part, document in documents.items() if document.images}
    if not made:
        made = {part: (document, document.plain()) for part, document in documents.items()}  # says why
    first = next((p for p in ("train", "") if p in made), next(iter(made)))
    files = {part: out if part == first else _beside(out, part) for part in made}
    for part, (_, plain) in made.items():
        files[part].parent.mkdir(parents=True, exist_ok=True)
        write_text(files[part], to_json(plain))
    return {
        "source": str(path),
        "kind": source.kind,
        "title": source.title,
        "parts": [_summary(part, files[part], *made[part]) for part in sorted(made, key=lambda p: p != first)],
        "next": _next(source, files, first, images),
    }


def _beside(out: Path, part: str) -> Path:
    stem = out.name.removesuffix(".json")
    name = stem.replace("train", part) if "train" in stem else f"{stem}_{part}"
    return out.with_name(f"{name}.json")


def _summary(part: str, path: Path, document: Document, plain: dict[str, Any]) -> dict[str, Any]:
    objects = {c["name"]: 0 for c in plain["categories"]}
    names = {c["id"]: c["name"] for c in plain["categories"]}
    for annotation in plain["annotations"]:
        objects[names[annotation["category_id"]]] += 1
    return {
        "part": part or "all",
        "file": str(path),
        "images": len(plain["images"]),
        "objects": objects,
        "notes": document.notes(),
    }


def _next(source: Source, files: dict[str, Path], first: str, images: Path | None) -> str:
    where = images or source.root
    words = ["maskrcnn-coco", "check", "--data", str(files[first]), "--images", str(where)]
    if "val" in files and first != "val":
        words += ["--val", str(files["val"]), "--val-images", str(where)]
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
