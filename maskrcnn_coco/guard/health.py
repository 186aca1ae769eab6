"""Is the state fit for a step? Learning rate, optimizer state, weights, and whether someone changed them in between.

A NaN in momentum, in the learning rate or in a weight that the loss does not see hides behind a healthy loss, and is
spread or kept by the step; so it is looked for before the step.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch

from maskrcnn_coco.components import is_possible, real
from maskrcnn_coco.guard.foreign_state import UsualUpdates
from maskrcnn_coco.guard.held_states import HeldStates, States, fits_its_mean, zeroed_moments
from maskrcnn_coco.guard.norms import SMALLEST_RMS, Layout, all_finite, nonfinite_at, norms
from maskrcnn_coco.guard.outside_changes import Pushes, Witness, zeroed
from maskrcnn_coco.guard.updates import HASTY, widest
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.wording import listed

LEAP = 1e3
"""A step that may move a component's weights by this many times their norm is a divergence, whatever the loss says."""
BRISK = 0.2
"""A bound above this is worth an exact measurement: an early warning may come of it. Healthy runs stay below 0.12."""
OUTSIDE, GONE = 3.0, 1e4
"""Growth of a component's weight norm between two steps that is an incident, and loss; of others it is their sum."""
_SETTINGS = ("lr", "momentum", "weight_decay", "eps")
_VERSION = operator.attrgetter("_version")


class Health:
    """Checks the state of one optimizer's parameters. ``every``: steps between looks at all of it.

    In between it is looked at only where a `Witness` says that somebody changed it: a step of finite numbers leaves
    finite state, and reading both of Adam's moments at each step costs more than all else that the guard does.
    """

    def __init__(self, layout: Layout, optimizer: torch.optim.Optimizer, *, every: int) -> None:
        self.layout = layout
        self.optimizer = optimizer
        self.every = every
        self.changed_outside: list[dict[str, Any]] = []
        self.bound: dict[str, float] = {}
        self._weights: list[float] | None = None
        self._after: list[float] | None = None
        self._states: tuple[int, ...] = ()
        self._moments: list[float] = []
        self._exact = False
        self._first = True
        self._grown: list[float] = []
        self._due = 0
        self._witness = Witness()
        self._pushes = Pushes()
        self._held = HeldStates(optimizer, layout)
        self._settings: list[list[Any]] | None = None
        """Settings that were looked at and found good."""
        self._scale: list[float] = []
        self._scaled_for: list[float] | None = None
        self._root_sizes = [math.sqrt(n) for n in layout.sizes]
        self.foreign: list[str] | None = None
        """Optimizer states that were not left so by the last step; empty: which, nobody knows; None: there are none."""
        self.usual = UsualUpdates(optimizer)
        self.replaced: Mapping[str, Any] = {}
        """Settings that have another value within a step, whatever the groups have."""

    @property
    def brisk(self) -> bool:
        """Whether the last step judged may move some component's weights by a large share of them."""
        return self.moved > BRISK

    @property
    def moved(self) -> float:
        """The most that the last step judged may have moved a component by, times its weights."""
        return max(self.bound.values(), default=0.0)

    def check(self, *, whole: bool = False, aside: bool = False) -> Verdict | None:
        """Before the step: settings and optimizer state each time, the weights when due, or all with ``whole``; with
        ``aside`` somebody else wants to know, and what is found is still the next step's to be refused for."""
        settings = self.check_lr()
        if settings is not None:
            return settings
        found = self._held.states()
        if self._held.misfits:
            return self._misfit(found)
        changed = self._witness.changed([*self.layout.params, *found[0]])
        if changed and found[0]:
            self._note_foreign(found)
        return self._check_states(found, look=whole or changed) or self._check_weights(
            whole=whole, changed=changed, aside=aside
        )

    def look_again(self) -> None:
        """Just before the step: whether somebody wrote into the optimizer's state since `check`."""
        if self.foreign is None and self.state_marked():
            self._note_foreign(self._held.states())

    def state_marked(self) -> bool:
        """Whether somebody wrote into the optimizer's state, or replaced it, since it was noted; reads nothing."""
        states = self._held.states()[0]
        return bool(states) and self._witness.marked(states, len(self.layout.params))

    def note_marks(self) -> None:
        """After a step whose numbers come late: who writes into the state is seen by its marks alone."""
        self._witness.note_marks([*self.layout.params, *self._held.states()[0]])

    def _note_foreign(self, found: States) -> None:
        positions, _, keys = self._changed(), *found[1:]
        first = len(self.layout.params)
        names = [f"{keys[i - first]} of {self.layout.names[found[1][i - first]]}" for i in positions if i >= first]
        if names or not positions:
            self.foreign = names

    def most(self, group_norms: list[float], coefficient: float) -> dict[str, float]:
        """Component → ‖update‖ / ‖weights‖ that no step has with a sound optimizer state; see `foreign_state`."""
        sgd = isinstance(self.optimizer, torch.optim.SGD)
        sizes = [coefficient * g for g in group_norms] if sgd else self._root_sizes
        decay = max(float(g.get("weight_decay") or 0.0) for g in self.optimizer.param_groups)
        shares = [s / w + decay for s, w in zip(sizes, self._component_scale(), strict=True)]
        shares = self.layout.largest(self.layout.by_component(shares))
        sure = sgd or "betas" in self.optimizer.param_groups[0]
        return self.usual.most(self.lr(), self.layout.by_component(shares), sure=sure)

    def leap(self, bound: dict[str, float]) -> Verdict | None:
        """Whether this step could throw weights away though every gradient is finite.

        Args:
            bound: component → upper bound of ‖update‖ / ‖weights‖, as `update_bound` gives it.
        """
        self.bound = bound
        worst = max(bound, key=bound.__getitem__)
        if bound[worst] <= LEAP:
            return None
        text = f"the update of {worst} may be {bound[worst]:.3g} times its weights"
        return self.by_state(Verdict("diverged", text, {"update_bound": bound, "component": worst, "lr": self.lr()}))

    def by_state(self, found: Verdict) -> Verdict:
        """``found`` of an update, put down to the optimizer's state where somebody has changed that."""
        if self.foreign is None:
            return found
        said = f"changed between two steps ({listed(self.foreign, 3)})" if self.foreign else "not of a step taken here"
        text = f"the optimizer's state was {said}, and with it {found.message}"
        return Verdict("optimizer_nonfinite", text, {**found.measured, "state_changed": self.foreign})

    def update_bound(self, group_norms: list[float], coefficient: float) -> dict[str, float]:
        """Component → upper bound of ‖update‖ / ‖weights‖.

        SGD: lr x (momentum ‖buffer‖ + ‖clipped gradient‖). Others (Adam and kin): lr for every weight. A rate that the
        optimizer keeps to itself bounds nothing and counts as 0.
        """
        layout = self.layout
        rates = layout.largest(self.lr())
        if "adafactor" in type(self.optimizer).__name__.lower():
            # Its rate is a share of the weights themselves, and never more than all of them.
            return {name: min(rate, 1.0) for name, rate in zip(layout.components, rates, strict=True)}
        scale = self._component_scale()
        if not isinstance(self.optimizer, torch.optim.SGD):
            by = widest(self.optimizer) if "alpha" in self.optimizer.param_groups[0] else 1.0
            return layout.by_component([by * r * s / w for r, s, w in zip(rates, self._root_sizes, scale, strict=True)])
        momentum = max(float(g["momentum"]) for g in self.optimizer.param_groups)
        while True:
            # The update may use the gradient twice with Nesterov's momentum; 2 covers it.
            sizes = [momentum * m + 2 * coefficient * g for m, g in zip(self._moments, group_norms, strict=True)]
            bound = layout.by_component([r * s / w for r, s, w in zip(rates, sizes, scale, strict=True)])
            if self._exact or not momentum or max(bound.values()) <= HASTY:
                self._grown = sizes  # from here on the buffer's norm is at most this, until it is read again
                return bound
            self._read_states()  # large enough to matter: what was an estimate is measured

    def _component_scale(self) -> list[float]:
        """Norm of each component's weights as last measured, at least that of small ones."""
        if self._scaled_for is None or self._scaled_for is not self._weights:
            weights = self.layout.totals(self._weights or [0.0] * len(self.layout.params))
            self._scale = [max(w, SMALLEST_RMS * r) for w, r in zip(weights, self._root_sizes, strict=True)]
            self._scaled_for = self._weights
        return self._scale

    def lr(self) -> dict[str, float]:
        """Learning rate per component, in the layout's order."""
        return self.layout.lr(self.optimizer)

    def weight_norms(self) -> list[float]:
        """Component norms of the weights, as last measured."""
        return self.layout.totals(self._weights or self.layout.weight_norms())

    def finished(self, *, due: bool) -> None:
        """After an applied step. ``due``: the weights are measured now, to be compared before the next step."""
        self._due += 1
        self._after = self.foreign = None
        self._exact = False
        self._moments = self._grown or self._moments
        self._witness.note([*self.layout.params, *self._held.states()[0]])
        self._states = self._marks() if self._held.seconds else ()
        if self._pushes.left:
            self._pushes.left, due = self._pushes.left - 1, True
        if due or self._due % self.every == 0:
            self._after = self._weights = self.layout.weight_norms()

    def reset(self) -> None:
        """Everything may have changed (a rollback, a load): look at all of it before the next step."""
        self.forget_weights()
        self._witness.forget()

    def forget_weights(self) -> None:
        """What is known of the weights is of a step long ago."""
        self._weights = self._after = self.foreign = None
        self._states = ()
        self._due = 0
        self._pushes.forget()

    def check_lr(self) -> Verdict | None:
        """The optimizer's settings: learning rate, momentum, weight decay, eps, betas.

        torch refuses at construction what is below zero, and betas of 1; somebody may set it later all the same.
        """
        given = [[*map(group.get, _SETTINGS), *(group.get("betas") or ())] for group in self.optimizer.param_groups]
        if given == self._settings:
            return None
        bad = {}
        for i, group in enumerate(self.optimizer.param_groups):
            for key in _SETTINGS:
                value = group.get(key) if key not in self.replaced else None
                if not is_possible(value):
                    bad[f"param_groups[{i}].{key}"] = value
            for n, beta in enumerate(group.get("betas") or () if "betas" not in self.replaced else ()):
                if isinstance(beta, (float, int)) and not 0 <= beta < 1:
                    bad[f"param_groups[{i}].betas[{n}]"] = float(beta)
        if not bad:
            # Numbers only: a tensor may have another value tomorrow and still be the same.
            numbers = {float, int, bool, type(None)}.issuperset(type(v) for values in given for v in values)
            self._settings = given if numbers else None
            return None
        said = ", ".join(f"{k} = {v:g}" for k, v in list(bad.items())[:3])
        text = f"the optimizer cannot work with {said}"
        return Verdict("optimizer_nonfinite", text, {"settings": {k: real(v) for k, v in bad.items()}, "lr": self.lr()})

    def check_fit(self) -> Verdict | None:
        """The same of the state's shapes alone: one that is not its weight's raises in a step, or ends the process.

        torch's `load_state_dict` compares the number of parameters, not their shapes or order.
        """
        found = self._held.states()
        return self._misfit(found) if self._held.misfits else None

    def _misfit(self, found: States) -> Verdict:
        tensors, where, keys = found
        layout, said = self.layout, {}
        for i in self._held.misfits:
            name, like = layout.names[where[i]], layout.params[where[i]]
            said.setdefault(name, f"{keys[i]} has the shape {tuple(tensors[i].shape)}, the weight {tuple(like.shape)}")
        name, what = next(iter(said.items()))
        text = f"optimizer state of {len(said)} weights is of other ones ({name}: {what}): saved in another order?"
        component = layout.components[layout.component[where[self._held.misfits[0]]]]
        return Verdict("optimizer_nonfinite", text, {"misfits": said, "component": component})

    def _check_states(self, found: States, *, look: bool) -> Verdict | None:
        if not look and self._due % self.every:
            return None
        _, where, keys = found
        values = self._read_states(found)
        bad = [i for i in nonfinite_at(values) if not fits_its_mean(i, found)]
        if bad:
            layout = self.layout
            names = [f"{keys[i]} of {layout.names[where[i]]}" for i in bad]
            component = layout.components[layout.component[where[bad[0]]]]
            measured = {"optimizer_state": names, "component": component}
            return Verdict(
                "optimizer_nonfinite",
                f"optimizer state is not finite, or too large for float32: {listed(names, 3)}",
                measured,
            )
        if "exp_avg_sq" in keys and (self._marks() != self._states or self._due % (10 * self.every) == 0):
            return zeroed_moments(self.layout, self.optimizer)
        return None

    def _read_states(self, found: States | None = None) -> list[float]:
        """Norm of each state tensor; keeps those of the momentum for the bound."""
        tensors, where, keys = found or self._held.states()
        values = norms(tensors)
        momentum = [(v, w) for v, w, k in zip(values, where, keys, strict=True) if k == "momentum_buffer"]
        self._moments = self.layout.totals([v for v, _ in momentum], [w for _, w in momentum])
        self._exact = True
        return values

    def _marks(self) -> tuple[int, ...]:
        """Differs after Adam's state was replaced, or changed by in-place operations."""
        self._held.states()
        seconds = self._held.seconds
        try:
            versions = tuple(map(_VERSION, seconds))
        except RuntimeError:  # those made in inference mode count nothing
            versions = tuple(0 if t.is_inference() else t._version for t in seconds)
        return (*map(id, seconds), *versions)

    def _check_weights(self, *, whole: bool, changed: bool, aside: bool) -> Verdict | None:
        layout = self.layout
        untouched = self._weights is not None and not (changed and self._weights_among(self._changed()))
        if untouched and self._after is None and not whole:
            return None
        values = layout.weight_norms()
        bad = [i for i in nonfinite_at(values) if not all_finite(layout.params[i])]
        if bad and self._first:
            layout.spare = bad  # memory that nothing was ever written to, as long as no gradient reaches it
            values = layout.weight_norms()
        elif bad:
            return self._bad_weights(bad)
        self._first = False
        recent = self._after if self._after is not None else self._weights
        before = values if recent is None or (untouched and self._after is None) else recent
        huge = any(v == math.inf for v in values)
        if before != values or huge:
            found = self._outside(before, values, exact=self._after is not None, first=recent is None)
            if found is None or not (aside or "enormous" in found.measured):
                # Said once: a loop that goes on regardless is not refused for ever.
                self._weights, self._after = values, values
                self._witness.note([*layout.params, *self._held.states()[0]])
            return found
        self._weights = values
        return None

    def spares(self) -> Verdict | None:
        """After a backward pass: weights that were never finite, and are used."""
        used = self.layout.used_spares() if self.layout.spare else []
        return self._bad_weights(used) if used else None

    def written_during(self) -> Verdict | None:
        """After a backward pass: weights that somebody wrote into since `check`, and made many times what they were."""
        if self._weights is None or not self._witness.changed([*self.layout.params, *self._held.states()[0]]):
            return None
        values, known = self.layout.weight_norms(), self._after or self._weights
        bad = [i for i in nonfinite_at(values) if not all_finite(self.layout.params[i])]
        return self._bad_weights(bad) if bad else self._outside(known, values, exact=False, first=False)

    def _bad_weights(self, bad: list[int]) -> Verdict:
        layout = self.layout
        names = [layout.names[i] for i in bad]
        measured = {"parameters": names, "component": layout.components[layout.component[bad[0]]]}
        return Verdict("param_nonfinite", f"weights are not finite: {listed(names, 3)}", measured)

    def _changed(self) -> list[int]:
        """Positions, weights first and then states, of what the witness sees changed; empty where it cannot tell."""
        return self._witness.which([*self.layout.params, *self._held.states()[0]])

    def _weights_among(self, positions: list[int]) -> bool:
        return not positions or positions[0] < len(self.layout.params)

    def _outside(self, before: list[float], now: list[float], *, exact: bool, first: bool) -> Verdict | None:
        """Weights that are not what the last step left.

        Clamping them, loading them, making a head anew are habits of some and only counted; weights that became many
        times what they were, or nothing, are a fault. ``exact``: ``before`` is of the last step, not of one up to
        `every` ago; ``first``: they were not measured since the last load.
        """
        layout = self.layout
        names = [n for n, a, b in zip(layout.names, before, now, strict=True) if a != b or b == math.inf]
        if not exact:
            # All have changed since they were last measured; who was changed from outside, the witness knows.
            names = [layout.names[i] for i in self._changed() if i < len(layout.names)] or names
        old, new = layout.totals(before), layout.totals(now)
        self.changed_outside.append({"parameters": names, "before": old, "now": new})
        del self.changed_outside[:-20]
        huge = [n for n, v in zip(layout.names, now, strict=True) if v == math.inf]
        if huge and first:
            # Never measured before: they came so, in a file or from a constructor.
            where = layout.components[layout.component[layout.names.index(huge[0])]]
            text = f"weights are finite but enormous: {listed(huge, 3)}"
            return Verdict("param_nonfinite", text, {"parameters": huge, "component": where, "enormous": True})
        gone = zeroed(before, now, layout.params, self.optimizer.state)
        names, cleared = ([layout.names[i] for i in gone], {layout.component[i] for i in gone}) if gone else (names, ())
        limit = OUTSIDE if exact else 10 * OUTSIDE
        for c, (component, a, b, count) in enumerate(zip(layout.components, old, new, layout.sizes, strict=True)):
            # Huge but finite weights have an infinite norm.
            if c in cleared or b == math.inf or GONE * b < a or b > limit * max(a, SMALLEST_RMS * math.sqrt(count)):
                measured = {"changed_outside": names, "component": component, "norm_before": a, "norm": b}
                did = "became zero" if gone else "changed"
                text = f"weights {did} outside the step: {listed(names, 3)}; norm of {component} {a:.4g} -> {b:.4g}"
                return Verdict("diverged", text, measured)
        together = self._pushes.add(old, new, layout, exact=exact)
        if together is None:
            return None
        c, times, count = together
        component = layout.components[c]
        text = f"weights changed outside the step {count} times, which made the norm of {component} {times:.2g} of it"
        measured = {"norm_before": old[c], "norm": new[c], "changes": [count, times]}
        return Verdict("diverged", text, {"changed_outside": names, "component": component, **measured})
