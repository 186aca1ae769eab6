"""Whether another process of this machine still lives. Standard library only."""

from __future__ import annotations

import os
import sys

_QUERY, _STILL_ACTIVE = 0x1000, 259
"""Windows: PROCESS_QUERY_LIMITED_INFORMATION, and the exit code of a process that has not ended."""


def alive(process: int) -> bool:
    """Whether a process of this number lives on this machine; one that may not be asked does."""
    if sys.platform == "win32":  # there signal 0 is Ctrl-C: asking would interrupt it
        return _alive_on_windows(process)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _alive_on_windows(process: int) -> bool:
    import ctypes

    kernel = ctypes.windll.kernel32  # pyright: ignore[reportAttributeAccessIssue] - there is one on Windows
    handle = kernel.OpenProcess(_QUERY, False, process)
    if not handle:
        return bool(kernel.GetLastError() == 5)  # access denied: somebody else's
    code = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return code.value == _STILL_ACTIVE
