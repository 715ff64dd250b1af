"""Gates over photos, judged from what a board sends home: its predictions, and no maps."""

from dataclasses import replace

import pytest
from played_board import GATES, KIT, host_report, record

from kdcompile.core.report import GateResult
from kdcompile.gates.from_board import NO_TEST, judge_board

EARLIER = {"title": "crowd for cpu", "sha256": "0" * 64, "precision": "int8", "ran": "its ONNX"}
ASKED = {
    "strata": {"metric": "mae", "margin": "40%"},
    "flips": {"max": "20%"},
    "previous": {"metric": "mae", "max_flips": "20%"},
}


def judged(device, gates=GATES, earlier=True):
    """The verdict of each gate at the board, by name."""
    report = host_report()
    names = ("accuracy", *ASKED)
    pending = [
        GateResult(f"{name}@device", "pending", "device", True, "a limit", "not yet", "wait")
        for name in names
    ]
    details = dict(report.details)
    if earlier:
        rows = [row | {"previous": row["teacher"]} for row in details["predictions"]]
        details |= {"previous": EARLIER, "predictions": rows}
    report = replace(report, gates=tuple(pending), details=details)
    merged, _ = judge_board(report, KIT, {**gates, **ASKED}, device, "device.json")
    return {gate.name.removesuffix("@device"): gate for gate in merged.gates}


@pytest.fixture
def device():
    return record("0" * 64)


def test_each_is_judged_by_the_predictions_of_the_board(device):
    found = judged(device)
    assert {name: gate.verdict for name, gate in found.items()} == {
        "accuracy": "passed", "strata": "passed", "flips": "passed", "previous": "passed",
    }  # fmt: skip
    assert {gate.evidence for gate in found.values()} == {"device"}
    assert "0 of 30 images got worse" in found["previous"].observed


def test_a_bad_engine_fails_each(device):
    for one in device["candidates"]:
        one["predictions"] = [2 * value for value in one["predictions"]]
    assert {gate.verdict for gate in judged(device).values()} == {"failed"}


def test_a_metric_of_maps_is_skipped_and_says_how_to_judge_it(device):
    gates = GATES | {"accuracy": GATES["accuracy"] | {"metric": "game2"}}
    found = judged(device, gates)["accuracy"]
    assert found.verdict == "skipped"
    assert "--via PLACE" in found.reason


def test_without_an_earlier_network_or_photos_nothing_is_passed(device):
    assert judged(device, earlier=False)["previous"].verdict == "skipped"
    device["test"] = None
    found = judged(device)
    assert {gate.verdict for gate in found.values()} == {"pending"}
    assert found["flips"].reason == NO_TEST


@pytest.mark.parametrize("verdict", ["passed", "inconclusive", "failed"])
def test_what_the_device_measured_replaces_what_was_predicted(device, verdict):
    report = host_report()
    said = GateResult("speedup", verdict, "predicted", True, "at least 3x", "3x", "the model")
    report = replace(report, gates=(said, *report.gates))
    merged, _ = judge_board(report, KIT, GATES, device, "device.json")
    speed = [gate for gate in merged.gates if gate.name.startswith("speedup")]
    assert [(gate.name, gate.verdict) for gate in speed] == [("speedup@device", "passed")]
    assert merged.verdict == "passed"
    device["test"] = None
    kept, _ = judge_board(report, KIT, GATES, device, "device.json")
    assert said in kept.gates, "the device did not measure it"
