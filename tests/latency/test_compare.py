"""The comparison of artifacts by itself: its defaults, runs, notes, and what it asks to measure."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from bench_samples import made

from kdcompile.core.errors import KDError
from kdcompile.latency import compare
from kdcompile.latency.settings import Effort, Mode
from kdcompile.latency.subject import Subject

DOCUMENT = Path(__file__).parents[2] / "docs" / "bench.md"
PLAN = compare.Plan(None, Effort(), Mode())
SHA = {"one": "1" * 64, "other": "2" * 64}


def subject(name):
    return Subject(name, Path(name), SHA[name], "onnx", "fp32")


@pytest.fixture
def asked(monkeypatch):
    """What was asked of each measuring run; one run of both sides comes of it, equally fast."""
    calls = []

    def measure(subjects, via, effort, mode, *, on_round, **more):
        seed = 2 * len(calls)
        found = [
            made(runs=1, seed=seed + i, name=one.name, sha256=one.sha256)
            for i, one in enumerate(subjects)
        ]
        calls.append(SimpleNamespace(effort=effort, more=more, go_on=on_round(found)))
        return found

    monkeypatch.setattr(compare, "measure", measure)
    return calls


def test_the_defaults_are_the_documented_ones():
    text = DOCUMENT.read_text()
    assert f"for at most `--limit` seconds ({compare.LIMIT_S:.0f})" in text
    assert f"of the {compare.LEVEL:.1%}".replace("%", " %") in text
    assert (PLAN.margin, PLAN.level, PLAN.limit) == (0.03, 0.005, None)


@pytest.mark.parametrize(("processes", "first"), [(1, 3), (2, 3), (3, 3), (4, 4)])
def test_three_processes_are_the_fewest_to_look_at(processes, first):
    assert compare.first_look(Effort(processes=processes)) == first


def test_one_run_by_default_and_no_line_of_its_number(asked, caplog):
    caplog.set_level("INFO", "kdcompile")
    found = compare.in_turns(subject("one"), subject("other"), PLAN)
    assert [(call.more, call.go_on) for call in asked] == [({}, False)]
    assert (found.notes, found.looks, len(found.candidate.runs)) == ((), 1, 1)
    assert "measuring run" not in caplog.text


def test_more_runs_are_numbered_and_the_first_reads_energy_and_memory(asked, caplog):
    caplog.set_level("INFO", "kdcompile")
    plan = replace(PLAN, runs=2, with_usage=True)
    found = compare.in_turns(subject("one"), subject("one"), plan)
    assert [call.more for call in asked] == [{"with_usage": True}, {}]
    assert [row.getMessage() for row in caplog.records] == [
        "measuring run 1 of 2", "measuring run 2 of 2",
    ]  # fmt: skip
    assert len(found.candidate.runs) == len(found.reference.runs) == 2
    assert found.notes == ("both are the same artifact",)


def test_who_asks_sees_the_first_process_once(asked):
    seen = []
    work = compare.Measurement([subject("one"), subject("other")], replace(PLAN, runs=3))
    work.on_first = lambda samples: seen.append(samples.name)
    work.all_runs()
    assert seen == ["one"]
    assert [len(samples.runs) for samples in work.samples] == [3, 3]


def test_earlier_samples_are_of_another_time(asked):
    """They are not paired: interleaved runs of as many processes would be."""
    reference = made(sha256=SHA["other"])
    for found in (
        compare.from_samples(subject("one"), reference, PLAN, "why"),
        compare.of_files(made(seed=1), reference, PLAN),
    ):
        assert not found.comparison.paired
        assert found.looks == 1
    assert len(asked) == 1
    assert compare.from_samples(subject("other"), reference, PLAN, "why").notes == (
        "why", "both are the same artifact",
    )  # fmt: skip


def test_a_run_has_a_second_however_short_the_limit(asked):
    compare.from_samples(subject("one"), made(), replace(PLAN, limit=0.5), "why")
    assert {call.effort.seconds for call in asked} == {1.0}


def test_samples_of_one_run_are_compared(asked):
    assert compare.of_files(made(runs=1, seed=1), made(runs=1), PLAN).allowed == ()
    assert compare.from_samples(subject("one"), made(runs=1), PLAN, "why").allowed == ()


@pytest.mark.parametrize("given", [None, Path("given")])
def test_the_reference_that_lies_there(tmp_path, given):
    path = tmp_path / (given or "kept")
    baseline = SimpleNamespace(
        artifact=lambda file: tmp_path / "kept", samples=SimpleNamespace(sha256=SHA["one"])
    )

    def found(name="one"):
        here = given and path
        return compare.reference_at_hand(baseline, Path("b"), here, lambda _: subject(name))

    def refused(code, why, name="one"):
        if given is None:
            assert why in found(name)[1]
            return
        with pytest.raises(KDError) as error:
            found(name)
        assert error.value.code == code

    refused("reference-missing", "no longer at")
    path.write_bytes(b"")
    assert found() == (subject("one"), "")
    refused("reference-differs", "has changed since", "other")
