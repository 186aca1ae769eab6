"""What the fault tests share: the compiled shim, a fast folder, and this folder's modules."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LD_PRELOAD library; tests that ask for it are skipped where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, HERE / "shim.c", "-ldl"], check=True)
    return library


@pytest.fixture
def fast_folder() -> Iterator[Path]:
    """A new folder in memory where there is one: an fsync costs nothing there."""
    memory = Path("/dev/shm")
    root = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=root) as folder:
        yield Path(folder)


@pytest.fixture
def child_environment() -> dict[str, str]:
    """For a test's own Python processes: one thread, this checkout's package, this folder's modules."""
    path = os.pathsep.join((str(HERE.parents[1]), str(HERE)))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
