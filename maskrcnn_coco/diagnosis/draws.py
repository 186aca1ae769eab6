"""Whether a step, or its guilty samples, are bad themselves, or only with what was drawn at random for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from maskrcnn_coco.diagnosis import scan_batch
from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.guilty_samples import weights
from maskrcnn_coco.diagnosis.limits import MOST_FACTOR
from maskrcnn_coco.records import Evidence
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.replay import Replay
from maskrcnn_coco.replay.snapshot import Snapshot

DRAWS = 3
"""Most other draws of a sample that are tried. All but one have to be sound: what is the sample's own comes again."""


def by_chance(
    replay: Replay, facts: Facts, name: str, snapshot: Snapshot | None, *, however_loud: bool = False
) -> bool:
    """Whether the batch is sound with the random numbers of another step, on the weights of ``snapshot`` or its own.

    A bad sample is bad whatever is drawn, and so are weights that have diverged. `DRAWS` others are tried.

    Args:
        however_loud: of a step that was not finite any finite one is another; else a usual one, by a wide measure.
    """
    for later in range(1, DRAWS + 1):
        test = f"same batch, random numbers of another step{weights(snapshot)}"
        other = facts.outcomes[name] = replay.run(test, snapshot=snapshot, step=facts.step + later)
        # Of a step that was not finite, a finite one is another: it may well be loud. Diverged weights are louder, and
        # a sample out of scale is.
        loud = facts.reference.count and abs(other.loss) > MOST_FACTOR * facts.reference.loss
        finite = other.finite and not other.error and (however_loud or not loud)
        if not facts.abnormal(other) or (finite and not facts.outcomes["same"].finite):
            return True
    return False


def sound_draws(
    case: Case, replay: Replay, facts: Facts, images: Sequence[int], snapshot: Snapshot | None
) -> tuple[list[list[int]], list[Evidence]]:
    """The failing draws of ``images``, each of which, drawn anew, is sound, and what was tried.

    Args:
        images: guilty ones of the failing step.
        snapshot: the weights to try them on; None: the failing step's own.

    Returns:
        ``[epoch, index, repeat]`` of each draw; empty where one of the images is bad in another draw too.
    """
    redraw, make = case.rig.redraw, case.rig.make_batch
    draws: list[list[int]] = []
    rows: list[Evidence] = []
    if redraw is None or make is None:
        return draws, rows
    for key in [k for batch in case.batches or [] for k in batch.keys if k.image_id in images]:

        def normal(other: Any, image: int = key.image_id) -> bool:
            said, sound = _tried(lambda: make([other]), replay, facts, snapshot)
            rows.append(Evidence(f"image {image} drawn anew, alone{weights(snapshot)}", said))
            return sound

        if not mostly(normal, key, redraw):
            return [], rows
        draws.append([key.epoch, key.index, key.repeat])
    return draws, rows


def mostly(sound: Callable[[Any], bool], key: Any, redraw: Callable[[Any], Any]) -> bool:
    """Whether other draws of a sample are ``sound``, all but one of `DRAWS`; no more are asked than it takes."""
    answers = {True: 0, False: 0}
    while answers[False] < 2 and answers[True] < DRAWS - 1:
        key = redraw(key)
        answers[sound(key)] += 1
    return answers[False] < 2


def _tried(make: Callable[[], Any], replay: Replay, facts: Facts, snapshot: Snapshot | None) -> tuple[str, bool]:
    """What one sample in another draw does, and whether that is a normal step. What a scan names is not replayed."""
    try:
        batch = make()
        targets, inputs = scan_batch.scan_values(batch, replay.model, facts.settings)
        if targets or inputs:
            return (targets or inputs)[0].what, False
        outcome = replay.run("drawn anew", batches=[batch], snapshot=snapshot)
    except Exception as e:  # a sample that cannot be made or tried is no sound one, whatever its data set raises
        return f"could not be tried: {type(e).__name__}: {str(e)[:160]}", False
    return outcome.describe(), not facts.abnormal(outcome)
