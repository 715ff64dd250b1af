"""The plug-in on artifacts: what is measured is played, the verdicts are real."""

import math
import re

from plugin_runs import said

from kdcompile.core.files import file_sha256
from kdcompile.latency.baseline import read_baseline

pytest_plugins = ["pytester"]


def test_an_artifact_against_another(run, artifact):
    artifact.speeds["net.onnx"] = 1.1
    result = run("seconds=5", "kdcompile_latency('net.onnx', reference='old.onnx')")
    result.assert_outcomes(failed=1)
    assert "regressed: p50 +10.0 %" in said(result)
    assert artifact.calls == [(["net.onnx", "old.onnx"], None, 5, 3)]


def test_an_artifact_saves_its_baseline_and_is_judged_in_turns_with_it(run, artifact, pytester):
    words = "baseline='b.json', via='python:p'"
    result = run(words, "kdcompile_latency('old.onnx')", "--kdcompile-save-baseline", "-rs")
    result.assert_outcomes(skipped=1)
    assert "saved b.json, 3 runs" in said(result)
    kept = read_baseline(pytester.path / "b.json")
    assert kept.samples.sha256 == file_sha256(pytester.path / "old.onnx")
    assert artifact.calls == [(["old.onnx"], "python:p", 10.0, 3)] * 3
    run(words, "kdcompile_latency('net.onnx')").assert_outcomes(passed=1)
    assert artifact.calls[-1][0] == ["net.onnx", "old.onnx"]
    artifact.speeds["net.onnx"] = 1.1
    run(words, "kdcompile_latency('net.onnx')").assert_outcomes(failed=1)


def test_without_the_old_artifact_the_samples_stand_for_it(run, artifact, pytester):
    run("baseline='b.json'", "kdcompile_latency('old.onnx')", "--kdcompile-save-baseline")
    (pytester.path / "old.onnx").unlink()
    artifact.speeds["net.onnx"] = 1.3
    result = run("baseline='b.json'", "kdcompile_latency('net.onnx')")
    result.assert_outcomes(failed=1)
    assert "no longer at" in said(result)
    assert artifact.calls[-1][0] == ["net.onnx"]


def test_the_seconds_that_are_named_decide_in_turns(run, artifact):
    """More seconds are more processes, as many as the message says samples would decide."""
    artifact.noise = 0.15
    call = "kdcompile_latency('net.onnx', reference='old.onnx')"
    result = run("", call)
    result.assert_outcomes(failed=1)
    fix = re.search(r"fix:   (seconds=\d+) in the mark takes \d+ more blocks of each", said(result))
    run(fix[1], call).assert_outcomes(passed=1)
    assert [processes for *_, processes in artifact.calls] == [3, math.ceil(0.3 * int(fix[1][8:]))]


def test_the_seconds_that_are_named_decide_against_a_baseline(run, artifact, pytester):
    """Where the old artifact is gone, more seconds are more runs."""
    run("baseline='b.json'", "kdcompile_latency('old.onnx')", "--kdcompile-save-baseline",
        "--kdcompile-runs=12")  # fmt: skip
    (pytester.path / "old.onnx").unlink()
    words = "baseline='b.json', max_regression=0.005"
    result = run(words, "kdcompile_latency('net.onnx')")
    result.assert_outcomes(failed=1)
    fix = re.search(r"fix:   (seconds=\d+) in the mark takes \d+ more blocks, ", said(result))
    del artifact.calls[:]
    run(f"{words}, {fix[1]}", "kdcompile_latency('net.onnx')").assert_outcomes(passed=1)
    assert len(artifact.calls) == math.ceil(int(fix[1][8:]) / 10) > 1


def test_an_undecided_artifact_can_be_skipped(run, artifact):
    artifact.noise = 0.15
    call = "kdcompile_latency('net.onnx', reference='old.onnx')"
    run("undecided='skip'", call).assert_outcomes(skipped=1)


def test_a_missing_artifact(run, artifact):
    result = run("", "kdcompile_latency('gone.onnx', reference='old.onnx')")
    result.assert_outcomes(failed=1)
    assert "error[artifact-missing]" in said(result)
    assert "Traceback" not in said(result)
