"""Each verb's flags, as typed settings with a text each: what is parsed, what ``--help`` and the documentation show."""

from __future__ import annotations

from typing import Literal

import msgspec

from maskrcnn_coco.config.settings import Config

VERBS = {
    "train": "fine-tune on COCO-format data (no flags: the built-in shapes)",
    "convert": "LabelMe, VIA, CVAT, YOLO-seg, Pascal VOC, mask images and others as COCO",
    "check": "find what is wrong with a data set, before training",
    "advise": "measure the stable learning rate of each component, before training",
    "diagnose": "name the cause of a failed step, a run or a checkpoint, with its proof",
    "verify": "tell whether a fix holds",
    "evaluate": "COCO bbox and segm AP of a checkpoint",
    "predict": "what a checkpoint or an exported model finds on images, in five formats",
    "export": "ONNX, TorchScript, OpenVINO or safetensors, proved against the checkpoint",
    "push": "a checkpoint in the layout of the Hugging Face hub: as a folder, or uploaded",
    "explain": "teach one cause code: what happens, why, how it is proved, how to fix it",
    "report": "write report.html again from a run's files",
    "doctor": "versions, devices, threads, memory, and the health of a checkpoint folder",
}


class TrainArgs(Config, frozen=True, kw_only=True):
    """Fine-tune Mask R-CNN on COCO-format data; no run is lost, not to NaN and not in silence.

    Flags that are not given come from the recipe for the data set's size; a flag given is never overridden.
    """

    config: str | None = None
    """Take the settings of this YAML file; flags on the command line come before it."""
    print_config: bool = False
    """Print every setting as YAML, resolved for the data, and stop."""
    dry_run: bool = False
    """Check data, model and folders, show the settings with their reasons, and stop before training."""
    json: bool = False
    """Print one JSON object on stdout, everything else on stderr."""
    debug: bool = False
    """Show the traceback of an error."""


class ConvertArgs(msgspec.Struct, frozen=True, kw_only=True):
    """What another tool wrote, as COCO: LabelMe, VIA, CVAT's xml, Darwin, SuperAnnotate, Supervisely, Cityscapes,
    GeoJSON of QuPath, YOLO-seg, Pascal VOC, tables of runs (csv), folders of mask images.

    A validation part is written beside OUT.
    """

    out: str
    """The COCO json to write."""
    images: str | None = None
    """Folder of the images, where they are not beside the annotations (not YOLO, VOC and mask images)."""
    format: Literal["auto", "labelme", "via", "cvat", "jsons", "runs", "yolo", "voc", "masks"] = "auto"
    """What the source is. auto: what it looks like."""
    masks_are: Literal["auto", "objects", "classes"] = "auto"
    """What the values in mask images stand for: numbered objects, or classes in pieces. auto: as it looks, and said."""
    json: bool = False
    """Print one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


class CheckArgs(msgspec.Struct, frozen=True, kw_only=True):
    """Find what is wrong with a data set. Exit 0: clean (no errors or warnings of weight); 3: findings."""

    data: str
    """Folder, or json with --images."""
    images: str | None = None
    """Folder of the images, where --data is a json file."""
    val: str | None = None
    """Validation folder or json, to look for leaks between the two."""
    val_images: str | None = None
    """Folder of the validation images, where --val is a json file."""
    fix: str | None = None
    """Write a repaired copy of the annotations here; the source is never touched."""
    html: str | None = None
    """Write a gallery that draws each kind of finding, and twelve healthy images, here."""
    bit_range: str = "auto"
    """Images of more than 8 bits: the values that become black and white, LOW,HIGH. auto: found for the whole set."""
    no_images: bool = False
    """Look at the annotations only."""
    min_size: int | None = None
    """Shorter side of the resized image in training, pixels (default: 800): objects are judged at that size."""
    max_size: int | None = None
    """Limit for the longer side, pixels (default: 1333)."""
    json: bool = False
    """Print one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


class AdviseArgs(Config, frozen=True, kw_only=True):
    """Measure the largest stable learning rate of each component, and recommend settings."""

    ladder: bool = False
    """Also train the head multipliers 3, 5, 7, 10 briefly, side by side."""
    json: bool = False
    """Print one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


class PathArgs(msgspec.Struct, frozen=True, kw_only=True):
    """A run folder, an incident or a checkpoint."""

    json: bool = False
    """Print one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


class VerifyArgs(PathArgs, frozen=True, kw_only=True):
    """Tell whether a fix holds: the recorded failing step, then a short training, with the new settings."""

    lr: float | None = None
    """New backbone learning rate."""
    head_lr_multiplier: float | None = None
    """New head multiplier."""
    rpn_lr_multiplier: float | None = None
    """New rpn multiplier."""
    fpn_lr_multiplier: float | None = None
    """New FPN multiplier."""
    max_grad_norm: float | None = None
    """New clipping norm."""
    warmup_steps: int | None = None
    """New warm-up."""
    amp: Literal["auto", "off", "fp16", "bf16"] | None = None
    """New precision."""
    steps: int | None = None
    """Steps of the short training (default: one epoch)."""


class EvaluateArgs(msgspec.Struct, frozen=True, kw_only=True):
    """COCO bbox and segm AP of a checkpoint, and what lies behind them."""

    data: str | None = None
    """Folder, or json with --images. None: the held-back built-in shapes."""
    images: str | None = None
    """Folder of the images, where --data is a json file."""
    bit_range: str | None = None
    """Images of more than 8 bits: the values that become black and white, LOW,HIGH, or auto. None: as in training."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    out: str | None = None
    """Write the detections as a COCO results json here."""
    batch_size: int = 1
    """Images at a time."""
    tile: str | None = None
    """Cut large images into tiles of this many pixels, as in predict; auto: the size of the training images."""
    overlap: float = 0.25
    """Share of a tile that its neighbour sees, too, with --tile."""
    tta: str | None = None
    """Look at each image several times and let the views vote: flip, scale, or flip,scale. Costs 2, 3 or 6 times."""
    html: str | None = None
    """Write a page with curves, confusions and pictures of labels to look at here."""
    json: bool = False
    """Print one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


class PredictArgs(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint, or an exported model, finds on images: pictures, tables, outlines, label images, COCO results.

    IMAGE is a file, a glob, a folder with the folders in it, or a video. Exit code 3: some images could not be read.
    """

    out: str = "predictions"
    """Folder for what is written. What an earlier run wrote there goes; other files stay."""
    score: float = 0.5
    """Show objects of at least this score."""
    format: str = "coco,png"
    """What to write, with commas: coco (all detections), csv, polygons (LabelMe and GeoJSON), labels (16 bits), png."""
    tile: str | None = None
    """Cut large images into tiles of N pixels; auto: the size of the images it was trained on."""
    overlap: float = 0.25
    """Share of a tile that its neighbour sees, too; objects are put together across seams."""
    coco: str | None = None
    """A COCO json that lists the images: results take its image ids and its category ids."""
    bit_range: str | None = None
    """Images of more than 8 bits: the values that become black and white, LOW,HIGH, or auto. None: as in training."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    json: bool = False
    """Print one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


class ExportArgs(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint's model for other runtimes, proved: it is run beside the checkpoint on pictures of several sizes.

    Where the two part by more than 0.01 px, 1e-4 of a score or 0.001 of a mask, nothing is left and the exit code is 4.
    """

    format: str = "onnx"
    """onnx, torchscript, openvino or safetensors; several with commas."""
    out: str = "exported"
    """Folder for model.onnx, model.torchscript, model.xml and .bin, model.safetensors."""
    images: str | None = None
    """Compare on these images as well: a file, a folder or a glob."""
    json: bool = False
    """Print one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


class PushArgs(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint as a model repository: model.safetensors (proved against it), config.json, README.md (the card).

    The upload needs huggingface_hub (pip install 'maskrcnn-coco[hub]') and its login; it was never tried against the
    real hub, only against a stand-in. `load` reads such a folder back.
    """

    to_folder: str | None = None
    """Write the files here and upload nothing."""
    license: str = ""
    """SPDX name of the weights' licence (apache-2.0, cc-by-4.0, …), for the card."""
    card: str | None = None
    """The model card to take. None: MODEL_CARD.md beside the checkpoint, else what the checkpoint itself says."""
    private: bool = False
    """Make the repository a private one, where it is made."""
    message: str = "Upload model"
    """What the commit says."""
    json: bool = False
    """Print one JSON object on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


class DoctorArgs(PathArgs, frozen=True, kw_only=True):
    """Versions, devices, threads, memory, and the health of a checkpoint folder."""

    checkpoint_dir: str = "checkpoints"
    """Folder of checkpoints to scan."""


ARGUMENTS: dict[str, tuple[type, str]] = {
    "train": (TrainArgs, ""),
    "convert": (ConvertArgs, "SOURCE"),
    "check": (CheckArgs, ""),
    "advise": (AdviseArgs, ""),
    "diagnose": (PathArgs, "INCIDENT.json | RUN_DIR | CHECKPOINT"),
    "verify": (VerifyArgs, "[RUN_DIR]"),
    "evaluate": (EvaluateArgs, "CHECKPOINT"),
    "predict": (PredictArgs, "CHECKPOINT IMAGE…"),
    "export": (ExportArgs, "CHECKPOINT"),
    "push": (PushArgs, "CHECKPOINT OWNER/NAME"),
    "explain": (PathArgs, "CODE"),
    "report": (PathArgs, "[RUN_DIR]"),
    "doctor": (DoctorArgs, ""),
}
