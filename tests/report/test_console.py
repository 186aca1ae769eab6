"""The console: the contract's epoch block, inert names, silence on stdout under --json, survival of a broken pipe."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from maskrcnn_coco.records import Action, Culprit, EpochRecord, EvalRecord, Evidence, Incident, Result, StepRecord
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.training.introduction import crowded
from maskrcnn_coco.wording import action_words, clean, duration, figure, incident_lines, score, size

LOSSES = {
    "loss_rpn_box_reg": 0.2925, "loss_mask": 0.4567, "loss_box_reg": 0.2341, "loss_objectness": 0.1234,
    "loss_classifier": 0.3456,
}  # fmt: skip
LR = {"backbone": 0.005, "rpn": 0.005, "box_head": 0.025, "mask_head": 0.025}
BLOCK = """Epoch 1/20
Training losses:
   Total: 1.4523
   loss_box_reg: 0.2341
   loss_classifier: 0.3456
   loss_mask: 0.4567
   loss_objectness: 0.1234
   loss_rpn_box_reg: 0.2925
"""
EVIL = "\x1b[2J\x1b]0;gotcha\x07[bold red]name[/]‮"


def epoch_record() -> EpochRecord:
    return EpochRecord(0, 153, LOSSES, 1.4523, 12.345, LR, 2, 3.21, 48.0)


def step_record(step: int = 0, *, applied: bool = True) -> StepRecord:
    return StepRecord(step, 0, LOSSES, 1.4523, 12.3, dict.fromkeys(LR, 3.0), LR, None, [1, 2], applied)


def incident(**changes: object) -> Incident:
    base = Incident(
        "0001", 41, 0, 38, "diverged", "LR_TOO_HIGH", 0.97, Culprit("box_head", image_ids=[17]),
        [Evidence("replay with the box head at half its rate", "finite", "LR_TOO_HIGH"), Evidence("lr 0", "finite")],
        Action("lower_lr", {"component": "box_head", "factor": 0.5, "to_step": 30}), "recovered", 11,
        "--head-lr-multiplier 3.0", "maskrcnn-coco explain LR_TOO_HIGH",
    )  # fmt: skip
    for name, value in changes.items():
        setattr(base, name, value)
    return base


def shown(use, *, terminal: bool = False, width: int = 100) -> str:
    file = io.StringIO()
    use(Console(file=file, terminal=terminal, width=width))
    return file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_epoch_block_is_the_contract_verbatim(terminal: bool) -> None:
    evaluation = EvalRecord(0, 153, {"bbox/AP": 0.4321, "segm/AP": -1.0}, {}, 1.0)
    text = shown(lambda c: c.epoch(epoch_record(), evaluation, epochs=20, time_left=4000), terminal=terminal)
    assert text.startswith(BLOCK)
    for part in ("backbone 0.005", "grad norm: 12.35", "skipped steps: 2", "bbox/AP: 0.4321", "segm/AP: –",
                 "images/s: 3.21", "time left: 1 h 06 min"):  # fmt: skip
        assert part in text


def test_first_batch_shows_every_loss() -> None:
    text = shown(lambda c: c.first_batch(step_record()))
    assert text.splitlines()[0] == "First batch losses:"
    assert all(f"   {name}: {value:.4f}" in text for name, value in LOSSES.items())


@pytest.mark.parametrize("terminal", [False, True])
def test_names_from_data_are_inert(terminal: bool) -> None:
    def use(c: Console) -> None:
        c.note(EVIL)
        c.warn(EVIL)
        c.settings({"data": EVIL}, {"data": EVIL})
        c.table(EVIL, [[EVIL, "1"]], [EVIL, "AP"])
        c.incident(incident(culprit=Culprit(EVIL), fix=EVIL))

    text = shown(use, terminal=terminal)
    without_style = re.sub(r"\x1b\[[0-9;]*m", "", text) if terminal else text
    assert "\x1b" not in without_style
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "[bold red]name[/]" in without_style  # shown as it is, not taken as markup


def test_settings_show_each_value_with_its_reason() -> None:
    text = shown(lambda c: c.settings({"lr": 0.005, "val": None}, {"lr": "recipe: small (200)"}, lr=LR))
    assert re.search(r"--lr +0\.005 +recipe: small \(200\)", text)
    assert "--val" not in text
    assert "box_head 0.025" in text


def test_incident_is_five_lines_cause_first_command_before_last() -> None:
    lines = incident_lines(incident())
    assert len(lines) == 5
    assert lines[0].startswith("LR_TOO_HIGH (97% sure)")
    assert lines[1] == "proof: replay with the box head at half its rate: finite"
    assert "learning rate of box_head to 0.5 of it" in lines[2]
    assert lines[3] == "make it permanent: --head-lr-multiplier 3.0"
    assert "explain LR_TOO_HIGH" in lines[4]
    assert len(shown(lambda c: c.incident(incident())).splitlines()) == 5


@pytest.mark.parametrize("width", [60, 140])
def test_a_terminal_is_never_overrun(width: int) -> None:
    def use(c: Console) -> None:
        c.settings({"lr": 0.005, "data": "/a/very/long/path/" + "x" * 90}, {"lr": "recipe " * 20}, lr=LR)
        c.incident(incident())
        c.epoch(epoch_record(), None, epochs=20, time_left=10)

    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown(use, terminal=True, width=width))
    assert max(map(len, plain.splitlines())) <= width


def test_json_mode_leaves_stdout_empty(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(json_mode=True)
    console.note("hello")
    with console.progress(0, 1, 2) as bar:
        bar.update(step_record(), 1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "hello" in err


def test_a_broken_pipe_silences_the_console_and_nothing_else() -> None:
    class Gone(io.StringIO):
        def write(self, s: str) -> int:
            raise BrokenPipeError

    console = Console(file=Gone())
    console.note("one")
    console.epoch(epoch_record(), None, epochs=1, time_left=0)


def test_a_closed_reader_does_not_end_the_process() -> None:
    code = """if True:
        import sys, time
        from maskrcnn_coco.report.console import Console
        console = Console()
        for i in range(2000):
            console.note(f"line {i} " + "x" * 200)
        print("still here", file=sys.stderr)
        """
    run = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -c '{code}' | head -1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0
    assert run.stderr == "still here\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_follows_a_roll_back(terminal: bool) -> None:
    def use(c: Console) -> None:
        with c.progress(1, 2, 4) as bar:
            for next_step in (5, 6, 5, 6, 7, 8):
                bar.update(step_record(next_step - 1, applied=next_step != 5), next_step)
            bar.update(None, 8)

    shown(use, terminal=terminal)


def test_end_says_where_things_are() -> None:
    result = Result(
        "stopped", 4, False, 1, 30, 4, ["0001"], {"segm/AP": 0.5}, "checkpoints/best.pth", 4.0, 1.0, 3.0, 0.1, 2**30
    )
    text = shown(lambda c: c.end(result, report=Path("runs/report.html"), checkpoints=Path("checkpoints")))
    for part in ("stopped after 1 epoch, 30 steps (4 skipped)", "runs/report.html", "checkpoints/best.pth",
                 "incidents: 0001", "NOT finite", "1.0 GiB"):  # fmt: skip
        assert part in text


def test_end_names_the_commands_that_come_next() -> None:
    result = Result("finished", 0, True, 1, 30, 0, [], {}, "checkpoints/best.pth", 4.0, 1.0, 3.0, 0.1, 2**30)
    steps = ["maskrcnn-coco evaluate checkpoints/best.pth", "tensorboard --logdir runs/maskrcnn"]
    text = shown(lambda c: c.end(result, report=None, checkpoints=None, next_steps=steps))
    assert "next:\n   maskrcnn-coco evaluate checkpoints/best.pth\n   tensorboard" in text


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (Action("skip"), "left out"),
        (Action("quarantine", {"image_ids": [3]}), "image 3"),
        (Action("rollback", {"to_step": 7}), "to step 7"),
        (Action("precision", {"module": "backbone", "dtype": "fp32"}), "backbone runs in fp32"),
        (Action("precision", {"loss_scale": 1024.0}), "1024"),
        (Action("reload", {"checkpoint": None}), "newest verified"),
        (Action("stop", {"why": "budget spent"}), "budget spent"),
    ],
)
def test_action_words(action: Action, words: str) -> None:
    assert words in action_words(action)


def test_words_for_values() -> None:
    assert [figure(v) for v in (0.005, 12.345, 4.1e28, float("nan"), 0.0)] == ["0.005", "12.35", "4.1e+28", "nan", "0"]
    assert [score(v) for v in (0.5, -1.0, None, float("nan"))] == ["0.5000", "–", "–", "–"]
    assert [duration(v) for v in (8, 200, 7500, float("inf"))] == ["8 s", "3 min 20 s", "2 h 05 min", "unknown"]
    assert size(1536) == "1.5 KiB"
    assert clean("a\nb\x1b[1m") == "a b\\u001b[1m"


@pytest.mark.parametrize(
    ("threads", "busy", "told"),
    [(4, 0.3, None), (4, 2.2, "OMP_NUM_THREADS=2"), (2, 2.2, None), (1, 40.0, None), (8, 40.0, "OMP_NUM_THREADS=1")],
)
def test_a_crowded_machine_is_told(monkeypatch: pytest.MonkeyPatch, threads: int, busy: float, told: str | None):
    monkeypatch.setattr("os.getloadavg", lambda: (busy, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    said = crowded(threads)
    assert said is None if told is None else said is not None and told in said


@pytest.mark.parametrize("columns", ["0", "1", "7"])
def test_a_terminal_that_states_no_width_is_written_to_all_the_same(columns, monkeypatch, capsys):
    """Containers and job runners say COLUMNS=0: nothing at all was shown then."""
    monkeypatch.setenv("COLUMNS", columns)
    Console().note("sixty characters and more, so that a terminal of no width has none left")
    assert "sixty characters and more, so that a terminal" in capsys.readouterr().out
