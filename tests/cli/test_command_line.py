"""The command line: verbs, flags, hints, exit codes, JSON on stdout."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from maskrcnn_coco.cli import verbs
from maskrcnn_coco.cli.arguments import ARGUMENTS, VERBS
from maskrcnn_coco.cli.command_line import main, parse
from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.system.garbage import without_garbage_collection

ROOT = Path(__file__).resolve().parents[2]


def test_every_verb_has_help(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb in VERBS:
        assert verb in text
        assert main([verb, "--help"]) == 0


def test_help_does_not_import_torch():
    code = "import sys; from maskrcnn_coco.cli.command_line import main; main(['train', '--help']); "
    code += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_the_collector_rests_while_torch_is_imported_and_only_then():
    with pytest.raises(ImportError), without_garbage_collection():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with without_garbage_collection():
            pass
        assert not gc.isenabled(), "left as it was found"
    finally:
        gc.enable()


def test_a_typo_in_a_verb_gets_a_hint(capsys):
    assert main(["trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err


def test_a_typo_in_a_flag_gets_a_hint(capsys):
    assert main(["train", "--eopchs", "3"]) == 2
    assert "--epochs" in capsys.readouterr().err


def test_underscores_and_dashes_are_the_same():
    args, _ = parse("train", ["--batch_size", "3", "--head-lr-multiplier", "5"])
    assert (args.batch_size, args.head_lr_multiplier) == (3, 5.0)


def test_positional_words_may_stand_anywhere():
    args, words = parse("predict", ["c.pth", "--score", "0.3", "a.png", "--json", "b.png", "--out", "o"])
    assert words == ["c.pth", "a.png", "b.png"]
    assert (args.score, args.out, args.json) == (0.3, "o", True)


def test_a_settings_file_comes_after_flags(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("lr: 1e-3\nepochs: 4\n")
    args, _ = parse("train", ["--config", str(path), "--epochs", "9"])
    assert (args.lr, args.epochs) == (1e-3, 9)


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["train", "--lr", "nan"], "--lr"),
        (["train", "--lr", "0"], "--lr"),
        (["train", "--lr", "-1"], "--lr"),
        (["train", "--fpn-lr-multiplier", "0"], "--fpn-lr-multiplier"),
        (["train", "--fpn-lr-multiplier", "inf"], "--fpn-lr-multiplier"),
        (["train", "--fpn-lr-multiplier", "five"], "--fpn-lr-multiplier"),
        (["train", "--device", "tpu9"], "--device"),
        (["train", "--device", "cuda:7"], "--device"),
        (["train", "--data", ""], "empty text"),
        (["train", "--data="], "empty text"),
        (["train", "--logdir", ""], "--logdir"),
        (["check", "--data", ""], "empty text"),
        (["check", "--data", "x", "--html", "."], "--html"),
        (["check", "--data", "x", "--fix", "/dev/null/x"], "--fix"),
        (["convert", "x", "--out", "."], "it is a folder"),
        (["train", "--batch-size", "100000000", "--dry-run"], "--batch-size"),
        (["train", "--accumulate", "10000000", "--dry-run"], "--accumulate"),
        (["train", "--num-classes", "9", "--dry-run"], "circle"),
        (["evaluate"], "CHECKPOINT"),
        (["evaluate", "FILE", "--batch-size", "0"], "--batch-size"),
        (["predict", "only.pth"], "image"),
    ],
)
def test_bad_command_lines_exit_2_and_name_the_flag(argv, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [__file__ if word == "FILE" else word for word in argv]
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert word in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv", [["train", "--data", "/nowhere/at/all"], ["check", "--data", "/nowhere/at/all"]], ids=["train", "check"]
)
def test_unusable_data_exits_3(argv, capsys):
    assert main(argv) == 3
    assert "/nowhere/at/all" in capsys.readouterr().err


def test_the_training_script_runs_verbatim_from_a_checkout():
    done = subprocess.run(
        [sys.executable, "maskrcnn_coco/main_mlops.py", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "--head-lr-multiplier" in done.stdout


# One a line, so that two changes that add a flag do not meet.
FROZEN = {
    "accumulate",
    "amp",
    "augment",
    "backbone_weights",
    "batch_size",
    "box_batch_size_per_image",
    "box_detections_per_image",
    "checkpoint_dir",
    "checkpoint_every",
    "class_balance",
    "copy_paste",
    "data",
    "demo",
    "deterministic",
    "device",
    "ema",
    "epochs",
    "eval_max_dets",
    "flip",
    "freeze_stages",
    "guard",
    "head_lr_multiplier",
    "images",
    "keep",
    "logdir",
    "lr",
    "lr_scaling",
    "max_grad_norm",
    "max_size",
    "max_steps",
    "min_size",
    "model",
    "momentum",
    "num_classes",
    "bit_range",
    "optimizer",
    "patience",
    "quarantine",
    "resume",
    "rpn_lr_multiplier",
    "fpn_lr_multiplier",
    "schedule",
    "seed",
    "split_by",
    "fold",
    "strict",
    "tile",
    "track",
    "val",
    "val_images",
    "warmup_steps",
    "weight_decay",
    "weights",
    "workers",
}


def test_the_settings_are_frozen():
    """Changing a public flag is a breaking change: it needs a line in the changelog and here."""
    assert set(Config.__struct_fields__) == FROZEN
    extra = {f.name for f in msgspec.structs.fields(ARGUMENTS["train"][0])} - FROZEN
    assert extra == {"config", "print_config", "dry_run", "json", "debug"}


@pytest.mark.parametrize(
    "argv", [["evaluate", "nosuch.pth"], ["predict", "nosuch.pth", "a.png"], ["diagnose"], ["train", "--lr", "abc"]]
)
def test_arguments_are_judged_before_torch_is_imported(argv):
    code = f"import sys; from maskrcnn_coco.cli.command_line import main; code = main({argv!r}); "
    code += "assert 'torch' not in sys.modules; sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr


def test_an_error_under_json_is_an_object_too(capsys):
    assert main(["train", "--lr", "abc", "--json"]) == 2
    captured = capsys.readouterr()
    found = msgspec.json.decode(captured.out)
    assert (found["status"], found["exit_code"]) == ("error", 2) and "--lr" in found["error"]["what"]
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_print_config_under_json_is_one_object(capsys):
    assert main(["train", "--print-config", "--json", "--epochs", "3"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["epochs"] == 3


@pytest.mark.parametrize(("name", "code"), [("check", 0), ("predict", 3)])
def test_a_list_that_nobody_reads_to_its_end_is_no_failure(name, code, monkeypatch):
    """``check --data X | head -3`` in a script with ``set -o pipefail``."""

    def many(args, words):
        print("line\n" * 100_000)
        return 3

    monkeypatch.setattr(verbs, name, many)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main([name, "--data", "x"] if name == "check" else [name, "a.pth", "b.png"]) == code
        monkeypatch.undo()


@pytest.mark.parametrize("verb", ["diagnose", "report"])
def test_a_file_that_is_nested_too_deep_is_said_in_the_contracts_codes(verb, tmp_path, capsys):
    deep = tmp_path / "0001.json"
    deep.write_text("[" * 100_000)
    assert main([verb, str(deep), "--json"]) in (2, 3, 5)
    assert msgspec.json.decode(capsys.readouterr().out)["status"] == "error"


def test_version_and_module(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("maskrcnn-coco ")
    done = subprocess.run(
        [sys.executable, "-m", "maskrcnn_coco", "--version"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.startswith("maskrcnn-coco ")


def test_a_photo_is_no_poisoned_checkpoint(tmp_path, capsys):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a checkpoint")
    assert main(["diagnose", str(tmp_path / "photo.jpg")]) == 5
    assert "POISONED" not in "".join(capsys.readouterr())


LEAVING = """
import atexit, sys, tempfile, threading, time
from maskrcnn_coco.cli.command_line import leave
if sys.argv[1] == "team":
    import torch.distributed as dist
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
atexit.register(lambda: print("exit function", flush=True))
threading.Thread(target=lambda: (time.sleep(0.2), print("thread", flush=True))).start()
class Late:
    def __del__(self):
        print("taken apart", flush=True)
late = Late()
sys.stdout.write("said, not flushed ")
leave(7)
"""


@pytest.mark.parametrize("team", [False, True])
def test_one_of_several_processes_leaves_with_its_code_and_all_that_python_owes(team):
    """Without the interpreter being taken apart: there gloo's threads ended good runs with 134 now and then."""
    argv = [sys.executable, "-c", LEAVING, "team" if team else "alone"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 7, done.stderr
    for words in ("said, not flushed", "thread", "exit function"):
        assert words in done.stdout
    assert ("taken apart" in done.stdout) is not team
