import numpy as np
import pytest

from kdcompile.core.errors import KDError
from kdcompile.stats.latency_interval import (
    PairedTimes,
    median_interval,
    ratio_interval,
)


def test_ratio_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    truth, covered, runs = 4.0, 0, 120
    for run in range(runs):
        shared = 1 + 0.1 * rng.standard_normal(30)  # what slows both: clocks, neighbours
        a = truth * shared * (1 + 0.05 * rng.standard_normal(30))
        b = shared * (1 + 0.05 * rng.standard_normal(30))
        _, low, high = ratio_interval(PairedTimes(a, b, 1), run)
        covered += low <= truth <= high
    assert 0.88 <= covered / runs <= 1.0


def test_median_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(8)
    found = [median_interval(rng.normal(4.0, 0.2, 30), run)[1:] for run in range(120)]
    covered = sum(low <= 4.0 <= high for low, high in found)
    assert 0.88 <= covered / 120 <= 1.0


def test_intervals_are_the_same_for_the_same_seed_and_narrow_without_noise() -> None:
    rng = np.random.default_rng(0)
    times = PairedTimes(rng.uniform(3, 5, 30), rng.uniform(1, 2, 30), 1)
    assert ratio_interval(times, 3) == ratio_interval(times, 3) != ratio_interval(times, 4)
    assert median_interval(np.full(8, 2.5), 0) == (2.5, 2.5, 2.5)


def test_a_clock_that_sees_nothing_is_an_error() -> None:
    with pytest.raises(KDError, match="no measurable time"):
        ratio_interval(PairedTimes(np.ones(6), np.zeros(6), 1), 0)
