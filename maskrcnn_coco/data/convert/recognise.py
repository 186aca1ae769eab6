"""Which tool wrote a file or folder, by its shape; and the conversion of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from maskrcnn_coco.data.convert.cvat import convert_cvat, cvat_root
from maskrcnn_coco.data.convert.document import Document
from maskrcnn_coco.data.convert.labelme import convert_labelme, is_labelme
from maskrcnn_coco.data.convert.mask_images import Meaning, convert_masks, find_pairs
from maskrcnn_coco.data.convert.per_image import convert_per_image, tool_for
from maskrcnn_coco.data.convert.reading import read_json, read_text, shown
from maskrcnn_coco.data.convert.rle_csv import convert_rle_csv, is_rle_csv
from maskrcnn_coco.data.convert.via import convert_via, is_via, is_via_csv
from maskrcnn_coco.data.convert.voc import convert_voc, voc_root
from maskrcnn_coco.data.convert.yolo import convert_yolo, label_folders, yaml_of
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.wording import clean

Kind = Literal["labelme", "via", "cvat", "jsons", "runs", "yolo", "voc", "masks"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TITLES: dict[Kind, str] = {
    "labelme": "LabelMe annotations (a json an image)",
    "via": "annotations of VGG Image Annotator",
    "cvat": "annotations of CVAT for images (one xml)",
    "jsons": "annotations of Darwin, SuperAnnotate, Supervisely, Cityscapes, SAM or QuPath (a json an image)",
    "runs": "a table of runs (csv: image, start length start length …)",
    "yolo": "a YOLO set (a text an image)",
    "voc": "a Pascal VOC set",
    "masks": "images with mask images beside them",
}
SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "labelme": (".json",),
    "via": (".json", ".csv"),
    "cvat": (".xml",),
    "jsons": (".json", ".geojson"),
    "runs": (".csv",),
}
"""Of the kinds that are converted file by file; others are folders."""
_LOOKED_AT = 4
_LARGEST = 256 << 20
"""Bytes of json that are read to see what it is."""


@dataclass(frozen=True)
class Source:
    """What `recognise` found: the kind, and the files or the folder to convert."""

    kind: Kind
    root: Path
    files: tuple[Path, ...] = ()
    tool: str = ""
    """Which of several tools of a kind."""

    @property
    def title(self) -> str:
        """The kind, in words."""
        return self.tool or TITLES[self.kind]


def recognise(path: Path) -> Source | None:
    """What wrote ``path``, a file or a folder; None: none of the tools that are known. Never raises because of it."""
    try:
        return _of_file(path) if path.is_file() else _of_folder(path) if path.is_dir() else None
    except (DataError, OSError, ValueError):
        return None


def _of_file(path: Path) -> Source | None:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        text = read_text(path)
        kind: Kind | None = "via" if is_via_csv(text) else "runs" if is_rle_csv(text) else None
        return None if kind is None else Source(kind, path.parent, (path,))
    if suffix == ".xml" and cvat_root(path) is not None:
        return Source("cvat", path.parent, (path,))
    if suffix in (".json", ".geojson") and path.stat().st_size <= _LARGEST:
        value = read_json(path)
        if is_labelme(value):
            return Source("labelme", path.parent, (path,))
        if (tool := tool_for(value)) is not None:
            beside = (path.parent.parent / "img").is_dir()  # Supervisely's ann/ and img/
            return Source("jsons", path.parent.parent if beside else path.parent, (path,), tool.title)
        return Source("via", path.parent, (path,)) if is_via(value) else None
    if suffix in (".yaml", ".yml") and yaml_of(path.parent) is not None and label_folders(path.parent):
        return Source("yolo", path.parent)
    return None


def _of_folder(folder: Path) -> Source | None:
    jsons = shown((*folder.glob("*.json"), *folder.glob("*/*.json"), *folder.glob("*/*/*.json")))
    if jsons and any(is_labelme(_value(p)) for p in jsons[:_LOOKED_AT]):
        return Source("labelme", folder, tuple(jsons))
    if (found := _per_image(folder, jsons)) is not None:
        return found
    tables = [p for end in ("*.csv", "*.xml") for p in shown(folder.glob(end))[:_LOOKED_AT]]
    for path in (*jsons[:_LOOKED_AT], *tables):
        found = _of_file(path)
        if found is not None:
            return Source(found.kind, folder, found.files)
    if voc_root(folder) is not None:
        return Source("voc", folder)
    if label_folders(folder):
        return Source("yolo", folder)
    return Source("masks", folder) if find_pairs(folder) else None


def _value(path: Path) -> Any:
    """The JSON in a file; None where there is none: one damaged file does not make a set another tool's."""
    try:
        return read_json(path)
    except DataError:
        return None


def _per_image(folder: Path, jsons: list[Path]) -> Source | None:
    """A folder of one json an image, of a tool that writes such."""
    geo = shown(p for pattern in ("*.geojson", "*/*.geojson") for p in folder.glob(pattern))
    deeper = [] if jsons or geo else shown(folder.glob("*/*/*/*.json"))  # gtFine/train/city/*.json
    files = [p for p in (*jsons, *geo, *deeper) if p.name != "meta.json"]  # Supervisely's, about the classes
    for path in files[:_LOOKED_AT]:
        found = _of_file(path)
        if found is not None and found.kind == "jsons":
            return Source("jsons", folder, tuple(files), found.tool)
    return None


def convert(source: Source, *, images: Path | None = None, masks_are: Meaning | None = None) -> dict[str, Document]:
    """Part ("train", "val", "test", or "" where the source has no parts) → its COCO document.

    Args:
        images: the folder of the images, where it is not the source's own.
        masks_are: what the values in mask images stand for; None: as it looks.

    Raises:
        DataError: the source has nothing that becomes a mask.
    """
    try:
        return _converted(source, images, masks_are)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as e:
        raise DataError(
            f"{clean(source.root)} is not as its tool writes it ({TITLES[source.kind]})",
            got=f"{type(e).__name__}: {e}",
            fix="export it again, or say with --format what it is",
        ) from e


def _converted(source: Source, images: Path | None, masks_are: Meaning | None) -> dict[str, Document]:
    if source.kind == "labelme":
        return {"": convert_labelme(list(source.files), images or source.root, images)}
    if source.kind == "via":
        return {"": convert_via(source.files[0], images or source.root, images)}
    if source.kind == "cvat":
        return {"": convert_cvat(source.files[0], images or source.root, images)}
    if source.kind == "jsons":
        return {"": convert_per_image(source.files, source.root, images)}
    if source.kind == "runs":
        return {"": convert_rle_csv(source.files[0], images or source.root, images)}
    if source.kind == "yolo":
        return convert_yolo(source.root)
    if source.kind == "voc":
        return convert_voc(source.root)
    return {"": convert_masks(source.root, masks_are)}


def chosen(path: Path, kind: Kind | None) -> Source:
    """``path`` as a source of ``kind``; None: what it looks like.

    Raises:
        DataError: there is nothing there, or nothing that is known.
    """
    if not path.exists():
        raise DataError(f"there is no file or folder {clean(path)}", fix="name what another tool wrote")
    found = recognise(path)
    if kind is not None and (found is None or found.kind != kind):
        suffixes = SUFFIXES.get(kind, ())
        files = (path,) if path.is_file() else tuple(shown(path.rglob("*"))) if suffixes else ()
        fitting = tuple(p for p in files if p.suffix.lower() in suffixes)
        if suffixes and not fitting:
            raise DataError(f"{clean(path)} holds no file of {TITLES[kind]}", fix="check --format")
        return Source(kind, path.parent if path.is_file() else path, fitting)
    if found is None:
        raise DataError(
            f"{clean(path)} is of no kind that is known",
            expected="; ".join(TITLES.values()),
            fix=f"--format {'|'.join(KINDS)} says what it is",
        )
    return found
