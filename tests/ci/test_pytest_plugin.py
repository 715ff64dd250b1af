"""The plug-in in pytest runs of its own; what is measured is played, the verdicts are real."""

import json
import re
import subprocess
import sys
from datetime import timedelta

import pytest
from bench_samples import made
from plugin_runs import MARKED, said

from kdcompile.ci import callables
from kdcompile.ci.callables import facts, mode
from kdcompile.latency.baseline import make_baseline, read_baseline

pytest_plugins = ["pytester"]
FUNCTION = "kdcompile_latency(lambda: None)"


@pytest.fixture
def speeds(monkeypatch):
    """Milliseconds of each function in turn; what is timed is noted in `asked`."""

    class Speeds(list):
        """With the asked seconds and calls of each timing."""

    found = Speeds([1.0, 1.0])
    found.asked = []

    def time(self, named):
        found.asked.append((self.seconds, self.calls))
        return [
            made(ms, runs=1, processes=1, blocks=40, name=name, seed=len(found.asked) * 10 + i,
                 facts=facts(), mode=mode(self.calls or 4))
            for i, (name, ms) in enumerate(zip(named, found, strict=False))
        ]  # fmt: skip

    monkeypatch.setattr(callables.Timer, "time", time)
    return found


def saved(pytester, ms=1.0, runs=6, **words):
    """A baseline of a function, beside the test."""
    samples = made(
        ms, runs=runs, processes=1, blocks=40, **{"facts": facts(), "mode": mode(4)} | words
    )
    file = pytester.path / "b.json"
    make_baseline(samples, pytester.path / "test_mine.py", file, "me", "first").write(file)
    return file


# ---- a function against a reference ----


@pytest.mark.parametrize(
    ("ms", "outcomes", "decision"),
    [(1.0, {"passed": 1}, "equivalent"), (0.9, {"passed": 1}, "improved"),
     (1.05, {"failed": 1}, "regressed")],
)  # fmt: skip
def test_two_functions_in_turns(run, speeds, ms, outcomes, decision):
    speeds[:] = [ms, 1.0]
    result = run("", "kdcompile_latency(lambda: None, reference=lambda: None)")
    result.assert_outcomes(**outcomes)
    assert re.search(rf"test_mine.py::test_it: {decision}: p50 [+-]\d+\.\d %", said(result))
    assert "Traceback" not in said(result)


def test_the_verdict_is_returned(run, speeds):
    body = (
        "found = kdcompile_latency(lambda: None, reference=lambda: None)\n"
        "    assert found.decision == 'equivalent' and found.paired"
    )
    run("", body).assert_outcomes(passed=1)


def test_words_of_the_mark_reach_the_measurement(run, speeds):
    speeds[:] = [1.05, 1.0]
    words = "max_regression=0.2, seconds=4"
    run(words, "kdcompile_latency(lambda: None, reference=lambda: None)").assert_outcomes(passed=1)
    assert speeds.asked == [(4, None)]


# ---- a function against a baseline ----


def test_a_function_that_is_as_fast_as_its_baseline(run, speeds, pytester):
    saved(pytester)
    result = run("baseline='b.json', max_regression=0.1", FUNCTION)
    result.assert_outcomes(passed=1)
    assert "equivalent" in said(result)
    assert "one run, in the process of the test" in said(result)
    assert speeds.asked == [(10.0, 4)], "the baseline's calls of a sample are used again"


def test_a_function_that_became_slower(run, speeds, pytester):
    saved(pytester)
    speeds[:] = [1.3]
    result = run("baseline='b.json', max_regression=0.1", FUNCTION, "--junitxml=j.xml")
    result.assert_outcomes(failed=1)
    assert "regressed: p50 +30" in said(result)
    assert 'name="kdcompile_latency" value="regressed' in (pytester.path / "j.xml").read_text()


def test_an_undecided_verdict_never_passes(run, speeds, pytester):
    saved(pytester, runs=3)
    speeds[:] = [1.01]
    result = run("baseline='b.json'", FUNCTION)
    result.assert_outcomes(failed=1)
    assert "test_it: inconclusive: p50" in said(result)
    assert "Traceback" not in said(result)
    body = FUNCTION + "\n    raise AssertionError('the test went on')"
    result = run("baseline='b.json', undecided='skip'", body, "-rs")
    result.assert_outcomes(skipped=1)
    assert "inconclusive: p50" in said(result)


def test_what_an_undecided_function_is_told_decides(run, speeds, pytester):
    """The ways that the message of a baseline's test names, each taken as it is printed."""
    saved(pytester, runs=3)
    speeds[:] = [1.01, 1.0]
    text = said(run("baseline='b.json'", FUNCTION))
    assert "seconds=" not in text, "a test is one run, however long it takes"
    assert "reference=OLD in the call, not the mark's baseline" in text
    assert "a baseline of 6 runs: --kdcompile-save-baseline --kdcompile-runs 6" in text
    margin = re.search(r"max_regression=(0\.\d+)", text)[0]
    run(f"baseline='b.json', {margin}", FUNCTION).assert_outcomes(passed=1)
    run("", "kdcompile_latency(lambda: None, reference=lambda: None)").assert_outcomes(passed=1)
    speeds[:] = [1.0]
    run("baseline='b.json'", FUNCTION).assert_outcomes(failed=1)
    words = ("--kdcompile-save-baseline", "--kdcompile-runs=6", "--kdcompile-why=more runs")
    for _ in range(6):
        run("baseline='b.json'", FUNCTION, *words).assert_outcomes(skipped=1)
    run("baseline='b.json'", FUNCTION).assert_outcomes(passed=1)


def test_on_another_day_a_function_is_told_of_days(run, speeds, pytester, monkeypatch):
    saved(pytester, runs=6)
    monkeypatch.setattr("kdcompile.stats.samples.APART", timedelta(0))
    result = run("baseline='b.json'", FUNCTION)
    result.assert_outcomes(failed=1)
    assert "a baseline of more runs, each on another day" in said(result)
    assert "how much this device varies" in said(result)


def test_the_seconds_that_are_named_decide_what_takes_turns(run, speeds, monkeypatch):
    """Noise that leaves the usual seconds undecided; then the printed words of the mark."""

    def time(self, named):
        count = round(callables.BLOCKS_PER_S * self.seconds)
        return [
            made(1.0, runs=1, processes=1, blocks=count, name=name, seed=i, noise=0.1,
                 facts=facts(), mode=mode(4))
            for i, name in enumerate(named)
        ]  # fmt: skip

    monkeypatch.setattr(callables.Timer, "time", time)
    call = "kdcompile_latency(lambda: None, reference=lambda: None)"
    text = said(run("", call))
    fix = re.search(
        r"fix:   (seconds=\d+) in the mark takes (\d+) more blocks of each, some (\d+)", text
    )
    seconds, blocks, samples = int(fix[1].partition("=")[2]), int(fix[2]), int(fix[3])
    assert blocks == (seconds / 10 - 1) * 60, "as many as the usual seconds took, in proportion"
    assert samples == blocks * 20
    run(fix[1], call).assert_outcomes(passed=1)


def test_noise_that_no_test_can_decide_names_no_seconds(run, speeds, monkeypatch):
    def time(self, named):
        return [made(runs=1, processes=1, blocks=60, name=n, seed=i, noise=0.5, facts=facts(),
                     mode=mode(4)) for i, n in enumerate(named)]  # fmt: skip

    monkeypatch.setattr(callables.Timer, "time", time)
    text = said(run("", "kdcompile_latency(lambda: None, reference=lambda: None)"))
    assert "fix:   max_regression=0." in text
    assert "seconds=" not in text


def test_a_foreign_baseline_is_refused_until_it_is_allowed(run, speeds, pytester):
    saved(pytester, facts=facts() | {"cpu": "another"})
    result = run("baseline='b.json', max_regression=0.1", FUNCTION)
    result.assert_outcomes(failed=1)
    assert "error[baseline-foreign]" in said(result)
    assert "cpu: another -> " in said(result)
    assert "allow=[" in said(result)
    result = run("baseline='b.json', max_regression=0.1, allow='cpu'", FUNCTION)
    result.assert_outcomes(passed=1)
    assert "allowed to differ: cpu: another -> " in said(result)


# ---- saving ----


def test_a_functions_baseline_takes_three_processes(run, speeds, pytester):
    missing = run("baseline='new/b.json', max_regression=0.2", FUNCTION)
    missing.assert_outcomes(failed=1)
    assert "error[baseline-missing]" in said(missing)
    assert "fix:   measure one: pytest --kdcompile-save-baseline" in said(missing)
    for number in (1, 2):
        result = run("baseline='new/b.json'", FUNCTION, "--kdcompile-save-baseline", "-rs")
        result.assert_outcomes(skipped=1)
        assert f"run {number} of 3 of b.json" in said(result)
        assert not (pytester.path / "new" / "b.json").exists()
    result = run("baseline='new/b.json'", FUNCTION, "--kdcompile-save-baseline")
    assert "saved b.json, 3 runs" in said(result)
    kept = read_baseline(pytester.path / "new" / "b.json")
    assert len(kept.samples.runs) == 3
    assert kept.samples.name == "test_mine.py::test_it"
    assert [p.name for p in (pytester.path / "new").iterdir()] == ["b.json"]
    run("baseline='new/b.json', max_regression=0.2", FUNCTION).assert_outcomes(passed=1)


def test_a_baseline_is_replaced_for_a_reason(run, speeds, pytester):
    file = saved(pytester)
    result = run("baseline='b.json'", FUNCTION, "--kdcompile-save-baseline")
    result.assert_outcomes(failed=1)
    assert "error[why-missing]" in said(result)
    for _ in range(3):
        run("baseline='b.json'", FUNCTION, "--kdcompile-save-baseline", "--kdcompile-why=new loop")
    assert [change["why"] for change in read_baseline(file).history] == ["first", "new loop"]


def test_runs_under_other_conditions_are_not_mixed(run, speeds, pytester, monkeypatch):
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    run("baseline='b.json'", FUNCTION, "--kdcompile-save-baseline")
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    result = run("baseline='b.json'", FUNCTION, "--kdcompile-save-baseline")
    result.assert_outcomes(failed=1)
    assert "error[baseline-unsteady]" in said(result)
    (pytester.path / "b.partial.json").unlink()  # the fix
    assert "run 1 of 3" in said(run("baseline='b.json'", FUNCTION, "--kdcompile-save-baseline"))


@pytest.mark.parametrize("text", ["{", "[]", '{"name": 1}', '{"name":"a","sha256":"b","runs":[]}'])
def test_broken_earlier_runs(run, speeds, pytester, text):
    (pytester.path / "b.partial.json").write_text(text)
    result = run("baseline='b.json'", FUNCTION, "--kdcompile-save-baseline")
    result.assert_outcomes(failed=1)
    assert "error[baseline-partial]" in said(result)


@pytest.mark.parametrize("runs", ["2", "4"])
def test_the_number_of_runs(run, speeds, pytester, runs):
    options = ("--kdcompile-save-baseline", f"--kdcompile-runs={runs}", "-rs")
    result = run("baseline='b.json'", FUNCTION, *options)
    assert ("error[baseline-runs]" if runs == "2" else "run 1 of 4 of b.json") in said(result)


# ---- wrong use ----


WRONG = [
    ("basline='b.json'", FUNCTION, "no word 'basline' (did you mean 'baseline'?)"),
    ("baseline='b', undecide='skip'", FUNCTION, "no word 'undecide' (did you mean 'undecided'?)"),
    ("baseline='b', undecided='skp'", FUNCTION, "undecided is 'skp' (did you mean 'skip'?)"),
    ("baseline='b', undecided=True", FUNCTION, "undecided is True"),
    ("baseline=3", FUNCTION, "baseline is 3"),
    ("baseline='b', via=22", FUNCTION, "via is 22"),
    ("baseline='b', allow=5", FUNCTION, "allow is 5"),
    ("baseline='b', allow=['cpu', 3]", FUNCTION, "allow is ['cpu', 3]"),
    ("baseline='b', max_regression=float('nan')", FUNCTION, "max_regression is nan"),
    ("baseline='b', seconds=None", FUNCTION, "seconds is None"),
    ("'b.json'", FUNCTION, "it takes words only by name"),
    ("baseline='b', max_regression=3", FUNCTION, "max_regression is 3"),
    ("baseline='b', max_regression='3%'", FUNCTION, "max_regression is '3%'"),
    ("baseline='b', seconds=0", FUNCTION, "seconds is 0"),
    ("", FUNCTION, "it needs the mark's baseline, or a reference"),
    ("baseline='b'", "kdcompile_latency(1)", "1 is neither a path nor a function"),
    ("", "kdcompile_latency('a.onnx', reference=print)", "cannot take turns"),
    ("baseline='b'", "kdcompile_latency(print, reference=print)", "not both"),
    ("", "kdcompile_latency(lambda: 1 / 0, reference=print)", "raised ZeroDivisionError"),
    ("baseline='b'", "pass", "measured nothing"),
]


def test_wrong_use_fails_with_its_reason(run, pytester):
    for number, (words, body, _) in enumerate(WRONG):
        text = MARKED.format(words=words, body=body)
        pytester.makepyfile(**{f"test_wrong{number:02}": text})
    result = run("", "pytest.skip('not of these')")
    result.assert_outcomes(failed=len(WRONG), skipped=1)
    parts = re.split(r"_+ test_it _+", said(result).partition("= FAILURES =")[2])[1:]
    for part, (*_, message) in zip(parts, WRONG, strict=True):
        assert message in part
    assert "Traceback" not in said(result)
    assert "TypeError" not in said(result)


def test_a_baseline_that_cannot_be_written_is_told_before_the_timing(run, speeds, pytester):
    (pytester.path / "file").write_text("")
    result = run("baseline='file/b.json'", FUNCTION, "--kdcompile-save-baseline")
    result.assert_outcomes(failed=1)
    assert "error[baseline-folder]" in said(result)
    assert speeds.asked == []


def test_a_marked_test_that_is_skipped_or_fails_keeps_its_own_reason(run):
    run("baseline='b'", "pytest.skip('not today')").assert_outcomes(skipped=1)
    result = run("baseline='b'", "assert 1 == 2")
    result.assert_outcomes(failed=1)
    assert "measured nothing" not in said(result)


def test_nothing_is_measured_beside_other_workers(run, speeds, monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    result = run("", "kdcompile_latency(print, reference=print)")
    result.assert_outcomes(failed=1)
    assert "error[latency-parallel]" in said(result)
    assert speeds.asked == []
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "1")
    run("", "kdcompile_latency(print, reference=print)").assert_outcomes(passed=1)


# ---- other tests ----


def test_tests_without_the_mark_are_left_alone(run, pytester):
    pytester.makepyfile(test_other="def test_other(): pass")
    result = run("baseline='b'", "pytest.skip('x')")
    result.assert_outcomes(passed=1, skipped=1)
    assert "kdcompile latency" not in said(result)


def test_loading_the_plugin_imports_nothing_heavy():
    code = (
        "import sys, pytest\nbefore = set(sys.modules)\nimport kdcompile.ci.pytest_plugin, json\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = {name for name in json.loads(found.stdout) if not name.startswith("json")}
    assert ours == {"kdcompile", "kdcompile.ci", "kdcompile.ci.pytest_plugin"}
