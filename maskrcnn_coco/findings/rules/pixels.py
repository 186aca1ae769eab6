"""Images do not reach the model as it expects them.

What happens: training runs and learns little or nothing, above all from pretrained weights.
Why: the data set normalises and the detector normalises again; values were divided by 255 twice, or not at all; all
  pixels of an image are equal after decoding.
How it is proved: range and levels of decoded samples, against what the model does with them. Dark images, grey ones
  and images of few levels are no fault. Channels swapped in every image cannot be told from the images alone.
What is done: it warns before the first step.
How to fix it: give float32 images in 0..1; torchvision's detectors subtract mean and deviation themselves.
"""

from __future__ import annotations

from maskrcnn_coco.findings.facts import Facts, Pixels
from maskrcnn_coco.findings.rules.common import finding, some
from maskrcnn_coco.records import RunFinding

CODE = "PIXELS"
MOST = 0.5
BYTES = 2.0
"""A mean above it is that of images that go to 255."""
SAME = 8
"""So many samples must show one picture before it is said."""


def judge(facts: Facts) -> list[RunFinding]:
    return _judge(facts.pixels) if facts.pixels is not None and facts.pixels.images else []


def _judge(p: Pixels) -> list[RunFinding]:
    of = "" if p.of == "training data" else f" of the {p.of}"
    span = f"values from {p.low:.3g} to {p.high:.3g} in {p.images} images{of}"
    proof = [("pixels of decoded samples", span)]
    where = some(p.image_ids)
    if p.mean > BYTES:
        return _in_bytes(p, span, proof)
    if p.negative >= MOST * p.images and p.normalises:
        message = f"images are normalised twice: {span}, expected 0..1, and the model normalises them itself{where}"
        fix = "drop transforms.Normalize from the data set, or give the model image_mean=[0, 0, 0], image_std=[1, 1, 1]"
        return [finding(CODE, "normalised twice", "warning", message, fix, proof, images=p.image_ids, of=p.of)]
    if p.large >= MOST * p.images and p.high > 2.0 and p.normalises:
        message = f"images are not scaled: {span}, expected 0..1{where}"
        fix = "image = image / 255, or transforms.v2.ToDtype(torch.float32, scale=True)"
        return [finding(CODE, "not scaled", "warning", message, fix, proof, images=p.image_ids, of=p.of)]
    if 0 < p.bright < MOST * p.images and p.normalises:
        message = f"images of two scales: {p.bright} of {p.images} go to {p.high:.3g}, the others end at 1{where}"
        fix = "divide by 255 what has not been divided: ToDtype(torch.float32, scale=True) leaves floats as they are"
        return [finding(CODE, "two scales", "warning", message, fix, proof, images=p.image_ids, of=p.of)]
    if p.distinct == 1 and p.images >= SAME and p.constant < p.images:
        message = f"all {p.images} images looked at are one and the same picture: the index changes nothing"
        fix = "look at dataset[0][0] and dataset[1][0]: __getitem__ has to open the image of its index"
        return [finding(CODE, "one picture", "warning", message, fix, [("pictures compared", f"1 of {p.images}")])]
    if p.faint == p.images and p.high > 0:
        message = f"images are scaled twice: {span}, expected 0..1{where}"
        fix = "divide by 255 once: ToTensor and ToDtype(scale=True) do it already"
        return [finding(CODE, "scaled twice", "warning", message, fix, proof, images=p.image_ids, of=p.of)]
    if p.constant >= max(2, MOST * p.images):
        message = f"{p.constant} of {p.images} images have one value in all pixels{where}"
        fix = "look at dataset[i][0].min() and .max(): the images are lost on the way"
        return [finding(CODE, "constant", "warning", message, fix, proof, images=p.image_ids, of=p.of)]
    return []


def _in_bytes(p: Pixels, span: str, proof: list[tuple[str, str]]) -> list[RunFinding]:
    """The model normalises images that go to 255: those that end at 1 are one grey to it."""
    if p.high > BYTES or p.low < -BYTES:
        return []
    message = f"the model subtracts {p.mean:.3g} from images that end at 1: {span}; to it all of them are alike"
    fix = "model.transform.image_mean = [0.485, 0.456, 0.406]; model.transform.image_std = [0.229, 0.224, 0.225]"
    return [finding(CODE, "mean of bytes", "warning", message, fix, proof, images=p.image_ids, of=p.of, mean=p.mean)]
