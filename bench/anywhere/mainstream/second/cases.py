"""All faults and honest runs of the second set."""

from __future__ import annotations

from anywhere.mainstream.second.cases_code import CASES_CODE
from anywhere.mainstream.second.cases_data import CASES_DATA
from anywhere.mainstream.second.cases_rates import CASES_RATES
from anywhere.mainstream.second.cases_state import CASES_STATE
from anywhere.mainstream.second.honest import HONEST

SECOND_CASES = (*CASES_RATES, *CASES_DATA, *CASES_CODE, *CASES_STATE, *HONEST)
