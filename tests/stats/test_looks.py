"""Sequential looks: how many, when, and that they spend no more than the level."""

import numpy as np
import pytest
from bench_samples import made

from kdcompile.stats.comparison import LOOKS, Comparison, Looks
from kdcompile.stats.latency_test import compare

SAMPLES = [made(runs=1)]


def _decided(at=None):
    """Decides at the look of this number; keeps the levels that it was asked at."""
    levels = []

    def decide(found, level):
        levels.append(level)
        decision = "regressed" if len(levels) == at else "inconclusive"
        return Comparison(decision, "", (), level, True, 1, 0)

    return decide, levels


def test_looks_are_at_doubled_rounds_and_one_is_left_for_the_end():
    decide, levels = _decided()
    looks = Looks(decide, 0.005, first=3)
    seen = []
    for number in range(1, looks.most_rounds + 1):
        before = looks.taken
        assert not looks(SAMPLES)
        seen += [number] * (looks.taken - before)
    assert seen == [3, 6, 12, 24]
    assert looks.most_rounds == 48
    assert looks.final(SAMPLES).decision == "inconclusive"
    assert looks.taken == LOOKS == 5
    assert levels == [0.001] * 5
    assert sum(levels) <= 0.005 + 1e-12


def test_it_stops_at_the_first_decision_and_keeps_it():
    decide, levels = _decided(at=2)
    looks = Looks(decide, 0.005)
    assert [looks(SAMPLES) for _ in range(2)] == [False, True]
    assert looks.final(SAMPLES).decision == "regressed"
    assert len(levels) == 2


def test_the_end_looks_once_more_only_at_more():
    decide, levels = _decided()
    looks = Looks(decide, 0.005)
    looks(SAMPLES)
    looks(SAMPLES)
    looks.final(SAMPLES)
    assert len(levels) == 2  # both rounds were looked at
    looks(SAMPLES)
    looks.final(SAMPLES)
    assert len(levels) == 3


def test_an_end_before_the_first_look_looks():
    decide, levels = _decided(at=1)
    looks = Looks(decide, 0.005, first=4)
    assert not looks(SAMPLES)
    assert looks.final(SAMPLES).decision == "regressed"
    assert levels == [0.001]


@pytest.mark.parametrize(("change", "decision"), [(1.0, "equivalent"), (1.1, "regressed")])
def test_with_the_real_comparison(change, decision):
    ours = made(change, runs=1, processes=24, noise=0.01, seed=1)
    theirs = made(1.0, runs=1, processes=24, noise=0.01, seed=2)
    looks = Looks(lambda found, level: compare(*found, paired=True, level=level), 0.005, first=3)
    for count in range(1, 25):
        if looks([_first(ours, count), _first(theirs, count)]):
            break
    assert looks.final([ours, theirs]).decision == decision
    assert looks.last.level == pytest.approx(0.001)


def test_alarms_of_many_looks_stay_below_the_level():
    """At a level of 25 % and no change, where looking five times at the full level would not."""
    rng = np.random.default_rng(0)
    spent = whole = 0
    for _ in range(400):
        walk = rng.normal(size=16).cumsum() / np.sqrt(np.arange(1, 17))
        at = [walk[n - 1] for n in (1, 2, 4, 8, 16)]
        whole += max(at) > 0.674  # the upper quarter of a normal
        spent += _alarmed(at)
    assert whole / 400 > 0.35
    assert spent / 400 < 0.25


def _alarmed(at):
    """Whether `Looks` stops with an alarm, for a normal statistic at each look."""
    from scipy.stats import norm

    rounds = iter(at)

    def decide(found, level):
        decision = "regressed" if next(rounds) > norm.isf(level) else "inconclusive"
        return Comparison(decision, "", (), level, True, 1, 0)

    looks = Looks(decide, 0.25)
    for _ in range(looks.most_rounds):
        if looks(SAMPLES):
            break
    return looks.final(SAMPLES).decision == "regressed"


def _first(samples, count):
    from dataclasses import replace

    run = samples.runs[0]
    build = replace(run.builds[0], processes=run.builds[0].processes[:count])
    return replace(samples, runs=(replace(run, builds=(build,)),))
