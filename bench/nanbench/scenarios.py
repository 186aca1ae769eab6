"""All scenarios of the bench, in one order."""

from __future__ import annotations

from nanbench.decoys import DECOYS
from nanbench.decoys_eighth_loop import EIGHTH_LOOP_DECOYS
from nanbench.decoys_eighth_train import EIGHTH_TRAIN_DECOYS
from nanbench.decoys_eleventh import ELEVENTH_DECOYS
from nanbench.decoys_fifth import FIFTH_DECOYS
from nanbench.decoys_fourth import FOURTH_DECOYS
from nanbench.decoys_fresh import FRESH_DECOYS
from nanbench.decoys_ninth import NINTH_DECOYS
from nanbench.decoys_own import OWN_DECOYS
from nanbench.decoys_seventh import SEVENTH_DECOYS
from nanbench.decoys_seventh_data import SEVENTH_DATA_DECOYS
from nanbench.decoys_seventh_reports import SEVENTH_REPORT_DECOYS
from nanbench.decoys_sixth import SIXTH_DECOYS
from nanbench.decoys_tenth import TENTH_DECOYS
from nanbench.decoys_third import THIRD_DECOYS
from nanbench.decoys_twelfth import TWELFTH_DECOYS
from nanbench.decoys_wild import WILD_DECOYS
from nanbench.faults_code import CODE
from nanbench.faults_data import DATA
from nanbench.faults_eighth_loop import EIGHTH_LOOP
from nanbench.faults_eighth_loop_code import EIGHTH_LOOP_CODE
from nanbench.faults_eighth_train import EIGHTH_TRAIN
from nanbench.faults_eighth_train_data import EIGHTH_TRAIN_DATA
from nanbench.faults_eighth_train_more import EIGHTH_TRAIN_MORE
from nanbench.faults_eleventh_train import ELEVENTH_TRAIN
from nanbench.faults_eleventh_train_code import ELEVENTH_TRAIN_CODE
from nanbench.faults_eleventh_train_data import ELEVENTH_TRAIN_DATA
from nanbench.faults_eleventh_train_state import ELEVENTH_TRAIN_STATE
from nanbench.faults_fifth import FIFTH
from nanbench.faults_fifth_data import FIFTH_DATA
from nanbench.faults_forms import FORMS
from nanbench.faults_fourth import FOURTH
from nanbench.faults_fourth_data import FOURTH_DATA
from nanbench.faults_fourth_state import FOURTH_STATE
from nanbench.faults_fresh import FRESH
from nanbench.faults_fresh_data import FRESH_DATA
from nanbench.faults_lr import ACCUMULATION, HALF, LR
from nanbench.faults_ninth_train import NINTH_TRAIN
from nanbench.faults_ninth_train_code import NINTH_TRAIN_CODE
from nanbench.faults_ninth_train_data import NINTH_TRAIN_DATA
from nanbench.faults_once import ONCE_AND_FINITE
from nanbench.faults_seventh import SEVENTH
from nanbench.faults_seventh_code import SEVENTH_CODE
from nanbench.faults_seventh_data import SEVENTH_DATA
from nanbench.faults_seventh_reports import SEVENTH_REPORTS
from nanbench.faults_seventh_state import SEVENTH_STATE
from nanbench.faults_sixth import SIXTH
from nanbench.faults_sixth_data import SIXTH_DATA
from nanbench.faults_small import SMALL
from nanbench.faults_state import STATE
from nanbench.faults_tenth_train import TENTH_TRAIN
from nanbench.faults_tenth_train_code import TENTH_TRAIN_CODE
from nanbench.faults_tenth_train_data import TENTH_TRAIN_DATA
from nanbench.faults_third import THIRD
from nanbench.faults_third_data import THIRD_DATA
from nanbench.faults_twelfth_train import TWELFTH_TRAIN
from nanbench.faults_twelfth_train_code import TWELFTH_TRAIN_CODE
from nanbench.faults_twelfth_train_data import TWELFTH_TRAIN_DATA
from nanbench.faults_wild import WILD
from nanbench.faults_wild_data import WILD_DATA
from nanbench.faults_wild_state import WILD_STATE
from nanbench.scenario import Scenario
from nanbench.scene import Setup

SCENARIOS: tuple[Scenario, ...] = (
    *DATA,
    *FORMS,
    *SMALL,
    *LR,
    *ACCUMULATION,
    *HALF,
    *STATE,
    *ONCE_AND_FINITE,
    *CODE,
    *DECOYS,
    *OWN_DECOYS,
    *WILD_DATA,
    *WILD,
    *WILD_STATE,
    *WILD_DECOYS,
    *FRESH_DATA,
    *FRESH,
    *FRESH_DECOYS,
    *THIRD_DATA,
    *THIRD,
    *THIRD_DECOYS,
    *FOURTH_DATA,
    *FOURTH,
    *FOURTH_STATE,
    *FOURTH_DECOYS,
    *FIFTH_DATA,
    *FIFTH,
    *FIFTH_DECOYS,
    *SIXTH_DATA,
    *SIXTH,
    *SIXTH_DECOYS,
    *SEVENTH_DATA,
    *SEVENTH_CODE,
    *SEVENTH_DATA_DECOYS,
    *SEVENTH,
    *SEVENTH_STATE,
    *SEVENTH_DECOYS,
    *SEVENTH_REPORTS,
    *SEVENTH_REPORT_DECOYS,
    *EIGHTH_TRAIN,
    *EIGHTH_TRAIN_DATA,
    *EIGHTH_TRAIN_MORE,
    *EIGHTH_TRAIN_DECOYS,
    *EIGHTH_LOOP,
    *EIGHTH_LOOP_CODE,
    *EIGHTH_LOOP_DECOYS,
    *NINTH_TRAIN,
    *NINTH_TRAIN_DATA,
    *NINTH_TRAIN_CODE,
    *NINTH_DECOYS,
    *TENTH_TRAIN,
    *TENTH_TRAIN_DATA,
    *TENTH_TRAIN_CODE,
    *TENTH_DECOYS,
    *ELEVENTH_TRAIN,
    *ELEVENTH_TRAIN_DATA,
    *ELEVENTH_TRAIN_CODE,
    *ELEVENTH_TRAIN_STATE,
    *ELEVENTH_DECOYS,
    *TWELFTH_TRAIN,
    *TWELFTH_TRAIN_DATA,
    *TWELFTH_TRAIN_CODE,
    *TWELFTH_DECOYS,
)
BY_ID = {s.id: s for s in SCENARIOS}


def setups(scenarios: tuple[Scenario, ...] = SCENARIOS) -> list[Setup]:
    """The different clean runs that the scenarios are compared with."""
    return list(dict.fromkeys(s.setup for s in scenarios))
