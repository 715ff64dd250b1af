"""What is foretold of a number of photos, held against the gate on drawn ones."""

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

from kdcompile.stats import bootstrap
from kdcompile.stats.bootstrap import t_quantile
from kdcompile.stats.noninferiority import compare, decrease_interval
from kdcompile.stats.sample_size import Forecast, forecast
from kdcompile.tasks.metric import MAE, RMSE, TOP1


def pairs(rng, n, correlation=0.8):
    """Absolute errors of teacher and student, alike and correlated."""
    common = rng.standard_normal((2, n)) * np.sqrt(1 - correlation)
    return np.abs(40 + 10 * (common + np.sqrt(correlation) * rng.standard_normal(n)))


def test_the_margin_of_182_photos_is_about_17_percent():
    found = forecast(MAE, 182, 73.5, 97, 0.05)
    assert found.margin == pytest.approx(0.172, abs=0.002)
    assert found.over_limit == pytest.approx(0.21, abs=0.01)


def test_more_photos_decide_less_and_no_doubt_needs_none():
    margins = [forecast(MAE, n, 40, 30, 0.05).margin for n in (20, 80, 320, 1280)]
    assert margins[2] == pytest.approx(2 * margins[3], rel=0.03)
    assert margins == sorted(margins, reverse=True)
    assert forecast(MAE, 182, 73.5, 97, 0.05, correlation=1.0).margin == 0
    assert forecast(MAE, 8, 0.0, 0.0, 0.05).margin == 0


def test_errors_that_few_photos_tell_nothing_of_have_no_margin():
    assert forecast(MAE, 7, 40, 1, 0.05).margin is None
    assert forecast(MAE, 8, 1, 3, 0.05).margin is None
    assert forecast(MAE, 8, 1, 1.5, 0.05).margin is None
    assert forecast(MAE, 8, 40, 0.0, 0.05) == Forecast(0.0, 0.0)
    assert forecast(TOP1, 1, 0.9, 0.3, 0.05).margin is None


@pytest.mark.parametrize("metric", [MAE, RMSE], ids=lambda m: m.name)
@pytest.mark.parametrize("n", [8, 40])
def test_the_gate_decides_such_a_margin_as_often_as_foretold(monkeypatch, metric, n):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 299)
    rng = np.random.default_rng(n)
    many = pairs(rng, 100_000)[0]
    parts = many**metric.power
    found = forecast(metric, n, parts.mean(), parts.std(), 0.05)
    drawn = [pairs(rng, n) for _ in range(200)]
    passed = [compare(metric, *pair, margin=found.margin, seed=0).verdict == "passed"
              for pair in drawn]  # fmt: skip
    over = [metric(s) > 1.05 * metric(t) for t, s in drawn]
    assert np.mean(passed) == pytest.approx(0.8, abs=0.09)
    assert np.mean(over) == pytest.approx(found.over_limit, abs=0.08)


@pytest.mark.parametrize(("n", "rate"), [(24, 0.99), (200, 0.8), (1000, 0.95)])
def test_a_rates_margin_is_one_that_the_gate_decides(n, rate):
    found = forecast(TOP1, n, rate, (rate * (1 - rate)) ** 0.5, 0.02)
    same = np.zeros(n)
    assert compare(TOP1, same, same, margin=found.margin, seed=0).verdict == "passed"
    apart = 0.4 * rate * (1 - rate)
    rng = np.random.default_rng(1)
    draws = rng.multinomial(n, [apart / 2, apart / 2, 1 - apart], 300)
    verdicts = []
    for lost, won, _ in draws:
        teacher, student = np.zeros(n), np.zeros(n)
        student[:lost] = teacher[lost : lost + won] = 1
        found_here = compare(TOP1, teacher, student, margin=found.margin + 1e-9, seed=0)
        verdicts.append(found_here.verdict == "passed")
    assert np.mean(verdicts) >= 0.75
    over = np.mean([(lost - won) / n > 0.02 for lost, won, _ in draws])
    assert over == pytest.approx(found.over_limit, abs=0.08)


@pytest.mark.parametrize(
    "arguments", [(0, 1, 1), (1, -1, 1), (1, 1, -1), (1, 1, 1, 0.05, 2)], ids=str
)
def test_arguments_out_of_range_are_refused(arguments):
    n, mean, deviation, *rest = arguments
    with pytest.raises(ValueError, match="out of range"):
        forecast(MAE, n, mean, deviation, *(rest or [0.05]))


def test_arguments_at_the_ends_of_their_ranges_are_taken():
    for arguments in ((1, 1, 1), (8, 0, 0), (8, 1, 0), (8, 40, 1, -1), (8, 40, 1, 1)):
        n, mean, deviation, *rest = arguments
        assert forecast(MAE, n, mean, deviation, 0.05, *rest).over_limit >= 0
    assert forecast(TOP1, 2, 0.5, 0.5**0.5, 0.05, -1.0).over_limit > 0  # of two images that differ
    for rest in (-1.01, 1.01):
        with pytest.raises(ValueError, match="out of range"):
            forecast(MAE, 8, 40, 1, 0.05, rest)


def test_a_forecast_of_a_rate_is_the_same_each_time():
    """An image in 25 differs: of a thousand draws the margin that decides eight in ten."""
    found = forecast(TOP1, 100, 0.9, 0.3, 0.02)
    assert found == forecast(TOP1, 100, 0.9, 0.3, 0.02)
    assert found.margin == pytest.approx(0.0637, abs=0.02)
    assert forecast(TOP1, 100, 0.9, 0.0, 0.02).over_limit == 0
    assert forecast(TOP1, 100, 0.9, 0.3, 0.02, correlation=-1.0).margin > found.margin


@pytest.mark.parametrize("metric", [MAE, RMSE], ids=lambda m: m.name)
@pytest.mark.parametrize(("n", "mean", "deviation"), [(8, 40.0, 9.0), (60, 73.5, 97.0)])
@pytest.mark.parametrize("correlation", [0.8, 0.2])
def test_a_forecast_is_the_root_of_its_equation(metric, n, mean, deviation, correlation):
    """R - 1 is what is wanted times sqrt(1 + R^2 - 2 correlation R), R the ratio of means."""
    found = forecast(metric, n, mean, deviation, 0.05, correlation)
    error = deviation / mean / n**0.5
    wanted = (t_quantile(0.95, n - 1) + stats.norm.ppf(0.8)) * error

    def apart(ratio):
        return np.sqrt(1 + ratio**2 - 2 * correlation * ratio)

    ratio = brentq(lambda r: r - 1 - wanted * apart(r), 1, 1e3)
    assert found.margin == pytest.approx(ratio ** (1 / metric.power) - 1)
    limit = 1.05**metric.power
    assert found.over_limit == pytest.approx(stats.norm.sf((limit - 1) / (error * apart(limit))))
    assert forecast(metric, n, mean, deviation, 0.0, 1.0) == Forecast(0.0, 0.0)


@pytest.mark.parametrize("n", [2, 3])
def test_a_rate_over_its_limit_by_chance_is_counted(n):
    """Every image differs: eight draws in ten lose two at most, a quarter or half lose more."""
    found = forecast(TOP1, n, 0.5, 0.5, 0.0, -1.0)
    assert found.over_limit == pytest.approx({2: 0.25, 3: 0.5}[n], abs=0.05)
    assert found.margin == decrease_interval(2, n - 2, n, 0.9)[1]


def test_the_spread_of_a_rate_is_that_of_images_that_one_of_both_has_right():
    """36 of 1000 differ: the standard deviation of losses less wins is 6."""
    found = forecast(TOP1, 1000, 0.9, 0.3, 0.005)
    assert found.margin == pytest.approx((1.645 + 0.842) * 0.006, rel=0.05)
