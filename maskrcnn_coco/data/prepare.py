"""From the settings to checked training and validation data."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.errors import ConfigError, DataError
from maskrcnn_coco.records import DataFinding
from maskrcnn_coco.system.plain_files import read_regular
from maskrcnn_coco.wording import count

if TYPE_CHECKING:
    from maskrcnn_coco.config.settings import Config
    from maskrcnn_coco.data.classes import Classes
    from maskrcnn_coco.data.coco.table import CocoTable

SPLIT = 0.15
"""Share of the images held back for validation where no validation set is given."""


@dataclass
class RunData:
    """What a run trains and evaluates on, before transforms. Tables are None where the caller brought a data set."""

    train: CocoTable | None
    val: CocoTable | None
    class_names: tuple[str, ...]
    builtin: bool
    notes: list[str] = field(default_factory=list)
    findings: list[DataFinding] = field(default_factory=list)
    val_findings: list[DataFinding] = field(default_factory=list)
    bad_images: set[int] = field(default_factory=set)
    bad_annotations: set[int] = field(default_factory=set)
    identity: dict[str, str] = field(default_factory=dict)
    """Digests of what the data are; see `data.fingerprint`."""

    @property
    def most_objects(self) -> int:
        """Most objects, crowds left aside, in one image of training or validation data; 0 where no table is known."""
        return max((most_in_an_image(t) for t in (self.train, self.val) if t is not None), default=0)

    @property
    def class_counts(self) -> dict[str, dict[str, int]]:
        """Class → ``objects``, crowds left aside, and ``images`` with one, in training; {} where no table is known."""
        return {} if self.train is None else counts_of(self.train)

    @property
    def num_classes(self) -> int:
        """Classes with background."""
        return len(self.class_names)

    def usable_images(self, own: Sized | None = None) -> int:
        """Training images that are not left out; ``own`` is the caller's data set, where there is no table."""
        images = self.train if self.train is not None else own
        return (0 if images is None else len(images)) - len(self.bad_images)

    @property
    def flags(self) -> str:
        """What ``check`` is called with for the training data; "" where no file of the caller's holds them."""
        return "" if self.train is None or self.builtin else self.train.flags

    @property
    def bit_range(self) -> list[float] | None:
        """The values that become black and white in images of more than 8 bits; None where there are none."""
        return None if self.train is None or self.train.bit_range is None else list(self.train.bit_range)

    @property
    def classes(self) -> Classes:
        """Names and category ids of the labels, from 1."""
        from maskrcnn_coco.data.classes import Classes

        return Classes(tuple(self.class_names[1:]), tuple(self.category_ids))

    @property
    def category_ids(self) -> list[int]:
        """The data's category id of each label, from 1; the labels themselves for a data set of your own."""
        if self.train is None:
            return list(range(1, len(self.class_names)))
        return [c.id for c in self.train.categories]


def most_in_an_image(table: CocoTable) -> int:
    """Most objects, crowds left aside, in one image."""
    import numpy as np

    rows = table.ann_image[(table.ann_image >= 0) & ~table.iscrowd & (table.labels > 0)]
    return int(np.bincount(rows, minlength=1).max()) if len(rows) else 0


def counts_of(table: CocoTable) -> dict[str, dict[str, int]]:
    """Class → how many ``objects``, crowds left aside, and how many ``images`` with one."""
    import numpy as np

    rows = np.flatnonzero((table.ann_image >= 0) & ~table.iscrowd & (table.labels > 0))
    labels = table.labels[rows].astype(np.int64)
    objects = np.bincount(labels, minlength=table.num_classes)
    # One number for class and image, sorted: `np.unique` takes ten times as long for millions of them.
    pairs = np.sort(labels * max(len(table), 1) + table.ann_image[rows])
    images = np.bincount(pairs[np.diff(pairs, prepend=-1) > 0] // max(len(table), 1), minlength=table.num_classes)
    names = table.class_names
    return {names[n]: {"objects": int(objects[n]), "images": int(images[n])} for n in range(1, table.num_classes)}


def shapes_folder() -> Path:
    """Where the built-in shapes are drawn once: the user's cache folder."""
    from maskrcnn_coco.system.files import cache_folder

    return cache_folder("shapes")


@contextlib.contextmanager
def drawn_ahead(config: Config) -> Iterator[None]:
    """Draw and check the built-in set in another process meanwhile, if ``config`` is for it and it was never drawn.

    For the seconds in which torch is imported. What fails there is silent: the run meets it again, and says it.
    """
    threads = {"numpy", "torch"} & sys.modules.keys()  # a fork beside their threads may hang
    if config.data is not None or threads or sys.platform != "linux" or (shapes_folder() / "valid").is_dir():
        yield
        return
    child = multiprocessing.get_context("fork").Process(target=_draw_and_check, args=(config,), daemon=True)
    child.start()
    try:
        yield
    finally:
        child.join()


def _draw_and_check(config: Config) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides when to stop
    with contextlib.suppress(DataError):
        check_data(open_data(config), config)


def open_data(config: Config) -> RunData:
    """Find, read and split the data that ``config`` names; nothing is checked yet.

    Raises:
        DataError: no such folder or file, not COCO, no images.
    """
    from maskrcnn_coco.data.bit_range import given_range
    from maskrcnn_coco.data.builtin_shapes import write_shapes
    from maskrcnn_coco.data.coco.table import load_coco
    from maskrcnn_coco.data.layouts import find_data, split

    if config.data is None:
        train_json, val_json = write_shapes(shapes_folder())
        train, val = (load_coco(p, Path(p).parent) for p in (train_json, val_json))
        return RunData(train, val, train.class_names, builtin=True)
    found = find_data(
        config.data,
        images=config.images,
        val=config.val,
        val_images=config.val_images,
        seed=config.seed,
        bit_range=given_range(config.bit_range),
    )
    train, val, notes = found.train, found.val, list(found.notes)
    if config.split_by is not None or config.fold is not None:
        train, val, note = _split_as_asked(train, val, config)
        notes.append(note)
    elif val is None:
        train, val = split(train, SPLIT, config.seed)
        notes.append(
            f"no validation set was found: {len(val)} of {len(val) + len(train)} images are held back, the same ones "
            f"each time; --val PATH names one of your own"
        )
    if val.class_names != train.class_names:
        raise DataError(
            f"training and validation data name different categories ({train.json_path} and {val.json_path})",
            got=f"{', '.join(val.class_names[1:])}",
            expected=f"{', '.join(train.class_names[1:])}",
            fix="give both files the same `categories` list",
        )
    return RunData(train, val, train.class_names, builtin=False, notes=notes)


def _split_as_asked(train: CocoTable, val: CocoTable | None, config: Config) -> tuple[CocoTable, CocoTable, str]:
    """The parts that ``--split-by`` and ``--fold`` make of the training data, and a sentence about them."""
    from maskrcnn_coco.data.splits import split_by

    if config.val is not None:
        raise ConfigError(
            "--val names the validation data, --split-by and --fold take it from the training data",
            fix="leave out one or the other",
        )
    unused = "" if val is None else f"; {val.json_path} is not used"
    train, val = split_by(train, SPLIT, config.seed, key=config.split_by, fold=config.fold)
    how = f"fold {config.fold}" if config.fold is not None else "held back"
    groups = "" if config.split_by is None else f", whole groups of {config.split_by!r}"
    return train, val, f"validation data: {len(val)} of {len(val) + len(train)} images, {how}{groups}{unused}"


def with_found_range(config: Config, data: RunData) -> Config:
    """``config`` with the scale of deep images that was found: a resumed run keeps it, whatever images are added."""
    scale = None if data.train is None else data.train.bit_range
    return config if scale is None else replace(config, bit_range=scale.flag)


def check_data(data: RunData, config: Config) -> None:
    """Audit training and validation data (once per fingerprint), and leave out what has errors; exit 3 with --strict.

    Raises:
        DataError: nothing usable is left in one of them; or an error, with --strict.
    """
    if data.train is None:
        return
    from maskrcnn_coco.data.audit.cache import audit_parts
    from maskrcnn_coco.data.audit.quarantine import require_usable, to_quarantine
    from maskrcnn_coco.data.audit.whole_set import named

    data.findings, data.val_findings = audit_parts(data.train, data.val)
    try:
        # In tiles objects are as large as they are: none is lost to the size of its image.
        low, high = (config.min_size or 800, config.max_size or 1333) if config.tile is None else (10**6, 10**6)
        require_usable(data.train, data.findings, min_size=low, max_size=high)
    except DataError as e:
        raise named(e, data.findings) from e
    _refuse_if_strict(data.train, data.findings, config)
    images, annotations = to_quarantine(data.findings)
    data.bad_images |= images
    data.bad_annotations |= annotations
    _require_images(data.train, data.findings, len(data.bad_images))
    if data.val is None:
        return
    _refuse_if_strict(data.val, data.val_findings, config)
    images, annotations = to_quarantine(data.val_findings)
    _require_images(data.val, data.val_findings, len(images))
    if images or annotations:
        data.val = data.val.without(images, annotations)


def _refuse_if_strict(table: CocoTable, findings: list[DataFinding], config: Config) -> None:
    errors = [f for f in findings if f.severity == "error"]
    if errors and config.strict:
        raise DataError(
            f"{len(errors)} data errors in {table.json_path} (--strict); the first: {errors[0].message}",
            fix=f"maskrcnn-coco check {table.flags} lists all of them and --fix OUT.json repairs what can be",
        )


def _require_images(table: CocoTable, findings: list[DataFinding], bad: int) -> None:
    if bad >= len(table):
        raise DataError(
            f"no usable image is left in {table.json_path}: all {len(table)} have errors",
            got=next((f.message for f in findings if f.severity == "error"), None),
            fix=f"maskrcnn-coco check {table.flags} shows what is wrong with each",
        )


def complaints(data: RunData) -> list[str]:
    """What a run says about its data at the start: errors that are left out, and images in both parts."""
    sentences = []
    errors = [f for f in data.findings if f.severity == "error"]
    if errors:
        sentences.append(
            f"{count(len(errors), 'data error')}: {count(len(data.bad_images), 'image')} and "
            f"{count(len(data.bad_annotations), 'annotation')} are left out; the first: {errors[0].message}"
        )
    errors = [f for f in data.val_findings if f.severity == "error"]
    if errors:
        sentences.append(
            f"{count(len(errors), 'error')} in the validation data: what they concern is left out of the evaluation; "
            f"the first: {errors[0].message}"
        )
    leaks = [f for f in data.findings if f.code == "IMAGE_LEAK"]
    if leaks:
        sentences.append(
            f"{sum(f.count for f in leaks)} training images are validation images too, so AP will flatter the model; "
            f"the first: {leaks[0].message}"
        )
    return sentences + warnings_of(data.findings, data.val_findings)


def warnings_of(findings: Sequence[DataFinding], val_findings: Sequence[DataFinding]) -> list[str]:
    """One sentence for each kind of warning of the audit: how often, the first of them, what to do."""
    from maskrcnn_coco.data.audit.catalogue import CATALOGUE
    from maskrcnn_coco.data.audit.whole_set import silent_code

    sentences = []
    for part, found in (("", findings), ("validation data: ", val_findings)):
        kinds: dict[str, list[DataFinding]] = {}
        for f in found:
            # What the whole set has in common, and leaks, have sentences of their own.
            if f.severity == "warning" and f.code != "IMAGE_LEAK" and not silent_code(f.code):
                kinds.setdefault(f.code, []).append(f)
        for code, group in kinds.items():
            lead = "" if len(group) == 1 else f" ({len(group)} times): {CATALOGUE[code].title}; the first"
            sentences.append(f"{part}{code}{lead}: {group[0].message}; {group[0].fix}")
    return sentences


def read_quarantine(path: str | Path) -> dict[str, Any]:
    """``quarantine.json`` of this or another run: {"images": [{"id", "incident", …}], "annotations": [...]}.

    Raises:
        ConfigError: no such file, or not one that a run wrote.
    """
    try:
        data = json.loads(read_regular(path))
        images = [int(i["id"]) for i in data["images"] if "index" not in i]  # else its id was never known
        annotations = [int(a["id"]) for a in data["annotations"]]
    except OSError as e:
        raise ConfigError(f"cannot read the quarantine file {path}: {e.strerror}", fix="check --quarantine") from e
    except (ValueError, KeyError, TypeError) as e:
        raise ConfigError(
            f"{path} is not a quarantine file",
            got=f"{type(e).__name__}: {e}",
            expected='{"images": [{"id": 17, …}], "annotations": [{"id": 203, …}]}',
            fix="use the quarantine.json of a run folder",
        ) from e
    return {"image_ids": images, "annotation_ids": annotations, "entries": data}


def write_quarantine(path: Path, images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]]) -> None:
    """Write ``quarantine.json`` atomically: what is left out of training, each with the incident that says why."""
    from maskrcnn_coco.system.files import write_text

    write_text(path, json.dumps({"images": list(images), "annotations": list(annotations)}, indent=1, allow_nan=False))


def own_data(config: Config, train_data: Any) -> RunData:
    """The caller's own data set as run data: only the class count is known.

    Raises:
        ConfigError: ``num_classes`` is missing, or the data set is empty or has no length.
    """
    if config.num_classes is None:
        raise ConfigError(
            "num_classes is needed with a data set of your own",
            expected="the number of classes with background, as in torchvision",
            fix="Config(num_classes=…)",
        )
    require_items(train_data, "train_data")
    names = ("background", *(f"class {i}" for i in range(1, config.num_classes)))
    return RunData(None, None, names, builtin=False)


MOST_ITEMS = 2**31 - 1
"""Of one data set: plans and permutations of more would not fit into memory either."""


def require_items(data: Any, name: str) -> None:
    """Raise ConfigError where a data set of the caller's own has no length, or no item, or is its loader."""
    if hasattr(data, "collate_fn") and hasattr(data, "dataset"):
        raise ConfigError(
            f"{name} is a loader of batches",
            got=type(data).__name__,
            expected="the data set itself, which gives one (image, target) for an index",
            fix=f"{name}=loader.dataset; batches are made by the run",
        )
    try:
        size = len(data)
    except TypeError as e:
        raise ConfigError(
            f"{name} has no length",
            got=type(data).__name__,
            expected="a map-style data set",
            fix="give it __len__ and __getitem__(index); items that come as a stream: list(stream)",
        ) from e
    except (OverflowError, ValueError) as e:  # beyond what an index can be, or below zero
        raise ConfigError(f"{name} has a length that cannot be: {e}", fix=f"look at len({name})") from e
    if size > MOST_ITEMS:
        raise ConfigError(
            f"{name} says that it has {size} items",
            expected=f"at most {MOST_ITEMS}",
            fix="a stream without an end gives its __len__ the number of samples of one epoch",
        )
    if size == 0:
        raise ConfigError(f"{name} is empty", expected="at least one (image, target)", fix=f"look at len({name})")


def quarantine_first(data: RunData, config: Config) -> None:
    """Audit, then add the ids of ``--quarantine``."""
    check_data(data, config)
    if config.quarantine is not None:
        given = read_quarantine(config.quarantine)
        data.bad_images.update(given["image_ids"])
        data.bad_annotations.update(given["annotation_ids"])
