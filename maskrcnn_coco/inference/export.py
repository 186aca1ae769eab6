"""A checkpoint's model in other runtimes' files: ONNX, OpenVINO, TorchScript, safetensors. Proved by `parity`."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

from maskrcnn_coco.data.images import too_thin
from maskrcnn_coco.errors import ConfigError, DataError, ExportError
from maskrcnn_coco.inference.checkpoints import CARD_FILE, checkpoint_card
from maskrcnn_coco.inference.export_heads import NeverEmpty
from maskrcnn_coco.inference.export_transform import ExportTransform
from maskrcnn_coco.inference.inputs import Pictures, nothing_to_look_at, one_line
from maskrcnn_coco.inference.load import load
from maskrcnn_coco.inference.metadata import KEY, Card, plain_card
from maskrcnn_coco.inference.onnx_engine import INPUT, OUTPUTS
from maskrcnn_coco.inference.parity import Case, Gap, pictures
from maskrcnn_coco.inference.progress import watched
from maskrcnn_coco.inference.proof import Runtime, first_line, prove
from maskrcnn_coco.model.build import load_for_inference
from maskrcnn_coco.wording import clean

FORMATS = ("onnx", "torchscript", "openvino", "safetensors")
NAME = "model"
OPSET = 17
_NEEDS = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
_ENDINGS = {"onnx": (".onnx",), "torchscript": (".torchscript",), "openvino": (".xml", ".bin"),
            "safetensors": (".safetensors",)}  # fmt: skip


@dataclass
class Exported:
    """``files``, and the largest differences from the checkpoint over ``cases`` comparisons.

    ``failed``: a sentence for each of the user's own pictures that could not be looked at; ``notes``: what of them was
    passed over.
    """

    format: str
    files: list[Path]
    cases: list[Case]
    gap: Gap
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def export(checkpoint: Path, out: Path, format: str, images: Sequence[str] = ()) -> Exported:
    """Write the model of ``checkpoint`` as ``out``/model.* and prove that it finds what the checkpoint finds.

    The file is run on pictures of several sizes beside the checkpoint (float32, on the CPU), and its twins with other
    score thresholds where the pictures do not hold zero, one and many objects by themselves.

    Args:
        format: of `FORMATS`.
        images: paths of pictures to compare on as well: files, globs, folders. One that cannot be read is among
            ``failed``, and the rest goes on.

    Raises:
        ConfigError: an unknown format, a package that is missing. CheckpointError: damaged, or of another model.
        DataError: none of ``images`` can be looked at.
        ExportError: it could not be exported, or finds something else; nothing of this run is left in ``out``.
    """
    check_format(format)
    model, contents = load_for_inference(checkpoint, fast=False)
    model, card = plain(model), checkpoint_card(model, contents)
    own = _Own(images, card, int(model.transform.max_size)) if images else None
    _check_out(out, format)
    exact = copy.deepcopy(model)
    exact.transform.__class__ = ExportTransform
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as folder:
        path = _write(exact, card, Path(folder), format, contents)
        exported, tried = load(path, "cpu", precision="off", fast=False).engine, pictures(card.usual_side or 256)
        twins = _twins(exact, card, format, contents)
        cases, gap = prove(model, exported, twins, tried, card.classes, format, own or ())
        files = []
        for ending in _ENDINGS[format]:
            target = out / (NAME + ending)
            shutil.move(path.with_suffix(ending), target)
            files.append(target)
    return Exported(format, files, cases, gap, own.failed if own else [], own.notes if own else [])


class _Own:
    """The user's own pictures, read as the model's training images were, one by one: (name, uint8 (H, W, 3)).

    Raises:
        DataError: there is none, or, at the end, none of them could be read.
    """

    def __init__(self, images: Sequence[str], card: Card, longest: int) -> None:
        self._pictures = Pictures(list(images), card.reader, card.bit_range, as_stored=card.as_stored)
        self._longest = longest
        self.failed: list[str] = []
        self.notes = self._pictures.notes

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        seen = 0
        with watched(None, self._pictures.count) as done:
            for picture, pixels in self._pictures.loaded():
                if isinstance(pixels, DataError):
                    self.failed.append(one_line(pixels))
                elif thin := too_thin(pixels.shape[0], pixels.shape[1], self._longest):
                    self.failed.append(f"{clean(picture.name)}: {one_line(thin)}")
                else:
                    seen += 1
                    yield clean(picture.name), pixels
                done()
        if not seen:
            raise nothing_to_look_at(self.failed)


def _check_out(out: Path, format: str) -> None:
    """The folder, made; a file that is no earlier export is never written over."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file", expected="a folder, or a name that is free")
    out.mkdir(parents=True, exist_ok=True)
    target = out / (NAME + _ENDINGS[format][0])
    if target.is_file() and KEY.encode() not in target.read_bytes():
        raise ConfigError(
            f"{target} is there already, and no export of this project wrote it: it would be lost",
            fix="name another folder with --out, or move that file away",
        )


def check_format(format: str) -> None:
    """Raise ConfigError where the format is unknown or its packages are missing."""
    if format not in FORMATS:
        raise ConfigError("--format is not known", got=format, expected=", ".join(FORMATS), fix="--format onnx")
    for package in _NEEDS.get(format, ()):
        try:
            import_module(package)
        except ImportError as e:
            raise ConfigError(
                f"export to {format} needs the package {package}", got=e, fix="pip install 'maskrcnn-coco[export]'"
            ) from e


def plain(model: Any) -> Any:
    """torchvision's classes throughout, in contiguous memory, in eval mode: what tracing and scripting understand."""
    predictor = model.roi_heads.box_predictor
    if isinstance(predictor, FastRCNNPredictor):
        predictor.__class__ = FastRCNNPredictor  # ours only steps out of autocast, which no export has
    return model.eval().to(memory_format=torch.contiguous_format)


class Flat(nn.Module):
    """One image in, four tensors out: boxes, labels, scores, masks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``image``: float32 (3, H, W) in 0..1."""
        (found,) = self.model([image])
        return found["boxes"], found["labels"], found["scores"], found["masks"]


def _write(model: Any, card: Card, folder: Path, format: str, contents: Any) -> Path:
    write: Callable[[Any, Card, Path], None] = {
        "onnx": _onnx, "openvino": _openvino, "torchscript": _torchscript,
        "safetensors": lambda m, c, p: _safetensors(m, c, p, contents),
    }[format]  # fmt: skip
    path = folder / (NAME + _ENDINGS[format][0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracers warn about every Python number they meet
            write(model, card, path)
    except (MemoryError, OSError):
        raise
    except Exception as e:  # exporters raise whatever they like
        if (full := os.strerror(errno.ENOSPC)) in str(e):
            raise OSError(errno.ENOSPC, full, str(path)) from e
        raise ExportError(f"the model cannot be exported to {format}", got=first_line(e)) from e
    return path


def _onnx(model: Any, card: Card, path: Path) -> None:
    import onnx

    side = card.usual_side or 256
    dynamic = {INPUT: {1: "height", 2: "width"}, "masks": {0: "objects", 2: "height", 3: "width"}}
    dynamic |= {name: {0: "objects"} for name in ("boxes", "labels", "scores")}
    example = torch.rand(3, side, side + side // 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.onnx.export(
            Flat(model), (example,), str(path), opset_version=OPSET, input_names=[INPUT], output_names=list(OUTPUTS),
            dynamic_axes=dynamic, dynamo=False,
        )  # fmt: skip
    graph = onnx.load(str(path))
    onnx.helper.set_model_props(graph, {KEY: json.dumps(plain_card(card))})
    onnx.save(graph, str(path))


def _openvino(model: Any, card: Card, path: Path) -> None:
    import openvino  # pyright: ignore[reportMissingImports]

    traced = path.with_suffix(".onnx")
    heads = model.roi_heads.__class__
    model.roi_heads.__class__ = NeverEmpty
    try:
        _onnx(model, card, traced)
    finally:
        model.roi_heads.__class__ = heads
    graph = openvino.convert_model(str(traced))
    graph.set_rt_info(json.dumps(plain_card(card)), [KEY])
    openvino.save_model(graph, str(path), compress_to_fp16=False)
    traced.unlink()


def _torchscript(model: Any, card: Card, path: Path) -> None:
    for module in model.modules():  # hooks that keep boxes exact under autocast, which no export has
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    script: Any = torch.jit.script(model)
    script.save(str(path), _extra_files={CARD_FILE: json.dumps(plain_card(card))})


def _safetensors(model: Any, card: Card, path: Path, contents: Any) -> None:
    from safetensors.torch import save_file

    config = contents.get("config") if isinstance(contents.get("config"), dict) else {}
    sizes = {k: config[k] for k in ("min_size", "max_size", "box_detections_per_image") if config.get(k)}
    said = plain_card(card) | {"config": sizes}
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, str(path), metadata={KEY: json.dumps(said), "format": "pt"})


def _twins(exact: Any, card: Card, format: str, contents: Any) -> Callable[[float], Runtime] | None:
    """The file again with another score threshold, running; None of a format of weights alone, which knows none."""
    if format == "safetensors":
        return None

    def twin(threshold: float) -> Runtime:
        usual = exact.roi_heads.score_thresh
        exact.roi_heads.score_thresh = threshold
        try:
            with tempfile.TemporaryDirectory() as folder:
                return load(_write(exact, card, Path(folder), format, contents), "cpu").engine
        finally:
            exact.roi_heads.score_thresh = usual

    return twin
