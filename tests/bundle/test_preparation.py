"""The report's tables of the rates and recipes that were tried."""

from dataclasses import replace

from kdcompile.bundle import preparation

RATE = {"lr": 1e-4, "value": 2.5, "spoilt": False, "why": ""}
ARM = {"name": "kd", "round": 1, "steps": 9, "value": 2.0, "worse_by": 0.0, "noise": 0.0, "why": ""}
TRIED = {
    "range_test": {"lr": 1e-4, "steps": 8, "rates": [RATE, {**RATE, "lr": 1e-3, "spoilt": True}]},
    "pilot": {
        "chosen": "kd",
        "arms": [
            {**ARM, "name": "none", "value": 3.0, "worse_by": 1.0, "noise": 0.25},
            ARM,
            {**ARM, "name": "skt", "value": None, "why": "no maps"},
        ],
    },
}


def test_each_rate_and_arm_has_a_row(a_report):
    report = a_report()
    made = replace(report, details={**report.details, "distill": TRIED})
    found = preparation.tables(made)
    assert found[preparation.RATES] == [
        ("0.0001", "2.5 on validation after 8 steps"),
        ("0.001", "2.5 on validation after 8 steps; the start is spoilt"),
        ("taken", "0.0001"),
    ]
    assert found[preparation.RECIPES] == [
        ("none, round 1", "3 after 9 steps, worse than the best by 1, standard error 0.25"),
        ("kd, round 1", "2 after 9 steps, the best"),
        ("skt, round 1", "left out: no maps"),
        ("taken", "kd"),
    ]


def test_nothing_tried_is_no_row(a_report):
    report = a_report()
    made = replace(report, details={**report.details, "distill": {"pilot": None}})
    assert preparation.tables(made) == {preparation.RATES: [], preparation.RECIPES: []}
