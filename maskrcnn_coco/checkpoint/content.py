"""What a checkpoint says: its keys, its header, plain and finite or refused; nothing here touches a file.

A state is a dict of plain data and tensors with the keys ``model`` (names → tensors), ``optimizer``, ``scaler``,
``guard``, ``loop`` (with at least ``step`` and ``epoch``, whole numbers), ``config``, ``classes``, ``environment``.
The written document adds ``format``, ``names`` (the file names it was saved under) and ``serial`` (a count of saves).
"""

from __future__ import annotations

import math
import numbers
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from maskrcnn_coco.checkpoint.inspection import DTYPES
from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.wording import listed

FORMAT = 1
LAST, BEST, PREVIOUS = "last.pth", "best.pth", "previous.pth"
EPOCH = re.compile(r"epoch_(\d+)\.pth")
_FINITE = ("model", "optimizer", "scaler")
_DTYPES = frozenset(DTYPES.values())


class Header(NamedTuple):
    """What orders and names a checkpoint, read without its tensors."""

    serial: int
    step: int
    epoch: int
    names: tuple[str, ...]


def epoch_name(number: int) -> str:
    """The file name of the checkpoint after epoch ``number`` (1-based)."""
    return f"epoch_{number:03d}.pth"


def plain_view(state: dict[str, Any]) -> dict[str, Any]:
    """``state`` as a `plain_copy` has it, with the tensors of ``state`` themselves: for whoever writes it before
    anything changes, where memory for copies is short. Tensors on a device or not compact (channels_last) are copied.

    Raises:
        CheckpointError: something in it is neither plain data nor a dense tensor; names where.
    """
    return {str(k): _Viewer().copy(v, str(k), 1) for k, v in state.items()}


def plain_copy(state: dict[str, Any], spare: dict[str, torch.Tensor] | None = None) -> dict[str, Any]:
    """``state`` as a file holds it, and as later steps of training cannot change it: all containers and tensors new.

    Tensors are compact and on the CPU; NumPy numbers become Python ones.

    Args:
        spare: tensors of an earlier copy that nobody needs any more, by name; they are overwritten where they fit, and
            replaced by those of this copy. Fresh memory costs several times what copying does.

    Raises:
        CheckpointError: something in it is neither plain data nor a dense tensor; names where.
    """
    copier = _Copier(spare if spare is not None else {})
    copied = {str(k): copier.copy(v, str(k), 1) for k, v in state.items()}
    if spare is not None:
        spare.clear()
        spare.update(copier.made)
    return copied


def to_document(state: dict[str, Any], *, names: tuple[str, ...], serial: int) -> dict[str, Any]:
    """What is written for a `plain_copy` of a state.

    Raises:
        CheckpointError: keys are missing, or a value is NaN or infinite that training would go on from.
    """
    document = {**state, "format": FORMAT, "names": list(names), "serial": serial}
    missing = _missing(document)
    if missing:
        raise CheckpointError(f"a checkpoint needs {', '.join(missing)}", got=", ".join(map(str, state)))
    bad = nonfinite(document)
    if bad:
        raise CheckpointError(
            f"a checkpoint with non-finite values is never written: {listed(bad)}",
            expected="finite weights, buffers, optimizer state and learning rates",
            fix="--guard recover (the default) keeps such values out of the weights",
        )
    return document


def nonfinite(state: dict[str, Any]) -> list[str]:
    """Where ``state`` is NaN or infinite: weights, buffers, optimizer, scaler, learning rates, other tensors."""
    bad: list[str] = []
    todo = [(key, value, key in _FINITE) for key, value in state.items()]
    while todo:
        name, value, strict = todo.pop()
        if isinstance(value, torch.Tensor):
            if not _all_finite(value):
                bad.append(name)
        elif isinstance(value, float):
            if strict and not math.isfinite(value):
                bad.append(f"{name} = {value}")
        elif isinstance(value, dict):
            todo.extend((f"{name}.{k}", v, strict or str(k) in ("lr", "lr_factors")) for k, v in value.items())
        elif isinstance(value, (list, tuple)):
            todo.extend((f"{name}[{i}]", v, strict) for i, v in enumerate(value))
    return sorted(bad)


def _all_finite(tensor: torch.Tensor) -> bool:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.dtype.is_floating_point or tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)  # one pass without a temporary; NaN reaches both
    return math.isfinite(float(low)) and math.isfinite(float(high))


def check_model(state: dict[str, torch.Tensor], model: torch.nn.Module, path: str | Path) -> None:
    """Raise CheckpointError, naming entries and shapes, unless ``state`` fits ``model`` exactly."""
    want = model.state_dict()
    missing, unknown = [n for n in want if n not in state], [n for n in state if n not in want]
    wrong = [
        f"{n}: {state[n].dtype} {list(state[n].shape)}, the model has {want[n].dtype} {list(want[n].shape)}"
        for n in want
        if n in state and (state[n].shape != want[n].shape or state[n].dtype != want[n].dtype)
    ]
    if not (missing or unknown or wrong):
        return
    parts = [
        f"{len(w)} {kind} ({listed(w)})"
        for kind, w in (("missing", missing), ("unknown", unknown), ("of another shape", wrong))
        if w
    ]
    raise CheckpointError(
        f"the checkpoint {path} belongs to another model: {'; '.join(parts)}",
        fix="give the --model and the data set (number of classes) that it was trained with",
    )


def header_of(document: Any, path: Path) -> Header:
    version = document.get("format") if isinstance(document, dict) else None
    if type(version) is not int or version != FORMAT:
        newer = type(version) is int and version > FORMAT
        raise CheckpointError(
            f"the checkpoint {path} has {'a newer' if newer else 'no known'} format",
            got=version,
            expected=f"format {FORMAT}",
            fix="update maskrcnn-coco" if newer else "a foreign file belongs to --weights",
        )
    missing = _missing(document)
    if missing:
        raise CheckpointError(f"the checkpoint {path} lacks {', '.join(missing)}", fix="use another checkpoint")
    names, serial = document.get("names"), document.get("serial")
    if type(serial) is not int or not isinstance(names, list) or not all(type(n) is str for n in names):
        raise CheckpointError(
            f"the checkpoint {path} lacks its serial number or its names", fix="use another checkpoint"
        )
    _check_name(path.name, names, path)
    return Header(serial, document["loop"]["step"], document["loop"]["epoch"], tuple(names))


def _check_name(name: str, names: list[str], path: Path) -> None:
    ours = name in (LAST, BEST) or EPOCH.fullmatch(name) is not None
    if (ours and name not in names) or (name == PREVIOUS and LAST not in names):
        raise CheckpointError(
            f"the checkpoint {path} was saved under another name: files were swapped or renamed",
            got=", ".join(names) or "no name",
            fix=f"give it its own name back, or any name that is not {LAST}, {BEST} or epoch_N.pth",
        )


def _missing(document: dict[str, Any]) -> list[str]:
    loop, model = document.get("loop"), document.get("model")
    missing = [] if isinstance(model, dict) and all(type(n) is str for n in model) else ["model (names → tensors)"]
    for key in ("step", "epoch"):
        if not isinstance(loop, dict) or type(loop.get(key)) is not int:
            missing += [f"loop.{key} (a whole number)"]
    return missing


class _Copier:
    def __init__(self, spare: dict[str, torch.Tensor]) -> None:
        self.spare = spare
        self.made: dict[str, torch.Tensor] = {}

    def copy(self, value: Any, name: str, depth: int) -> Any:
        if depth > 60:
            raise CheckpointError(f"{name} is nested too deep for a checkpoint")
        if isinstance(value, torch.Tensor):
            return self.tensor(value, name)
        if isinstance(value, dict):
            return {_key(k, name): self.copy(v, f"{name}.{k}", depth + 1) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            items = [self.copy(v, f"{name}[{i}]", depth + 1) for i, v in enumerate(value)]
            return tuple(items) if isinstance(value, tuple) else items
        if value is None or isinstance(value, bool):
            return value
        # Subclasses, such as NumPy's float64, would be read back as their own kind, or not at all.
        if isinstance(value, str):
            return str(value)
        if isinstance(value, numbers.Integral):
            return int(value)
        if isinstance(value, numbers.Real):
            return float(value)
        kind = type(value).__name__
        raise CheckpointError(f"{name} cannot be in a checkpoint", got=kind, expected="plain data or a tensor")

    def tensor(self, value: torch.Tensor, name: str) -> torch.Tensor:
        """A compact copy on the CPU."""
        _require_dense(value, name)
        target = self.spare.get(name)
        if target is None or target.shape != value.shape or target.dtype != value.dtype or name in self.made:
            target = torch.empty(value.shape, dtype=value.dtype)
        self.made[name] = target.copy_(value.detach())
        return target


class _Viewer(_Copier):
    def __init__(self) -> None:
        super().__init__({})

    def tensor(self, value: torch.Tensor, name: str) -> torch.Tensor:
        """``value`` itself, if it is compact: a file holds the whole storage, and no tensor that is laid otherwise."""
        _require_dense(value, name)
        here = value.detach().cpu()
        fills = here.untyped_storage().nbytes() == here.numel() * here.element_size()
        return here if fills and here.is_contiguous() else here.clone(memory_format=torch.contiguous_format)


def _require_dense(value: torch.Tensor, name: str) -> None:
    if value.layout != torch.strided or value.is_quantized or value.dtype not in _DTYPES:
        kind = f"{value.layout} {value.dtype}"
        raise CheckpointError(f"{name} cannot be in a checkpoint", got=kind, expected="a dense tensor")


def _key(key: Any, name: str) -> str | int:
    if type(key) not in (str, int):
        got, expected = repr(key)[:80], "text or a whole number"
        raise CheckpointError(f"a key of {name} cannot be in a checkpoint", got=got, expected=expected)
    return key
