"""The sentence of a comparison, and what it asks for where it does not decide."""

import math
from dataclasses import replace

import numpy as np
import pytest
from judged_samples import built
from scipy.special import stdtrit

from kdcompile.stats import sample_size
from kdcompile.stats.comparison import SESSIONS_NEEDED, STEPS, Comparison, Looks, Ratio, reason
from kdcompile.stats.hierarchical import Estimate
from kdcompile.stats.sample_size import (
    growth,
    least_margin,
    more_blocks,
    more_blocks_of_one_process,
)

SAMPLES = built([[[[1.0, 1.0]] * 3]])


def estimate(level="process", units=(3,), variance=1e-4, df=6):
    return Estimate(np.zeros(3), units, tuple(np.full(3, variance) for _ in units), df, level)


def ratios(decision="inconclusive", low=0.99, high=1.02, value=1.01):
    p50 = Ratio("p50", value, low, high, 0.03, decision)
    p90 = Ratio("p90", 1.2, 1.1, 1.3, 0.1, "regressed")
    return p50, p90, replace(p90, quantile="p99", decision="equivalent")


def said(decision, more=None, level="process", units=(3,), coarse=0.0, paired=True, enough=True):
    found = ratios(decision)
    return reason(
        decision, found, more, estimate(level, units), coarse, paired=paired, enough=enough
    )


@pytest.mark.parametrize(
    ("decision", "text"),
    [
        ("equivalent", "the median changed by less than 3 %: -1.0 % to +2.0 %"),
        ("improved", "the median changed by +1.0 % (-1.0 % to +2.0 %)"),
        ("regressed", "the median changed by +1.0 % (-1.0 % to +2.0 %)"),
    ],
)
def test_a_decision_is_told_with_what_it_rests_on(decision, text):
    assert said(decision) == f"{text}; interleaved, 3 processes"


def test_the_gate_of_a_tail_is_told():
    text = reason("regressed", ratios(), None, estimate(), 0.0, paired=True, enough=True)
    assert text.startswith(
        "p90 changed by +20.0 % (+10.0 % to +30.0 %), beyond its gate of +10.0 %"
    )


@pytest.mark.parametrize(
    ("more", "level", "paired", "enough", "text"),
    [
        (None, "session", False, True, SESSIONS_NEEDED),
        (None, "process", True, True, "more processes or builds are needed to decide"),
        (None, "run", False, True, "more runs of the reference are needed to decide"),
        (5, "process", True, True, "about 5 more blocks of each would decide"),
        (5, "build", True, True, "about 5 more blocks of each, in more builds, would decide"),
        (5, "run", False, True, "about 5 more blocks of the candidate, in more runs, would decide"),
        (5, "process", True, False, "about 5 more blocks of each would decide, and no verdict is "
         "given on fewer than 8 blocks and 40 inferences of each"),
    ],
)  # fmt: skip
def test_what_would_decide_is_told(more, level, paired, enough, text):
    units = (3,) if paired else (3, 2)
    found = said("inconclusive", more, level, units, paired=paired, enough=enough)
    assert found.split("; ")[0] == "the median may have changed by -1.0 % to +2.0 %"
    assert found.removeprefix(found.split("; ")[0] + "; ").startswith(f"{text}; ")


@pytest.mark.parametrize(
    ("share", "more", "told"), [(0.25, None, False), (0.26, None, True), (0.26, 5, False)]
)
def test_a_coarse_clock_is_told_where_it_is_over_a_quarter_of_the_margin(share, more, told):
    assert (STEPS in said("inconclusive", more, coarse=share * math.log1p(0.03))) == told


@pytest.mark.parametrize(
    ("level", "units", "paired", "text"),
    [
        ("process", (1,), True, "interleaved in one process, so that the spread of processes is "
         "assumed"),
        ("process", (2,), True, "interleaved, 2 processes"),
        ("build", (2,), True, "interleaved, 2 builds"),
        ("run", (1, 3), False, "from samples alone, 1 run against 3, not interleaved"),
        ("run", (2, 1), False, "from samples alone, 2 runs against 1, not interleaved"),
    ],
)  # fmt: skip
def test_what_was_measured_is_told(level, units, paired, text):
    assert said("improved", None, level, units, paired=paired).endswith(f"; {text}")


@pytest.mark.parametrize(("value", "text"), [(100.0, "x 100"), (99.9, "+9890.0 %")])
def test_a_ratio_of_a_hundred_is_no_percentage(value, text):
    found = ratios("improved", value=value)
    assert f"changed by {text} (" in reason(
        "improved", found, None, estimate(), 0.0, paired=True, enough=True
    )


def undecided(low=0.99, high=1.05, paired=True):
    return Comparison("inconclusive", "", ratios(low=low, high=high), 0.005, paired, 30, 0, 60)


def test_how_many_times_the_blocks_would_decide():
    assert growth(undecided()) == 3
    assert growth(undecided(), 0) == 1
    assert growth(undecided(), 15) == 1.5


@pytest.mark.parametrize(
    ("decides_at", "times"),
    [(1, 2), (2, 2), (3, 3), (4, 4), (5, 6), (6, 6), (7, 8), (8, 8), (9, None)],
)
def test_one_process_is_asked_for_up_to_eight_times_its_blocks(monkeypatch, decides_at, times):
    def again(ours, theirs, comparison, margin):
        counts = {len(list(side.blocks())) for side in (ours, theirs)}
        assert (len(counts), margin) == (1, 0.03)
        return "equivalent" if counts.pop() >= 3 * decides_at else "inconclusive"

    monkeypatch.setattr(sample_size, "_again", again)
    found = more_blocks_of_one_process(SAMPLES, SAMPLES, undecided())
    assert found == (None if times is None else 30 * (times - 1))
    assert more_blocks_of_one_process(SAMPLES, SAMPLES, undecided(paired=False)) is None


@pytest.mark.parametrize(
    ("low", "high", "decision", "margin"),
    [(0.99, 1.0505, "equivalent", 0.051), (0.9, 1.05, "equivalent", 0.112),
     (0.99, 1.9985, "equivalent", 0.999), (0.99, 1.9995, "equivalent", None),
     (0.99, 1.05, "inconclusive", None)],
)  # fmt: skip
def test_the_least_margin_is_told_in_steps_of_a_thousandth(
    monkeypatch, low, high, decision, margin
):
    monkeypatch.setattr(sample_size, "_again", lambda *values: decision)
    assert least_margin(SAMPLES, SAMPLES, undecided(low, high)) == margin


def test_no_more_than_4095_units_are_asked_for():
    """Of so many degrees of freedom that only the error of the mean falls."""
    df, tail = 10**6, 0.005

    def wanted(units):
        return stdtrit(df + units - 1, 1 - tail) * math.sqrt(1e-4 / units)

    one = estimate(units=(1,), df=df)
    assert more_blocks(one, tail, wanted(4096) * (1 + 1e-9), 1, 100) == 4095
    assert more_blocks(one, tail, wanted(4097) * (1 + 1e-9), 1, 100) is None


def test_a_verdict_is_looked_for_from_the_first_round_on():
    seen = []

    def decide(found, level):
        seen.append(level)
        return undecided()

    looks = Looks(decide, 0.005)
    assert not looks([SAMPLES])
    assert (looks.rounds, looks.taken, looks.looked_at, looks.most_rounds) == (1, 1, 1, 16)
    assert seen == [0.001]
