"""Verdicts and exit codes."""

import pytest

from kdcompile.core.report import GateResult, Measurement, Report, overall


def _gate(verdict, required=True, name="g", evidence="host"):
    return GateResult(name, verdict, evidence, required, "at least 1", "2", "why")


PREDICTED = _gate("passed", evidence="predicted")


@pytest.mark.parametrize(
    ("gates", "verdict", "code"),
    [
        ([_gate("passed")], "passed", 0),
        ([_gate("passed"), _gate("failed")], "failed: g", 3),
        ([_gate("passed"), _gate("failed", required=False)], "passed", 0),
        ([_gate("passed"), _gate("inconclusive")], "inconclusive: g", 5),
        ([_gate("failed"), _gate("inconclusive")], "failed: g", 3),
        ([_gate("passed"), _gate("skipped")], "inconclusive: g skipped", 5),
        ([_gate("passed"), _gate("pending")], "passed on host, 1 gate pending on the board", 0),
        (
            [_gate("passed"), _gate("pending"), _gate("pending")],
            "passed on host, 2 gates pending on the board",
            0,
        ),
        (
            [_gate("passed"), PREDICTED, _gate("pending")],
            "passed on host and as predicted, 1 gate pending on the board",
            0,
        ),
        ([_gate("passed"), PREDICTED], "passed on host and as predicted", 0),
        (
            [_gate("passed"), _gate("failed", False, evidence="predicted"), _gate("pending")],
            "passed on host, 1 gate pending on the board",
            0,
        ),
        ([_gate("pending")], "inconclusive: no gate was decided", 5),
        ([], "inconclusive: no gate was decided", 5),
        ([_gate("passed", required=False)], "passed", 0),
    ],
)
def test_overall(gates, verdict, code):
    assert overall(gates) == (verdict, code)


def test_a_required_device_makes_pending_inconclusive():
    text, code = overall([_gate("passed"), _gate("pending")], require_device=True)
    assert code == 5
    assert "pending on the board" in text


def test_json_round_trip():
    number = Measurement("latency", 1.5, "ms", "host", low=1.0, high=2.0, n=3)
    gate = GateResult("g", "passed", "host", True, "t", "o", "r", (number,))
    report = Report("n", "t", "passed", 0, (gate,), (number,), {"os": "x"}, {"a": [1]})
    assert Report.from_json(report.to_json()) == report
