"""What would decide: the options that are said, by what was measured."""

import pytest
from bench_samples import made

from kdcompile.latency.advice import to_decide
from kdcompile.latency.compare import Plan
from kdcompile.latency.report import Judged
from kdcompile.latency.settings import Effort, Mode
from kdcompile.stats.comparison import Comparison


def undecided(more, blocks, *, paired=True, runs=1, processes=3):
    samples = made(runs=runs, processes=processes, blocks=blocks)
    taken = blocks * processes * runs
    found = Comparison("inconclusive", "", (), 0.005, paired, taken, 0, more)
    return Judged(found, samples, samples)


def plan(limit=None, **effort):
    return Plan(None, Effort(**effort), Mode(), limit=limit)


def test_a_plain_comparison_goes_on_until_it_is_decided():
    assert to_decide(undecided(30, 10), plan()) == {"until_decided": True}


def test_a_limit_grows_with_what_is_missing():
    long = undecided(12000, 20)  # two hundred times as much, of blocks over two seconds a run
    found = to_decide(long, plan())
    assert found["limit"] == pytest.approx(201 * 1.5 * 1.9, rel=0.06)
    assert to_decide(undecided(30, 10), plan(limit=40.0))["limit"] == 80


def test_more_processes_are_asked_for_where_all_looks_were_taken():
    found = to_decide(undecided(480, 10, processes=48), plan(limit=300.0))
    assert found["processes"] == 9  # (48 + 48) times a half more, in looks after up to 16 times
    assert found["seconds"] == 180
    assert found["limit"] == 600
    few = to_decide(undecided(480, 10, processes=48), plan(limit=300.0, processes=1))
    assert (few["processes"], few["seconds"]) == (9, 540)


def test_builds_are_what_builds_are_short_of():
    found = to_decide(undecided(60, 10), plan(builds=2, seconds=30.0))
    assert found == {"builds": 6, "seconds": 90}
    found = to_decide(undecided(60, 10), plan(builds=2, limit=100.0))
    assert (found["builds"], found["limit"]) == (6, 300)
    assert "until_decided" not in found


def test_few_samples_give_way_to_as_many_as_it_takes():
    found = to_decide(undecided(400, 2), plan(samples=10))
    assert found == {"samples": None, "until_decided": True}


def test_from_samples_alone_runs_are_added_up_to_the_most_that_are_looked_at():
    assert to_decide(undecided(60, 10, paired=False), plan()) == {"until_decided": True}
    assert to_decide(undecided(600, 10, paired=False), plan()) is None
    assert to_decide(undecided(None, 10, paired=False), plan()) is None
