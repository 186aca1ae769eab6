"""All tasks of the fourth set."""

from __future__ import annotations

from anywhere.mainstream.fourth.forms import FORMS
from anywhere.mainstream.fourth.places import PLACES

FOURTH = (*FORMS, *PLACES)
