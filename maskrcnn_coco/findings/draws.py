"""Whether the random numbers of a data set of the caller's own repeat in every epoch or worker."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch

from maskrcnn_coco.findings.facts import Draws


class Draw(Protocol):
    """(seed, index) → the item, drawn with torch's, numpy's and Python's global generators seeded from both.

    ``look`` is called after the item was drawn, before the generators are put back.
    """

    def __call__(self, seed: int, index: int, look: Callable[[], None] | None = None) -> Any: ...


LOOKED, DEPTH, MOST = 3, 4, 2000


def draws_of(dataset: Any, draw: Draw, indices: list[int], workers: int) -> Draws:
    """Draw a few items more than once; the data set's generators are put back as they were."""
    indices = indices[:LOOKED]
    found = Draws(len(indices), workers=workers, index=indices[0] if indices else None)
    generators = list(_generators(dataset))
    saved = [_state(g) for g in generators]
    try:
        for index in indices:
            _rewind(generators, saved)
            found.reseeds += _reseeds(draw, index)
            if generators:
                _rewind(generators, saved)
                first, second = draw(0, index), draw(0, index)
                _rewind(generators, saved)
                found.fresh_copies += not same(first, second) and same(first, draw(0, index))
    finally:
        _rewind(generators, saved)
    return found


def _reseeds(draw: Draw, index: int) -> bool:
    """Whether one global generator is left in the same state from two states before, and was drawn from since."""
    states = []
    for seed in (1, 2):
        seen: dict[str, Any] = {}

        def look(seen: dict[str, Any] = seen) -> None:
            seen |= {"torch": torch.get_rng_state(), "seed": torch.initial_seed()}
            seen |= {"numpy": np.random.get_state(), "python": random.getstate()}

        draw(seed, index, look)
        states.append(seen)
    a, b = states
    fresh = torch.Generator().manual_seed(a["seed"]).get_state()
    torch_same = torch.equal(a["torch"], b["torch"]) and not torch.equal(a["torch"], fresh)
    numpy_same = a["numpy"][2] == b["numpy"][2] != 624 and np.array_equal(a["numpy"][1], b["numpy"][1])
    python_same = a["python"] == b["python"] and a["python"][1][-1] != 624
    return bool(torch_same or numpy_same or python_same)


def same(a: Any, b: Any) -> bool:
    """Two items are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    return a is b or bool(a == b)


_KINDS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)


def _generators(value: Any, depth: int = 0, seen: set[int] | None = None) -> Iterator[Any]:
    """Generators that ``value`` keeps, in its attributes and theirs."""
    seen = set() if seen is None else seen
    if id(value) in seen or depth > DEPTH or len(seen) > MOST:
        return
    seen.add(id(value))
    if isinstance(value, _KINDS):
        yield value
    elif isinstance(value, Mapping):
        for v in list(value.values())[:50]:
            yield from _generators(v, depth + 1, seen)
    elif isinstance(value, (list, tuple)):
        for v in value[:50]:
            yield from _generators(v, depth + 1, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, (type, torch.Tensor)):
        for v in list(vars(value).values()):
            yield from _generators(v, depth + 1, seen)


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return copy.deepcopy(generator.bit_generator.state)
    return generator.get_state()


def _rewind(generators: list[Any], states: list[Any]) -> None:
    for generator, state in zip(generators, states, strict=True):
        if isinstance(generator, random.Random):
            generator.setstate(state)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = copy.deepcopy(state)
        else:
            generator.set_state(state)
