"""The ways to a decision that an undecided test is told, followed on samples of known noise."""

import math
import re

import pytest
from bench_samples import made

from kdcompile.ci.callables import BLOCKS_PER_S
from kdcompile.ci.mark import LONGEST_S, Settings, to_decide
from kdcompile.ci.pytest_latency import PROCESSES, RUN_S
from kdcompile.latency.report import Judged
from kdcompile.stats.latency_test import compare


def turns(seed, seconds, noise, function, change=0.0):
    """Two sides, as the plug-in takes them in so many seconds."""
    size = (
        {"processes": 1, "blocks": round(BLOCKS_PER_S * seconds)} if function
        else {"processes": math.ceil(PROCESSES * seconds / RUN_S), "blocks": 20}
    )  # fmt: skip
    sides = [made(ms, runs=1, noise=noise, seed=2 * seed + i, **size)
             for i, ms in enumerate((1 + change, 1.0))]  # fmt: skip
    return Judged(compare(*sides, paired=True), *sides)


@pytest.mark.parametrize("change", [0.0, 0.03])
@pytest.mark.parametrize(("function", "noise"), [(True, 0.1), (False, 0.2)])
def test_the_seconds_that_are_named_mostly_do(function, noise, change):
    decided = []
    for seed in range(20):
        found = turns(seed, 10.0, noise, function, change)
        if found.comparison.decision != "inconclusive":
            continue
        text = to_decide(found, Settings(), function=function)
        seconds = re.match(r"seconds=(\d+) in the mark takes \d+ more blocks of each", text)
        if seconds:
            again = turns(seed + 1000, float(seconds[1]), noise, function, change)
            decided.append(again.comparison.decision != "inconclusive")
    assert len(decided) >= 8
    assert sum(decided) >= 0.7 * len(decided)


def test_a_margin_that_is_named_decides_on_these_very_samples():
    for seed in range(8):
        found = turns(seed, 10.0, 0.2, False)
        text = to_decide(found, Settings(), function=False)
        margin = float(re.search(r"max_regression=(0\.\d+):", text)[1])
        sides = found.candidate, found.reference
        assert compare(*sides, paired=True, margin=margin).decision == "equivalent"
        less = compare(*sides, paired=True, margin=margin - 0.001).decision
        assert (less, margin > 0.03) != ("equivalent", True), "the least that does"


def test_nobody_is_sent_to_wait_for_hours():
    found = turns(0, 10.0, 0.2, False)
    text = to_decide(found, Settings(seconds=LONGEST_S / 2), function=False)
    assert "seconds=" not in text
    assert text.endswith("undecided='skip' in the mark shows it as skipped")


def test_against_a_baseline_a_reference_is_named():
    sides = made(1.01, runs=1, seed=1), made(1.0, seed=2)
    found = Judged(compare(*sides, paired=False), *sides)
    assert found.comparison.decision == "inconclusive"
    for function in (True, False):
        assert "reference=OLD in the call" in to_decide(found, Settings(), function=function)
    assert "seconds=" not in to_decide(found, Settings(), function=True), "a test is one run"
