"""All tasks of the second set."""

from __future__ import annotations

from anywhere.mainstream.second.numbers import NUMBERS
from anywhere.mainstream.second.views import VIEWS
from anywhere.mainstream.second.words import WORDS
from anywhere.mainstream.second.worlds import WORLDS

SECOND = (*WORDS, *VIEWS, *NUMBERS, *WORLDS)
