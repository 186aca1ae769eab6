"""What `predict` writes: for each image the files of the formats asked for, and one table and one COCO file of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from maskrcnn_coco.errors import ConfigError, DataError
from maskrcnn_coco.evaluation.draw import encoded
from maskrcnn_coco.inference.folder import OutFolder
from maskrcnn_coco.inference.formats import FORMATS, geojson, label_picture, labelme, table
from maskrcnn_coco.inference.result import ImageResult
from maskrcnn_coco.records import to_json

RESULTS, TABLE = "results.json", "results.csv"


def parse_formats(text: str) -> tuple[str, ...]:
    """The formats of ``--format``, in order.

    Raises:
        ConfigError: an unknown one, or none.
    """
    words = [w.strip().lower() for w in text.split(",") if w.strip()]
    strange = [w for w in words if w not in FORMATS]
    if strange or not words:
        got = ", ".join(strange) or "nothing"
        raise ConfigError("--format is not known", got=got, expected=", ".join(FORMATS), fix="--format coco,png")
    return tuple(dict.fromkeys(words))


@dataclass
class Best:
    """The best detection of all, whatever its score."""

    score: float
    name: str
    image: str


@dataclass
class Written:
    """What was found and where it went: ``objects`` of at least the score, on ``with_objects`` of ``images`` images."""

    images: int = 0
    with_objects: int = 0
    objects: int = 0
    drawn: list[Path] = field(default_factory=list)
    classes: Counter[str] = field(default_factory=Counter)
    best: Best | None = None
    scores: list[float] = field(default_factory=list)


class Writer:
    """Takes results, of any score, one by one; `close` puts all files in place.

    Args:
        out: the folder. formats: of `FORMATS`.
        score: of the table, outlines, labels and drawn pictures; the COCO file holds all detections, as AP needs them.
        inputs: image files that must never be overwritten.
    """

    def __init__(self, out: Path, formats: Sequence[str], score: float, inputs: Sequence[Path] = ()) -> None:
        self.formats, self.score, self.done = tuple(formats), score, Written()
        self._inputs = {p.resolve() for p in inputs}
        self._taken = {RESULTS, TABLE}
        self._folder = OutFolder(out)
        self._check_free((RESULTS, "coco"), (TABLE, "csv"))
        self._coco: BinaryIO | None = self._folder.open(RESULTS) if "coco" in self.formats else None
        self._table: BinaryIO | None = self._folder.open(TABLE) if "csv" in self.formats else None
        self._first = True
        if self._table is not None:
            self._table.write(table([]))

    def _check_free(self, *files: tuple[str, str]) -> None:
        for name, kind in files:
            if kind in self.formats and self._folder.is_others(name):
                self._folder.abandon()
                raise ConfigError(
                    f"{self._folder.out / name} is there already, and no prediction wrote it: it would be lost",
                    fix="name another folder with --out, or move that file away",
                )

    def add(self, result: ImageResult, image_id: int) -> None:
        """The files of one image.

        Raises:
            DataError: a file would overwrite an image that is read. OSError: the disk is full.
        """
        result.number = image_id
        shown = result.at_least(self.score)
        self._count(result, shown)
        if self._coco is not None:
            for entry in result.to_coco():
                self._coco.write((b"[\n" if self._first else b",\n") + to_json(entry).encode())
                self._first = False
        if self._table is not None:
            self._table.write(table(shown.rows()).split(b"\n", 1)[1])
        self._files(shown)

    def _files(self, shown: ImageResult) -> None:
        suffix = ".jpg" if Path(shown.name).suffix.lower() in (".jpg", ".jpeg") else ".png"
        stem = self._free(Path(shown.name).with_suffix("").as_posix(), suffix)
        if "png" in self.formats:
            self._put(stem + suffix, encoded(shown.draw(), suffix))
            self.done.drawn.append(self._folder.out / (stem + suffix))
        if "labels" in self.formats:
            self._put(f"labels/{stem}.png", label_picture(shown.label_image(), ".png"))
        if "polygons" in self.formats:
            where = (self._folder.out / f"polygons/{stem}.json").parent
            self._put(f"polygons/{stem}.json", to_json(labelme(shown, where), indent=1).encode())
            self._put(f"polygons/{stem}.geojson", to_json(geojson(shown)).encode())

    def _put(self, name: str, content: bytes) -> None:
        if (self._folder.out / name).resolve() in self._inputs:
            raise DataError(
                f"writing into {self._folder.out} would overwrite the images themselves",
                fix="name another folder with --out",
            )
        self._folder.write(name, content)

    def _free(self, stem: str, suffix: str) -> str:
        """``stem``, or it with a number, so that no two images share a file, whatever the file system."""
        for n in range(1, 1_000_000):
            tried = stem if n == 1 else f"{stem}_{n}"
            ends = {f"{tried}{suffix}", f"labels/{tried}.png", f"polygons/{tried}.json", f"polygons/{tried}.geojson"}
            names = {e.lower() for e in ends}
            if not names & self._taken and not self._others(tried, suffix):
                self._taken |= names
                return tried
        raise DataError("a million images of one name", got=stem)

    def _others(self, stem: str, suffix: str) -> bool:
        """Whether a file of somebody else's would be written over; one that is looked at is an error of its own."""
        kinds = {"png": [f"{stem}{suffix}"], "labels": [f"labels/{stem}.png"],
                 "polygons": [f"polygons/{stem}.json", f"polygons/{stem}.geojson"]}  # fmt: skip
        names = [n for kind, names in kinds.items() if kind in self.formats for n in names]
        return any(self._folder.is_others(n) and (self._folder.out / n).resolve() not in self._inputs for n in names)

    def _count(self, result: ImageResult, shown: ImageResult) -> None:
        d = self.done
        d.images += 1
        d.with_objects += len(shown) > 0
        d.objects += len(shown)
        d.classes.update(shown.names)
        d.scores += result.scores.tolist()
        if len(result) and (d.best is None or result.scores[0] > d.best.score):
            d.best = Best(float(result.scores[0]), result.names[0], result.name)

    def close(self) -> Written:
        """Everything in its place."""
        if self._coco is not None:
            self._coco.write(b"[]" if self._first else b"\n]")
            self._coco.close()
        if self._table is not None:
            self._table.close()
        self._folder.finish()
        return self.done

    def abandon(self) -> None:
        """Nothing is kept; the folder is as it was."""
        for file in (self._coco, self._table):
            if file is not None:
                file.close()
        self._folder.abandon()
