"""Divergence while everything is still finite: alarms calibrated on the run's own healthy steps. No tensors here.

`isfinite` never sees Adam at a learning rate of 0.05 (loss 1e28 for ever) or an unclipped head at five times too much.
A rule needs either an extreme value, or several steps in a row: a spike that falls back by itself is no incident.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

from maskrcnn_coco.guard.rows import CALM, OVER_START, STAYS, STREAKS, Loud, Scattered, found_in, risen
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.guard.window import WINDOW, Window

CALIBRATION = 5
"""Healthy steps that make the first reference."""
ABSURD = 1e6
"""A detector's first loss above this is no start; nothing healthy is known yet to compare it with.

Nor are losses that go on from one that was taken for the low rate it came at, once the rate is not low any more.
"""
ABSURD_ANY = 1e12
"""The same whatever the rate: losses that are summed over pixels and batch start at millions."""
ABSURD_OTHER = 1e20
"""The same of models that are no detectors: squares of prices and of populations start at 1e12 and 1e18."""
WILD_RATIO, WILD_LOSS = 8.0, 100.0
"""Losses above both, times the reference and as they are, teach nothing, not even in a run's first steps.

Healthy detectors start below 20; a run that is wild from its first update must not learn that this is healthy.
"""
WILD_MOVED = 3.0
"""Weights that may have moved by this many times their norm since the start make a loss wild whatever its size."""
HURLED = 0.3
"""A step that moved a component's weights by this share of their norm; healthy ones stay below 0.12. After it
so many steps above `CALM` as after a loss that was thrown are no noise: a rate was absurd for a step or two, and the
small ones after it lead nowhere."""
LEAPT, RATES, SHOVED = 7.0, 8, 0.2
"""A rate so many times the median of the last few steps', as of a decay by 10 that is taken the wrong way along a
cosine. Where such a step moved the weights by more than the last share and the very next loss is above `STAYS`, there
is nothing to wait for: each further step at that rate takes them further away."""
SMALLEST = 1e-2
"""The reference counts as at least this: a loss that starts at zero by construction (PPO) may leave it."""
SUDDEN = 1e4
"""A single loss this many times the reference, with a gradient that is not calm, needs no second one."""
SUDDEN_BOTH = 1e3
"""The same where the gradient is as extreme."""
SUDDEN_NORM = 1e7
"""A single gradient of one component this many times its healthy norm, though the loss is not extreme yet."""
SURVIVED = 3.0
"""A loss up to this many times one that was taken before, and after which the run was calm again, is not sudden.

Steps of another task, or targets with heavy tails, come back at the same size for ever.
"""
BESIDE_TAILS = 1e-3
"""Losses below this share of one that the run came back from are no divergence: of claims most are nothing."""
HABIT = 3
"""So many losses of one size among the last `WINDOW`, each followed by calm ones, are a habit of the run: rewards that
are rare, a task that comes now and then. By chance several come in a row."""
PROBATION = 30
"""For so many steps after a rate was lowered what diverged once is believed sooner; see `RELAPSE`."""
BELOW = 8
"""Calm steps that make a level of losses below zero. What was there has no scale at zero: it comes back."""
FLOOR = 0.3
"""The reference never falls below this share of the first losses: a model that fits its data may spike back to them."""


class Divergence:
    """Judges each finite step against the median of the last healthy ones.

    ``once``: a row of losses is refused once. Whoever only refuses can do no more about a run that stays where it is,
    and would refuse one step in six, for ever, of a loss that counts more from some step on. Rows are measured from
    where the last one was refused until losses are calm again; a run that stays there for `WINDOW` steps lives there.
    """

    def __init__(self, absurd: float = ABSURD, *, once: bool = False) -> None:
        self.absurd, self.once = absurd, once
        self._level = 1.0
        """Times the reference: where a row was refused."""
        self._stays = self._calm = 0
        """Applied steps since then that were not calm, and calm ones in a row."""
        self._moved = 0.0
        self._enormous = False
        """Every loss so far was beyond `absurd`, and was taken for the low rate it came at."""
        self._hurled: tuple[int, float] | None = None
        """The last step that moved weights by more than `HURLED` and by how much, until losses are calm after it."""
        self._rates: deque[dict[str, float]] = deque(maxlen=RATES)
        self._probation = 0
        """Applied steps that the run is still on probation, after a rate was lowered."""
        self._leapt = 0.0
        """How many times its usual size the rate was of the step that hurled the weights; 0: it had not risen."""
        self._losses, self._norms = Window(), Window()
        self._below: deque[float] = deque(maxlen=BELOW)
        self._depth = 0.0
        """How far below zero losses have been in good health, by their level."""
        self._groups: dict[str, deque[float]] = {}
        self._first: list[float] = []
        self._first_norms: list[float] = []
        self._best = math.inf
        self._start = self._known = (0, 0.0)
        """(how many, their median) of the first losses and norms."""
        self._reference = -1.0
        self._norm_reference = -1.0
        self._recent: deque[Loud] = deque(maxlen=WINDOW)
        self._peak = self._survived = 0.0
        """The largest loss applied since the last calm one, and of those that a calm one followed."""
        self._taken = 0
        self._falls_back: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        """(number of the applied step, largest loss) of each time that a calm loss followed others."""
        self._scattered = Scattered()

    @property
    def reference(self) -> float:
        """The loss that counts as healthy: the lowest running median, not far below the first losses; 0: unknown."""
        if self._reference < 0:
            if len(self._first) != self._start[0]:
                self._start = len(self._first), median(self._first)
            start = self._start[1]
            self._reference = max(min(self._best, start), FLOOR * start, SMALLEST, self._depth) if self._first else 0.0
        return self._reference

    @property
    def first_loss(self) -> float:
        """The loss before any update, of the first step that taught anything; infinite: unknown."""
        return self._first[0] if self._first else math.inf

    @property
    def norm_reference(self) -> float:
        """The same for the gradient norm, without the minimum: norms rise while the loss falls; 0: unknown."""
        if self._norm_reference < 0:
            if len(self._first_norms) != self._known[0]:
                self._known = len(self._first_norms), median(self._first_norms)
            first = self._known[1]
            self._norm_reference = max(self._norms.median, 0.1 * first) if self._first_norms else 0.0
        return self._norm_reference

    def judge(
        self, step: int, loss: float, norm: float, groups: dict[str, float], *, fits: bool = False
    ) -> Verdict | None:
        """The verdict on a step whose loss and norms are finite. Remembers the step; `accept` makes it a lesson.

        ``fits``: the learning rate is one for losses of this size, however large they are.
        """
        r_loss, r_norm = self._ratios(loss, norm)
        self._recent.append((step, loss, r_loss, r_norm))
        why = self._single(loss, r_loss, r_norm, fits) or self._component(norm, groups)
        row = None if why else self._row(loss, r_loss, r_norm)
        if why is None and row is None:
            return None
        onset = self._onset()
        if row is not None:
            why, onset = row[0], onset if row[1] is None else row[1]
        measured = {
            "loss": loss,
            "loss_reference": self.reference,
            "grad_norm": norm,
            "grad_norm_reference": self.norm_reference,
            "losses": [[s, v] for s, v, _, _ in list(self._recent)[-12:]],
            "group_grad_norm": groups,
        }
        if not self._first:
            return Verdict("diverged", f"the first loss is {loss:.4g}: {why}", measured, onset)
        text = f"loss {loss:.4g}, {r_loss:.3g} times the healthy {self.reference:.3g}; {why}; it began at step {onset}"
        if row is not None:
            measured["row"] = why
        if row is not None and self.once:
            self._level, self._stays = max(self._level, median([r for _, _, r, _ in self._recent][-STREAKS[0][0] :])), 0
        self._recent.clear()
        return Verdict("diverged", text, measured, onset)

    def wild(self, step: int, loss: float) -> Verdict | None:
        """The verdict on a finite loss whose gradient is not finite: divergence, if the loss has left all bounds."""
        if self.reference == 0 or abs(loss) <= SUDDEN_BOTH * self.reference:
            return None
        self._recent.append((step, loss, abs(loss) / self.reference, math.inf))
        onset = self._onset()
        text = f"loss {loss:.4g}, healthy is {self.reference:.3g}; its gradient overflows; it began at step {onset}"
        return Verdict("diverged", text, {"loss": loss, "loss_reference": self.reference}, onset)

    def accept(
        self,
        loss: float,
        norm: float,
        groups: dict[str, float],
        moved: float = 0.0,
        far: float | None = None,
        rates: dict[str, float] | None = None,
    ) -> None:
        """Learn from an applied step, if it was calm.

        Args:
            moved: ‖update‖ / ‖weights‖ of a component that it may have had at most.
            far: the same as measured, where it was.
            rates: the learning rates that it was taken at.
        """
        far = moved if far is None else far
        r_loss, r_norm = self._ratios(loss, norm)
        wild, self._moved = self._moved > WILD_MOVED, self._moved + (moved if math.isfinite(moved) else 0.0)
        known = len(self._first) >= CALIBRATION
        rise = self._rise(rates or {}) if known and far > SHOVED else 0.0
        # In a run's first steps weights that start at zero move by all of their norm: the bound knows of those.
        hurled = (far if known else min(far, moved)) > HURLED or rise > LEAPT
        if hurled and self._recent:
            self._hurled, self._leapt = (self._recent[-1][0], far), max(rise, self._leapt)
        self._rates.append(rates or {})
        self._taken += 1
        # A step without loss or gradient (an empty batch) says nothing about healthy ones.
        if not (math.isfinite(loss) and math.isfinite(norm)) or loss == 0 or norm == 0:
            return
        size = abs(loss)
        self._enormous = size > self.absurd and (self._enormous or not self._first)
        self._probation = max(0, self._probation - 1)
        judged = known or (self._hurled is not None and self._first)  # what follows thrown weights is no start
        if r_loss > CALM if judged else r_loss > WILD_RATIO and (size > WILD_LOSS or wild):
            self._peak = max(self._peak, size)
            self._scattered.accept(
                self._taken, self._recent[-1][0] if self._recent else 0, size, r_loss / self._level, r_norm
            )
            self._stay(groups)
            return
        if not hurled:
            self._hurled, self._leapt = None, 0.0
        if self._peak:
            self._falls_back.append((self._taken, self._peak))
        self._survived, self._peak = max(self._survived, self._peak), 0.0
        self._calm += 1
        self._level = self._level if self._calm < CALIBRATION else 1.0
        if not known:
            self._first.append(size)
            self._first_norms.append(norm)
        self._losses.append(size)
        self._norms.append(norm)
        if loss < 0 or self._below:
            self._go_below(loss, r_norm)
        self._reference = self._norm_reference = -1.0
        for name, value in groups.items():
            self._groups.setdefault(name, deque(maxlen=WINDOW)).append(value)
        if len(self._losses) >= 2 * CALIBRATION:
            self._best = min(self._best, self._losses.median)

    def _go_below(self, loss: float, r_norm: float) -> None:
        """Learn how far below zero losses may be: as far as so many with calm gradients were, none above it between."""
        if loss >= 0:
            self._below.clear()
        elif r_norm <= CALM:
            self._below.append(loss)
        if len(self._below) == BELOW:
            self._depth = max(self._depth, -median(self._below))

    def _rise(self, rates: dict[str, float]) -> float:
        """How many times its usual one the largest of ``rates`` is; 0: too few are known."""
        known = list(self._rates) if len(self._rates) >= CALIBRATION else []
        usual = {c: median(r.get(c, 0.0) for r in known) for c in rates} if known else {}
        return max((rates[c] / v for c, v in usual.items() if v > 0), default=0.0)

    def _stay(self, groups: dict[str, float]) -> None:
        """One more applied step that is not calm; as many as `WINDOW` after a refused row are what is healthy now."""
        self._calm, self._stays = 0, self._stays + 1
        if self._level > 1.0 and self._stays >= WINDOW and self._recent:
            factor, louder = (median(v) for v in list(zip(*self._recent, strict=True))[2:])
            self.weighed_anew(factor, louder * self.norm_reference, groups)

    def is_calm(self, loss: float, norm: float) -> bool:
        """Whether this loss is among the healthy ones; until some are known every one is."""
        return len(self._first) < CALIBRATION or self._ratios(loss, norm)[0] <= CALM

    def weighed_anew(self, factor: float, norm: float, groups: dict[str, float]) -> None:
        """The loss counts ``factor`` times as much from here on; ``norm`` and ``groups`` are the gradient's now."""
        louder = norm / self._norms.median if self._norms and self._norms.median > 0 else 1.0
        self._losses = Window([v * factor for v in self._losses])
        self._norms = Window([v * louder for v in self._norms])
        self._first = [v * factor for v in self._first]
        self._first_norms = [v * louder for v in self._first_norms]
        for name, known in self._groups.items():
            usual = median(known)
            by = groups[name] / usual if usual > 0 and groups.get(name, 0.0) > 0 else 1.0
            self._groups[name] = deque((v * by for v in known), WINDOW)
        self._best *= factor
        self._depth *= factor
        self._below.clear()
        self._survived *= factor
        self._falls_back.clear()
        self._scattered.weighed_anew(factor)
        self._peak, self._level, self._enormous = 0.0, 1.0, False
        self._start = self._known = (0, 0.0)
        self._reference = self._norm_reference = -1.0
        self._recent.clear()

    def reset(self) -> None:
        """Forget the run-up, after a rollback or a repair; what is healthy stays known."""
        self._recent.clear()
        self._scattered.reset()
        self._level, self._hurled, self._leapt = 1.0, None, 0.0

    def watch(self) -> None:
        """Put the run on probation: a rate was lowered for what diverged."""
        self._probation = PROBATION

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "losses": list(self._losses),
            "norms": list(self._norms),
            "groups": {k: list(v) for k, v in self._groups.items()},
            "first": list(self._first),
            "first_norms": list(self._first_norms),
            "best": self._best if math.isfinite(self._best) else None,
            "depth": self._depth,
            "recent": [list(r) for r in self._recent],
            "survived": self._survived,
            "probation": self._probation,
            "enormous": self._enormous,
            "taken": self._taken,
            "scattered": self._scattered.state_dict(self._taken),
            "falls_back": [[self._taken - at, peak] for at, peak in self._falls_back],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._reference = self._norm_reference = -1.0
        self._start = self._known = (0, 0.0)
        self._losses = Window(state["losses"])
        self._norms = Window(state["norms"])
        self._groups = {k: deque(v, WINDOW) for k, v in state["groups"].items()}
        self._first, self._first_norms = list(state["first"]), list(state["first_norms"])
        self._best = math.inf if state["best"] is None else state["best"]
        self._depth = state.get("depth", 0.0)
        self._recent = deque([(int(r[0]), r[1], r[2], r[3]) for r in state["recent"]], WINDOW)
        self._peak, self._survived, self._taken = 0.0, state.get("survived", 0.0), state.get("taken", 0)
        self._enormous, self._probation = state.get("enormous", False), state.get("probation", 0)
        self._scattered.load_state_dict(state.get("scattered", {}), self._taken)
        self._falls_back = deque([(self._taken - int(ago), peak) for ago, peak in state.get("falls_back", [])], WINDOW)

    def _ratios(self, loss: float, norm: float) -> tuple[float, float]:
        reference, norm_reference = self.reference, self.norm_reference
        r_norm = norm / norm_reference if norm_reference > 0 else 1.0
        r_loss = abs(loss) / reference if reference > 0 else 1.0
        # A likelihood may fall far below zero in good health; going down is a fault only if the gradient explodes too.
        return (r_loss if loss >= 0 or r_norm > STREAKS[0][1] else min(r_loss, 1.0)), r_norm

    def _single(self, loss: float, r_loss: float, r_norm: float, fits: bool) -> str | None:
        """What is wrong with this step by itself."""
        sudden = (r_loss > SUDDEN and r_norm > CALM) or (r_loss > SUDDEN_BOTH and r_norm > SUDDEN_BOTH)
        if sudden and abs(loss) > SURVIVED * self._survived:
            return f"gradient norm {r_norm:.3g} times the healthy one"
        if self._hurled is not None and self._leapt > LEAPT and r_loss > STAYS:
            since, moved = self._hurled
            return (
                f"step {since}, at {self._leapt:.2g} times the usual rate, moved weights by {moved:.2g} of their norm"
            )
        most = max(self.absurd, ABSURD_ANY) if fits else self.absurd
        start = not self._first or self._enormous
        return "no training starts there" if start and abs(loss) > most else None

    def _row(self, loss: float, r_loss: float, r_norm: float) -> tuple[str, int | None] | None:
        """What is wrong with the last steps together, and where it began if not with the last calm one."""
        if (r_loss <= CALM and self._first) or abs(loss) <= BESIDE_TAILS * self._survived:
            return None
        # Calm losses may lie in between: what is a habit is judged behind these two.
        apart = self._scattered.judge(self._taken, abs(loss), r_loss / self._level, r_norm)
        if apart is None and self._first:
            start = max(self._start[1] / self.reference, 1.0)
            apart = risen(self._recent, OVER_START * self._level * start, self._scattered.most)
        if apart is not None or self._habit(abs(loss)):
            return apart
        row = found_in(self._recent, self._level, self._hurled, relapses=self._probation > 0)
        return None if row is None else (row, None)

    def _habit(self, size: float) -> bool:
        """Whether losses of this size come, and go by themselves, again and again."""
        peaks = [peak for at, peak in self._falls_back if self._taken - at < WINDOW]
        return len(peaks) >= HABIT and size <= SURVIVED * median(peaks)

    def _component(self, norm: float, groups: dict[str, float]) -> str | None:
        least = SUDDEN_NORM * self.norm_reference / 10
        if norm <= least:
            return None
        for name, value in groups.items():
            if value <= least:
                continue
            known = self._groups.get(name)
            if known is not None and len(known) >= 2 * CALIBRATION:
                healthy = median(known)
                if healthy > 0 and value > SUDDEN_NORM * healthy:
                    return f"gradient of {name} {value:.3g}, {value / healthy:.3g} times its healthy norm"
        return None

    def _onset(self) -> int:
        """The first step of the unbroken run-up that ends now."""
        onset = self._recent[-1][0]
        for step, _, r_loss, _ in reversed(self._recent):
            if r_loss <= 1.5:
                break
            onset = step
        return onset
