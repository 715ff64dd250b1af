"""What was measured on another day is as uncertain as days differ."""

from dataclasses import replace

import numpy as np
import pytest

from kdcompile.core.errors import KDError
from kdcompile.stats.latency_test import compare
from kdcompile.stats.samples import Block, Build, Process, Run, Samples, sessions


def samples(ms, started, runs=3, seed=0):
    """Runs that start a few seconds apart, of processes that differ by 0.3 %."""
    random = np.random.default_rng(seed)
    made = []
    for second in range(runs):
        processes = tuple(
            Process(tuple(Block(tuple(level * random.normal(1, 0.002, 10)), 0.0, None)
                          for _ in range(8)))
            for level in ms * random.normal(1, 0.003, 3)
        )  # fmt: skip
        when = f"{started}:{5 * second:02}+00:00"
        made.append(Run(when, {}, {}, (Build("e", processes),)))
    return Samples("net", "sha", tuple(made))


def joined(*parts):
    return replace(parts[0], runs=tuple(run for part in parts for run in part.runs))


MORNING, LATER = "2026-01-01T08:00", "2026-01-02T09:30"


def test_runs_that_follow_each_other_are_one_occasion():
    assert sessions([["2026-01-01T08:00:00"], ["2026-01-01T08:09:59", "2026-01-01T08:19"]]) is None


def test_a_chain_of_short_gaps_is_one_occasion_and_a_long_gap_begins_another():
    sides = [["2026-01-01T08:19:00"], ["2026-01-01T08:00:00", "2026-01-01T09:00:00+00:00"]]
    assert sessions(sides) == [[1], [0, 2]]
    sides[1].append("2026-01-01T08:10:00")
    assert sessions(sides) == [[0], [0, 1, 0]]


def test_other_time_zones_are_read():
    assert sessions([["2026-01-01T08:00:00+02:00"], ["2026-01-01T06:05:00"]]) is None


@pytest.mark.parametrize("text", ["yesterday", "", None, 7])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(KDError, match="no time") as caught:
        sessions([[text], ["2026-01-01T08:00:00"]], "net")
    assert caught.value.code == "samples-invalid"


def test_a_slower_day_is_no_regression():
    """The same network, 7 % slower an hour later: that happened."""
    reference, now = samples(1.0, MORNING), samples(1.07, LATER, 1, seed=1)
    found = compare(now, reference, paired=False)
    assert found.decision == "inconclusive"
    assert found.more_blocks is None  # measuring on does not help
    assert "baseline update --add" in found.reason
    assert "1 session against 1" in found.reason
    at_once = samples(1.07, "2026-01-01T08:05", 1, seed=1)
    assert compare(at_once, reference, paired=False).decision == "regressed"


def test_a_change_larger_than_days_are_is_found():
    found = compare(samples(1.2, LATER, 1, seed=1), samples(1.0, MORNING), paired=False)
    assert found.decision == "regressed"


def test_more_occasions_say_more():
    days = [samples(1.0, f"2026-01-{day:02}T08:00", seed=day) for day in range(1, 11)]
    now = samples(1.0, "2026-02-01T08:00", 1, seed=99)
    widths = []
    for count in (1, 3, 10):
        p50 = compare(now, joined(*days[:count]), paired=False).ratios[0]
        widths.append(p50.high - p50.low)
    assert widths[0] > 1.2 * widths[1] > 1.44 * widths[2]


@pytest.mark.parametrize(("count", "day_sd"), [(1, 0.02), (3, 0.02), (3, 0.03), (8, 0.04)])
def test_days_that_differ_seldom_raise_an_alarm(count, day_sd):
    random = np.random.default_rng(count)
    alarms = 0
    for trial in range(150):
        levels = np.exp(random.normal(0, day_sd, count + 1))
        days = [
            samples(level, f"2026-01-{day:02}T08:00", 1, seed=trial * 100 + day)
            for day, level in enumerate(levels, 1)
        ]
        alarms += compare(days[0], joined(*days[1:]), paired=False).decision == "regressed"
    assert alarms <= 4
