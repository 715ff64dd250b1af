"""Intervals: known values, certainty that is never claimed, and coverage."""

import numpy as np
import pytest

from kdcompile.stats.bootstrap import interval
from kdcompile.stats.noninferiority import (
    decrease_interval,
    observed_text,
    rate_decrease_interval,
    rate_interval,
)
from kdcompile.tasks.metric import MAE, TOP1


def outcome(lost: int, won: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors of teacher and student: right to wrong, wrong to right, the rest right for both."""
    teacher, student = np.zeros(n), np.zeros(n)
    student[:lost] = 1
    teacher[lost : lost + won] = 1
    return teacher, student


def test_wilson_by_its_formula() -> None:
    errors = np.array([1.0] * 2 + [0.0] * 8)
    low, high = rate_interval(errors, 0.95)
    for bound in (low, high):  # where the normal approximation of the bound itself is z away
        z = abs(0.8 - bound) / np.sqrt(bound * (1 - bound) / 10)
        assert z == pytest.approx(1.959964, rel=1e-4)
    assert rate_interval(np.zeros(24), 0.95) == (pytest.approx(24 / (24 + 1.959964**2)), 1.0)


def test_equal_networks_on_few_images_are_not_surely_equal() -> None:
    z = 1.644854
    low, high = rate_decrease_interval(*outcome(0, 0, 24), 0.9)
    assert high == pytest.approx(z**2 / (24 + z**2), rel=1e-4)
    assert low == pytest.approx(-high)


@pytest.mark.parametrize(("lost", "won", "n"), [(60, 40, 2000), (90, 30, 1000)])
def test_many_images_agree_with_the_bootstrap(lost, won, n) -> None:
    teacher, student = outcome(lost, won, n)
    found = rate_decrease_interval(teacher, student, 0.9)
    drawn = interval(
        (teacher, student),
        lambda t, s, axis: s.mean(axis=axis) - t.mean(axis=axis),
        confidence=0.9,
        seed=0,
    )
    assert found == pytest.approx(drawn, abs=1.5e-3)


@pytest.mark.parametrize(("lost", "won", "n"), [(10, 0, 10), (0, 10, 10), (1, 1, 2), (0, 1, 2)])
def test_extremes_stay_within_bounds_and_mirror(lost, won, n) -> None:
    low, high = rate_decrease_interval(*outcome(lost, won, n), 0.9)
    assert -1 <= low <= (lost - won) / n <= high <= 1
    mirrored = rate_decrease_interval(*outcome(won, lost, n), 0.9)
    assert mirrored == pytest.approx((-high, -low), abs=1e-6)


def test_the_bound_covers_as_promised() -> None:
    rng = np.random.default_rng(0)
    draws = rng.multinomial(100, [0.06, 0.03, 0.91], 600)
    highs = [rate_decrease_interval(*outcome(lost, won, 100), 0.9)[1] for lost, won, _ in draws]
    assert np.mean(np.array(highs) >= 0.03) == pytest.approx(0.95, abs=0.025)


def test_bootstrap_bound_is_about_the_normal_one_and_seeded() -> None:
    sample = np.random.default_rng(0).normal(3, 2, 400)
    low, high = interval((sample,), np.mean, confidence=0.9, seed=1)
    half = 1.645 * sample.std(ddof=1) / 20
    assert high - sample.mean() == pytest.approx(half, rel=0.08)
    assert sample.mean() - low == pytest.approx(half, rel=0.08)
    assert interval((sample,), np.mean, confidence=0.9, seed=1) == (low, high)


def test_no_bound_of_a_rate_lies_beyond_what_a_rate_can_be() -> None:
    """Rounding alone would put some of them there, such as those of 9 and of 51 images."""
    for n in range(2, 60):
        assert rate_interval(np.zeros(n), 0.95)[1] <= 1.0
        assert rate_interval(np.ones(n), 0.95)[0] >= 0.0
    assert decrease_interval(5, 0, 5, 0.9)[1] == 1.0
    assert decrease_interval(0, 5, 5, 0.9)[0] == -1.0


@pytest.mark.parametrize(
    ("metric", "reference", "value", "text"),
    [
        (MAE, 0.5, 0.6, "mae 0.6 against 0.5 (+20.0%)"),
        (MAE, 0.0, 0.6, "mae 0.6 against 0"),
        (TOP1, 0.9, 0.88, "top1 88.00% against 90.00% (-2.00 points)"),
    ],
)
def test_both_metrics_are_told_and_their_difference_where_there_is_one(
    metric, reference, value, text
) -> None:
    assert observed_text(metric, reference, value) == text
