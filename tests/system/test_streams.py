"""Standard streams that die: what is said is lost, never the run."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from maskrcnn_coco.system.streams import Unbreakable, unbreakable


class Failing(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "full"), ValueError("closed"), RuntimeError("twice")])
def test_a_write_that_fails_is_lost_and_said_by_dead_alone(error):
    stream = Unbreakable(Failing(error))
    assert stream.write("abc") == 3
    stream.flush()
    assert stream.dead


def test_a_name_that_cannot_be_encoded_is_shown_with_question_marks():
    raw = io.BytesIO()
    stream = Unbreakable(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    stream.write("köter \udcff\n")
    assert raw.getvalue() == b"k?ter ?\n"
    assert not stream.dead


def test_a_stream_that_is_not_there_takes_everything():
    unbreakable(None).write("x")
    twice = unbreakable(sys.stderr)
    assert unbreakable(twice) is twice


SAYS = "import sys\nfrom maskrcnn_coco.system.streams import outliving_streams\nwith outliving_streams():\n"
SAYS += " for i in range(20000):\n  print('line', i); print('line', i, file=sys.stderr)\nsys.exit(5)"


@pytest.mark.parametrize(
    "how",
    ["| head -1 > /dev/null", "2>&1 | head -1 > /dev/null", "> /dev/full", "> /dev/full 2>&1", ">&-", ">&- 2>&-"],
)
def test_the_exit_code_is_the_program_s_own(how):
    if "full" in how and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    script = f'set -o pipefail; "{sys.executable}" -c "$SAYS" {how}'
    done = subprocess.run(["bash", "-c", script], env={**os.environ, "SAYS": SAYS}, capture_output=True, timeout=60)
    assert done.returncode == 5, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr
