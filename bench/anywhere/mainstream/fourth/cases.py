"""All faults and honest runs of the fourth set."""

from __future__ import annotations

from anywhere.mainstream.fourth.cases_code import CASES_CODE
from anywhere.mainstream.fourth.cases_data import CASES_DATA
from anywhere.mainstream.fourth.cases_rates import CASES_RATES
from anywhere.mainstream.fourth.cases_state import CASES_STATE
from anywhere.mainstream.fourth.honest import HONEST

FOURTH_CASES = (*CASES_RATES, *CASES_DATA, *CASES_CODE, *CASES_STATE, *HONEST)
