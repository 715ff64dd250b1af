import json

import pytest
from click import Argument, MissingParameter, UsageError

from kdcompile.ci.outcome import (
    Outcome,
    kind_of,
    outcome_of_comparison,
    outcome_of_error,
    outcomes_of_report,
    overall_of,
)
from kdcompile.core.errors import KDError, ToolMissingError
from kdcompile.core.report import GateResult, Measurement, Report, overall
from kdcompile.stats.comparison import Comparison, Ratio

VERDICTS = ("passed", "failed", "inconclusive", "skipped", "pending")


def gate(name, verdict, required=True):
    measured = Measurement("ms", 1.5, "ms", "host")
    return GateResult(name, verdict, "host", required, "< 2", "1.5", "because", (measured,))


def report(*gates):
    verdict, code = overall(gates)
    return Report("crowd", "jetson", verdict, code, gates, (), {})


def comparison(decision, more=None):
    ratio = Ratio("p50", 1.049, 1.041, 1.057, 0.03, decision)
    return Comparison(decision, "it is so", (ratio,), 0.005, True, 60, 2, more)


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("device", [True, False])
@pytest.mark.parametrize("verdict", VERDICTS)
def test_ci_ends_with_the_exit_code_of_the_report(verdict, required, device):
    """Whatever the gates say, the reports never tell another exit code than the build."""
    made = report(gate("speedup", "passed"), gate("size_mb", verdict, required))
    found = outcomes_of_report(made, require_device=device)
    code = overall(made.gates, require_device=device)[1]
    assert overall_of(found)[1] == code
    assert any(outcome.red for outcome in found) == (code != 0)


def test_the_verdict_in_ci_is_the_reports():
    predicted = GateResult("speedup", "passed", "predicted", True, "1.5x", "2x", "the model")
    gates = [gate("size_mb", "passed"), predicted, gate("speedup@device", "pending")]
    words = "passed on host and as predicted, 1 gate pending on the board"
    assert overall_of(outcomes_of_report(report(*gates))) == overall(gates) == (words, 0)


def test_a_gate_keeps_its_words_and_measurements():
    found = outcomes_of_report(report(gate("size_mb", "failed")))[0]
    assert (found.observed, found.threshold, found.reason) == ("1.5", "< 2", "because")
    assert found.details["measurements"][0]["value"] == 1.5
    assert found.details["evidence"] == "host"


def test_pending_names_the_option_that_makes_it_red():
    found = outcomes_of_report(report(gate("speedup", "pending")), require_device=True)[0]
    assert found.verdict == "inconclusive"
    assert "--require device" in found.reason
    assert found.reason.endswith(": because")


@pytest.mark.parametrize(
    ("decision", "verdict", "code"),
    [
        ("regressed", "failed", 3),
        ("improved", "passed", 0),
        ("equivalent", "passed", 0),
        ("inconclusive", "inconclusive", 5),
    ],
)
def test_a_comparison(decision, verdict, code):
    found = outcome_of_comparison(comparison(decision), "net", seconds=2.5)
    assert (found.verdict, overall_of([found])[1], found.seconds) == (verdict, code, 2.5)
    said = "" if decision == verdict else f"{decision}: "
    assert found.observed == f"{said}p50 +4.9 % (+4.1 % to +5.7 %)"
    assert found.threshold == "p50 at most 3 % slower"
    assert found.details["ratios"][0]["margin"] == 0.03


def test_notes_and_details_are_kept_beside_the_comparison():
    made = comparison("inconclusive", 40)
    found = outcome_of_comparison(made, "net", notes=["a note"], details={"looks": 3, "level": 9})
    assert found.reason == "it is so\na note"
    assert found.details["looks"] == 3
    assert (found.details["level"], found.details["more_blocks"]) == (0.005, 40)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KDError("spec-missing", "there is none", "here", "write one"), 1),
        (ToolMissingError("tool-missing", "no TensorRT"), 4),
        (ZeroDivisionError("by zero"), 1),
        (UsageError("no such option"), 2),
        (MissingParameter(param=Argument(["artifact"]), param_type="argument"), 2),
    ],
)
def test_an_error_comes_before_every_verdict(error, code):
    found = [Outcome("a", "gate", "failed"), outcome_of_error(error, "net.onnx", "bench")]
    assert overall_of(found) == ("error: net.onnx", code)
    assert getattr(error, "format_message", error.__str__)() in found[1].reason
    assert found[1].kind == "bench", "readers group by it"


def test_json_has_no_number_that_json_does_not_know():
    made = Outcome(
        "a", "gate", "passed", details={"x": [float("nan"), (1, float("inf"))]}
    ).to_json()
    text = json.dumps(made, allow_nan=False)
    assert json.loads(text)["details"] == {"x": ["nan", [1, "inf"]]}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("accuracy", "accuracy"), ("parity", "parity"), ("speedup", "latency"),
        ("size_mb", "size"), ("previous", "accuracy"), ("flips", "accuracy"),
        ("strata", "accuracy"), ("energy_mj", "energy"), ("memory_mb", "memory"), ("mine", "gate"),
        ("frame_ms", "latency"),
    ],
)  # fmt: skip
def test_kinds(name, kind):
    assert kind_of(name) == kind
