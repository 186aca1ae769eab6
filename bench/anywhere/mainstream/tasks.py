"""All tasks by name, and which set each is of."""

from __future__ import annotations

from anywhere.mainstream.pictures import PICTURES
from anywhere.mainstream.rivals import RIVALS
from anywhere.mainstream.second.tasks import SECOND
from anywhere.mainstream.series import SERIES
from anywhere.mainstream.tables import TABLES

FIRST = {t.name: t for t in (*PICTURES, *SERIES, *TABLES, *RIVALS)}
TASKS = {**FIRST, **{t.name: t for t in SECOND}}


def set_of(case: str) -> int:
    """1 or 2: the set that a case is of, by its name."""
    return 1 if case.split("/")[0] in FIRST else 2
