"""Photos that got worse: which they are, the exact bounds of their share, and the verdict."""

import numpy as np
import pytest

from kdcompile.data.task import find_task
from kdcompile.errors import KDError
from kdcompile.gates.flips import find_flips, flips
from kdcompile.gates.rates import share_bounds
from kdcompile.spec_gates import FlipsGate


def test_exact_bounds_are_those_of_the_binomial_tails():
    assert share_bounds(0, 20)[1] == pytest.approx(1 - 0.05 ** (1 / 20))
    assert share_bounds(20, 20) == (pytest.approx(0.05 ** (1 / 20)), 1)
    low, high = share_bounds(3, 30)
    counts = np.random.default_rng(0).binomial(30, [[low], [high]], (2, 40000))
    assert (counts[0] >= 3).mean() == pytest.approx(0.05, abs=0.005)
    assert (counts[1] <= 3).mean() == pytest.approx(0.05, abs=0.005)


def test_a_class_flips_where_it_was_right_and_is_wrong():
    found = find_flips(
        find_task("classification"), np.array([0.0, 0, 1, 1]), np.array([0.0, 1, 0, 1]), 0.0
    )
    assert found.worse.tolist() == [False, True, False, False]
    assert found.share == 0.25


def test_a_count_flips_where_its_error_grew_by_more_than_the_tolerance():
    teacher = np.array([2.0, -2, 2, 2])  # a mean absolute error of 2
    student = np.array([-4.0, 4.1, 0, 9])
    found = find_flips(find_task("counting"), teacher, student, 1.0)
    assert found.worse.tolist() == [False, True, False, True]
    assert "grew by more than 2" in found.rule


@pytest.mark.parametrize(
    ("n", "wrong", "most", "verdict"),
    [
        (400, 4, "5%", "passed"),
        (400, 40, "5%", "failed"),
        (400, 20, "5%", "inconclusive"),
        (20, 0, "5%", "inconclusive"),  # none of 20 leaves 14 % possible
        (59, 0, "5%", "passed"),
        (58, 0, "5%", "inconclusive"),
    ],
)
def test_the_whole_interval_decides(make_context, n, wrong, most, verdict):
    true = np.arange(n) % 3.0
    student = true.copy()
    student[:wrong] = (true[:wrong] + 1) % 3
    result = flips(FlipsGate(max=most), make_context("classification", true, true, student))
    assert result.verdict == verdict
    assert f"{wrong} of {n} photos got worse" in result.observed
    (found,) = result.measurements
    assert found.value == pytest.approx(wrong / n)
    assert found.low <= found.value <= found.high


def test_a_teacher_that_is_always_wrong_cannot_be_flipped(make_context):
    true = np.zeros(100)
    result = flips(FlipsGate(max="5%"), make_context("classification", true, true + 1, true + 1))
    assert result.verdict == "passed"


def test_no_photos_give_no_verdict(make_context):
    with pytest.raises(KDError) as caught:
        flips(FlipsGate(max="5%"), make_context("counting", [], [], []))
    assert caught.value.code == "accuracy-images"
