"""Every error a user can meet. Standard library only; nothing else of the project is imported here."""

from __future__ import annotations


class MaskRCNNError(Exception):
    """An error that says what is wrong, what was found, what was expected and what to do next.

    Args:
        what: one sentence that names the user's own file, image, annotation or flag.
        got: the offending value, as the user wrote it.
        expected: what would have been accepted.
        fix: the next thing to do, preferably a command or a flag.
    """

    exit_code = 1

    def __init__(self, what: str, *, got: object = None, expected: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.got = None if got is None else str(got)
        self.expected = expected
        self.fix = fix
        super().__init__(self.render())

    def render(self) -> str:
        """The text for stderr: one line for what happened, then got, expected and what to do, where known."""
        lines = [self.what]
        for name, value in (("got", self.got), ("expected", self.expected), ("what to do", self.fix)):
            if value is not None:
                lines.append(f"  {name}: {value}")
        return "\n".join(lines)


class ConfigError(MaskRCNNError):
    """A bad command line or configuration (exit code 2)."""

    exit_code = 2


class DataError(MaskRCNNError):
    """Data that cannot be used (exit code 3)."""

    exit_code = 3


class GuardStop(MaskRCNNError):
    """The guard stopped the run and wrote its verdict, or the run ended non-finite with the guard off (exit code 4)."""

    exit_code = 4


class ExportError(MaskRCNNError):
    """A model that cannot be exported, or finds something else than its checkpoint (exit code 4)."""

    exit_code = 4


class CheckpointError(MaskRCNNError):
    """A checkpoint that cannot be used, or none that can (exit code 5)."""

    exit_code = 5


def said_by(error: BaseException) -> str:
    """The text of ``error``; one whose own text cannot be made (a class of somebody's own) has its class's name."""
    try:
        return str(error)
    except Exception:  # a stranger's code may raise anything, there too
        return f"a {type(error).__name__} that cannot be shown as text"


class GuardWarning(UserWarning):
    """A guard that nobody asked refused a step (or saw one that it would refuse); said once per symptom."""


class FindingWarning(UserWarning):
    """A finding about a run that stays finite and may be useless; ``code`` is its code, for `explain`."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code
