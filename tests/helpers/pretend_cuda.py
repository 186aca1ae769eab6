"""A CUDA device that is not there: tensors that say "cuda" and compute on the CPU, and a count of what would wait.

Code under `PretendCuda` takes its CUDA branches, and every operation that makes the host wait for a real device is
counted with the line that caused it:

- *reads*: device → host, `item`, `tolist`, `bool(…)`, `nonzero`, boolean masks as indices, `masked_select`, `unique`,
  `equal`, `repeat_interleave` without its size, torchvision's `nms` (its CUDA kernel ends in `masked_select`), blocking
  copies to the host;
- *sends*: host → device copies that are not ``non_blocking``, constants made from Python numbers among them, and
  indices that lie on the host.

The list is that of PyTorch's CUDA kernels (`torch.cuda.set_sync_debug_mode` warns of the same); it is kept here by
hand. Arithmetic is the CPU's, so results can be compared bit for bit. Autocast and GradScaler stay the CPU's.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
READS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::equal",
    "aten::bincount",
    "torchvision::nms",
}
"""Operators whose CUDA kernel waits: the host needs a value, or the size of the result."""
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
COPIES = {"aten::copy_", "aten::_to_copy"}
_TORCH = str(Path(str(torch.__file__)).parent)
_BASES = (Path(_TORCH).parent, Path(__file__).resolve().parents[2])
"""Folders that lines are named from: installed packages, this project."""


class Counts:
    """Lines of code → how often each made the host wait. ``reads``: device to host, ``sends``: host to device.

    ``operators``: how many ran on the device, views left out; about the number of kernels, each a launch or more.
    """

    def __init__(self) -> None:
        self.operators = 0
        self.reads: Counter[str] = Counter()
        self.sends: Counter[str] = Counter()

    def __str__(self) -> str:
        return "\n".join(
            f"{kind} {n} x {line}" for kind, c in (("read", self.reads), ("send", self.sends)) for line, n in c.items()
        )


class OnDevice(Tensor):
    """A tensor on the device; ``held`` is what computes."""

    held: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        # For torch's C++ it is a CPU tensor: its autograd engine has no queue for a device that is not there.
        made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=inner.device,
        )
        made.held = inner
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnDevice({self.held})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        _check_devices(name, args, kwargs)
        _account(name, func, args, kwargs)
        out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if any(r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns):
            return _written(func, args, kwargs)
        return tree_map(_wrapped, out)


def _written(func: Any, args: Any, kwargs: Any) -> Any:
    """The argument that an in-place operator returns."""
    (result,) = func._schema.returns
    if torch.Tag.inplace_view in func.tags:
        raise NotImplementedError(f"{func} on a pretended device")
    for position, a in enumerate(func._schema.arguments):
        if a.alias_info is not None and a.alias_info.before_set == result.alias_info.before_set:
            return kwargs[a.name] if a.name in kwargs else args[position]
    raise AssertionError(func)


def _inner(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value


def _wrapped(value: Any) -> Any:
    return OnDevice(value) if isinstance(value, Tensor) and not isinstance(value, OnDevice) else value


def _check_devices(name: str, args: Any, kwargs: Any) -> None:
    if name in COPIES or name in INDEXING:
        return
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and not isinstance(leaf, OnDevice) and leaf.dim() > 0:
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got one on the host")


_counts: list[Counts] = []


def _account(name: str, func: Any, args: Any, kwargs: Any) -> None:
    """Count what this operator makes the host wait for."""
    if not _counts:
        return
    _counts[-1].operators += not func.is_view
    if name in READS:
        _note(_counts[-1].reads)
    elif name in INDEXING:
        for index in args[1]:
            if not isinstance(index, Tensor):
                continue
            if not isinstance(index, OnDevice):
                _note(_counts[-1].sends)
            if index.dtype in (torch.bool, torch.uint8) and not _is_fill(name, args):
                _note(_counts[-1].reads)
    elif name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
        _note(_counts[-1].reads)
    elif name == "aten::copy_":
        target, source = args[0], args[1]
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        if isinstance(target, OnDevice) and not isinstance(source, OnDevice) and not non_blocking:
            _note(_counts[-1].sends)
        if not isinstance(target, OnDevice) and not (non_blocking and _pinned(target)):
            _note(_counts[-1].reads)


def _is_fill(name: str, args: Any) -> bool:
    """Whether ``x[mask] = number``, which is `masked_fill`: the number comes as a CPU tensor without dimensions."""
    single = sum(isinstance(i, Tensor) for i in args[1]) == 1
    return name != "aten::index" and single and not isinstance(args[2], OnDevice) and args[2].numel() == 1


def _pinned(tensor: Tensor) -> bool:
    return getattr(tensor, "pretended_pinned", False)


def _note(counter: Counter[str]) -> None:
    """Count one for the innermost line outside torch and this file."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (frame.f_code.co_filename == __file__ or _is_torch(frame.f_code.co_filename)):
        frame = frame.f_back
    file = Path(frame.f_code.co_filename)
    base = next((b for b in _BASES if b in file.parents), file.parent)
    counter[f"{file.relative_to(base).as_posix()}:{frame.f_lineno} ({frame.f_code.co_name})"] += 1


def _is_torch(file: str) -> bool:
    return file.startswith((_TORCH + "/", "<"))


class _Calls(TorchFunctionMode):
    """What torch's Python functions are told of devices: "cuda" never reaches its C++."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        own = bool(args) and isinstance(args[0], OnDevice)
        if name in ("to", "cuda", "cpu", "numpy", "tolist", "pin_memory") and args and isinstance(args[0], Tensor):
            return _MOVES[name](func, *args, **kwargs)
        pinned = kwargs.pop("pin_memory", False)
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "cuda":
            if own and device is not None:
                raise NotImplementedError(f"{name} from the device to {device}")
            out = func(*args, **kwargs)
            if pinned:
                out.pretended_pinned = True
            return out
        if name == "as_tensor" and isinstance(args[0], Tensor):
            return _to(Tensor.to, args[0], CUDA)
        if own:
            del kwargs["device"]
            return func(*args, **kwargs)
        kwargs["device"] = "cpu"
        wanted = kwargs.pop("requires_grad", False)
        if name in ("tensor", "as_tensor") and _counts:
            _note(_counts[-1].sends)
        return OnDevice(func(*args, **kwargs)).requires_grad_(wanted)


def _to(func: Any, x: Tensor, *args: Any, non_blocking: bool = False, **kwargs: Any) -> Tensor:
    device, rest, keys = _device_of(args, kwargs)
    if device is None:
        return func(x, *rest, **keys)
    if device.type == "cuda":
        if not isinstance(x, OnDevice):
            if not non_blocking and _counts:
                _note(_counts[-1].sends)
            x = OnDevice(x.detach().clone()).requires_grad_(x.requires_grad)
        return func(x, *rest, **keys) if rest or keys else x
    if isinstance(x, OnDevice):
        if _counts:
            _note(_counts[-1].reads)
        x = x.held.detach().clone()
    return func(x, *rest, **keys) if rest or keys else x


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.device | None, list[Any], dict[str, Any]]:
    """The device among the arguments of `Tensor.to`, and the other arguments."""
    keys = dict(kwargs)
    found = keys.pop("device", None)
    rest = list(args)
    if rest and isinstance(rest[0], (str, torch.device)):
        found = rest.pop(0)
    elif rest and isinstance(rest[0], Tensor):
        other = rest.pop(0)
        return other.device, [other.dtype, *rest], keys
    return (None if found is None else torch.device(found)), rest, keys


def _read(x: Tensor) -> Tensor:
    if isinstance(x, OnDevice) and _counts:
        _note(_counts[-1].reads)
    return _inner(x.detach())


def _pin(func: Any, x: Tensor) -> Tensor:
    x = x.clone()
    x.pretended_pinned = True  # type: ignore[attr-defined]
    return x


_MOVES: dict[str, Callable[..., Any]] = {
    "to": _to,
    "cuda": lambda func, x, device=None, non_blocking=False: _to(Tensor.to, x, CUDA, non_blocking=non_blocking),
    "cpu": lambda func, x: _to(Tensor.to, x, "cpu"),
    "numpy": lambda func, x: func(x),
    "tolist": lambda func, x: _read(x).tolist(),
    "pin_memory": _pin,
}


class _Event:
    """Everything has happened already."""

    def record(self, stream: Any) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...


_group = torch.optim.Optimizer._group_tensors_by_device_and_dtype


def _grouped(lists: list[list[Tensor | None]], with_indices: bool = False) -> Any:
    """Tensors by device and dtype; torch's own looks at the device in C++, where it is the CPU."""
    on = {True: CUDA, False: torch.device("cpu")}[any(isinstance(t, OnDevice) for t in lists[0])]
    return {(on, dtype): found for (_, dtype), found in _group(lists, with_indices).items()}


@contextmanager
def pretend_cuda() -> Iterator[Counts]:
    """Inside, "cuda" is a device, and what waits for it is counted; with one inside another, by the inner one alone."""
    counts, outermost = Counts(), not _counts
    _counts.append(counts)
    grouping = mock.patch.object(torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(_grouped))
    try:
        with ExitStack() as stack:
            if outermost:
                events = mock.patch.object(torch.cuda, "Event", _Event)
                streams = mock.patch.object(torch.cuda, "current_stream", lambda device: device)
                for part in (_Calls(), events, streams, grouping):
                    stack.enter_context(part)
            yield counts
    finally:
        _counts.pop()


def to_device(module: nn.Module) -> nn.Module:
    """The module with every parameter and buffer on the pretended device, in place."""
    for part in module.modules():
        for key, p in part._parameters.items():
            if p is not None:
                part._parameters[key] = nn.Parameter(OnDevice(p.detach()), requires_grad=p.requires_grad)
        for key, b in part._buffers.items():
            if b is not None:
                part._buffers[key] = OnDevice(b)
    return module
