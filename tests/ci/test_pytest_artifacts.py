"""The plug-in on artifacts: what is measured is played, the verdicts are real."""

from types import SimpleNamespace

import onnx
import pytest
from bench_samples import made
from onnx_graphs import chain
from plugin_runs import said

from kdcompile.artifact import file_sha256
from kdcompile.bench import against
from kdcompile.bench.baseline import read_baseline

pytest_plugins = ["pytester"]


@pytest.fixture
def artifact(pytester, monkeypatch):
    """`net.onnx`, and `old.onnx` of another hash: their `speeds`, and the `calls` of measuring."""
    onnx.save(chain(3), pytester.path / "net.onnx")
    onnx.save(chain(4), pytester.path / "old.onnx")

    played = SimpleNamespace(speeds={"net.onnx": 1.0, "old.onnx": 1.0}, calls=[])

    def measure(subjects, via, effort, way, on_round=None):
        played.calls.append(([s.name for s in subjects], via, effort.seconds))
        return [
            made(played.speeds[s.name], runs=1, blocks=20, name=s.name, sha256=s.sha256,
                 seed=len(played.calls) * 10 + i)
            for i, s in enumerate(subjects)
        ]  # fmt: skip

    monkeypatch.setattr(against, "measure", measure)
    return played


def test_an_artifact_against_another(run, artifact):
    artifact.speeds["net.onnx"] = 1.1
    result = run("seconds=5", "kdcompile_latency('net.onnx', reference='old.onnx')")
    result.assert_outcomes(failed=1)
    assert "regressed: p50 +10.0 %" in said(result)
    assert artifact.calls == [(["net.onnx", "old.onnx"], None, 5)]


def test_an_artifact_saves_its_baseline_and_is_judged_in_turns_with_it(run, artifact, pytester):
    words = "baseline='b.json', via='python:p'"
    result = run(words, "kdcompile_latency('old.onnx')", "--kdcompile-save-baseline", "-rs")
    result.assert_outcomes(skipped=1)
    assert "saved b.json, 3 runs" in said(result)
    kept = read_baseline(pytester.path / "b.json")
    assert kept.samples.sha256 == file_sha256(pytester.path / "old.onnx")
    assert artifact.calls == [(["old.onnx"], "python:p", 10.0)] * 3
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


def test_a_missing_artifact(run, artifact):
    result = run("", "kdcompile_latency('gone.onnx', reference='old.onnx')")
    result.assert_outcomes(failed=1)
    assert "error[artifact-missing]" in said(result)
    assert "Traceback" not in said(result)
