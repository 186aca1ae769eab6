"""What a run's state is made of: names, finiteness, digest, random generators."""

from __future__ import annotations

import hashlib
import random
import sys
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.guard.norms import as_real


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of ``model``, live, once each, by name without `torch.compile`'s prefix."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name.replace("_orig_mod.", ""): t for name, t in named.items()}


def rng_state() -> dict[str, Any]:
    """The state of the generators that training may draw from: torch's (each device), Python's, numpy's if loaded."""
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(internal), gauss]}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        numpy_state: Any = sys.modules["numpy"].random.get_state(legacy=False)
        inner = numpy_state["state"]
        state["numpy"] = {
            "key": torch.from_numpy(inner["key"].astype("int64")),
            "pos": int(inner["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        }
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    if "torch" in state:
        torch.set_rng_state(state["torch"])
    if "python" in state:
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state and "numpy" in sys.modules:
        saved = state["numpy"]
        numpy: Any = sys.modules["numpy"]
        key = saved["key"].numpy().astype("uint32")
        numpy.random.set_state(("MT19937", key, saved["pos"], saved["has_gauss"], saved["gauss"]))


def nonfinite_names(tensors: dict[str, Tensor]) -> list[str]:
    """The names of the floating tensors that hold a NaN or an infinity.

    One 2-norm pass; only a tensor whose norm is not finite is looked at element by element, because the norm of finite
    but huge values overflows too.
    """
    named = [(n, t) for n, t in tensors.items() if (t.is_floating_point() or t.is_complex()) and t.numel()]
    if not named:
        return []
    with torch.no_grad():
        norms = torch._foreach_norm([t for _, t in named], 2)  # pyright: ignore[reportPrivateImportUsage]
        sound: dict[int, bool] = {}
        for device in {n.device for n in norms}:  # one read for each
            here = [i for i, n in enumerate(norms) if n.device == device]
            # Each in its own dtype: no float64 on MPS, and a float16 norm is infinite where it overflowed.
            flags = torch.stack([norms[i].isfinite() for i in here]).tolist()
            sound.update(zip(here, flags, strict=True))
        return [name for i, (name, t) in enumerate(named) if not sound[i] and not bool(t.isfinite().all())]


def in_double(tensor: Tensor) -> Tensor:
    """The numbers of ``tensor`` as float64; of complex ones the real and imaginary parts, (…, 2)."""
    return as_real(tensor.detach()).double()


def digest(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, scaler: torch.amp.GradScaler | None = None
) -> str:
    """SHA-256 over every bit of parameters, buffers, optimizer state, its settings and the loss scale."""
    sha = hashlib.sha256()
    _hash(sha, {name: t.detach() for name, t in state_tensors(model).items()})
    if optimizer is not None:
        _hash(sha, optimizer.state_dict())
    if scaler is not None:
        _hash(sha, scaler.state_dict())
    return sha.hexdigest()


def scalar_finite(value: Any) -> bool:
    """Whether a plain value or a tensor holds no NaN and no infinity; what is not a number counts as finite."""
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    if isinstance(value, (list, tuple)):
        return all(scalar_finite(v) for v in value)
    return not isinstance(value, float) or value - value == 0.0


def _hash(sha: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
        sha.update(flat.view(torch.uint8).numpy().data)
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            sha.update(str(key).encode())
            _hash(sha, value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            _hash(sha, item)
    else:
        # repr tells 1 from 1.0 and -0.0 from 0.0, and is the same in every process for plain data.
        sha.update(repr(value).encode())
