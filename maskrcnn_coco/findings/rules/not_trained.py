"""Weights that are meant to learn and do not, or that were never trained and cannot.

What happens: losses fall to a level and stay; one part of the detector stays as it began.
Why: the optimizer was built before the head was replaced, or for another model; a part of the model is in no loss;
  anchors far larger than any image; weights were not loaded and are frozen; a model left in eval mode after a
  validation; weight decay that takes more than steps give; a momentum of 1 or more; a resume that brought back
  weights and not the optimizer, or the reverse, or the schedule's rate from its beginning.
How it is proved: trainable parameters are looked for in the optimizer's groups, by identity, and named; gradients and
  weights of the first steps are compared; frozen weights have exactly the spread that an initialiser gives, layer for
  layer, which no trained network has. Weights with requires_grad False are frozen on purpose and no fault. After a
  resume weights, rates and the optimizer's state are compared with each other, and with those beside which the guard's
  own state was saved.
What is done: it warns, once; a norm layer that was handed over in eval mode stays in eval mode, and that is said.
How to fix it: build the optimizer after the model is complete; load the weights, or thaw what is random; call
  model.train() before training; save and load model, optimizer, scheduler and guard together.
"""

from __future__ import annotations

import math

from maskrcnn_coco.findings.facts import Facts, Parameters, Resumed, Still
from maskrcnn_coco.findings.rules.common import finding
from maskrcnn_coco.records import RunFinding
from maskrcnn_coco.wording import listed

CODE = "NOT_TRAINED"
DECAYS = 5e-3
"""Share of the weights that decay takes in a step: ten times what strongly regularised recipes take."""
BUILD = "build the optimizer after the model is complete: [p for p in model.parameters() if p.requires_grad]"


def judge(facts: Facts) -> list[RunFinding]:
    found = _parameters(facts.parameters) + _anchors(facts.parameters) if facts.parameters is not None else []
    found += _loaded(facts.parameters) if facts.parameters is not None else []
    found += _resumed(facts.resumed) if facts.resumed is not None else []
    return found + (_still(facts.still) if facts.still is not None else [])


def _parameters(p: Parameters) -> list[RunFinding]:
    found = []
    if p.strangers and not p.owned:
        message = f"the optimizer belongs to another model: none of its {p.strangers} parameters is this model's"
        proof = [("parameters by identity", f"0 of {p.trainable} trainable ones in the optimizer")]
        found.append(finding(CODE, "another model", "error", message, BUILD, proof))
    elif p.missing:
        others = f"; {p.strangers} parameters of the optimizer are not the model's" if p.strangers else ""
        message = (
            f"{len(p.missing)} of {p.trainable} trainable parameters are in no group of the optimizer and stay as "
            f"they are: {listed(p.missing, 4)}{others}"
        )
        fix = f"{BUILD}; or requires_grad_(False) for what is to stay"
        proof = [("parameters by identity", f"{len(p.missing)} of {p.trainable} are in no group")]
        found.append(finding(CODE, "no group", "warning", message, fix, proof, names=p.missing))
    if p.frozen_random:
        message = (
            f"frozen and random: {listed(p.frozen_random, 4)} will never learn, and no weights were loaded into them"
        )
        proof = [("spread of frozen weights", f"{len(p.frozen_random)} layers have exactly the initialiser's")]
        fix = "load weights into the backbone, or let it learn: requires_grad_(True), trainable_backbone_layers=5"
        found.append(finding(CODE, "frozen random", "warning", message, fix, proof, names=p.frozen_random))
    if p.decay >= DECAYS:
        rate, decay = p.decay_of
        halved = f"in {math.log(2) / p.decay:.0f} steps they halve, whatever they learn"
        message = f"weight decay {decay:g} at rate {rate:g} takes {min(p.decay, 1):.1%} of the weights in each step" + (
            f": {halved}" if p.decay < 0.5 else ""
        )
        proof = [("rate × weight decay of each group", f"{p.decay:.2g} a step; usual are 1e-6 to 5e-4")]
        fix = "weight_decay=1e-4 (SGD) or 0.05 (AdamW) are usual"
        found.append(finding(CODE, "decay", "warning", message, fix, proof, decay=p.decay))
    if p.momentum >= 1:
        message = f"momentum {p.momentum:g} forgets no gradient: steps grow for ever, be the loss normalised or not"
        proof = [("momentum of each group", f"{p.momentum:g}; usual are 0.9 to 0.99")]
        found.append(finding(CODE, "momentum", "warning", message, "momentum=0.9", proof))
    if p.kept_eval:
        message = f"{len(p.kept_eval)} norm layers were handed over in eval mode and stay so: {listed(p.kept_eval, 3)}"
        proof = [("modes of the modules", f"{len(p.kept_eval)} norm layers in eval mode, the rest in train mode")]
        fix = "nothing to do, if it is meant; else model.train() before"
        found.append(finding(CODE, "norms kept", "info", message, fix, proof, names=p.kept_eval))
    if p.eval_mode:
        message = f"the model is in eval mode while it is trained: {listed(p.eval_mode, 3)} behave as in evaluation"
        proof = [("modes of the modules", "every module is in eval mode at a training step")]
        fix = "call model.train() after each validation"
        found.append(finding(CODE, "eval mode", "warning", message, fix, proof, names=p.eval_mode))
    return found


def _loaded(p: Parameters) -> list[RunFinding]:
    found = []
    if p.unloaded:
        message = (
            f"the optimizer's state was loaded and the model's was not: {listed(p.unloaded, 4)} hold one value in all "
            "places, as an initialiser leaves them, though the optimizer has moved them"
        )
        proof = [("weights against the optimizer's momentum", f"{len(p.unloaded)} parameters moved, and are constant")]
        fix = "model.load_state_dict of the same checkpoint, before the first step"
        found.append(finding(CODE, "weights not loaded", "warning", message, fix, proof, names=p.unloaded))
    if p.old_rate is not None:
        given, first = p.old_rate
        message = (
            f"the optimizer was built with lr {given:g} and goes on from {first:g}: load_state_dict brings back the "
            "rate of the checkpoint"
        )
        proof = [("rate given against that of the loaded state", f"{given:g}, {first:g}")]
        fix = (
            f'after loading, and before the scheduler: for g in optimizer.param_groups: g["lr"] = g["initial_lr"] = '
            f"{given:g}; nothing to do where the old rate is meant"
        )
        found.append(finding(CODE, "old rate", "warning", message, fix, proof, rates=[given, first]))
    return found


def _resumed(r: Resumed) -> list[RunFinding]:
    found = []
    after = f"the guard's state is that after {r.steps} steps"
    if r.weights:
        message = f"half a resume: {after}, and the weights are not those it had then: {listed(r.weights, 4)}"
        proof = [("weights against those beside the guard's state", f"others in {listed(r.weights, 4)}")]
        fix = "model.load_state_dict of the same checkpoint, before the first step"
        found.append(finding(CODE, "resumed without weights", "warning", message, fix, proof, names=r.weights))
    if r.no_state:
        message = f"half a resume: {after}, and the optimizer has no state: its momentum and its counts begin anew"
        proof = [("the optimizer's state", "there when the guard's was saved, empty now")]
        fix = "optimizer.load_state_dict of the same checkpoint, before the first step"
        found.append(finding(CODE, "resumed without optimizer", "warning", message, fix, proof))
    if r.rates:
        name, (then, now) = next(iter(r.rates.items()))
        message = f"half a resume: {after}, when {name} learned at {then:.3g}; the rate is back at {now:.3g}"
        proof = [("rates against those beside the guard's state", f"{name}: {then:.3g} → {now:.3g}")]
        fix = "scheduler.load_state_dict of the same checkpoint; nothing to do where the schedule restarts here"
        found.append(finding(CODE, "resumed schedule", "warning", message, fix, proof, components=list(r.rates)))
    return found


def _anchors(p: Parameters) -> list[RunFinding]:
    if not p.far_anchors:
        return []
    shown = listed([f"{size:g} pixels ({where})" for where, size in p.far_anchors.items()], 3)
    message = f"anchors of {shown} match nothing: images are {p.image_side:g} pixels at most, and no box is larger"
    most = (p.image_side / min(p.far_anchors.values())) ** 2
    proof = [("overlap with a box of the whole image", f"{most:.1g} at most; half is a match")]
    fix = "anchor sizes in pixels of the resized image, as ((32,), (64,), (128,), (256,), (512,)) for 800 pixels"
    return [finding(CODE, "anchors", "warning", message, fix, proof, anchors=p.far_anchors)]


def _still(s: Still) -> list[RunFinding]:
    found = []
    if s.no_gradient:
        message = f"{listed(s.no_gradient, 4)}: no gradient in {s.steps} steps that had objects; it does not learn"
        proof = [("gradient norm by component", f"0 in {s.steps} of {s.steps} steps")]
        fix = f"use {s.no_gradient[0]} in the forward pass and the loss, or set requires_grad_(False)"
        found.append(finding(CODE, "no gradient", "warning", message, fix, proof, names=s.no_gradient))
    if s.no_change:
        message = f"{listed(s.no_change, 4)}: weights are the same after {s.steps} steps, though they have gradients"
        proof = [("weights before and after", f"equal after {s.steps} steps")]
        found.append(finding(CODE, "no change", "warning", message, BUILD, proof, names=s.no_change))
    return found
