"""All tasks by name, and which set each is of."""

from __future__ import annotations

from anywhere.mainstream.fourth.tasks import FOURTH
from anywhere.mainstream.pictures import PICTURES
from anywhere.mainstream.rivals import RIVALS
from anywhere.mainstream.second.tasks import SECOND
from anywhere.mainstream.series import SERIES
from anywhere.mainstream.tables import TABLES
from anywhere.mainstream.third.tasks import THIRD

FIRST = {t.name: t for t in (*PICTURES, *SERIES, *TABLES, *RIVALS)}
TASKS = {**FIRST, **{t.name: t for t in (*SECOND, *THIRD, *FOURTH)}}


def set_of(case: str) -> int:
    """1 to 4: the set that a case is of, by its name."""
    task = case.split("/")[0]
    later = (SECOND, THIRD, FOURTH)
    return next((n for n, tasks in enumerate(later, 2) if task in {t.name for t in tasks}), 1)
