"""All tasks by name, and which set each is of."""

from __future__ import annotations

from anywhere.mainstream.pictures import PICTURES
from anywhere.mainstream.rivals import RIVALS
from anywhere.mainstream.second.tasks import SECOND
from anywhere.mainstream.series import SERIES
from anywhere.mainstream.tables import TABLES
from anywhere.mainstream.third.tasks import THIRD

FIRST = {t.name: t for t in (*PICTURES, *SERIES, *TABLES, *RIVALS)}
TASKS = {**FIRST, **{t.name: t for t in (*SECOND, *THIRD)}}


def set_of(case: str) -> int:
    """1, 2 or 3: the set that a case is of, by its name."""
    task = case.split("/")[0]
    return 1 if task in FIRST else 2 if task in {t.name for t in SECOND} else 3
