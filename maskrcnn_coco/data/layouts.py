"""Find a data set in a folder: COCO, Roboflow, CVAT, or images with one json beside them."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from maskrcnn_coco.data.bit_depth import BitRange
from maskrcnn_coco.data.bit_range import with_depth
from maskrcnn_coco.data.coco.cache import load_kept
from maskrcnn_coco.data.coco.forms import tool_of
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.convert.recognise import recognise
from maskrcnn_coco.data.convert.written import Kept, keep
from maskrcnn_coco.data.file_kinds import HEAD, kind_of
from maskrcnn_coco.data.file_names import IMAGE_SUFFIXES
from maskrcnn_coco.data.images import probe
from maskrcnn_coco.data.locate_images import locate
from maskrcnn_coco.data.orientation import with_orientation
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.system.plain_files import open_regular
from maskrcnn_coco.wording import clean, data_flags

ROBOFLOW = "_annotations.coco.json"
_TRAIN = re.compile(r"(?<![a-z])train(?:ing)?(?![a-z])", re.I)
_VAL = re.compile(r"(?<![a-z])(?:val|valid|validation)(?![a-z])", re.I)
_TEST = re.compile(r"(?<![a-z])test(?![a-z])", re.I)
_NO_SET = re.compile(
    r"^(\.|captions|person_keypoints|stuff|panoptic|image_info|deprecated)|\.changes\.json$", re.IGNORECASE
)
"""Files of other COCO tasks, hidden ones (macOS puts a ``._name`` beside each file), and what ``--fix`` has changed."""
_JSON = (".json", ".json.gz")
_LAYOUTS = (
    "COCO (annotations/instances_train*.json), Roboflow (train/_annotations.coco.json), CVAT, or images with one json"
)


@dataclass
class DataSource:
    """What `find_data` found. ``val`` is None where there is no validation set; ``notes`` say what was chosen."""

    train: CocoTable
    val: CocoTable | None
    notes: list[str]


def find_data(
    data: str | Path,
    *,
    images: str | Path | None = None,
    val: str | Path | None = None,
    val_images: str | Path | None = None,
    seed: int = 0,
    bit_range: BitRange | None = None,
    bit_range_source: str = "--bit-range says",
    as_stored: bool | None = None,
) -> DataSource:
    """The training and validation tables that ``data`` (a folder or a json) and ``val`` name.

    Where ``val`` is not given it is looked for beside the training annotations. Image folders are found by looking for
    the file names that the json holds. Validation labels are numbered as the training categories, by name, and its deep
    images are scaled as the training images.

    Args:
        bit_range: the scale of images of more than 8 bits, from ``bit_range_source``; None: it is found.
        as_stored: how a checkpoint's training images were read, for a set that does not tell; see `with_orientation`.

    Raises:
        DataError: no such folder; no annotations in it, or several (they are named); the images are not found;
            a json that `load_coco` refuses; validation categories that training lacks.
    """
    del seed  # nothing here is random: `split` takes the seed
    path = Path(data)
    given = data, images, val, val_images
    said: list[str] = []
    path, images, val, val_images = _converted(path, images, val, val_images, said)
    train_json = path if _is_file(path, "--data") else _train_json(path)
    train = replace(_load(train_json, images, "--images", said), given=data_flags(*given[:2]))
    notes = [f"training data: {train_json}, {len(train)} images in {train.image_root}", *said]
    train, depth = with_depth(train, bit_range, bit_range_source)
    train, turned = with_orientation(train, known=as_stored)
    notes += [note for note in (depth, turned) if note is not None]
    if train.dropped_category is not None:
        name = clean(repr(train.dropped_category.name))
        notes.append(f"category 0, {name}, is left out: a parent of the others without annotations")
    val_path = Path(val) if val is not None else _val_beside(train_json)
    if val_path is None:
        _require_no_images(val_images)
        return DataSource(train, None, notes)
    val_json = val_path if _is_file(val_path, "--val") else _val_json(val_path)
    try:
        said = []
        found = _load(val_json, val_images, "--val-images", said, images)
        if given[2] is not None:  # its images may lie where those of the training data do
            found = replace(found, given=data_flags(given[2], given[3] or found.image_root))
    except DataError as e:
        if val is not None or val_images is not None:  # asked for: nothing else may take its place in silence
            raise
        notes.append(f"{val_json} is not used for validation: {e.what}")
        return DataSource(train, None, notes)
    notes += [f"validation data: {val_json}, {len(found)} images in {found.image_root}", *said]
    found, depth = with_depth(found, train.bit_range, "in training")
    found, turned = with_orientation(found, known=train.as_stored)
    notes += [f"validation data: {turned}"] if turned is not None else []
    notes += [f"validation data: {depth}"] if depth is not None and train.bit_range is None else []
    return DataSource(train, found.with_categories(train.categories), notes)


_Place = str | Path | None


def _converted(
    path: Path, images: _Place, val: _Place, val_images: _Place, said: list[str]
) -> tuple[Path, _Place, _Place, _Place]:
    """The four places, those of other tools replaced by their COCO in the cache; ``said`` grows by what was done."""
    kept = _as_coco(path, images, said)
    if kept is not None:
        path, images = kept.train, images or kept.images
        if val is None and kept.val is not None:
            val, val_images = kept.val, val_images or kept.images
    if val is not None and (held := _as_coco(Path(val), val_images, said)) is not None:
        val, val_images = held.train, val_images or held.images
    return path, images, val, val_images


def _require_no_images(val_images: str | Path | None) -> None:
    if val_images is not None:
        raise DataError(
            "--val-images names the images of a validation set, and none was found",
            got=str(val_images),
            fix="name its annotations with --val",
        )


def split(table: CocoTable, fraction: float, seed: int) -> tuple[CocoTable, CocoTable]:
    """(train, val): ``fraction`` of the images held back, by a hash of seed and file name, so always the same ones.

    Raises:
        DataError: fewer than two images.
    """
    if len(table) < 2:
        raise DataError(
            f"{table.json_path} has one image: nothing can be held back", fix="name a validation set with --val"
        )
    names = table.names.decoded()
    keys = [hashlib.sha256(f"{seed}:{name}".encode("utf-8", "replace")).digest() for name in names]
    count = min(max(round(fraction * len(table)), 1), len(table) - 1)
    held = np.zeros(len(table), bool)
    chosen = sorted(range(len(table)), key=lambda r: (keys[r], r))[:count]
    last = [r for r, key in enumerate(keys) if key == keys[chosen[-1]]]  # entries of one file stay on one side
    held[chosen + last if len({*chosen, *last}) < len(table) else chosen] = True
    return table.subset(np.flatnonzero(~held)), table.subset(np.flatnonzero(held))


def _as_coco(path: Path, images: str | Path | None, said: list[str]) -> Kept | None:
    """``path`` as COCO in the cache where it is of another tool and holds no COCO file; ``said`` grows by what is done.

    Raises:
        DataError: nothing in it becomes a mask.
    """
    if path.is_dir() and any((p / ROBOFLOW).is_file() for p in (path, path / "train")):
        return None
    jsons = [path] if path.is_file() else _jsons(path) or _jsons(path / "train") if path.is_dir() else []
    if any(p.name.lower().endswith(".gz") or _begins_like_coco(p) for p in jsons):
        return None
    source = recognise(path)
    if source is None:
        return None
    kept = keep(source, path, None if images is None else Path(images))
    said += kept.notes
    return kept


def _is_file(path: Path, flag: str) -> bool:
    if path.is_dir():
        return False
    if path.exists():
        return True
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
        raise DataError(
            f"{flag} is an address, {path}", expected="a folder or file of this machine", fix="download it first"
        )
    raise DataError(
        f"there is no file or folder {path}", expected=f"a folder: {_LAYOUTS}; or a json", fix=f"check {flag}"
    )


def _listed(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder))]  # sorted paths take ten times as long
    except OSError as e:
        raise DataError(f"cannot list the folder {folder}: {e.strerror}", fix="check its permissions") from e


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:  # which asks nothing more about each of a folder's many files
            return [folder / name for name in sorted(e.name for e in entries if e.is_dir())]
    except OSError as e:
        raise DataError(f"cannot list the folder {folder}: {e.strerror}", fix="check its permissions") from e


def _jsons(folder: Path) -> list[Path]:
    """Annotation files of a folder and its annotations/ folder; those of other COCO tasks are left out."""
    found = []
    for place in (folder / "annotations", folder):
        if place.is_dir():
            found += [p for p in _listed(place) if p.name.lower().endswith(_JSON) and not _NO_SET.search(p.name)]
    instances = [p for p in found if p.name.startswith("instances_")]
    return instances or found


def _train_json(folder: Path) -> Path:
    for place in (folder / "train", folder):
        if (place / ROBOFLOW).is_file():
            return place / ROBOFLOW
    found = _jsons(folder) or _jsons(folder / "train")
    train = [p for p in found if _TRAIN.search(_spaced(p))]
    rest = [p for p in found if not _VAL.search(_spaced(p)) and not _TEST.search(_spaced(p))]
    return _only(train or rest, folder, "training", "--data")


def _val_json(folder: Path) -> Path:
    for place in (folder, folder / "valid", folder / "val"):
        if (place / ROBOFLOW).is_file():
            return place / ROBOFLOW
    found = _jsons(folder)
    val = [p for p in found if _VAL.search(_spaced(p))]
    return _only(val or found, folder, "validation", "--val")


def _spaced(path: Path) -> str:
    """The file name with digits and underscores as spaces, so that ``instances_train2017`` holds the word train."""
    return re.sub(r"[\d_]+", " ", path.name)


def _only(found: list[Path], folder: Path, what: str, flag: str) -> Path:
    coco = [p for p in found if p.name.lower().endswith(".gz") or _begins_like_coco(p)] if len(found) > 1 else found
    if len(coco) == 1 and not any(_tool(p) for p in found if p not in coco):
        return coco[0]
    if not coco:
        _refuse_tool(found, folder)
    found = [*coco, *(p for p in found if p not in coco)]
    if not found:
        near = [p.name for p in _listed(folder)][:8]
        deeper = _coco_files(folder)
        raise DataError(
            f"no {what} annotations were found in {folder}",
            got=f"{', '.join(near)}" if near else "an empty folder",
            expected=_LAYOUTS,
            fix=f"name the json: {flag} {shlex.quote(str(deeper[0]))}" if deeper else f"name the json with {flag}",
        )
    shown = ", ".join(str(p.relative_to(folder)) for p in found[:8])
    side = next((folder / n for n in ("train", "images") if (folder / n).is_dir()), None)
    images = f" --{'val-' if what == 'validation' else ''}images {shlex.quote(str(side))}" if side is not None else ""
    raise DataError(
        f"{folder} has {len(found)} annotation files that could be the {what} data",
        got=shown,
        expected="one",
        fix=f"choose one: {flag} {shlex.quote(str(found[0]))}{images}",
    )


def _refuse_tool(found: list[Path], folder: Path) -> None:
    """Raise the DataError that names the tool or the kind of the files that lie there in place of COCO's."""
    export = "export it as COCO (instance segmentation) there, and name that file"
    named = {p: tool for p in found[:8] if (tool := _tool(p)) is not None}
    for path, tool in named.items():
        each = f"{tool} for each of {len(found)} images" if len(named) > 1 else f"{tool}, {path.name}"
        raise DataError(f"{folder} holds {each}, not COCO", fix=export)
    if found:
        return
    for path in sorted(p for p in folder.rglob("*") if p.suffix and not p.name.startswith("."))[:_FILES]:
        if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES:
            kind = kind_of(_head(path)[:HEAD], path.name)
            if kind is not None and kind.fix:
                raise DataError(f"{folder} has no COCO json; {path.name} in it is {kind.what}", fix=kind.fix)


_FILES = 2000


def _tool(path: Path) -> str | None:
    """Which tool's file this is, if it is not COCO's."""
    return None if _begins_like_coco(path) else tool_of(_head(path))


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(1 << 16)
    except OSError:
        return b""


def _coco_files(folder: Path, deepest: int = 3) -> list[Path]:
    """Files further down that begin like COCO annotations, for a suggestion."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        if len(Path(place).relative_to(folder).parts) >= deepest:
            folders.clear()
        found += [Path(place) / f for f in sorted(files) if f.lower().endswith(".json")][: 20 - len(found)]
    return [p for p in found if _begins_like_coco(p)]


def _begins_like_coco(path: Path) -> bool:
    head = _head(path)
    return b'"images"' in head or (b'"annotations"' in head and tool_of(head) is None)


def _val_beside(train_json: Path) -> Path | None:
    """The validation file that goes with a training file, by its name or its folder's; None where there is none."""
    train_json = train_json if train_json.parent.name else train_json.absolute()  # "." has no name of its own
    if train_json.parent.name == "train" or train_json.name == ROBOFLOW:
        base = train_json.parent.parent if train_json.parent.name == "train" else train_json.parent
        places = [base / n / train_json.name for n in ("valid", "val", "validation")]
        if beside := next((p for p in places if p.is_file()), None):
            return beside
    for word in ("val", "valid", "validation"):
        name = re.sub(r"(?<![A-Za-z])train(?:ing)?(?![A-Za-z])", word, train_json.name)
        if name != train_json.name and train_json.with_name(name).is_file():
            return train_json.with_name(name)
    return None


def _load(
    json_path: Path, images: str | Path | None, flag: str, notes: list[str], other: str | Path | None = None
) -> CocoTable:
    given = Path(images) if images is not None else None
    table = load_kept(json_path, given or json_path.parent)
    if given is not None and not given.is_dir():
        raise DataError(f"there is no image folder {given}", fix=f"check {flag}")
    _require_joined(table)
    places = list(dict.fromkeys(_places(json_path, other))) if given is None else []
    located = locate(table, places, given=given, flag=flag)
    notes += located.notes
    return _with_sizes(located.table)


def _require_joined(table: CocoTable) -> None:
    """Raise the DataError where there are annotations, and none of them is of an image in the list."""
    if not len(table.ann_ids) or (table.ann_image >= 0).any():
        return
    said = next((p.text for p in table.problems if p.code == "ANN_IMAGE_UNKNOWN"), None)
    ids = ", ".join(str(i) for i in table.image_ids[:3].tolist())
    raise DataError(
        f"NO_TARGETS: none of the {len(table.ann_ids)} annotations of {table.json_path} is of an image in `images`",
        got=f"{clean(said)}; the images' ids are {ids} …" if said else f"the images' ids are {ids} …",
        fix="give `image_id` of each annotation the `id` of its image; maskrcnn-coco explain NO_TARGETS tells more",
    )


def _with_sizes(table: CocoTable) -> CocoTable:
    """Widths and heights that the json lacks, from the image files; 0 stays where a file cannot be read."""
    unknown = np.flatnonzero((table.heights <= 0) | (table.widths <= 0)).tolist()
    if not unknown:
        return table
    heights, widths = table.heights.copy(), table.widths.copy()
    for row in unknown:
        try:
            facts = probe(table.image_root, table.file_name(row), decode=False)
        except DataError:
            continue
        heights[row], widths[row] = facts.height, facts.width
    return replace(table, heights=heights, widths=widths)


def _places(json_path: Path, other: str | Path | None) -> Iterable[Path]:
    """Folders that file names may start from, the likeliest first."""
    here = json_path.parent
    base = here.parent if here.name == "annotations" else here
    split_word = _VAL if _VAL.search(_spaced(json_path)) else _TRAIN if _TRAIN.search(_spaced(json_path)) else None
    yield here
    for top in (base, base / "images", base / "data"):
        if top.is_dir():
            folders = _folders(top)
            if split_word is not None:
                yield from (p for p in folders if split_word.search(_spaced(p)))
            yield top
            yield from (p for p in folders if p.name in ("default", "images", "data"))
    if other is not None:
        yield from (Path(other), Path(other).parent)
