"""The training settings: typed, frozen, checked before any work, all errors at once.

A field that is None was not given: `recipes.resolve` fills it from the data set's size and says why.
Imports neither torch nor numpy, so that ``--help`` and ``check`` answer at once.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec

from maskrcnn_coco.config.fields import misfits, plain
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.system.plain_files import read_yaml

MODELS = (
    "maskrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet18_fpn",
    "maskrcnn_mobilenet_v2_fpn",
    "maskrcnn_resnet101_fpn",
    "maskrcnn_resnext50_32x4d_fpn",
    "maskrcnn_resnext101_64x4d_fpn",
    "maskrcnn_convnext_tiny_fpn",
    "maskrcnn_convnext_small_fpn",
    "maskrcnn_swin_t_fpn",
    "maskrcnn_swin_s_fpn",
)
COCO_WEIGHTS = ("maskrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn")
"""The models that torchvision has COCO weights of."""


class _Remembers(type(msgspec.Struct)):
    """Structs that know which fields their caller gave: ``Config(max_grad_norm=10.0)`` is not ``Config()``."""

    def __call__(cls, *args: Any, **fields: Any) -> Any:
        made = super().__call__(*args, **plain(fields))
        return _mark(made, fields)


class Config(msgspec.Struct, metaclass=_Remembers, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Fine-tune Mask R-CNN on COCO-format data; no run is lost, not to NaN and not in silence.

    Flags that are not given come from the recipe for the data set's size; a flag given is never overridden.
    A new field stands in the group of `GROUPS` that it belongs to: ``--help`` shows it there.
    """

    data: str | None = None
    """Folder in COCO, Roboflow, CVAT or "images + one json" layout, or a json with --images. None: built-in shapes."""
    images: str | None = None
    """Folder of the images, where --data is a json file."""
    val: str | None = None
    """Validation folder or json. None: found beside the training data, else split off by image."""
    val_images: str | None = None
    """Folder of the validation images, where --val is a json file."""
    split_by: str | None = None
    r"""Hold back whole groups for validation: a pattern on file names, '^(patient\d+)_', or a csv of name and group."""
    fold: str | None = None
    """Validate on fold N of K, as 1/5, and train on the others; each class in its share. With --split-by, by group."""
    demo: bool = False
    """Use the built-in shapes data, and say so explicitly."""
    quarantine: str | None = None
    """A quarantine.json whose images and annotations are left out from the start."""
    strict: bool = False
    """Exit 3 on data errors instead of leaving those images out."""
    bit_range: str = "auto"
    """Images of more than 8 bits: the values that become black and white, LOW,HIGH. auto: found for the whole set."""
    num_classes: int | None = None
    """Classes with background, for a data set of your own (Python only); otherwise read from the data."""
    augment: str = "light"
    """none, light, medium, heavy, or a YAML file that lists every operation with its probability and range."""
    flip: Literal["none", "horizontal", "vertical", "both"] | None = None
    """Flips, each with probability 1/2 (default: the augmentation's own, horizontal). none: text, or left and right."""
    copy_paste: float | None = None
    """Probability that objects of another training image are pasted into one (default: the augmentation's own)."""
    class_balance: Literal["none", "repeat"] = "none"
    """repeat: images with rare classes come several times an epoch (repeat-factor sampling)."""
    lr: float | Literal["auto"] | None = None
    """Learning rate of the backbone; the other components are multiples of it. "auto": measured before the run."""
    head_lr_multiplier: float | None = None
    """Box and mask head learn at --lr times this."""
    rpn_lr_multiplier: float | None = None
    """The region proposal network learns at --lr times this (default 1; more where only the backbone is pretrained)."""
    fpn_lr_multiplier: float | None = None
    """The FPN learns at --lr times this (default 1; more where only the backbone is pretrained)."""
    lr_scaling: Literal["none", "linear"] = "none"
    """linear: multiply --lr by the number of processes, and say so."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises linearly from a thousandth."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """After the warm-up: down to a hundredth along a cosine; to a tenth after 2/3 and again after 8/9; or level."""
    epochs: int | None = None
    """Passes over the training images."""
    max_steps: int | None = None
    """End after this many optimizer steps, however many epochs that is; the schedule is laid over them."""
    patience: int | None = None
    """Stop after this many epochs without a better segm/AP. None: never."""
    batch_size: int | Literal["auto"] | None = None
    """Images in one forward pass of one process. auto: the recipe's, halved (and accumulated) until a step fits."""
    accumulate: int = 1
    """Forward passes per optimizer step; the loss is divided by this."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimizer, fused where the device has it."""
    momentum: float = 0.9
    """SGD momentum; AdamW's beta1."""
    weight_decay: float | None = None
    """Weight decay, not applied to norms and biases (default 1e-4 for sgd, 0.05 for adamw)."""
    ema: float | Literal["none", "auto"] = "none"
    """Average the weights with this decay, evaluate both, keep the better. auto: over 7 % of the run's steps."""
    max_grad_norm: float = 10.0
    """Clip the gradient to this 2-norm, after unscaling (0: off)."""
    amp: Literal["auto", "off", "fp16", "bf16"] = "auto"
    """Mixed precision. auto: bf16 where the device computes it natively, else fp16 on CUDA, else off."""
    model: str | None = None
    """Architecture, by torchvision's name; or timm/NAME, a body of timm's under an FPN."""
    weights: str | None = None
    """coco, imagenet, none, or the path of a checkpoint of this project or of a torchvision detector."""
    backbone_weights: str | None = None
    """Path of weights for the backbone alone."""
    freeze_stages: int | None = None
    """Backbone stages, from the stem, whose weights stay as loaded (default by model and weights)."""
    min_size: int | None = None
    """Shorter image side after resizing, pixels."""
    max_size: int | None = None
    """Longest image side allowed after resizing, pixels."""
    tile: int | Literal["auto"] | None = None
    """Learn and validate images longer than 1.5 times this, pixels, as tiles of it. auto: --min-size, so 1 to 1."""
    box_batch_size_per_image: int | None = None
    """Proposals of an image that the box head is trained on (a quarter of them, at most, train the mask head)."""
    box_detections_per_image: int | Literal["auto"] | None = None
    """Most detections kept for an image in evaluation. auto: 100, or the data's own most objects, where more."""
    eval_max_dets: int | Literal["auto"] = "auto"
    """Detections of a class in an image that AP counts. auto: 100, or the data's own most objects, where more."""
    guard: Literal["recover", "stop", "observe", "off"] = "recover"
    """recover: refuse, diagnose, repair and go on; stop: refuse and stop; observe: only report; off: a plain loop."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto."""
    workers: int | None = None
    """Loader processes."""
    seed: int = 0
    """Every random number of the run follows from this."""
    deterministic: bool = False
    """Deterministic algorithms where torch has them, slower: on CUDA; a CPU repeats its bits without."""
    checkpoint_dir: str = "checkpoints"
    """Folder of epoch_*.pth, last.pth and best.pth."""
    checkpoint_every: str | None = None
    """Also checkpoint every N steps ("500") or seconds ("60s")."""
    keep: int | None = None
    """Newest epoch_*.pth files that stay, beside last.pth and best.pth. None: all of them."""
    logdir: str = "runs/maskrcnn"
    """Folder of TensorBoard events, records, incidents and the report."""
    track: tuple[Literal["mlflow", "wandb", "trackio"], ...] = ()
    """Also send settings, metrics, incidents and files there; for several, several times. It never holds a run up."""
    resume: str = "none"
    """none, auto (the newest intact checkpoint of --checkpoint-dir), or the path of a checkpoint."""

    @property
    def images_a_pass(self) -> int:
        """The batch size, once it is settled; 1 before."""
        return self.batch_size if isinstance(self.batch_size, int) else 1


GROUPS = {
    "data": "Data",
    "augment": "Augmentation and balance",
    "lr": "Learning rate and length",
    "optimizer": "Optimizer",
    "model": "Model",
    "guard": "Guard",
    "device": "Machine",
    "checkpoint_dir": "Files",
}
"""The groups of ``--help``, by the first field of each: the fields below it in `Config` belong to it too."""


def given(config: Config) -> frozenset[str]:
    """The fields that were given: as keywords, as flags, or in a settings file; None is never given.

    A Config made in another way (a copy with other values, one read from a checkpoint) does not know: there it is
    what differs from the defaults.
    """
    known = vars(config).get("_given")
    if known is None:
        return frozenset(f.name for f in msgspec.structs.fields(type(config)) if getattr(config, f.name) != f.default)
    return frozenset(n for n in known if getattr(config, n) is not None)


def _mark(config: Any, names: Iterable[str]) -> Any:
    msgspec.structs.force_setattr(config, "_given", frozenset(names))
    return config


def validate(config: Config) -> None:
    """Raise one ConfigError that lists every field with a value that cannot work.

    Checks what needs neither data nor device; `recipes.resolve` and `model.build_model` check the rest.
    """
    if not isinstance(config, Config):
        raise ConfigError(
            "the settings are no Config",
            got=type(config).__name__,
            expected="maskrcnn_coco.Config, with the training flags as fields",
            fix="Config(**settings)" if isinstance(config, dict) else 'Config(data="my_data", lr=5e-3)',
        )
    wrong = [f"{flag(name)}: {what}" for name, what in misfits(config)]
    problems = wrong or list(_problems(config))
    if problems:
        head = f"{len(problems)} setting{'s' if len(problems) > 1 else ''} cannot be used:"
        raise ConfigError("\n".join([head, *(f"  - {p}" for p in problems)]), fix="correct the flags named above")


LEAST = {
    "epochs": 1,
    "max_steps": 1,
    "batch_size": 1,
    "accumulate": 1,
    "warmup_steps": 0,
    "min_size": 32,
    "max_size": 32,
    "tile": 32,
    "workers": 0,
    "patience": 1,
    "keep": 1,
    "num_classes": 2,
    "freeze_stages": 0,
    "box_batch_size_per_image": 8,
    "box_detections_per_image": 1,
    "eval_max_dets": 1,
    "seed": 0,
}
"""Whole numbers and the least that each may be."""


def _problems(c: Config):
    positive = ("lr", "head_lr_multiplier", "rpn_lr_multiplier", "fpn_lr_multiplier")
    for name in positive:
        value = getattr(c, name)
        if value is not None and value != "auto" and not (math.isfinite(value) and value > 0):
            yield f"{flag(name)}: got {value}, expected a finite number above 0"
    for name, low in (("max_grad_norm", 0.0), ("weight_decay", 0.0)):
        value = getattr(c, name)
        if value is not None and not (math.isfinite(value) and value >= low):
            yield f"{flag(name)}: got {value}, expected a finite number, {low} or more"
    if not (math.isfinite(c.momentum) and 0 <= c.momentum < 1):
        yield f"--momentum: got {c.momentum}, expected 0 <= momentum < 1 (1 or more diverges by itself)"
    yield from _counts(c)
    if isinstance(c.ema, float) and not 0 < c.ema < 1:
        yield f"--ema: got {c.ema}, expected none, auto, or a decay between 0 and 1"
    if c.copy_paste is not None and not 0 <= c.copy_paste <= 1:
        yield f"--copy-paste: got {c.copy_paste}, expected a probability from 0 to 1"
    if c.min_size is not None and c.max_size is not None and c.max_size < c.min_size:
        yield f"--max-size: got {c.max_size}, expected at least --min-size ({c.min_size})"
    if c.model is not None and c.model not in MODELS and not c.model.startswith("timm/"):
        near = difflib.get_close_matches(c.model, MODELS, 1, 0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        yield f"--model: got {c.model!r}, expected one of {', '.join(MODELS)}, timm/NAME{hint}"
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", c.device):
        yield f"--device: got {c.device!r}, expected auto, cpu, cuda, cuda:0 or mps"
    if c.data is not None and c.demo:
        yield f"--demo: the built-in shapes and --data {c.data} exclude each other; give one of them"
    for name in Config.__struct_fields__:
        if getattr(c, name) == "":
            yield f"{flag(name)}: got an empty text (a variable that is not set?); leave it away for the default"
        if "\0" in str(getattr(c, name)):
            yield f"{flag(name)}: holds a NUL character, which no path or name can"
    if c.checkpoint_every is not None and not _interval(c.checkpoint_every):
        yield f'--checkpoint-every: got {c.checkpoint_every!r}, expected steps such as "500" or seconds such as "60s"'

    if c.data is None:
        for name in ("images", "val", "val_images"):
            if getattr(c, name) is not None:
                yield f"{flag(name)}: got {getattr(c, name)} without --data; the built-in shapes have their own images"
    try:
        bit_range(c.bit_range)
    except ValueError as e:
        yield f"--bit-range: {e}"


def _counts(c: Config):
    for name, low in LEAST.items():
        value, most = getattr(c, name), 2**63 - 1 if name == "seed" else 2**31 - 1
        if isinstance(value, int) and value > most:
            yield f"{flag(name)}: got {value}, expected {most} or less"
        if value is not None and value != "auto" and value < low:
            yield f"{flag(name)}: got {value}, expected {low} or more"


def bit_range(text: str) -> tuple[float, float] | None:
    """``--bit-range`` as two numbers; None for "auto".

    Raises:
        ValueError: neither "auto" nor two finite numbers, the first below the second.
    """
    if text == "auto":
        return None
    try:
        low, high = (float(part) for part in str(text).split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"got {text!r}, expected auto or LOW,HIGH, two numbers with LOW below HIGH")
    return low, high


def _interval(text: object) -> bool:
    if not isinstance(text, str):  # from Python, where nothing has checked the type
        return False
    digits = text.removesuffix("s")
    return digits.isascii() and digits.isdigit() and int(digits) > 0


def flag(name: str) -> str:
    """The command-line flag of a Config field."""
    return "--" + name.replace("_", "-")


def load_config(path: str | Path) -> Config:
    """A Config from a YAML file that `dump_config` (or a person) wrote.

    Raises:
        ConfigError: no such file, not YAML, an unknown key (with the nearest known one), or a value of the wrong type.
    """
    try:
        data = read_yaml(path)
    except OSError as e:
        raise ConfigError(f"cannot read the configuration file {path}: {e.strerror}", fix="check --config") from e
    except ValueError as e:
        raise ConfigError(f"{path} is not YAML: {e}", fix="compare with what --print-config writes") from e
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path} holds no settings",
            got="nothing" if data is None else f"a {type(data).__name__}",
            expected="a mapping of setting: value",
            fix="compare with what --print-config writes",
        )
    known = list(Config.__struct_fields__)
    unknown = [k for k in data if k not in known]
    if unknown:
        hints = [
            f"{k!r}" + "".join(f" (did you mean {n}?)" for n in difflib.get_close_matches(str(k), known, 1))
            for k in unknown
        ]
        raise ConfigError(f"{path} has unknown settings: {', '.join(hints)}", fix="--print-config lists all settings")
    # YAML 1.1 reads 1e-3 (no dot) as a string; a person means a number.
    data = {k: _number(v) for k, v in data.items()}
    try:
        return _mark(msgspec.convert(data, type=Config), data)
    except (msgspec.ValidationError, ValueError, OverflowError) as e:
        raise ConfigError(f"{path}: {e}", fix="--print-config shows the type of each setting") from e


def _number(value: object) -> object:
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        # Only the exponent form YAML 1.1 misses; "60" for checkpoint_every stays text.
        return number if "e" in value.lower() and math.isfinite(number) else value
    return value


def dump_config(config: Config) -> str:
    """YAML of every setting, which `load_config` takes back unchanged."""
    import yaml

    return yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False, allow_unicode=True)
