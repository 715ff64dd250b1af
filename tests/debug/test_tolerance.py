"""The tolerance: what noise costs the metric, and how a rung's noise is measured."""

import numpy as np
import pytest

from kdcompile.debug.tolerance import FLOOR, NO_LIMIT, SHARE, noise, of_classes, of_numbers
from kdcompile.tasks.metric import MAE, RMSE, TOP1
from kdcompile.tasks.task import find_task

COUNTING, CLASSES = find_task("counting"), find_task("classification")


def counts(n=400, error=2.0):
    rng = np.random.default_rng(1)
    true = rng.uniform(10, 30, n)
    return true + error * rng.standard_normal(n), true


def test_noise_at_the_tolerance_costs_a_tenth_of_the_margin():
    predicted, true = counts()
    found = of_numbers(COUNTING, RMSE, 0.15, predicted, true)
    errors = predicted - true
    # independent noise adds in squares: rmse'^2 = rmse^2 + r^2 mean p^2
    rmse, power = np.sqrt(np.mean(errors**2)), np.mean(predicted**2)
    expected = np.sqrt(((1 + SHARE * 0.15) ** 2 - 1) * rmse**2 / power)
    assert found.noise == pytest.approx(expected, rel=0.1)
    assert found.n == 400


def test_a_network_that_errs_more_may_be_computed_less_exactly():
    few = of_numbers(COUNTING, MAE, 0.15, *counts(error=1.0)).noise
    many = of_numbers(COUNTING, MAE, 0.15, *counts(error=4.0)).noise
    assert many == pytest.approx(4 * few, rel=0.15)


def test_a_wider_margin_tolerates_more():
    narrow, wide = (of_numbers(COUNTING, MAE, m, *counts()).noise for m in (0.01, 0.2))
    assert wide > 2 * narrow


def test_a_perfect_network_is_held_to_the_floor_and_it_says_so():
    true = np.arange(1.0, 20.0)
    found = of_numbers(COUNTING, MAE, 0.15, true, true)
    assert found.noise == FLOOR
    assert "no rung is held closer" in found.why


def test_classes_far_apart_tolerate_more_noise():
    rng = np.random.default_rng(0)

    def logits(gap):
        found = []
        for _ in range(100):
            row = rng.standard_normal((1, 10)).astype(np.float32)
            row[0, 3] = row.max() + gap
            found.append(row)
        return found

    close, far = (of_classes(TOP1, 0.05, logits(gap)).noise for gap in (0.1, 4.0))
    assert far > 3 * close


def test_the_share_of_classes_that_change_at_the_tolerance_is_the_allowance():
    rng = np.random.default_rng(0)
    logits = [rng.standard_normal((1, 5)).astype(np.float32) for _ in range(200)]
    level = of_classes(TOP1, 0.2, logits).noise
    rows = np.concatenate(logits)
    centred = rows - rows.mean(axis=1, keepdims=True)
    scale = np.sqrt(np.mean(centred**2))
    noisy = centred + level * scale * rng.standard_normal((300, *centred.shape))
    changed = (noisy.argmax(2) != centred.argmax(1)).mean()
    assert changed == pytest.approx(SHARE * 0.2, rel=0.1)


def maps(*sums):
    return [np.full((1, 1, 2, 2), total / 4, np.float32) for total in sums]


def test_noise_is_the_change_of_the_prediction_over_the_predictions():
    assert noise(COUNTING, maps(10, 20), maps(11, 22)) == pytest.approx(0.1)
    assert noise(COUNTING, maps(10, 20), maps(10, 20)) == 0
    assert noise(COUNTING, maps(0), maps(1)) == NO_LIMIT


def test_noise_that_sums_to_nothing_moves_no_count_and_a_shift_of_all_logits_no_class():
    one = np.array([[[[1, 2], [3, 4]]]], np.float32)
    assert noise(COUNTING, [one], [one[..., ::-1].copy()]) == 0
    logits = np.array([[1, 2, 3]], np.float32)
    assert noise(CLASSES, [logits], [logits + 5]) == pytest.approx(0, abs=1e-6)


def test_what_is_no_number_is_noise_without_limit():
    assert noise(COUNTING, maps(1), maps(np.nan)) == NO_LIMIT
    assert noise(COUNTING, maps(1), maps(np.inf)) == NO_LIMIT
