"""All faults and honest runs, by name."""

from __future__ import annotations

from anywhere.mainstream.cases_code import CASES_CODE
from anywhere.mainstream.cases_data import CASES_DATA
from anywhere.mainstream.cases_rates import CASES_RATES
from anywhere.mainstream.cases_state import CASES_STATE
from anywhere.mainstream.fourth.cases import FOURTH_CASES
from anywhere.mainstream.honest import HONEST
from anywhere.mainstream.honest_more import HONEST_MORE
from anywhere.mainstream.second.cases import SECOND_CASES
from anywhere.mainstream.third.cases import THIRD_CASES

FAULTS = (*CASES_RATES, *CASES_DATA, *CASES_CODE, *CASES_STATE)
CASES = {c.name: c for c in (*FAULTS, *HONEST, *HONEST_MORE, *SECOND_CASES, *THIRD_CASES, *FOURTH_CASES)}
