"""The learning-rate guideline: which rates are safe, and which are aggressive, for a component and its weights' state.

Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LRRange:
    """A safe and an aggressive learning-rate range of one component; ``state`` is what its weights start from."""

    state: str
    safe: tuple[float, float]
    aggressive: tuple[float, float]

    def is_safe(self, rate: float) -> bool:
        """Whether ``rate`` is not above the safe range."""
        return rate <= self.safe[1] * (1 + 1e-9)

    def describe(self, rate: float) -> str:
        """Where ``rate`` lies, as in "in the aggressive range 0.001 to 0.01"."""
        (low, high), (bold, top) = self.safe, self.aggressive
        if self.is_safe(rate):
            return f"{'in' if rate >= low else 'below'} the safe range {low:g} to {high:g}"
        return f"{'in' if rate <= top * (1 + 1e-9) else 'past'} the aggressive range {bold:g} to {top:g}"


GUIDELINE = {
    "backbone": LRRange("pretrained", (1e-4, 5e-3), (1e-3, 1e-2)),
    "rpn": LRRange("partly pretrained", (5e-4, 5e-3), (5e-3, 2e-2)),
    "box_head": LRRange("random", (1e-3, 1e-2), (1e-2, 5e-2)),
    "mask_head": LRRange("random", (1e-3, 1e-2), (1e-2, 5e-2)),
}
ADAMW_SHARE = 20
"""AdamW's rates are SGD's over this. Built-in shapes, 5 epochs: segm/AP 0.257 at a tenth, 0.268 here, 0.153 at 1/50."""


def guideline(optimizer: str) -> dict[str, LRRange]:
    """The ranges per component for ``optimizer``, "sgd" or "adamw"."""
    if optimizer == "sgd":
        return GUIDELINE

    def scaled(span: tuple[float, float]) -> tuple[float, float]:
        return span[0] / ADAMW_SHARE, span[1] / ADAMW_SHARE

    return {c: LRRange(g.state, scaled(g.safe), scaled(g.aggressive)) for c, g in GUIDELINE.items()}
