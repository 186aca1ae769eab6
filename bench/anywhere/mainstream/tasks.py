"""All tasks by name."""

from __future__ import annotations

from anywhere.mainstream.pictures import PICTURES
from anywhere.mainstream.rivals import RIVALS
from anywhere.mainstream.series import SERIES
from anywhere.mainstream.tables import TABLES

TASKS = {t.name: t for t in (*PICTURES, *SERIES, *TABLES, *RIVALS)}
