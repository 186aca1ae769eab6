"""Completion scripts, asked as the shell asks them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from maskrcnn_coco.cli import main
from maskrcnn_coco.cli.arguments import VERBS


def completed(script: str, *words: str) -> list[str]:
    code = f"""{script}
COMP_WORDS=(maskrcnn-coco {" ".join(f"'{w}'" for w in words)}) COMP_CWORD={len(words)}
_maskrcnn_coco; printf '%s\\n' "${{COMPREPLY[@]}}" """
    return subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_verbs_flags_and_values(capsys: pytest.CaptureFixture[str]):
    assert main(["--completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert set(completed(script, "")) == set(VERBS)
    assert completed(script, "ex")[:1] == ["explain"] or "explain" in completed(script, "ex")
    assert completed(script, "train", "--head") == ["--head-lr-multiplier"]
    assert completed(script, "train", "--guard", "") == ["recover", "stop", "observe", "off"]
    assert "--html" in completed(script, "check", "--data", "x.json", "--h")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_get_a_script_that_names_every_verb(shell: str, capsys: pytest.CaptureFixture[str]):
    assert main(["--completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS)


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["--completion", "tcsh"]) == 2
    assert "bash, zsh, fish" in capsys.readouterr().err
