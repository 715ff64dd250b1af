"""Resamples and intervals at their edges: batches, ratios without an end, a reference of zeros."""

import math

import numpy as np
import pytest

from kdcompile.stats import bootstrap
from kdcompile.stats.bootstrap import (
    bca,
    interval,
    percentile_interval,
    ratio_interval,
    resampled,
    resamples,
    t_quantile,
)


def mean(values, axis):
    return np.mean(values, axis=axis)


@pytest.mark.parametrize("values", [4, 15, 1000])
def test_batches_together_are_the_resamples(monkeypatch, values):
    monkeypatch.setattr(bootstrap, "BATCH_VALUES", values)
    rows = []

    def statistic(picks):
        rows.append(len(picks))
        return picks @ (10.0 ** np.arange(5))

    found = resampled(statistic, 5, 10, 7)
    assert found.tolist() == (resamples(5, 10, 7) @ (10.0 ** np.arange(5))).tolist()
    assert max(rows) == {4: 1, 15: 3, 1000: 10}[values]


def test_a_percentile_interval_leaves_out_5_percent():
    assert percentile_interval(np.arange(1001.0)) == (25, 975)
    assert percentile_interval(np.arange(1001.0), 0.1) == (100, 900)


def test_values_that_are_all_the_same_have_no_interval_around_them():
    same = np.full(9, 0.1)
    for values in (same, 1e9 * same, 1e-9 * same):
        assert bca((values,), mean, confidence=0.9, seed=0) == (np.mean(values),) * 2
        found = interval((values,), mean, confidence=0.9, seed=0)
        assert found == pytest.approx((values[0], values[0]), rel=1e-12)


def test_a_spread_is_one_in_whatever_unit():
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, 9])
    for unit in (1e-12, 1.0, 1e12):
        low, high = bca((unit * values,), mean, confidence=0.9, seed=0)
        assert low / unit == pytest.approx(3.25, abs=0.25)
        assert high / unit == pytest.approx(6.0, abs=0.25)


def test_an_end_lies_no_lower_than_the_least_value():
    values = np.array([0.0] * 8 + [1.0])
    low, high = interval((values,), mean, confidence=0.9, seed=0)
    assert low < 0
    assert interval((values,), mean, confidence=0.9, seed=0, least=0.0) == (0.0, high)
    reach = t_quantile(0.95, 8) * np.std(values, ddof=1) / 3
    assert low == pytest.approx(np.mean(values) - reach)
    assert high >= np.mean(values) + reach - 1e-12


def test_a_reference_that_may_be_0_has_ratios_without_an_end():
    reference = np.array([0.0] * 7 + [1.0])
    assert ratio_interval(reference, np.ones(8), confidence=0.9, seed=0) == (0.0, math.inf)


def test_errors_that_may_be_0_have_a_ratio_from_0_on():
    low, high = ratio_interval(
        np.full(8, 0.01), 0.01 * np.array([0.0] * 7 + [1.0]), confidence=0.9, seed=0
    )
    assert low == 0.0
    assert 1 / 8 + t_quantile(0.95, 7) / 8 - 1e-9 <= high < 1  # t of the mean


@pytest.mark.parametrize(("errors", "low"), [([0.2, 0.3, 0.4, 0.3], None), ([0, 0, 0, 1], 0.0)])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_over_a_reference_without_a_spread_fiellers_interval_is_students(errors, low, unit):
    values, t = np.array(errors, float), 2.0
    reach = t * np.std(values, ddof=1) / 2
    found = bootstrap._fieller(np.full(4, unit), unit * values, t)
    middle = float(np.mean(values))
    wanted = (middle - reach if low is None else low, middle + reach)
    assert found == pytest.approx(wanted, abs=1e-12)


def test_of_equal_networks_the_ratio_is_1():
    errors = np.array([0.0, 0, 0, 0, 0, 0, 0.5, 0.25, 0.125])
    assert ratio_interval(errors, errors, confidence=0.9, seed=0)[0] <= 1.0
    steady = np.linspace(0.01, 0.02, 30)
    assert ratio_interval(steady, steady, confidence=0.9, seed=0) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_a_ratio_does_not_depend_on_the_unit(unit):
    steady = unit * np.linspace(0.1, 0.2, 30)
    assert ratio_interval(steady, 2 * steady, confidence=0.9, seed=0) == pytest.approx((2.0, 2.0))
    none = np.zeros(9)
    assert bootstrap.contrast(none, none).tolist() == [0.0] * 9
    assert bootstrap.contrast(3 * unit, unit) == pytest.approx(0.5)
    assert bootstrap.ratio_of(0.5) == 3.0


def test_each_end_of_a_ratio_is_the_wider_of_two():
    """Of even errors Student's, of seven freedoms; of skewed ones that of the bootstrap."""
    even, t = np.linspace(0.9, 1.1, 8), t_quantile(0.95, 7)
    reach = t * np.std(even, ddof=1) / 8**0.5
    found = ratio_interval(np.ones(8), even, confidence=0.9, seed=0)
    assert found == pytest.approx((1 - reach, 1 + reach))
    skewed = np.array([1.0] * 7 + [0.1])
    low, high = ratio_interval(np.ones(8), skewed, confidence=0.9, seed=0)
    assert low < 1 - 0.9 * (1 + t) / 8 - 0.05
    assert high >= 1 - 0.9 * (1 - t) / 8 - 1e-9
