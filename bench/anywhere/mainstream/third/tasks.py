"""All tasks of the third set."""

from __future__ import annotations

from anywhere.mainstream.third.scenes import SCENES
from anywhere.mainstream.third.signals import SIGNALS
from anywhere.mainstream.third.worlds import WORLDS

THIRD = (*SCENES, *SIGNALS, *WORLDS)
