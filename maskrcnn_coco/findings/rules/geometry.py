"""Boxes, masks and image do not belong together in most of a set.

What happens: losses fall a little and AP stays near 0, or boxes are found and masks are not.
Why: boxes written as [x1, y1, x2, y2] and read as [x, y, width, height], or the reverse; x and y exchanged in masks
  or boxes; an RLE counted along rows; an augmentation that moves image and boxes and not the masks; boxes of the
  image before it was resized; boxes as shares of the image.
How it is proved: the extent of each mask is compared with its box, as they are and under each of these readings.
  It is said where so many disagree, and named where one reading makes nearly all of them agree. A box that reaches
  beyond its mask all around (hidden parts) agrees. Square images of round objects say nothing about a transposition.
What is done: it warns before the first step; nothing is changed.
How to fix it: correct the conversion that the finding names; `maskrcnn-coco check --data PATH --fix OUT.json` writes
  a copy with the boxes of the masks where it is the boxes that are wrong.
"""

from __future__ import annotations

from maskrcnn_coco.findings.facts import Content, Facts, Geometry, Way
from maskrcnn_coco.findings.rules.common import audited, finding, some
from maskrcnn_coco.records import RunFinding

CODE = "GEOMETRY"
SHARE, FEWEST = 0.1, 4
"""So many objects must disagree to be looked at for a reading; and without a reading, half of them."""
RESTORED = 0.8
"""Share of the disagreeing objects that one reading must make agree."""
OUTSIDE, NOTHING, TWICE = 0.5, 0.1, 0.3
READINGS: dict[str, tuple[str, str, str]] = {
    "boxes as x, y, width, height": (
        "boxes are x, y, width, height where x1, y1, x2, y2 is expected",
        "boxes[:, 2:] += boxes[:, :2]",
        "the boxes of the masks",
    ),
    "boxes as corners": (
        "boxes are x1, y1, x2, y2 where x, y, width, height is expected",
        "boxes[:, 2:] -= boxes[:, :2]",
        "the boxes of the masks",
    ),
    "boxes as centre and size": (
        "boxes are centre x, centre y, width, height",
        'boxes = torchvision.ops.box_convert(boxes, "cxcywh", "xyxy")',
        "the boxes of the masks",
    ),
    "x and y of boxes exchanged": (
        "x and y of the boxes are exchanged",
        "boxes = boxes[:, [1, 0, 3, 2]]",
        "the boxes of the masks",
    ),
    "x and y exchanged": (
        "x and y are exchanged in the boxes or in the masks (of square images it cannot be told in which)",
        "boxes = boxes[:, [1, 0, 3, 2]], or masks = masks.transpose(1, 2): draw one sample to see which",
        "x and y exchanged in `bbox` or in `segmentation`",
    ),
    "masks counted along rows": (
        "the masks were counted along rows, and are read along columns",
        "decode RLE in column order: counts.reshape(width, height).T",
        "the RLE counted along columns",
    ),
    "masks mirrored left to right": (
        "boxes are mirrored left to right, their masks are not",
        "flip the masks with the image and the boxes: masks = masks.flip(-1)",
        "masks and boxes mirrored alike",
    ),
    "masks mirrored top to bottom": (
        "boxes are mirrored top to bottom, their masks are not",
        "flip the masks with the image and the boxes: masks = masks.flip(-2)",
        "masks and boxes mirrored alike",
    ),
    "boxes 0..1": (
        "boxes are shares of the image, 0..1",
        "boxes = boxes * torch.tensor([width, height, width, height])",
        "boxes in pixels",
    ),
    "boxes of another image size": (
        "boxes belong to the image at another size",
        "scale boxes with the image: boxes * torch.tensor([sx, sy, sx, sy])",
        "boxes in the pixels of the image as stored",
    ),
    "masks moved": (
        "masks are moved against their boxes by the same way everywhere",
        "crop or pad masks and boxes alike",
        "masks and boxes in the same pixels",
    ),
}


TURNED = frozenset(
    {
        *("mirrored left to right", "mirrored top to bottom", "turned by half", "x and y exchanged"),
        *("turned to the left", "turned to the right", "exchanged and turned"),
    }
)
"""Readings of `Content` that are no scale."""
DRAWS = "maskrcnn-coco check --data PATH --html OUT.html draws"
CONTENT: dict[str, dict[str, str]] = {
    "turned": {
        "command": f"export boxes and masks as the pictures are stored; {DRAWS} both",
        "own": "flip boxes and masks with the image, in one branch: torchvision.transforms.v2 does, given tv_tensors",
    },
    "scaled": {
        "command": f"export boxes and masks in the pixels of the pictures as stored; {DRAWS} both",
        "own": "scale boxes and masks with the image: torchvision.transforms.v2.Resize does, given tv_tensors",
    },
    "moved": {
        "command": "export boxes and masks in the pixels of the pictures as stored, without a crop or margin"
        f"; {DRAWS} both",
        "own": "crop or pad boxes and masks with the image: torchvision.transforms.v2 does, given tv_tensors",
    },
    "elsewhere": {
        "command": "compare `image_id` of annotations with `id` of images: one of the two counts from 0, or was sorted"
        f"; {DRAWS} both",
        "own": "sort both lists alike: image and annotations of one index have to come from one name",
    },
}


def judge(facts: Facts) -> list[RunFinding]:
    found = [f for geometry in facts.geometry for f in _judge(geometry, facts)]
    misread = {g.of for g in facts.geometry if reading_of(g) is not None} | {a.of for a in facts.audited}
    found += [f for c in facts.contents if c.of not in misread for f in _content(c, facts.way)]
    return found + audited(CODE, facts)


def reading_of(g: Geometry) -> tuple[str, int, int] | None:
    """(reading, objects that agree under it, objects that do not as they are), where one reading restores them."""
    if g.boxes >= FEWEST and g.unit_boxes >= 0.9 * g.boxes:
        return "boxes 0..1", g.unit_boxes, g.boxes
    best = max(g.readings.items(), key=lambda r: r[1], default=("", 0))
    if g.disagree >= FEWEST and g.disagree >= SHARE * g.measured and best[1] >= RESTORED * g.disagree:
        return best[0], best[1], g.disagree
    return None


def _judge(g: Geometry, facts: Facts) -> list[RunFinding]:
    way, reading = facts.way, reading_of(g)
    if reading is not None:
        found = _named(g, *reading, way)
        # Of boxes that are inverted, or smaller than a pixel, nothing is learned.
        left = [t.stages for t in facts.targets if t.of == g.of and t.whole]
        none = left and min(s.count for s in left[0]) <= NOTHING * left[0][0].count
        found.severity = "error" if g.of == "training data" and none else "warning"
        return [found]
    unexplained = g.disagree - g.amodal
    share = unexplained / g.measured if g.measured else 0.0
    if unexplained >= FEWEST and share >= 0.5:
        message = f"boxes and masks disagree in {unexplained} of {g.measured} objects of the {g.of}{some(g.image_ids)}"
        proof = [
            ("extent of masks against boxes", f"{g.agree} of {g.measured} agree"),
            ("under the other readings", ", ".join(f"{n}: {v}" for n, v in g.readings.items()) or "none fits"),
        ]
        return [finding(CODE, "disagree", "warning", message, _look(way), proof, images=g.image_ids, of=g.of)]
    if g.boxes >= FEWEST and g.outside >= OUTSIDE * g.boxes:
        message = f"{g.outside} of {g.boxes} boxes of the {g.of} leave their image{some(g.image_ids)}"
        proof = [("boxes against the image", f"{g.outside} of {g.boxes} reach outside")]
        return [finding(CODE, "outside", "warning", message, _look(way), proof, images=g.image_ids, of=g.of)]
    if g.twice >= FEWEST and g.twice >= TWICE * g.boxes:
        message = f"{g.twice} of {g.boxes} objects of the {g.of} are twice there: same box and label{some(g.image_ids)}"
        proof = [("boxes and labels compared within each image", f"{g.twice} of {g.boxes} are another one again")]
        fix = "look at dataset[0][1]: two lists of objects are joined, or one annotation file was read twice"
        return [finding(CODE, "twice", "warning", message, fix, proof, images=g.image_ids, of=g.of)]
    return []


def _content(c: Content, way: Way) -> list[RunFinding]:
    """Boxes and masks that agree with each other and not with the picture."""
    where = some(c.image_ids)
    proof = [
        ("rank of edges under the outlines, as they are", f"{c.own:.2f}"),
        ("on other pictures, where they do not belong", f"{c.chance:.2f}"),
    ]
    if c.readings:
        name = max(c.readings, key=lambda n: c.readings[n])
        message = f"boxes and masks of the {c.of} do not lie on their pictures; {name}, they do{where}"
        proof.append((f"{name}", f"{c.readings[name]:.2f}"))
        kind = "turned" if name in TURNED else "moved" if name.startswith("moved") else "scaled"
        fix = CONTENT[kind]["command" if way == "command" else "own"]
        return [
            finding(CODE, f"picture {name}", "warning", message, fix, proof, images=c.image_ids, of=c.of, reading=name)
        ]
    if c.elsewhere:
        whose = f"the one {abs(c.step)} {'further on' if c.step > 0 else 'before'}" if c.step else "another one"
        message = f"boxes and masks of the {c.of} belong to other pictures: {c.elsewhere} of {c.images} lie on {whose}"
        proof.append(("on the picture that they fit best", f"{c.elsewhere} of {c.images} fit another one"))
        fix = CONTENT["elsewhere"]["command" if way == "command" else "own"]
        return [
            finding(CODE, "other pictures", "warning", message, fix, proof, images=c.image_ids, of=c.of, step=c.step)
        ]
    if c.parts:
        name, count = max(c.parts.items(), key=lambda p: p[1])
        message = f"{count} of {c.images} pictures of the {c.of} are {name}, their boxes and masks are not{where}"
        fix = CONTENT["turned"]["command" if way == "command" else "own"]
        return [
            finding(CODE, f"part {name}", "warning", message, fix, proof, images=c.image_ids, of=c.of, reading=name)
        ]
    return []


def _look(way: Way) -> str:
    if way == "command":
        return f"{DRAWS} them; --fix OUT.json writes a repaired copy"
    return "draw a sample with torchvision.utils.draw_bounding_boxes; boxes are x1, y1, x2, y2 in pixels of that image"


def _named(g: Geometry, reading: str, restored: int, of: int, way: Way) -> RunFinding:
    sentence, code, exported = READINGS[reading]
    message = f"{sentence}: {of} of {max(g.measured, g.boxes)} objects of the {g.of} disagree{some(g.image_ids)}"
    proof = [
        ("boxes against masks or image, as they are", f"{of} of {max(g.measured, g.boxes)} disagree"),
        (f"read with {reading}", f"{restored} of these {of} agree"),
    ]
    fix = code if way != "command" else f"export with {exported}; maskrcnn-coco check --data PATH --fix OUT.json"
    return finding(CODE, reading, "warning", message, fix, proof, images=g.image_ids, of=g.of, reading=reading)
