"""A case as a file that replays on another machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskrcnn_coco.errors import CheckpointError, DataError
from maskrcnn_coco.records import Alarm, StepRecord
from maskrcnn_coco.system.files import write_atomically

if TYPE_CHECKING:
    from maskrcnn_coco.replay.case import Case, Rig
    from maskrcnn_coco.replay.snapshot import Snapshot
    from maskrcnn_coco.replay.tape import TapeEntry


FORMAT = 2
"""Since 2 a case carries its SHA-256, as a checkpoint does: a flipped bit must not be replayed into a proof."""


MAX_BYTES = 2 * 1024**3


def save_case(folder: str | Path, id: str, case: Case, *, max_bytes: int = MAX_BYTES) -> Path:
    """Write ``case`` as ``<folder>/<id>.pt``: plain data and tensors that ``torch.load(weights_only=True)`` reads.

    The failing state and batch always go in. The newest state from before the onset, and the batches of the steps since
    then, go in as far as ``max_bytes`` allows; without them learning rates cannot be replayed elsewhere.
    """
    from maskrcnn_coco.checkpoint import archive

    room = max_bytes - case.now.nbytes
    earlier: list[Snapshot] = []
    for snapshot in _useful(case):
        if snapshot.nbytes <= room:
            earlier.append(snapshot)
            room -= snapshot.nbytes
    first = min((s.step for s in earlier), default=case.alarm.step)
    tape = [e for e in case.tape if first <= e.step]
    state = {
        "format": FORMAT,
        "alarm": dataclasses.asdict(case.alarm),
        "now": _pack_snapshot(case.now),
        "earlier": [_pack_snapshot(s) for s in earlier],
        "tape": [_pack_entry(e) for e in tape],
        "tape_batches": _tape_batches(case, tape, room),
        "batches": [_pack_batch(b) for b in case.batches or []],
        "history": [dataclasses.asdict(r) for r in case.history],
        "settings": _plain(case.settings),
    }
    path = Path(folder) / f"{id}.pt"
    write_atomically(path, lambda sink: archive.write(sink, state))
    return path


def load_case(path: str | Path, build_rig: Callable[[dict[str, Any]], Rig]) -> Case:
    """The case that `save_case` wrote; batches of its tape come from the file itself.

    Args:
        build_rig: settings of the case → rig on this machine.

    Raises:
        CheckpointError: no such file, damaged, or not a case.
    """
    from maskrcnn_coco.checkpoint.archive import open_regular, read
    from maskrcnn_coco.checkpoint.verification import check_digest

    path = Path(path)
    with open_regular(path) as file:
        wound = None
        try:
            check_digest(file, path)
        except CheckpointError as e:
            wound = e
        state = read(file, path, "cpu")
    if not isinstance(state, dict) or state.get("format") not in (1, FORMAT):
        raise CheckpointError(f"{path} is not a case of an incident", expected="a file NNNN.pt of an incidents folder")
    if wound is not None and state["format"] != 1:  # those of before had no digest
        raise CheckpointError(
            f"{path} is damaged: {wound.what.partition(': ')[2]}",
            fix="the JSON beside it holds the verdict as recorded",
        )
    try:
        return _case_of(state, build_rig(state["settings"]))
    except (KeyError, TypeError, ValueError) as e:
        raise CheckpointError(f"{path} is damaged, or not a case: {str(e)[:200]}") from e


def _case_of(state: dict[str, Any], rig: Rig) -> Case:
    from maskrcnn_coco.replay.case import Case

    batches = {int(s): [_unpack_batch(b) for b in made] for s, made in state["tape_batches"].items()}
    if batches:
        by_keys = {_keys_of(b.keys): b for made in batches.values() for b in made}
        rig = dataclasses.replace(rig, make_batch=lambda keys: by_keys[_keys_of(keys)])
    return Case(
        alarm=Alarm(**state["alarm"]),
        now=_unpack_snapshot(state["now"]),
        earlier=[_unpack_snapshot(s) for s in state["earlier"]],
        # Steps whose batches did not fit into the file cannot be asked for.
        tape=[_unpack_entry(e) for e in state["tape"] if int(e["step"]) in batches],
        batches=[_unpack_batch(b) for b in state["batches"]] or None,
        history=[StepRecord(**r) for r in state["history"]],
        settings=state["settings"],
        rig=rig,
    )


def _useful(case: Case) -> list[Snapshot]:
    """The newest state from before the onset first, then one older one."""
    older = [s for s in case.earlier if s.step < case.alarm.step]
    before = [s for s in older if s.step <= case.alarm.onset_step]
    return before[:2] or older[-1:]


def _tape_batches(case: Case, tape: list[TapeEntry], room: int) -> dict[int, list[dict[str, Any]]]:
    if case.rig.make_batch is None or not case.earlier:
        return {}
    packed: dict[int, list[dict[str, Any]]] = {}
    # Newest first: a walk needs the steps up to the failing one without a gap.
    for entry in sorted((e for e in tape if e.step < case.alarm.step), key=lambda e: -e.step):
        try:
            made = [_pack_batch(case.rig.make_batch(list(keys))) for keys in entry.keys]
        except DataError:  # an image that could be read then is gone now
            break
        size = sum(_size(b) for b in made)
        if size > room:
            break
        room -= size
        packed[entry.step] = made
    return packed


def _size(packed: dict[str, Any]) -> int:
    values = [v for t in packed["targets"] for v in (*t.values(), *t.get("outlines", {}).values())]
    return sum(int(v.nbytes) for v in (*packed["images"], *values) if hasattr(v, "nbytes"))


def _pack_batch(batch: Any) -> dict[str, Any]:
    return {
        "images": [_plain(i) for i in batch.images],
        "targets": [_plain(t) for t in batch.targets],
        "keys": [list(k) for k in batch.keys],
        "resized": bool(getattr(batch, "resized", False)),
    }


def _unpack_batch(packed: dict[str, Any]) -> Any:
    from maskrcnn_coco.data.batch import Batch
    from maskrcnn_coco.data.outlines import Outlines
    from maskrcnn_coco.data.plan import SampleKey

    keys = [SampleKey(*k) for k in packed["keys"]]
    targets = [{k: Outlines.from_plain(v) if k == "outlines" else v for k, v in t.items()} for t in packed["targets"]]
    return Batch(list(packed["images"]), targets, keys, resized=packed["resized"])


def _keys_of(keys: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(v) for v in key) for key in keys)


def _pack_entry(entry: TapeEntry) -> dict[str, Any]:
    packed = {f.name: getattr(entry, f.name) for f in dataclasses.fields(entry)}
    packed["keys"] = [[list(k) for k in keys] for keys in entry.keys]
    packed["record"] = None if entry.record is None else dataclasses.asdict(entry.record)
    return packed


def _unpack_entry(packed: dict[str, Any]) -> TapeEntry:
    from maskrcnn_coco.data.plan import SampleKey
    from maskrcnn_coco.replay.tape import TapeEntry

    keys = [[SampleKey(*k) for k in keys] for keys in packed["keys"]]
    record = None if packed["record"] is None else StepRecord(**packed["record"])
    return TapeEntry(**{**packed, "keys": keys, "record": record})


def _pack_snapshot(snapshot: Snapshot) -> dict[str, Any]:
    packed = {f.name: getattr(snapshot, f.name) for f in dataclasses.fields(snapshot)}
    packed["rng"] = {}
    return _plain(packed)


def _unpack_snapshot(packed: dict[str, Any]) -> Snapshot:
    from maskrcnn_coco.replay.snapshot import Snapshot

    return Snapshot(**packed)


def _plain(value: Any) -> Any:
    """Dicts, lists, scalars, strings and CPU tensors only: what a weights-only load accepts."""
    import torch

    from maskrcnn_coco.data.outlines import Outlines

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        # A view would take its whole buffer along; and views of one buffer with several dtypes cannot be saved at all.
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
    if isinstance(value, dict):
        return {k if isinstance(k, (str, int)) else str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(v) for v in value]
    if isinstance(value, Outlines):
        return _plain(value.plain())
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item") and getattr(value, "size", 2) == 1:
        return value.item()
    return str(value)
