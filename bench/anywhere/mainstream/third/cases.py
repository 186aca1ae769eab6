"""All faults and honest runs of the third set."""

from __future__ import annotations

from anywhere.mainstream.third.cases_code import CASES_CODE
from anywhere.mainstream.third.cases_data import CASES_DATA
from anywhere.mainstream.third.cases_rates import CASES_RATES
from anywhere.mainstream.third.cases_state import CASES_STATE
from anywhere.mainstream.third.honest import HONEST

THIRD_CASES = (*CASES_RATES, *CASES_DATA, *CASES_CODE, *CASES_STATE, *HONEST)
