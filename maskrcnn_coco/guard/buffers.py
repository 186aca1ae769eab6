"""Buffers that a forward pass changes: copied before it, put back when the step is refused.

One NaN image makes every running statistic of a trainable BatchNorm NaN during the forward pass, whether or not the
optimizer steps afterwards; training then looks healthy, and evaluation finds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.guard.aside import MOST, Aside
from maskrcnn_coco.guard.norms import as_real, has_fractions, nonfinite_at, norms
from maskrcnn_coco.guard.verdict import Verdict

FIRST, RARELY = 5, 50
"""Parameters that are not trained are looked at for changes before the first steps, then before one in so many."""
LEAP = 1e6
"""Growth of a buffer's norm within one step (or from ones) that no healthy data gives: huge but finite activations."""
OWN_UNITS = 1e10
"""Means up to this, and variances up to its square, may be a file's: of incomes, of populations that nobody scaled."""
ALONE = 1e-3
"""Batch statistics below this share of the first batch's: it alone was of that size, not the data."""


class Buffers:
    """Protects the buffers of ``model``.

    Running statistics of norm layers in train mode are copied before every forward pass (they are small). Any other
    buffer is copied once, and again only after it was seen to change, so frozen norms cost nothing.

    What a buffer is when it is first met is how it was meant: causal masks of -inf or -1e9, observers that start at
    ±inf. Statistics and weights of norm layers are no such thing: they must be finite from the start.

    Parameters that are not trained count as buffers once a forward pass was seen to change them (the slow copy of a
    network that some keep up inside `forward`): then they are copied too. Others are too large for that.

    What modules keep in plain attributes is put back with them, and never judged: `aside`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.aside = Aside(model)
        self._slots: list[tuple[nn.Module, str, str]] = []
        self._homes: list[dict[str, Any]] = []
        self._frozen: list[int] = []
        seen: set[int] = set()
        for prefix, module in model.named_modules():
            homes: tuple[dict[str, Any], ...] = (module._buffers, module._parameters)
            for home in homes:
                for name, held in home.items():
                    if not isinstance(held, Tensor) or id(held) in seen or _trained(held):
                        continue
                    seen.add(id(held))
                    if home is module._parameters and hasattr(held, "to_local"):
                        continue  # FSDP2 puts other tensors in its place during each forward pass
                    if home is module._parameters:
                        self._frozen.append(len(self._slots))
                    self._slots.append((module, name, f"{prefix}.{name}" if prefix else name))
                    self._homes.append(home)
        still = set(self._frozen)
        self._watched = [i for i in range(len(self._slots)) if i not in still]
        self._saves = 0
        self.loaded()
        self._kept: list[Tensor | None] = [None] * len(self._slots)
        self._marks: list[tuple[int, int]] = [(0, -1)] * len(self._slots)
        self._live: dict[int, Tensor | None] = {}
        self._left: list[tuple[int, Tensor]] = []
        """What the pass of a step that was refused had made of them."""
        self._active: list[int] = []
        self._changing: set[int] = set()
        self.sizes: dict[int, float] = {}
        """Position → norm, where it was last seen sound."""
        self._first: dict[int, float] = {}
        """Statistics that leapt in their very first update: what size that gave them. The second says whether it was
        the data's own scale."""
        self._by_design: dict[int, Tensor | None] = {}
        """Not finite as they were met; what they held then, where that is little."""
        self.accept()

    def accept(self, names: Collection[str] | None = None) -> None:
        """Take the buffers (by name; None: all but those of norm layers) as they are now for what they should be."""
        looked = [i for i in self._watched if _wanted(self._slots[i][0], self._slots[i][2], names)]
        floats = self._floats(looked)
        for (i, t), size in zip(floats, norms([t for _, t in floats]), strict=True):
            self._by_design.pop(i, None)
            self._kept[i], self._marks[i] = None, (0, -1)  # an older copy is no measure of it any more
            if math.isfinite(size):
                self.sizes[i] = size
            else:
                # Also where only the square of what it holds is beyond range.
                self._by_design[i] = t.detach().clone() if t.numel() <= MOST and not t.is_meta else None

    def loaded(self) -> None:
        """Other values are in place, and no forward pass made them: what is not trained is not thought to move."""
        self._seen = {i: _mark(self._homes[i][self._slots[i][1]]) for i in self._frozen}

    def _find_moving(self) -> None:
        """Parameters outside of the optimizer that changed: averages that a forward pass keeps up."""
        for i in self._frozen:
            live = self._homes[i].get(self._slots[i][1])
            if live is not None and not live.requires_grad and self._seen[i] != _mark(live):
                self._changing.add(i)
        if not self._changing.isdisjoint(self._frozen):
            self._watched += [i for i in self._frozen if i in self._changing]
            self._frozen = [i for i in self._frozen if i not in self._changing]

    @property
    def by_design(self) -> set[str]:
        """Names of the buffers that are not finite because they were meant so."""
        return {self._slots[i][2] for i in self._by_design}

    @property
    def nbytes(self) -> int:
        """Bytes of the copies held."""
        return sum(t.numel() * t.element_size() for t in self._kept if t is not None)

    def save(self) -> None:
        """Copy what the coming forward pass may change."""
        self._live, self._active = {}, []
        self.aside.save()
        stale_live, stale_kept = [], []
        if self._frozen and (self._saves < FIRST or self._saves % RARELY == 0):
            self._find_moving()
        self._saves += 1
        for i in self._watched:
            module, name, _ = self._slots[i]
            live = self._homes[i].get(name)
            self._live[i] = live
            if live is None or _trained(live):
                continue
            active = i in self._changing or (module.training and "running_mean" in module._buffers)
            if active:
                self._active.append(i)
            if active or self._marks[i] != _mark(live):
                kept = self._kept[i]
                if kept is None or kept.shape != live.shape or kept.dtype != live.dtype:
                    self._kept[i] = live.detach().clone()
                else:
                    stale_live.append(live)
                    stale_kept.append(kept)
                self._marks[i] = _mark(live)
        if stale_kept:
            with torch.no_grad():
                torch._foreach_copy_(stale_kept, stale_live)  # pyright: ignore[reportPrivateImportUsage]

    def changed(self) -> list[int]:
        """Positions of the buffers that the forward pass changed, as far as can be seen without comparing values."""
        for i in self._watched:
            now, live = self._homes[i].get(self._slots[i][1]), self._live.get(i)
            if i not in self._changing and (now is not live or (live is not None and self._marks[i] != _mark(live))):
                self._changing.add(i)
        return sorted(self._changing.union(self._active))

    def written(self) -> list[int]:
        """Positions of the buffers that somebody wrote to, or replaced, since `save`; reads nothing."""
        found = []
        for i in self._watched:
            (identity, version), live = self._marks[i], self._homes[i].get(self._slots[i][1])
            if live is None or not identity:
                continue
            # As `_mark` has it, without a call for each: there are hundreds of them, and this is every step's.
            if id(live) != identity or (not live.is_inference() and live._version != version):
                found.append(i)
        return found

    def wrong(self, *, whole: bool = False, also: Iterable[int] = ()) -> list[str]:
        """Names of buffers that are not finite now, or leapt by `LEAP` since they were last seen sound.

        Args:
            whole: look at every buffer; otherwise at those that forward passes change.
            also: positions of further ones to look at.
        """
        also = set(also)
        looked = self._watched if whole else sorted(self._changing.union(self._active, also))
        if not looked:
            return []
        floats = self._floats(looked)
        sizes = norms([t for _, t in floats])
        bad = set()
        for j in nonfinite_at(sizes):
            sizes[j] = float(as_real(floats[j][1].detach()).double().norm())  # only the squares may be beyond range
            bad |= set() if math.isfinite(sizes[j]) else {j}
        bad |= self._negative(floats) | self._vanished(floats, sizes)
        first: dict[int, float] = {}
        for j, (i, t) in enumerate(floats):
            if i in self._by_design:
                bad.discard(j)
                if self._spoilt(i, t):
                    bad.add(j)
                continue
            known = self.sizes.get(i, math.sqrt(t.numel()))
            if self.is_a_count(i, t):
                continue
            if not whole and self._was_alone(i, sizes[j]):
                bad.add(j)
            if sizes[j] > LEAP * max(known, 1e-3 * math.sqrt(t.numel())):
                if i not in self.sizes and self._of_a_file(i, sizes[j] / math.sqrt(t.numel())):
                    continue
                if not whole and self._as_made(i) and (i not in also or self._gathers(i)):
                    first[i] = sizes[j]
                else:
                    bad.add(j)
        if not bad:
            if not whole:
                self._first = first
            self.sizes.update((i, s) for (i, _), s in zip(floats, sizes, strict=True) if math.isfinite(s))
        return [self._slots[floats[j][0]][2] for j in sorted(bad)]

    def _of_a_file(self, i: int, size: float) -> bool:
        """Whether statistics that no step of ours has made, and no constructor, may be those of data in own units."""
        most = {"running_mean": OWN_UNITS, "running_var": OWN_UNITS**2}.get(self._slots[i][1], 0.0)
        return size <= most and not self._as_made(i)

    def _as_made(self, i: int) -> bool:
        """Whether these are a norm's statistics, and were as its constructor makes them before the forward pass."""
        kept = self._kept[i]
        return kept is not None and not kept.is_meta and as_made(self._slots[i][1], kept)

    def _gathers(self, i: int) -> bool:
        """Whether its layer takes statistics from batches: code between two steps may have it gather them anew."""
        return isinstance(self._slots[i][0], nn.modules.batchnorm._NormBase)

    def _was_alone(self, i: int, size: float) -> bool:
        """Whether the batch that made variances leap at their first update was the only one of that size.

        Not where the step of that batch was not taken, and its statistics were put back: this is their first update.
        """
        if i not in self._first or self._slots[i][1] != "running_var" or self._as_made(i):
            return False
        momentum = getattr(self._slots[i][0], "momentum", None) or 0.5  # None: the mean of the two batches
        second = (size - (1 - momentum) * self._first[i]) / momentum
        return second < ALONE * self._first[i] / momentum

    def _floats(self, looked: Iterable[int]) -> list[tuple[int, Tensor]]:
        found = [(i, self._homes[i].get(self._slots[i][1])) for i in looked]
        return [(i, t) for i, t in found if isinstance(t, Tensor) and has_fractions(t) and t.numel()]

    def _spoilt(self, i: int, live: Tensor) -> bool:
        """Whether a buffer that is not finite by design has NaN or ±inf where its last sound copy had a number.

        Not where it holds again what it held as it was met: an observer whose range begins anew.
        """
        kept, met = self._kept[i], self._by_design[i]
        if kept is None or live.is_meta or kept.shape != live.shape or not has_fractions(live):
            return False
        before, now = as_real(kept).float(), as_real(live.detach()).float()
        bad = (now.isnan() & ~before.isnan()) | (now.isinf() & before.isfinite())
        if met is not None and met.shape == live.shape:
            bad &= now != as_real(met).float()
        return bool(bad.any())

    def _negative(self, floats: list[tuple[int, Tensor]]) -> set[int]:
        """Positions of variances below zero: training does not read them, but evaluation takes their root.

        Somebody wrote them, or a momentum above 1 has the statistics swing, below zero every other step.
        """
        found = [
            (j, t) for j, (i, t) in enumerate(floats) if self.is_variance(i) and not (t.is_meta or t.dtype.is_complex)
        ]
        if not found:
            return set()
        lowest = torch.stack([t.detach().min().float() for _, t in found]).tolist()
        return {j for (j, _), low in zip(found, lowest, strict=True) if low < 0}

    def _vanished(self, floats: list[tuple[int, Tensor]], sizes: list[float]) -> set[int]:
        """Positions of variances that were numbers and are 0, or next to it, in layers that go by them.

        A layer that takes its statistics from the batch soon has others; there it is one way to begin anew.
        """
        found = set()
        for j, (i, _) in enumerate(floats):
            module, name, _ = self._slots[i]
            if name == "running_var" and LEAP * sizes[j] < self.sizes.get(i, 0.0):
                anew = module.training and self._gathers(i)
                found |= set() if anew else {j}
        return found

    def verdict(self, *, whole: bool) -> Verdict | None:
        """The same between steps, as a verdict."""
        bad = self.wrong(whole=whole, also=() if whole else self.written())
        text = f"buffers are not finite, lost variances, or changed outside the step: {', '.join(bad[:3])}"
        return Verdict("buffer_nonfinite", text, {"buffers": bad, "between": True}) if bad else None

    def active_floats(self) -> list[tuple[int, Tensor]]:
        """The floating buffers that forward passes change, live, with their positions."""
        found = self._floats(sorted(self._changing.union(self._active)))
        return [(i, t) for i, t in found if i not in self._by_design]

    def is_variance(self, i: int) -> bool:
        """Whether it is a norm's running variance."""
        return self._slots[i][1] == "running_var"

    def is_a_count(self, i: int, tensor: Tensor) -> bool:
        """Whether it is a single number of the caller's own, which may count anything: samples, pixels, bytes."""
        return tensor.numel() == 1 and "running_mean" not in self._slots[i][0]._buffers

    def restore(self) -> None:
        """Put every changed buffer back, bit for bit and with the identity it had."""
        self.aside.restore()
        changed = self.changed()
        found = [(i, self._homes[i].get(self._slots[i][1])) for i in changed]
        self._left = [(i, t.detach().clone()) for i, t in found if t is not None and not t.is_meta]
        with torch.no_grad():
            for i in changed:
                name = self._slots[i][1]
                kept, live = self._kept[i], self._live.get(i)
                if i not in self._live or (live is not None and _trained(live)):
                    continue  # thawed: it is the optimizer's now
                if kept is not None and live is not None and not live.is_meta:
                    live.copy_(kept)
                    self._marks[i] = _mark(live)
                self._homes[i][name] = live

    def pass_on(self) -> None:
        """After `restore`: what the refused pass had made of them stays after all, as if its step had been taken.

        For what only a first pass fills: a running mean that starts at 0 and is divided by before that.
        """
        self.aside.pass_on()
        taken = []
        with torch.no_grad():
            for i, left in self._left:
                live = self._homes[i].get(self._slots[i][1])
                if live is None or live.shape != left.shape or _trained(live) or not bool(left.isfinite().all()):
                    continue
                live.copy_(left)
                taken.append(self._slots[i][2])
        self._left = []
        self.accept(taken)

    def restore_where(self, bad: Tensor) -> None:
        """The same without a host read: selected, never multiplied, by the flag ``bad`` (bool, ())."""
        self.aside.restore_where(bad)
        self._left = []
        with torch.no_grad():
            for i in self.changed():
                kept, live = self._kept[i], self._homes[i].get(self._slots[i][1])
                if kept is not None and live is not None and not live.is_meta:
                    live.copy_(torch.where(bad.to(live.device), kept, live))


def as_made(name: str, held: Tensor) -> bool:
    """Whether a norm's running statistic holds what its constructor put there: no data has reached it."""
    given = {"running_mean": 0.0, "running_var": 1.0}.get(name)
    return given is not None and bool((held == given).all())


def _mark(tensor: Tensor) -> tuple[int, int]:
    """Changes when the tensor object or, by in-place operations that autograd sees, its content changes.

    Native batch norm writes without telling, which is why norm layers in train mode are always copied.
    """
    return (id(tensor), -1 if tensor.is_inference() else tensor._version)


def _trained(tensor: Tensor) -> bool:
    """Whether it is a parameter that an optimizer may have: that is not for buffers' keeper to put back."""
    return tensor.requires_grad and isinstance(tensor, nn.Parameter)


def _wanted(module: nn.Module, name: str, names: Collection[str] | None) -> bool:
    return "running_mean" not in module._buffers if names is None else name in names
