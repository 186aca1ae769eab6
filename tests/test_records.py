"""Records: strict JSON and back."""

import json

from maskrcnn_coco.records import Action, Culprit, Evidence, Incident, StepRecord, record_from, to_json


def incident() -> Incident:
    return Incident(
        id="0001",
        step=41,
        epoch=0,
        onset_step=38,
        symptom="loss_nonfinite",
        cause="LR_TOO_HIGH",
        confidence=0.97,
        culprit=Culprit(component="box_head", image_ids=[17]),
        evidence=[Evidence("replay", "finite", "LR_TOO_HIGH")],
        action=Action("lower_lr", {"component": "box_head", "factor": 0.3, "to_step": 30}),
        outcome="recovered",
        lost_steps=11,
        fix="--head-lr-multiplier 3.0",
        explain="maskrcnn-coco explain LR_TOO_HIGH",
    )


def test_non_finite_numbers_are_strings_and_the_line_is_strict_json():
    record = StepRecord(0, 0, {"a": float("nan")}, float("inf"), float("-inf"), {}, {}, None, [1], False)
    data = json.loads(to_json(record), parse_constant=lambda c: 1 / 0)
    assert data["losses"]["a"] == "nan"
    assert data["loss"] == "inf"
    assert data["grad_norm"] == "-inf"
    assert data["kind"] == "step"


def test_an_incident_survives_json_and_back():
    again = record_from(Incident, json.loads(to_json(incident())))
    assert again == incident()


def test_unknown_keys_of_a_newer_version_are_ignored():
    data = json.loads(to_json(incident())) | {"new_field": 1}
    assert record_from(Incident, data).id == "0001"
