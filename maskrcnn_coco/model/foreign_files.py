"""Files that are taken for weights and are none, and weights that lie deeper in a file than others' do."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from maskrcnn_coco.components import plain_name
from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.system.plain_files import open_regular

SCORE = "roi_heads.box_predictor.cls_score.weight"
"""The tensor that every detector of torchvision's kind has."""
_EXPORTED = (".onnx", ".xml", ".torchscript")
_STRANGERS = (".engine", ".plan", ".tflite", ".mlmodel", ".mlpackage", ".pb", ".h5", ".keras", ".bin", ".params")
_PICKLES = (b"PK\x03\x04", b"\x80")
"""How torch's files begin: an archive, or a pickle of older versions."""


def check_kind(path: Path) -> None:
    """Raise CheckpointError where a file is, by its name or its first bytes, no file of PyTorch weights."""
    kind = path.suffix.lower()
    if kind in _EXPORTED or _is_torchscript(path):
        raise CheckpointError(
            f"{path} is an exported model, and here a checkpoint is needed", expected="a .pth or .safetensors file",
            fix="name the checkpoint it was exported from; `predict` and `load` take exported models",
        )  # fmt: skip
    if kind in _STRANGERS:
        raise CheckpointError(f"{path} is another library's model", expected="a .pth or .safetensors file of PyTorch")
    with open_regular(path) as file:
        head = file.read(24)
    if not head:
        raise CheckpointError(f"{path} is empty", fix="copy it again, or use an older checkpoint")
    if not head.startswith(_PICKLES):
        text = "".join(c for c in head.decode("ascii", "ignore") if c.isprintable())
        raise CheckpointError(
            f"{path} is no model file",
            got=f"a file that starts with {text!r}" if text else "a binary file",
            expected="weights saved by torch.save, or a .safetensors file",
            fix="give the checkpoint that a training left, checkpoints/best.pth",
        )


def _is_torchscript(path: Path) -> bool:
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return any(n.endswith("/constants.pkl") for n in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def is_safetensors(path: Path) -> bool:
    """Whether a file is one of safetensors by its first bytes, whatever it is called: a length, and JSON of it."""
    try:
        with open_regular(path) as file:
            head = file.read(9)
            return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size
    except OSError:
        return path.suffix == ".safetensors"


def body_state(contents: Mapping[str, Any], own: Collection[str], source: str | Path) -> dict[str, Tensor]:
    """A backbone's tensors under the names of ``own``, wherever a file has them.

    They may lie under a key ("state_dict", "model", …) and behind a prefix ("module.", "backbone.", "encoder_q."): the
    one behind which most of ``own`` is.

    Raises:
        CheckpointError: no tensors.
    """
    inside = [v for v in contents.values() if isinstance(v, Mapping)]
    states = [state for part in (contents, *inside) if (state := _tensors(part))]
    if not states:
        raise _no_tensors(contents, source)
    state = max(states, key=lambda s: _behind(s, own)[1])
    prefix = _behind(state, own)[0]
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _no_tensors(contents: Mapping[str, Any], source: str | Path) -> CheckpointError:
    return CheckpointError(
        f"{source} holds no tensors",
        got=", ".join(map(str, list(contents)[:5])) or "nothing",
        expected="tensors by name",
        fix="save model.state_dict() in the other program",
    )


def _behind(state: Mapping[str, Any], own: Collection[str]) -> tuple[str, int]:
    """The prefix behind which most names of ``own`` are in ``state``, the shortest of them, and how many."""
    prefixes: Counter[str] = Counter({"": 0})
    for name in state:
        parts = name.split(".")
        for n in range(len(parts)):
            if ".".join(parts[n:]) in own:
                prefixes["".join(f"{p}." for p in parts[:n])] += 1
    return max(prefixes.items(), key=lambda p: (p[1], -len(p[0])))


def inner_state(contents: Mapping[str, Any], source: str | Path) -> dict[str, Tensor]:
    """The detector's tensors under plain names, wherever a training framework put them.

    They may lie under a key ("model", "state_dict", "weights", …) and behind a prefix ("model.", "net.detector.").

    Raises:
        CheckpointError: several detectors lie in the file, or none.
    """
    state = _tensors(_chosen(contents, source))
    if not state:
        raise _no_tensors(contents, source)
    prefixes = [n.removesuffix(SCORE) for n in state if n.endswith("." + SCORE)]
    if SCORE in state or not prefixes:
        return state
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{source} holds several detectors", got=", ".join(prefixes), fix="save the state dict of the one to use"
        )
    return {n.removeprefix(prefixes[0]): v for n, v in state.items() if n.startswith(prefixes[0])}


def _chosen(contents: Mapping[str, Any], source: str | Path) -> Mapping[str, Any]:
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(contents.get(key), Mapping):
            return contents[key]
    if _tensors(contents):
        return contents
    inside = {k: v for k, v in contents.items() if isinstance(v, Mapping) and any(str(n).endswith(SCORE) for n in v)}
    if len(inside) > 1:
        raise CheckpointError(
            f"{source} holds several detectors", got=", ".join(map(str, inside)),
            fix="save the state dict of the one to use",
        )  # fmt: skip
    return next(iter(inside.values()), contents)


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {plain_name(str(k)): v for k, v in state.items() if isinstance(v, Tensor)}
