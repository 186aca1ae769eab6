"""The loop beside a guard whose records arrive late (CUDA): when to wait for them, and how to look at an alarm.

The device has refused the bad step already; by the time the host reads of it, a step or two have followed. So the run
goes back to the newest snapshot before it and takes those steps again with a guard that reads at once. The alarm then
comes with the very state that it concerns, and diagnosis and recovery work as they do on the CPU. It costs ten steps at
most; where the step is sound the second time, that itself is the finding: a transient.
"""

from __future__ import annotations

from maskrcnn_coco.records import Action, Alarm, Evidence, Finding
from maskrcnn_coco.training.incident import compose
from maskrcnn_coco.training.rollback import go_back
from maskrcnn_coco.training.session import Session

NONFINITE = ("loss_nonfinite", "grad_nonfinite", "param_nonfinite", "optimizer_nonfinite", "buffer_nonfinite", "crash")
WATCH = 20
"""Steps after a late alarm that are still read at once: a divergence need not return at the same step to the digit."""


def caught_up(session: Session) -> bool:
    """Wait for every step under way, and look at the state; False where an alarm sent the run back.

    To be called before anything is copied, saved, evaluated or ended. Without a late guard there is nothing to do.
    """
    guard = session.guard
    if not guard.late:
        return True
    guard.flush()
    session.keep_records(guard.completed)
    alarm = guard.alarm
    if alarm is None and look_again(session):
        return False
    if alarm is None:
        verdict = guard.inspect()
        step = max(0, session.progress.step - 1)  # the last one taken left it so
        if verdict is not None:
            alarm = Alarm(verdict.symptom, step, session.epoch_of(step), step, verdict.message, verdict.measured)
    if alarm is None:
        return True
    go_back_to_look(session, alarm)
    return False


def go_back_to_look(session: Session, alarm: Alarm) -> int:
    """Restore the newest snapshot before ``alarm``; from there on the guard reads at once. Returns the step."""
    step = go_back(session, alarm.step)
    session.guard.at_once_until = alarm.step + WATCH
    session.doubt = alarm
    session.console.note(f"step {alarm.step}: {alarm.message}; looking at it again from step {step}")
    return step


def look_again(session: Session) -> bool:
    """Go back to a step that was refused without a verdict, and take it again with the guard reading at once.

    A NaN of nothing costs no step, one that gradients know of is a fault: which it is, only a read can tell.
    """
    step = session.guard.doubted
    if step is None:
        return False
    back = go_back(session, step)
    session.guard.at_once_until = step + WATCH
    session.console.note(f"step {step}: a loss was NaN and no gradient; looking at it again from step {back}")
    return True


def resolve_doubt(session: Session, now: Alarm | None, step: int) -> None:
    """After step ``step`` was taken with the guard reading at once: where none of the watched steps raised an alarm
    like the late one, that was a transient.

    Not at the alarm's own step: where a device rounds differently the second time, a divergence comes back a few steps
    later.
    """
    alarm = session.doubt
    if alarm is None or (now is None and step + 1 < min(alarm.step + WATCH, _end(session))):
        return
    session.doubt = None
    if now is not None or alarm.symptom not in NONFINITE:
        return
    test = f"the same again from the last snapshot, to step {step}"
    evidence = [Evidence(test, "finite", "TRANSIENT")]
    # Atomic additions round anew each time on CUDA: what did not return need not have been the hardware's.
    sure = 0.6 if session.device.type == "cuda" else 0.9
    finding = Finding("TRANSIENT", sure, evidence=evidence, fix="nothing to change; if it returns, test the hardware")
    incident = compose(session, alarm, [finding], Action("rollback", {"to_step": alarm.step, "retry": True}))
    session.keep_incident(incident)


def _end(session: Session) -> int:
    """The first planned step that this process does not take."""
    most = session.total_steps if session.max_steps is None else session.first_step + session.max_steps
    return min(session.total_steps, most)
