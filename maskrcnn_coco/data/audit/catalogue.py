"""Every finding that a check can make: code, severity, one-line title and fix. Codes never change their meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from maskrcnn_coco.data.coco.entries import Problem
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.tiff import SPLIT
from maskrcnn_coco.records import DataFinding
from maskrcnn_coco.wording import clean, named

Severity = Literal["error", "warning", "info"]
REPAIR = "maskrcnn-coco check --data PATH --fix OUT.json writes a copy"


_READ = f"{REPAIR} in COCO's form"


@dataclass(frozen=True)
class Kind:
    """What a code means. error: left out of training; warning: likely a mistake; info: good to know."""

    severity: Severity
    title: str
    fix: str


CATALOGUE: dict[str, Kind] = {
    # what did not fit while reading
    "FILE_FORM": Kind("info", "the file is arranged in another way", f"nothing to do: it is read; {_READ}"),
    "IMAGE_ID_NAME": Kind("info", "images are named by their files", f"nothing to do: they are read; {_READ}"),
    "BOX_FORM": Kind("info", "boxes are written in another form", f"nothing to do: they are read; {_READ}"),
    "SEGMENTATION_FORM": Kind(
        "info", "segmentations are written in another form", f"nothing to do: they are read; {_READ}"
    ),
    "IMAGE_ENTRY_BAD": Kind("error", "an entry of `images` is not an object", f"remove it; {REPAIR} without it"),
    "IMAGE_ID_BAD": Kind("error", "an image has no whole number as id", "give it one; annotations refer to it"),
    "IMAGE_ID_TEXT": Kind("warning", "image ids are no whole numbers", f"nothing is lost; {REPAIR} with numbers"),
    "CATEGORY_ID_TEXT": Kind("warning", "category ids are no whole numbers", f"nothing is lost; {REPAIR} with numbers"),
    "IMAGE_ID_DUPLICATE": Kind(
        "error", "two images have the same id", "give each image its own id, in its annotations too"
    ),
    "IMAGE_ID_SHIFT": Kind(
        "warning",
        "image ids of annotations are one too low or high",
        "count both from 0, or both from 1: image_id of each annotation is the id of its image",
    ),
    "IMAGE_ENTRY_REPEATED": Kind("warning", "an image entry is there twice", f"{REPAIR} with one"),
    "IMAGE_FILE_NAME_BAD": Kind("error", "an image has no file name", f"name its file; {REPAIR} without it"),
    "IMAGE_SIZE_INVALID": Kind(
        "warning", "an image entry has no usable width and height", f"{REPAIR} with the file's size"
    ),
    "ID_STRING": Kind("warning", "an id is text", f"write ids as numbers; {REPAIR} that does"),
    "CATEGORY_BAD": Kind("warning", "an entry of `categories` is malformed", "give each category an id and a name"),
    "CATEGORY_ID_DUPLICATE": Kind("warning", "two categories have the same id", "give each category its own id"),
    "ANN_ENTRY_BAD": Kind("error", "an entry of `annotations` is not an object", f"remove it; {REPAIR} without it"),
    "ANN_ID_BAD": Kind("warning", "an annotation has no whole number as id", f"{REPAIR} with new ids"),
    "ANN_IMAGE_UNKNOWN": Kind("error", "an annotation belongs to no image", f"remove it; {REPAIR} without it"),
    "BOX_MISSING": Kind("error", "an annotation has no box", f"{REPAIR} with the box of its mask"),
    "BOX_MALFORMED": Kind("error", "a box is not four numbers", f"{REPAIR} with the box of its mask"),
    "BOX_NONFINITE": Kind("error", "a box is NaN or infinite", f"{REPAIR} with the box of its mask"),
    "BOX_STRING": Kind("warning", "a box holds text", f"write numbers without quotes; {REPAIR} that does"),
    "AREA_BAD": Kind("warning", "an area is not a number", f"{REPAIR} with the mask's area"),
    "ISCROWD_BAD": Kind("warning", "iscrowd is neither 0 nor 1", "write 0 or 1; it was read as 0"),
    "CROWD_ALL": Kind(
        "error",
        "every annotation is called a crowd",
        f"CVAT and pycococreator write iscrowd 1 for brush masks: write 0; {REPAIR} with 0",
    ),
    "CROWD_SINGLE": Kind(
        "warning", "annotations called crowds look like single objects", f"write iscrowd 0; {REPAIR} with 0"
    ),
    # boxes
    "BOX_INVERTED": Kind("error", "a box has negative width or height", f"{REPAIR} with the box of its mask"),
    "BOX_EMPTY": Kind("error", "a box has no width or height", f"{REPAIR} with the box of its mask"),
    "BOX_TINY": Kind("warning", "a box is thinner than one pixel", "remove it if it is a slip of the mouse"),
    "BOX_OUTSIDE": Kind("error", "a box lies outside its image", f"{REPAIR} with the box of its mask"),
    "BOX_PARTLY_OUTSIDE": Kind("warning", "a box leaves its image", f"{REPAIR} with the box cut off at the border"),
    "BOX_FAR": Kind("error", "a box reaches far out of its image", f"{REPAIR} with the box of its mask"),
    "BOX_XYXY": Kind(
        "warning", "boxes look like [x1, y1, x2, y2]", f"COCO wants [x, y, width, height]; {REPAIR} that has it"
    ),
    # how a whole set is written: see `readings`
    "BOX_CENTER": Kind("warning", "boxes look like [center x, center y, width, height]", _READ),
    "BOX_SWAPPED": Kind("warning", "boxes look like x and y swapped", _READ),
    "BOX_UNIT": Kind("warning", "boxes look like shares of the image, 0 to 1", _READ),
    "BOX_SCALED": Kind("warning", "boxes look like those of images of another size", _READ),
    "MASK_SWAPPED": Kind("warning", "masks look like x and y swapped", _READ),
    "MASK_ROW_MAJOR": Kind("warning", "RLE masks run along rows, COCO's along columns", _READ),
    "MASK_SIDES": Kind("warning", "RLE masks give width before height", _READ),
    "MASK_UNIT": Kind("warning", "masks look like shares of the image, 0 to 1", _READ),
    "MASK_SCALED": Kind("warning", "masks look like those of images of another size", _READ),
    "ALL_UNIT": Kind("warning", "boxes and masks look like shares of the image, 0 to 1", _READ),
    "ALL_SWAPPED": Kind("warning", "boxes and masks look like x and y swapped", _READ),
    "READINGS_TIE": Kind(
        "warning",
        "boxes and masks disagree, and it cannot be told which are right",
        "look at maskrcnn-coco check --data PATH --html OUT.html, then correct the exporter; --fix leaves them alone",
    ),
    "MASK_BOX_UNRELATED": Kind(
        "warning",
        "most boxes and masks disagree, under every known reading",
        "look at maskrcnn-coco check --data PATH --html OUT.html, then correct the exporter; --fix leaves them alone",
    ),
    "MASK_INVERTED": Kind(
        "warning",
        "masks cover what is around their objects",
        "write 1 where the object is (1 - mask), and the run of background first in an RLE; maskrcnn-coco check "
        "--data PATH --html OUT.html draws them",
    ),
    "MASK_INSIDE_BOX": Kind(
        "info", "boxes far larger than their masks", "nothing to do where boxes are drawn around what is hidden too"
    ),
    # labels and ids
    "LABEL_UNKNOWN": Kind(
        "error", "a category id is not in `categories`", "add the category, or correct the annotation"
    ),
    "CATEGORY_GAP": Kind("info", "category ids have gaps", "nothing to do: labels are numbered without gaps"),
    "CATEGORY_ZERO": Kind("info", "category ids start below 1", "nothing to do: label 0 stays the background"),
    "CATEGORY_BACKGROUND": Kind(
        "warning",
        "the background is annotated as objects",
        "remove the category and its annotations: what no object covers is background",
    ),
    "CATEGORY_PARENT": Kind("info", "a parent category is left out", "nothing to do: it has no annotations"),
    "CATEGORY_UNUSED": Kind("info", "a category has no annotations", "remove it, unless other data sets have it"),
    "CATEGORY_NAME_DUPLICATE": Kind("warning", "two categories have the same name", "merge them, or rename one"),
    "CATEGORY_NAME_ALIKE": Kind(
        "warning",
        "names of categories differ in case or blanks alone",
        "nothing to do where they are two classes; else give their annotations one category",
    ),
    "CLASS_IMBALANCE": Kind("warning", "classes differ a hundredfold in number", "add images of the rare class"),
    "ANN_ID_DUPLICATE": Kind(
        "warning",
        "annotations have the same id",
        f"nothing is lost, they go by place; {REPAIR} with new ids",
    ),
    "ANN_DUPLICATE": Kind("warning", "an annotation is there twice", f"{REPAIR} without the second"),
    "IMAGE_NAME_DUPLICATE": Kind(
        "warning",
        "two image entries name the same file",
        f"what each lacks is background in it: merge them; {REPAIR} that has one entry",
    ),
    "NO_ANNOTATIONS": Kind(
        "error", "the file has no annotations", "name the annotated json, not the list of test images"
    ),
    "IMAGES_EMPTY": Kind("info", "images without annotations", "nothing to do: they teach the background"),
    # masks
    "NO_MASKS": Kind(
        "error", "no annotation has a mask", "train a box detector (Faster R-CNN), or add masks, for example with SAM"
    ),
    "SEGMENTATION_MISSING": Kind(
        "error", "an annotation has no mask", f"draw it, or remove the annotation; {REPAIR} without it"
    ),
    "SEGMENTATION_BAD": Kind("error", "a segmentation is neither polygons nor RLE", f"{REPAIR} without it"),
    "POLYGON_NONFINITE": Kind("error", "a polygon holds something other than finite numbers", f"{REPAIR} without it"),
    "POLYGON_ODD": Kind("error", "a polygon has an odd number of coordinates", f"{REPAIR} without it"),
    "POLYGON_SHORT": Kind("error", "no part of a polygon has 3 points", f"{REPAIR} without it"),
    "POLYGON_PART_SHORT": Kind("warning", "a part of a polygon has fewer than 3 points", f"{REPAIR} without that part"),
    "POLYGON_FAR": Kind("error", "a polygon reaches far out of its image", f"{REPAIR} without it"),
    "POLYGON_LONG": Kind("error", "the outline of a polygon is absurdly long", f"{REPAIR} without it"),
    "POLYGON_OUTSIDE": Kind("warning", "a polygon leaves its image", f"{REPAIR} with it cut off at the border"),
    "POLYGON_FORM": Kind("info", "polygons are written in another form", f"nothing to do: they are read; {_READ}"),
    "POLYGON_CROSSING": Kind("info", "a polygon crosses itself", "nothing to do, unless the drawn mask looks wrong"),
    "POLYGON_MULTIPART": Kind("info", "objects of several parts", "nothing to do: all parts are used"),
    "POLYGON_HOLE": Kind(
        "info",
        "a part of a polygon lies within another",
        "write objects with holes as RLE: pycocotools.mask.encode(np.asfortranarray(mask)); --fix leaves them alone",
    ),
    "RLE_SIZE": Kind("error", "an RLE has another size than its image", "export the masks at the size of the image"),
    "RLE_SUM": Kind("error", "the runs of an RLE do not fill the image", "export this mask again"),
    "RLE_BAD": Kind("error", "an RLE is damaged", "export this mask again"),
    "RLE_NOT_CROWD": Kind("info", "RLE masks of objects that are not crowds", "nothing to do: they are read"),
    "MASK_EMPTY": Kind("error", "a mask has no pixel inside the image", f"remove it; {REPAIR} without it"),
    "MASK_BOX_DISAGREE": Kind("warning", "mask and box disagree", f"look at it; {REPAIR} with the box of the mask"),
    "MASK_AREA_DISAGREE": Kind("warning", "mask and area disagree", f"{REPAIR} with the mask's area"),
    "MASK_IS_BOX": Kind(
        "info",
        "masks are the rectangles of their boxes",
        "nothing to do where the objects are rectangles; else annotate outlines: a tool wrote boxes as polygons",
    ),
    "AREA_IS_BOX": Kind(
        "info", "`area` is the box's area, not the mask's", f"AP by size needs the mask's; {REPAIR} with it"
    ),
    "AREA_MISSING": Kind("info", "annotations without `area`", f"AP by size needs it; {REPAIR} with it"),
    "OBJECT_SMALL": Kind(
        "warning", "objects smaller than the smallest anchor", "raise --min-size and --max-size, or tile images"
    ),
    # images
    "IMAGE_MISSING": Kind("error", "an image file does not exist", "check --images, or remove the entry"),
    "IMAGE_PATH": Kind(
        "error",
        "a file name leads out of the image folder",
        "write names relative to the image folder; for links: cp -rL FOLDER COPY, and --images COPY",
    ),
    "IMAGE_UNREADABLE": Kind("error", "an image is damaged, or is none", "replace the file, or remove the entry"),
    "IMAGE_TOO_LARGE": Kind("error", "an image has too many pixels", "make it smaller, or cut it into tiles"),
    "IMAGE_THIN": Kind(
        "error", "nothing is left of an image when it is resized", "cut it into pieces, or raise --max-size"
    ),
    "IMAGE_SIZE_WRONG": Kind(
        "error", "an image has another size than its entry says", "correct width and height, or the masks"
    ),
    "SIZES_SWAPPED": Kind(
        "error", "width and height of the entries are exchanged", f"{REPAIR} with the sizes of the files"
    ),
    "IMAGES_RESIZED": Kind(
        "error", "all files have another size than their entries", f"{REPAIR} in the pixels of the files"
    ),
    "IMAGES_CHANGED": Kind(
        "error",
        "all files were cut, padded or turned after annotation",
        "use the pictures as they were annotated, or change boxes and masks alike (torchvision.transforms.v2 does)",
    ),
    "IMAGE_EXIF_MISMATCH": Kind(
        "warning",
        "an image is annotated as stored, but shown turned",
        "it is read as stored, here and in training; predict turns it: drop the EXIF tag",
    ),
    "IMAGE_EXIF_ROTATED": Kind("info", "an image is turned by its EXIF tag", "nothing to do: it is turned on reading"),
    "IMAGE_16BIT": Kind(
        "info", "an image has more than 8 bits a channel", "look at the range that is scaled to 8 bits; --bit-range"
    ),
    "IMAGE_PAGES": Kind(
        "warning",
        "an image file has several pages",
        f"nothing to do where the objects are on the first; else a file a page: {SPLIT.replace('{file}', 'STACK.tif')}",
    ),
    "IMAGE_STACK": Kind(
        "error",
        "several image entries name one file of several pages",
        f"save each page as a file, and name those: {SPLIT.replace('{file}', 'STACK.tif')}",
    ),
    "IMAGE_BANDS": Kind("info", "an image has more than three bands", "write the bands that matter as the first three"),
    "IMAGE_UNSUPPORTED": Kind(
        "error", "an image has bands or numbers that cannot be read", "convert it to 8 or 16 bits, 1 or 3 bands"
    ),
    "IMAGE_FEW_LEVELS": Kind(
        "warning", "hardly any brightness is left of an image", "give the range of its values: --bit-range LOW,HIGH"
    ),
    "IMAGE_CONSTANT": Kind("warning", "all pixels of an image are equal", "remove it"),
    "IMAGE_DUPLICATE": Kind("warning", "two image files are equal, byte for byte", "remove one of them"),
    "IMAGE_LEAK": Kind(
        "warning", "an image is in training and validation", "remove it from one: it makes AP look better"
    ),
    "IMAGE_NEAR_LEAK": Kind(
        "warning",
        "a copy of an image is in validation",
        "keep both on one side, where they are of one scene: --split-by",
    ),
}


def fix_of(code: str, table: CocoTable) -> str:
    """What to do about ``code`` in ``table``, with a command that can be pasted."""
    return named(CATALOGUE[code].fix, table.flags)


class Reporter:
    """Collects findings about one table and writes their messages, which name file, image and annotation."""

    def __init__(self, table: CocoTable) -> None:
        self.table = table
        self.findings: list[DataFinding] = []
        self.rows: list[int] = []
        """Of each finding, the annotation's row in the table, -1 where it is about none."""

    def add(
        self,
        code: str,
        text: str,
        *,
        image: int = -1,
        ann: int = -1,
        severity: Severity | None = None,
        count: int | np.integer | float = 1,
    ) -> None:
        """One finding; ``image`` and ``ann`` are rows, both -1 where it is about the whole set: ``count`` parts."""
        t = self.table
        if ann >= 0 and image < 0:
            image = int(t.ann_image[ann])
        self._append(
            code,
            text,
            int(t.image_ids[image]) if image >= 0 else None,
            ann,
            t.file_name(image) if image >= 0 else None,
            severity,
            int(count),
        )

    def add_problem(self, problem: Problem, severity: Severity | None = None) -> None:
        """A finding from what the reader noted."""
        try:
            name = None if problem.image_id is None else self.table.file_name(self.table.row_of(problem.image_id))
        except KeyError:
            name = None
        ann = -1 if problem.annotation_id is None else self._row(problem.annotation_id)
        self._append(problem.code, problem.text, problem.image_id, ann, name, severity)

    def _row(self, ann_id: int) -> int:
        try:
            return self.table.row_of_annotation(ann_id)
        except KeyError:  # of another part of the file
            return -1

    def _append(
        self,
        code: str,
        text: str,
        image_id: int | None,
        ann: int,
        name: str | None,
        severity: Severity | None,
        count: int = 1,
    ) -> None:
        kind = CATALOGUE[code]
        self.rows.append(ann)
        parts = [clean(name or self.table.json_path.name, 150)]
        parts += [f"image {image_id}"] if image_id is not None else []
        given = row = None
        if ann >= 0:
            given, own = int(self.table.given_ids[ann]), int(self.table.ann_ids[ann])
            row = None if own >= 0 else -1 - own
            parts += [f"annotation {given}"] if given != own or row is None else []
            if row is not None and not text.startswith("annotations["):
                parts.append(f"annotations[{row}]")
        message = clean(f"{', '.join(parts)}: {text}")
        self.findings.append(
            DataFinding(
                code, severity or kind.severity, image_id, given, name, message, fix_of(code, self.table), row, count
            )
        )
